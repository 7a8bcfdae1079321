/* SPDX-License-Identifier: Apache-2.0 */
/* aio/colock.c - locks of coroutines, across loops.
 *
 * Each lock is a word and a list.  The word says all that the fast paths ask;
 * they change it by compare-and-swap, and only from values in which nobody
 * waits and nobody holds the guard.  The guard is a bit of the same word, held
 * for some ten instructions while the list changes; while it is set nobody
 * else changes the word, so its holder releases it by storing the new value.
 *
 * A lock is handed over: the one who releases takes the first waiter off the
 * list and lets the word say "held" throughout, so nobody can barge in, and
 * whoever is woken has the lock.  After `granted` is set the waiter's frame
 * may be gone at any moment; the coroutine itself is safe to wake (co.h).
 */
#include "aio/colock.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stddef.h>

#include "aio/co.h"
#include "aio/loop_int.h"
#include "aio/timer.h"
#include "base/cleanup.h"

enum {
	GUARD	 = 1 << 0,
	QUEUED	 = 1 << 1,	/* the list is not empty */
	LOCKED	 = 1 << 2,	/* a mutex is held, a rwlock is held by a writer */
	ONE	 = 1 << 3,	/* a rwlock's reader, a semaphore's unit */
};

enum { SPINS_MAX = 100 };

/* Returns the word as it is under the guard, without the bit. */
static unsigned
guard(atomic_uint *word)
{
	unsigned old, spins = 0;

	while ((old = atomic_fetch_or(word, GUARD)) & GUARD)
		while (atomic_load_explicit(word, memory_order_relaxed) & GUARD)
			if (++spins % SPINS_MAX == 0)
				sched_yield();	/* its holder lost the core */
	return old;
}

static void
unguard(atomic_uint *word, unsigned value)
{
	atomic_store(word, value);
}

/* ---- lists of waiters, under the guard ---- */

static void
append(struct co_waitlist *list, struct co_waiter *w)
{
	w->co = co_self();
	assert(w->co);
	atomic_store_explicit(&w->granted, false, memory_order_relaxed);
	w->queued = true;
	w->next = NULL;
	w->prev = list->tail;
	if (list->tail)
		list->tail->next = w;
	else
		list->head = w;
	list->tail = w;
}

static void
take_off(struct co_waitlist *list, struct co_waiter *w)
{
	if (w->prev)
		w->prev->next = w->next;
	else
		list->head = w->next;
	if (w->next)
		w->next->prev = w->prev;
	else
		list->tail = w->prev;
	w->queued = false;
	w->next = NULL;
}

static struct co_waiter *
pop(struct co_waitlist *list)
{
	struct co_waiter *w = list->head;

	if (w)
		take_off(list, w);
	return w;
}

/* The last touch of w; without the guard. */
static void
grant(struct co_waiter *w)
{
	struct co *co = w->co;

	atomic_store(&w->granted, true);
	co_wake(co);
}

static void
wait_granted(struct co_waiter *w)
{
	while (!atomic_load(&w->granted))
		co_park();
}

/* Leave the queue, unless we were picked already: then what we wait for is
 * ours, and the grant that is under way must be waited for. */
static bool
give_up(atomic_uint *word, struct co_waitlist *list, struct co_waiter *w)
{
	unsigned v = guard(word);
	bool left = w->queued;

	if (left)
		take_off(list, w);
	if (!list->head)
		v &= ~(unsigned)QUEUED;
	unguard(word, v);
	if (!left)
		wait_granted(w);
	return left;
}

static int
wait_granted_cancellable(atomic_uint *word, struct co_waitlist *list, struct co_waiter *w)
{
	while (!atomic_load(&w->granted)) {
		if (co_cancelled())
			return give_up(word, list, w) ? -ECANCELED : 0;
		co_park();
	}
	return 0;
}

/* ---- mutex ---- */

bool
co_mutex_trylock(struct co_mutex *m)
{
	unsigned expected = 0;

	return atomic_compare_exchange_strong(&m->word, &expected, LOCKED);
}

/* True: it is ours; else w is in the queue. */
static bool
mutex_queue(struct co_mutex *m, struct co_waiter *w)
{
	unsigned v = guard(&m->word);

	if (!(v & LOCKED)) {
		unguard(&m->word, v | LOCKED);
		return true;
	}
	append(&m->waiters, w);
	unguard(&m->word, v | QUEUED);
	return false;
}

void
co_mutex_lock(struct co_mutex *m)
{
	struct co_waiter w;

	if (!co_mutex_trylock(m) && !mutex_queue(m, &w))
		wait_granted(&w);
}

