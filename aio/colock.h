/* SPDX-License-Identifier: Apache-2.0 */
/* aio/colock.h - what coroutines wait on, within a loop and across loops.
 *
 * All of these are fair (first come, first served), hand over directly, and
 * lose no wake.  All are valid as zero bytes unless an init call is named, own
 * no memory, and need no destructor; nobody may be waiting when one vanishes.
 *
 * Context    coroutine on any loop, unless a call says otherwise.
 * Errors     cancellable waits return 0 or -ECANCELED, timed ones -ETIMEDOUT
 *            too; on failure the caller got nothing.  A wait that was granted
 *            just before a cancel returns 0.
 */
#ifndef AIO_COLOCK_H
#define AIO_COLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct co;
struct loop;

/* A place in a queue.  Private to aio, but for its size. */
struct co_waiter {
	struct co_waiter *prev, *next;
	struct co *co;
	atomic_bool granted;
	bool queued;
	bool writer;
};

/* Those who wait, in order.  Private to aio. */
struct co_waitlist {
	struct co_waiter *head, *tail;
};

/* ---- mutex: uncontended, one atomic instruction either way ---- */

struct co_mutex {
	atomic_uint word;
	struct co_waitlist waiters;
};

void co_mutex_lock(struct co_mutex *m);
int co_mutex_lock_cancellable(struct co_mutex *m);
bool co_mutex_trylock(struct co_mutex *m);	/* anywhere */
void co_mutex_unlock(struct co_mutex *m);	/* anywhere; m is locked */
bool co_mutex_is_locked(struct co_mutex *m);	/* for assertions */

/* For CLEANUP(co_mutex_unlockp) struct co_mutex *held = m; NULL is none. */
void co_mutex_unlockp(struct co_mutex **m);

/* ---- rwlock: many readers or one writer; a waiting writer stops new
 *      readers, so a reader must not take it again ---- */

struct co_rwlock {
	atomic_uint word;
	struct co_waitlist waiters;
};

void co_rwlock_rdlock(struct co_rwlock *l);
void co_rwlock_wrlock(struct co_rwlock *l);
void co_rwlock_unlock(struct co_rwlock *l);	/* anywhere; either kind */

/* ---- queue: wait for a condition that some lock guards ---- */

struct co_queue {
	atomic_uint word;
	struct co_waitlist waiters;
};

/* Join the queue, release m, sleep until woken, take m again.  m may be NULL,
 * where all who wait and wake are on one loop.  Callers re-check in a loop. */
void co_queue_wait(struct co_queue *q, struct co_mutex *m);
int co_queue_wait_cancellable(struct co_queue *q, struct co_mutex *m);
/* Cancellable, and until deadline_ns on clock_ns(); INT64_MAX is never. */
int co_queue_timedwait(struct co_queue *q, struct co_mutex *m, int64_t deadline_ns);

/* The same in two steps, for a condition guarded by any other lock: join while
 * holding it, release it, then sleep; w lives until then. */
void co_queue_join(struct co_queue *q, struct co_waiter *w);
void co_queue_sleep(struct co_queue *q, struct co_waiter *w);
int co_queue_sleep_cancellable(struct co_queue *q, struct co_waiter *w);

/* Wake the first or all that wait now.  Anywhere, with the lock held or not. */
bool co_queue_wake_one(struct co_queue *q);	/* was there one? */
void co_queue_wake_all(struct co_queue *q);
bool co_queue_empty(struct co_queue *q);	/* anywhere; a hint without a lock */

/* ---- counting semaphore, for limits on work in flight ---- */

struct co_sem {
	atomic_uint word;
	struct co_waitlist waiters;
};

void co_sem_init(struct co_sem *s, unsigned count);
void co_sem_get(struct co_sem *s);
int co_sem_get_cancellable(struct co_sem *s);
bool co_sem_tryget(struct co_sem *s);		/* anywhere */
void co_sem_put(struct co_sem *s);		/* anywhere */

/* ---- group: start children, wait until all have ended ---- */

struct co_group {
	struct co *owner;
	atomic_uint running;
};

/* The coroutine that inits a group is the one that waits, and must wait
 * before the group vanishes.  Children may be started by it or by a child. */
void co_group_init(struct co_group *g);
/* As co_start() and co_spawn(). */
int co_group_start(struct co_group *g, void (*fn)(void *arg), void *arg);
int co_group_spawn(struct co_group *g, struct loop *l, void (*fn)(void *arg), void *arg);
void co_group_wait(struct co_group *g);

#endif
