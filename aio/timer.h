/* SPDX-License-Identifier: Apache-2.0 */
/* aio/timer.h - the clock, sleeping, and timers.
 *
 * Units      nanoseconds on clock_ns(), which starts anywhere and only grows.
 * Errors     -ECANCELED where a call is cancellable.
 */
#ifndef AIO_TIMER_H
#define AIO_TIMER_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct loop;

static inline int64_t
clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Park for at least ns.  Cancellable.  Coroutine. */
int co_sleep(int64_t ns);

/* A timer, embedded in its user and valid as zero bytes once fn is set.  fn
 * runs on the loop that set it, outside of coroutines; it may set the timer
 * again, and may free it.  No allocation, no system call in the common case
 * of a timer that is cancelled before it is due. */
struct timer {
	void (*fn)(struct timer *);
	int64_t deadline;		/* private from here on */
	struct loop *loop;
	struct timer *child, *next, **link;
};

/* Call fn once at deadline_ns, or soon after; replaces what was set.  On the
 * loop that is to call it. */
void timer_set(struct timer *t, int64_t deadline_ns);

/* After this fn never comes.  On the loop that set it; no-op if not set. */
void timer_cancel(struct timer *t);

/* A limit to how long a coroutine waits, valid as zero bytes: when it is reached,
 * over is true and the coroutine awake. */
struct co_limit {
	bool over;
	struct co *co;			/* private */
	struct timer timer;
};

/* For the calling coroutine; INT64_MAX: no limit.  It clears the limit before it goes on. */
void co_limit_set(struct co_limit *l, int64_t deadline_ns);
void co_limit_clear(struct co_limit *l);

#endif