int
co_mutex_lock_cancellable(struct co_mutex *m)
{
	struct co_waiter w;

	if (co_cancelled())
		return -ECANCELED;
	if (co_mutex_trylock(m) || mutex_queue(m, &w))
		return 0;
	return wait_granted_cancellable(&m->word, &m->waiters, &w);
}

void
co_mutex_unlock(struct co_mutex *m)
{
	unsigned expected = LOCKED, v;
	struct co_waiter *w;

	if (atomic_compare_exchange_strong(&m->word, &expected, 0))
		return;
	v = guard(&m->word);
	assert(v & LOCKED);
	w = pop(&m->waiters);
	v = (w ? LOCKED : 0) | (m->waiters.head ? QUEUED : 0);
	unguard(&m->word, v);
	if (w)
		grant(w);
}

bool
co_mutex_is_locked(struct co_mutex *m)
{
	return atomic_load(&m->word) & LOCKED;
}

void
co_mutex_unlockp(struct co_mutex **m)
{
	if (*m)
		co_mutex_unlock(*m);
}

/* ---- rwlock ---- */

/* Let in whoever may come in now: one writer, or readers up to the next
 * writer.  Returns the new word and a list of those to grant. */
static unsigned
rwlock_admit(struct co_rwlock *l, unsigned v, struct co_waiter **ret_granted)
{
	struct co_waiter **tail = ret_granted, *w;

	*tail = NULL;
	while ((w = l->waiters.head) && !(v & LOCKED)) {
		if (w->writer && v >= ONE)
			break;
		take_off(&l->waiters, w);
		v += w->writer ? LOCKED : ONE;
		*tail = w;
		tail = &w->next;
	}
	return l->waiters.head ? v | QUEUED : v & ~(unsigned)QUEUED;
}

static void
rwlock_release(struct co_rwlock *l, unsigned v)
{
	struct co_waiter *w, *next;

	v = rwlock_admit(l, v, &w);
	unguard(&l->word, v);
	for (; w; w = next) {
		next = w->next;
		grant(w);
	}
}

void
co_rwlock_rdlock(struct co_rwlock *l)
{
	struct co_waiter w = { .writer = false };
	unsigned v = atomic_load(&l->word);

	while (!(v & (GUARD | QUEUED | LOCKED)))
		if (atomic_compare_exchange_weak(&l->word, &v, v + ONE))
			return;
	v = guard(&l->word);
	if (!(v & (QUEUED | LOCKED))) {
		unguard(&l->word, v + ONE);
		return;
	}
	append(&l->waiters, &w);
	unguard(&l->word, v | QUEUED);
	wait_granted(&w);
}

void
co_rwlock_wrlock(struct co_rwlock *l)
{
	struct co_waiter w = { .writer = true };
	unsigned v = 0;

	if (atomic_compare_exchange_strong(&l->word, &v, LOCKED))
		return;
	v = guard(&l->word);
	if (v == 0) {
		unguard(&l->word, LOCKED);
		return;
	}
	append(&l->waiters, &w);
	unguard(&l->word, v | QUEUED);
	wait_granted(&w);
}

void
co_rwlock_unlock(struct co_rwlock *l)
{
	unsigned v = atomic_load(&l->word);

	while (!(v & (GUARD | QUEUED)))
		if (atomic_compare_exchange_weak(&l->word, &v,
						 v & LOCKED ? v - LOCKED : v - ONE))
			return;
	v = guard(&l->word);
	assert(v & LOCKED || v >= ONE);
	rwlock_release(l, v & LOCKED ? v - LOCKED : v - ONE);
}

/* ---- queue ---- */

void
co_queue_join(struct co_queue *q, struct co_waiter *w)
{
	unsigned v = guard(&q->word);

	append(&q->waiters, w);
	unguard(&q->word, v | QUEUED);
}

void
co_queue_sleep(struct co_queue *q, struct co_waiter *w)
{
	wait_granted(w);
}

int
co_queue_sleep_cancellable(struct co_queue *q, struct co_waiter *w)
{
	return wait_granted_cancellable(&q->word, &q->waiters, w);
}

static int
queue_sleep_until(struct co_queue *q, struct co_waiter *w, int64_t deadline_ns)
{
	struct co_limit limit = { 0 };
	int r = 0;

	co_limit_set(&limit, deadline_ns);
	while (!atomic_load(&w->granted)) {
		if (co_cancelled() || limit.over) {
			if (give_up(&q->word, &q->waiters, w))
				r = co_cancelled() ? -ECANCELED : -ETIMEDOUT;
			break;
		}
		co_park();
	}
	co_limit_clear(&limit);
	return r;
}

void
co_queue_wait(struct co_queue *q, struct co_mutex *m)
{
	struct co_waiter w;

	co_queue_join(q, &w);
	if (m)
		co_mutex_unlock(m);
	co_queue_sleep(q, &w);
	if (m)
		co_mutex_lock(m);
}

