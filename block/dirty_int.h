/* SPDX-License-Identifier: Apache-2.0 */
/* block/dirty_int.h - a dirty bitmap as data; for the files of block/dirty* only. */
#ifndef BLOCK_DIRTY_INT_H
#define BLOCK_DIRTY_INT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "block/dirty.h"
#include "block/driver.h"

struct bitmap;

struct dirty_bitmap {
	struct list link;		/* in its node's set */
	struct node *node;
	char *name;

	/* Loop 0 only. */
	bool busy, persistent, read_only;

	/* Guarded by the set's lock. */
	struct bitmap *bits;
	struct bitmap *successor;	/* takes the marks; NULL: bits does */
	uint64_t reach;			/* the node's end was never beyond this one */
	bool enabled;
	bool stored;			/* the image has the same marks */
	const char *lost;		/* why it is inconsistent; NULL: it is not */
};

static inline void
dirty_lock(const struct dirty_bitmap *b)
{
	pthread_mutex_lock(&b->node->bitmaps.lock);
}

static inline void
dirty_unlock(const struct dirty_bitmap *b)
{
	pthread_mutex_unlock(&b->node->bitmaps.lock);
}

/* With the lock held, as all that follow: does it want marks? */
static inline bool
dirty_is_recording(const struct dirty_bitmap *b)
{
	return b->enabled && !b->lost;
}

/* After a change of what bitmaps n has and what they want. */
void dirty_recount(struct node *n);
/* Give b the size that its node has now. */
void dirty_fit(struct dirty_bitmap *b);

/* Without the lock: a bitmap that marks nothing yet, in n's set.  NULL: no memory. */
struct dirty_bitmap *dirty_make(struct node *n, const char *name, uint64_t granularity,
				uint64_t size);
void dirty_drop(struct dirty_bitmap *b);	/* out of its set, and freed */

#endif
