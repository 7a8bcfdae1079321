/* SPDX-License-Identifier: Apache-2.0 */
/* aio/loop_int.h - what the parts of aio know about a loop.  Private to aio. */
#ifndef AIO_LOOP_INT_H
#define AIO_LOOP_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/co.h"
#include "aio/ctx.h"
#include "aio/loop.h"
#include "aio/spin.h"
#include "base/list.h"

struct co_group;
struct event;
struct event_base;
struct ring;
struct timer;

/* A first-in first-out queue of tasks, through their next. */
struct task_queue {
	struct loop_task *head, **tail;
};

enum co_state {
	CO_RUNNING,	/* or runnable without a token */
	CO_TOKEN,	/* woken: the next park returns; queued if it was parked */
	CO_PARKED,
};

/* The structs are never freed while the loops exist, only reused: a late
 * co_wake() then hits a live struct, and at worst wakes somebody without
 * cause, which the contract of co_park() allows. */
struct co {
	atomic_int state;
	atomic_bool cancelled;
	atomic_uint refs;
	bool ended;
	unsigned charged;	/* since it was resumed */
	bool spawned;		/* came from, and goes back to, loop->spare */
	struct ctx ctx;
	struct co *caller;	/* who goes on when this one parks or ends */
	struct loop *loop;
	void (*fn)(void *);
	void *arg;
	struct co_group *group;
	struct loop_task task;
	struct co *next_free, *next_all;

	void *stack;		/* low end, above the guard page; NULL: none */
	const void *stack_bottom;	/* as the address sanitizer wants it */
	size_t stack_size;
	void *fake_stack;
	void *fiber;
	unsigned fiber_lives;	/* coroutines that have ended on it */
	unsigned valgrind_id;
};

/* Coroutines that have ended, most recently used first. */
struct co_pool {
	struct co *free, *bare;		/* with a stack, without */
	unsigned n_free;
};

struct loop {
	/* What other threads touch, on cache lines of its own. */
	_Atomic(struct loop_task *) posted;	/* last in, first out */
	atomic_int sleeping;
	atomic_bool quit;
	int wake_fd;
	char pad[64];

	struct event_base *base;
	struct ring *ring;		/* NULL: none */
	struct task_queue runnable;
	struct list deferred;
	struct co *current;		/* &root outside of coroutines */
	struct co root;			/* the thread's own stack */
	struct co *switched_from;
	int64_t polled_ns;		/* when events were looked at last */
	struct spin spin;

	struct co_pool pool;
	pthread_mutex_t spare_lock;
	struct co_pool spare;		/* for co_spawn(), under the lock */
	struct co *all;			/* under the lock */

	struct timer *timers;		/* a pairing heap */
	struct event *timer_event, *wake_event;
	int timer_fd;
	int64_t armed_ns;		/* what timer_fd is set to; INT64_MAX: off */
	bool timer_fired;

	unsigned index;
	bool in_use;
	bool started;			/* its thread runs, or failed with error */
	int start_error;
	char ring_reason[96];		/* why it has no ring, if it wanted one */
	pthread_t thread;
	char name[16];
};

extern _Thread_local struct loop *loop_tls;

static inline void
task_queue_init(struct task_queue *q)
{
	q->head = NULL;
	q->tail = &q->head;
}

static inline void
task_queue_push(struct task_queue *q, struct loop_task *t)
{
	t->next = NULL;
	*q->tail = t;
	q->tail = &t->next;
}

/* loop.c */
void loop_run_until(struct loop *l, atomic_bool *stop);
void loop_stop(struct loop *l);		/* any thread */

/* co.c */
void co_loop_init(struct loop *l);
void co_loop_trim(struct loop *l);	/* unmap all stacks; the structs stay */
void co_loop_free(struct loop *l);
struct co *co_get(struct loop *l, bool spawned);
int co_start_in(struct co_group *g, void (*fn)(void *), void *arg);
int co_spawn_in(struct co_group *g, struct loop *l, void (*fn)(void *), void *arg);

/* colock.c */
void co_group_child_ended(struct co_group *g);

/* timer.c */
int timer_loop_init(struct loop *l);
void timer_loop_free(struct loop *l);
void timer_run(struct loop *l);		/* what is due, if the fd has fired */
void timer_arm(struct loop *l);		/* before the loop sleeps */

/* work.c */
void work_stop(void);

#endif