int
co_queue_timedwait(struct co_queue *q, struct co_mutex *m, int64_t deadline_ns)
{
	struct co_waiter w;
	int r;

	co_queue_join(q, &w);
	if (m)
		co_mutex_unlock(m);
	if (deadline_ns == INT64_MAX)
		r = co_queue_sleep_cancellable(q, &w);
	else
		r = queue_sleep_until(q, &w, deadline_ns);
	if (m)
		co_mutex_lock(m);
	return r;
}

int
co_queue_wait_cancellable(struct co_queue *q, struct co_mutex *m)
{
	return co_queue_timedwait(q, m, INT64_MAX);
}

bool
co_queue_wake_one(struct co_queue *q)
{
	struct co_waiter *w;

	if (co_queue_empty(q))
		return false;
	guard(&q->word);
	w = pop(&q->waiters);
	unguard(&q->word, q->waiters.head ? QUEUED : 0);
	if (w)
		grant(w);
	return w;
}

void
co_queue_wake_all(struct co_queue *q)
{
	struct co_waiter *list = NULL, **tail = &list, *w;

	if (co_queue_empty(q))
		return;
	guard(&q->word);
	while ((w = pop(&q->waiters))) {
		*tail = w;
		tail = &w->next;
	}
	unguard(&q->word, 0);
	for (; list; list = w) {
		w = list->next;
		grant(list);
	}
}

/* A waiter joins under the caller's lock; whoever changes the condition under
 * that lock afterwards sees it.  GUARD alone may be a join under way. */
bool
co_queue_empty(struct co_queue *q)
{
	return !atomic_load(&q->word);
}

/* ---- semaphore ---- */

void
co_sem_init(struct co_sem *s, unsigned count)
{
	*s = (struct co_sem){ 0 };
	atomic_store(&s->word, count * ONE);
}

bool
co_sem_tryget(struct co_sem *s)
{
	unsigned v = atomic_load(&s->word);

	while (v >= ONE && !(v & (GUARD | QUEUED)))
		if (atomic_compare_exchange_weak(&s->word, &v, v - ONE))
			return true;
	return false;
}

/* True: we have one; else w is in the queue. */
static bool
sem_queue(struct co_sem *s, struct co_waiter *w)
{
	unsigned v = guard(&s->word);

	if (v >= ONE && !(v & QUEUED)) {
		unguard(&s->word, v - ONE);
		return true;
	}
	append(&s->waiters, w);
	unguard(&s->word, v | QUEUED);
	return false;
}

void
co_sem_get(struct co_sem *s)
{
	struct co_waiter w;

	if (!co_sem_tryget(s) && !sem_queue(s, &w))
		wait_granted(&w);
}

int
co_sem_get_cancellable(struct co_sem *s)
{
	struct co_waiter w;

	if (co_cancelled())
		return -ECANCELED;
	if (co_sem_tryget(s) || sem_queue(s, &w))
		return 0;
	return wait_granted_cancellable(&s->word, &s->waiters, &w);
}

void
co_sem_put(struct co_sem *s)
{
	unsigned v = atomic_load(&s->word);
	struct co_waiter *w;

	while (!(v & (GUARD | QUEUED)))
		if (atomic_compare_exchange_weak(&s->word, &v, v + ONE))
			return;
	v = guard(&s->word) & ~(unsigned)QUEUED;
	w = pop(&s->waiters);
	if (!w)
		v += ONE;
	unguard(&s->word, s->waiters.head ? v | QUEUED : v);
	if (w)
		grant(w);
}

/* ---- group ---- */

void
co_group_init(struct co_group *g)
{
	g->owner = co_self();
	assert(g->owner);
	atomic_store(&g->running, 0);
}

int
co_group_start(struct co_group *g, void (*fn)(void *arg), void *arg)
{
	int r;

	atomic_fetch_add(&g->running, 1);
	r = co_start_in(g, fn, arg);
	if (r < 0)
		co_group_child_ended(g);
	return r;
}

int
co_group_spawn(struct co_group *g, struct loop *l, void (*fn)(void *arg), void *arg)
{
	int r;

	atomic_fetch_add(&g->running, 1);
	r = co_spawn_in(g, l, fn, arg);
	if (r < 0)
		co_group_child_ended(g);
	return r;
}

/* Reads the owner first: with the last child's decrement g may be gone. */
void
co_group_child_ended(struct co_group *g)
{
	struct co *owner = g->owner;

	if (atomic_fetch_sub(&g->running, 1) == 1)
		co_wake(owner);
}

void
co_group_wait(struct co_group *g)
{
	assert(g->owner == co_self());
	while (atomic_load(&g->running))
		co_park();
}
