/* SPDX-License-Identifier: Apache-2.0 */
#include "aio/spin.h"

enum {
	SHORT_SLEEPS = 8,	/* in a row, before looking is tried */
	STREAK_MAX = 16,
	STREAK_START = 4,
	MISS_COSTS = 4,		/* looks that found something make up for one that did not */
	FOUND_ENOUGH = 1000,	/* and looking has paid: what went wrong before is forgotten */
};

static void
stop(struct spin *s)
{
	s->on = false;
	s->streak = 0;
}

static void
rest(struct spin *s, int64_t now)
{
	stop(s);
	s->rest_ns = s->found >= FOUND_ENOUGH || !s->rest_ns ? SPIN_REST_MIN_NS : 2 * s->rest_ns;
	if (s->rest_ns > SPIN_REST_MAX_NS)
		s->rest_ns = SPIN_REST_MAX_NS;
	s->rest_until = now + s->rest_ns;
}

void
spin_looked(struct spin *s, bool found, int64_t now)
{
	if (found) {
		s->found++;
		if (s->streak < STREAK_MAX)
			s->streak++;
	} else if (s->streak > MISS_COSTS) {
		s->streak -= MISS_COSTS;
	} else {
		rest(s, now);
	}
}

void
spin_slept(struct spin *s, int64_t slept_ns, int64_t now)
{
	bool was_short = slept_ns < SPIN_NS;

	/* There was nothing to come, so that looking did no harm. */
	if (!was_short)
		stop(s);
	else if (!s->on && now >= s->rest_until && ++s->streak >= SHORT_SLEEPS) {
		s->on = true;
		s->found = 0;
		s->streak = STREAK_START;
	}
}
