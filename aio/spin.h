/* SPDX-License-Identifier: Apache-2.0 */
/* aio/spin.h - should a loop look for work a little longer before it sleeps?
 * Private to aio.
 *
 * To wake a thread takes longer than to serve a cached read, most of all where
 * its core was halted meanwhile.  So a loop whose sleeps are short of late keeps
 * looking for SPIN_NS before the next one.  That pays only while whoever will
 * bring the work has a core to run on: a client that shares ours waits for us to
 * sleep.  Then nothing is found until we do, and the loop stops looking: for
 * SPIN_REST_MIN_NS at first, for twice as long each time that it happens again
 * soon, up to SPIN_REST_MAX_NS.
 *
 * Context    the loop's own thread.  A zeroed struct spin is ready for use.
 * Units      nanoseconds of clock_ns().
 */
#ifndef AIO_SPIN_H
#define AIO_SPIN_H

#include <stdbool.h>
#include <stdint.h>

enum {
	SPIN_NS = 60 * 1000,
	SPIN_REST_MIN_NS = 10 * 1000 * 1000,
	SPIN_REST_MAX_NS = 1000 * 1000 * 1000,
};

struct spin {
	bool on;
	unsigned streak;	/* off: short sleeps in a row; on: looks that found something,
				 * as many as count, less those that did not */
	unsigned found;		/* since it is on */
	int64_t rest_ns, rest_until;
};

/* There is nothing to do now: look for SPIN_NS, or sleep? */
static inline bool
spin_wanted(const struct spin *s)
{
	return s->on;
}

/* A look ended: something came meanwhile, or not. */
void spin_looked(struct spin *s, bool found, int64_t now);

/* A sleep ended, after so long. */
void spin_slept(struct spin *s, int64_t slept_ns, int64_t now);

#endif
