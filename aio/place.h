/* SPDX-License-Identifier: Apache-2.0 */
/* aio/place.h - which calls on a file are done in the calling thread.  Private
 * to aio; disk.c says why.
 *
 * All of it only guides: what is wrong here costs time and nothing else.
 *
 * Context    any thread.
 */
#ifndef AIO_PLACE_H
#define AIO_PLACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One kind of call: quick so far, or slow of late. */
struct pace {
	_Atomic int64_t away_until, away_ns, mean_ns;
};

/* What is known of an fd. */
struct place {
	atomic_bool local;		/* plain calls may be tried in place */
	atomic_bool no_nowait_read, no_nowait_write;
	struct pace read, write, seek;
};

struct place *place_of(int fd);		/* NULL: nothing can be known */

static inline bool
place_get(atomic_bool *v)
{
	return atomic_load_explicit(v, memory_order_relaxed);
}

/* May a call be done in place now? */
static inline bool
pace_allows(struct pace *p, int64_t now)
{
	return now >= atomic_load_explicit(&p->away_until, memory_order_relaxed);
}

/* It was, from start on, and moved so many bytes. */
void place_took(struct pace *p, int64_t start, size_t bytes);

#endif
