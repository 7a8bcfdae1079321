/* SPDX-License-Identifier: Apache-2.0 */
/* aio/timer.c - timers in a pairing heap, one timerfd a loop.
 *
 * The fd is set when the loop goes to sleep, and only if the first deadline is
 * earlier than what it is set to.  So the common life of a timer, which is set
 * as a time limit and cancelled when all went well, needs no system call; the
 * price is a wake now and then with nothing due.
 *
 * In the heap, child is the first of a timer's children, next its sibling, and
 * link the pointer that points at it; NULL in a timer that is not set.
 */
#include "aio/timer.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/loop_int.h"

/* ---- the heap ---- */

static void
attach(struct timer **link, struct timer *t)
{
	*link = t;
	if (t)
		t->link = link;
}

/* Make one heap of two; neither has a sibling. */
static struct timer *
meld(struct timer *a, struct timer *b)
{
	struct timer *first = a, *second = b;

	if (!a || !b)
		return a ? a : b;
	if (b->deadline < a->deadline) {
		first = b;
		second = a;
	}
	attach(&second->next, first->child);
	attach(&first->child, second);
	first->next = NULL;
	return first;
}

/* Make one heap of a list of siblings: in pairs to the right, then all of them
 * to the left. */
static struct timer *
meld_siblings(struct timer *list)
{
	struct timer *pairs = NULL, *heap = NULL;

	while (list) {
		struct timer *a = list, *b = a->next;

		list = b ? b->next : NULL;
		a->next = NULL;
		if (b)
			b->next = NULL;
		a = meld(a, b);
		a->next = pairs;
		pairs = a;
	}
	while (pairs) {
		struct timer *next = pairs->next;

		pairs->next = NULL;
		heap = meld(heap, pairs);
		pairs = next;
	}
	return heap;
}

static void
heap_remove(struct loop *l, struct timer *t)
{
	struct timer *below = meld_siblings(t->child);

	t->child = NULL;
	if (t == l->timers) {
		attach(&l->timers, below);
	} else {
		attach(t->link, t->next);
		attach(&l->timers, meld(l->timers, below));
	}
	t->next = NULL;
	t->link = NULL;
}

/* ---- timers ---- */

void
timer_set(struct timer *t, int64_t deadline_ns)
{
	struct loop *l = loop_tls;

	timer_cancel(t);
	t->deadline = deadline_ns;
	t->loop = l;
	t->child = t->next = NULL;
	attach(&l->timers, meld(l->timers, t));
}

void
timer_cancel(struct timer *t)
{
	if (!t->link)
		return;
	assert(t->loop == loop_tls);
	heap_remove(t->loop, t);
}

void
timer_run(struct loop *l)
{
	int64_t now;

	if (!l->timer_fired)
		return;
	l->timer_fired = false;
	now = clock_ns();
	while (l->timers && l->timers->deadline <= now) {
		struct timer *t = l->timers;

		heap_remove(l, t);
		t->fn(t);
	}
}

void
timer_arm(struct loop *l)
{
	int64_t first = l->timers ? l->timers->deadline : INT64_MAX;
	struct itimerspec at = { 0 };

	if (first >= l->armed_ns)
		return;
	/* Zero would switch it off. */
	if (first < 1)
		first = 1;
	at.it_value.tv_sec = first / 1000000000;
	at.it_value.tv_nsec = first % 1000000000;
	/* With a valid fd and time this does not fail. */
	(void)timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
	l->armed_ns = first;
}

static void
on_timer(evutil_socket_t fd, short what, void *arg)
{
	struct loop *l = arg;
	uint64_t times;
	ssize_t n = read(fd, &times, sizeof(times));

	(void)n;
	(void)what;
	l->timer_fired = true;
	l->armed_ns = INT64_MAX;
}

int
timer_loop_init(struct loop *l)
{
	l->timers = NULL;
	l->timer_fired = false;
	l->armed_ns = INT64_MAX;
	l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (l->timer_fd < 0)
		return -errno;
	l->timer_event = event_new(l->base, l->timer_fd, EV_READ | EV_PERSIST, on_timer, l);
	if (!l->timer_event || event_add(l->timer_event, NULL) < 0)
		return -ENOMEM;
	return 0;
}

void
timer_loop_free(struct loop *l)
{
	if (l->timer_event)
		event_free(l->timer_event);
	if (l->timer_fd >= 0)
		close(l->timer_fd);
	l->timer_event = NULL;
	l->timer_fd = -1;
}

/* ---- sleeping ---- */

static void
limit_reached(struct timer *t)
{
	struct co_limit *l = CONTAINER_OF(t, struct co_limit, timer);

	l->over = true;
	co_wake(l->co);
}

void
co_limit_set(struct co_limit *l, int64_t deadline_ns)
{
	l->over = false;
	l->co = co_self();
	l->timer.fn = limit_reached;
	if (deadline_ns != INT64_MAX)
		timer_set(&l->timer, deadline_ns);
}

void
co_limit_clear(struct co_limit *l)
{
	timer_cancel(&l->timer);
}

int
co_sleep(int64_t ns)
{
	struct co_limit limit = { 0 };
	int64_t now = clock_ns();

	co_limit_set(&limit, ns < INT64_MAX - now ? now + ns : INT64_MAX);
	while (!limit.over && !co_cancelled())
		co_park();
	co_limit_clear(&limit);
	return limit.over ? 0 : -ECANCELED;
}
