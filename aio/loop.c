/* SPDX-License-Identifier: Apache-2.0 */
/* aio/loop.c - the turn of a loop, and what other threads hand to it.
 *
 * Posting is a stack that any thread pushes on with one compare-and-swap and
 * the loop takes whole.  To sleep, the loop first says so and then looks at
 * the stack once more; who posts pushes first and then looks whether the loop
 * sleeps.  Both sides are sequentially consistent, so at least one of them
 * sees the other, and no task is left behind on a sleeping loop.
 *
 * The eventfd is edge-triggered and never read: each write is an edge.
 *
 * Before it sleeps a loop may look for work a little longer (spin.h).  It does
 * not say that it sleeps meanwhile, so those who post need not wake it.
 */
#include "aio/loop.h"

#include <assert.h>
#include <event2/event.h>
#include <unistd.h>

#include "aio/loop_int.h"
#include "aio/ring.h"
#include "aio/timer.h"

/* In one turn, what became runnable is run this often, or for this long, before
 * the loop goes on to the deferred tasks: replies gather, and none waits long. */
enum { PASSES_MAX = 8, PASSES_NS = 50 * 1000 };

/* While there is always something to run, events are looked at this often. */
enum { EVENTS_EVERY_NS = 20 * 1000 };

_Thread_local struct loop *loop_tls;

struct loop *
loop_self(void)
{
	return loop_tls;
}

/* ---- posting ---- */

static void
wake(struct loop *l)
{
	uint64_t one = 1;
	ssize_t n = write(l->wake_fd, &one, sizeof(one));

	/* It fails only when the counter is full, and then there are edges. */
	(void)n;
}

void
loop_post(struct loop *l, struct loop_task *t)
{
	struct loop_task *head = atomic_load_explicit(&l->posted, memory_order_relaxed);

	do {
		t->next = head;
	} while (!atomic_compare_exchange_weak(&l->posted, &head, t));
	if (atomic_load(&l->sleeping) && atomic_exchange(&l->sleeping, 0))
		wake(l);
}

/* Move what was posted behind what is runnable, in the order of posting. */
static void
take_posted(struct loop *l)
{
	struct loop_task *t, *next, *ordered = NULL;

	if (!atomic_load_explicit(&l->posted, memory_order_relaxed))
		return;
	for (t = atomic_exchange(&l->posted, NULL); t; t = next) {
		next = t->next;
		t->next = ordered;
		ordered = t;
	}
	for (t = ordered; t; t = next) {
		next = t->next;
		task_queue_push(&l->runnable, t);
	}
}

void
loop_defer(struct loop_task *t)
{
	if (!t->link.next)
		list_init(&t->link);
	if (list_empty(&t->link))
		list_append(&loop_tls->deferred, &t->link);
}

void
loop_undefer(struct loop_task *t)
{
	if (t->link.next)
		list_remove(&t->link);
}

/* ---- the turn ---- */

/* Run what is runnable now, and not what that makes runnable. */
static void
run_pass(struct loop *l)
{
	struct loop_task *t = l->runnable.head, *next;

	task_queue_init(&l->runnable);
	for (; t; t = next) {
		next = t->next;
		t->fn(t);
	}
}

static void
run_all(struct loop *l)
{
	int64_t start = 0;

	for (int pass = 0; pass < PASSES_MAX; pass++) {
		take_posted(l);
		if (!l->runnable.head)
			return;
		/* The clock is read only where there is a second pass. */
		if (pass == 1)
			start = clock_ns();
		else if (pass > 1 && clock_ns() - start > PASSES_NS)
			return;
		run_pass(l);
	}
}

static void
run_deferred(struct loop *l)
{
	struct list now = LIST_INIT(now);
	struct loop_task *t;

	list_splice(&now, &l->deferred);
	while ((t = LIST_FIRST(&now, struct loop_task, link))) {
		list_remove(&t->link);
		t->fn(t);
	}
}

static void
run_turn(struct loop *l)
{
	timer_run(l);
	run_all(l);
	if (!list_empty(&l->deferred)) {
		run_deferred(l);
		run_all(l);
	}
	if (l->ring)
		ring_flush(l->ring);
}

static bool
has_work(struct loop *l)
{
	return l->runnable.head || !list_empty(&l->deferred) || atomic_load(&l->posted);
}

/* Look for SPIN_NS at most; true: there is something. */
static bool
look_around(struct loop *l)
{
	int64_t start = clock_ns(), now;
	bool found;

	do {
		event_base_loop(l->base, EVLOOP_NONBLOCK);
		now = clock_ns();
		found = has_work(l) || l->timer_fired || (l->ring && ring_has_news(l->ring));
	} while (!found && now - start < SPIN_NS);
	spin_looked(&l->spin, found, now);
	return found;
}

/* A look may have taken the edge that loop_stop() made: what it set is seen
 * here, or its edge is still to come. */
static void
sleep_until_woken(struct loop *l, const atomic_bool *stop)
{
	int64_t start = 0, now;
	bool sleeps;

	atomic_store(&l->sleeping, 1);
	sleeps = (!l->ring || ring_sleeps(l->ring, true)) && !atomic_load(&l->posted) &&
		 !atomic_load(stop);
	if (sleeps)
		start = clock_ns();
	event_base_loop(l->base, sleeps ? EVLOOP_ONCE : EVLOOP_NONBLOCK);
	atomic_store(&l->sleeping, 0);
	if (l->ring)
		ring_sleeps(l->ring, false);
	if (sleeps) {
		now = clock_ns();
		spin_slept(&l->spin, now - start, now);
	}
}

static void
wait_for_work(struct loop *l, const atomic_bool *stop)
{
	int64_t now;

	timer_arm(l);
	if (has_work(l)) {
		now = clock_ns();
		if (now - l->polled_ns < EVENTS_EVERY_NS)
			return;
		l->polled_ns = now;
		event_base_loop(l->base, EVLOOP_NONBLOCK);
		return;
	}
	if (!spin_wanted(&l->spin) || !look_around(l))
		sleep_until_woken(l, stop);
}

void
loop_run_until(struct loop *l, atomic_bool *stop)
{
	for (;;) {
		run_turn(l);
		if (atomic_load(stop))
			break;
		wait_for_work(l, stop);
	}
}

void
loop_stop(struct loop *l)
{
	atomic_store(&l->quit, true);
	wake(l);
}

void
loop_run(void)
{
	struct loop *l = loop_tls;

	assert(l && l->index == 0 && !co_self());
	loop_run_until(l, &l->quit);
	atomic_store(&l->quit, false);
}

void
loop_quit(void)
{
	loop_stop(loop_main());
}

/* ---- a coroutine run to its end ---- */

struct run_co {
	void (*fn)(void *);
	void *arg;
	atomic_bool done;
};

static void
run_co(void *arg)
{
	struct run_co *run = arg;

	run->fn(run->arg);
	atomic_store(&run->done, true);
}

int
loop_run_co(void (*fn)(void *arg), void *arg)
{
	struct run_co run = { .fn = fn, .arg = arg };
	int r;

	assert(loop_tls && loop_tls->index == 0 && !co_self());
	r = co_start(run_co, &run);
	if (r == 0)
		loop_run_until(loop_tls, &run.done);
	return r;
}
