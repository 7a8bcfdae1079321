/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/cache.h - pieces of tables in memory.
 *
 * A cache holds slices: pieces of one size, in the image's byte order; of L2 tables
 * and refcount blocks it is a cluster or 4 KiB, whichever is less.  They come by demand
 * and go, when there are too many, if they are clean; the limit is soft, for a slice that
 * is dirty waits for a checkpoint, and whoever dirties slices sees to it that one comes
 * (qcow2_before_write()).
 *
 * Context    find, add, dirty, collect, settle: with q->lock held; they never
 *            yield, and a slice found is good until the lock is released.
 *            load: coroutine, without the lock.
 */
#ifndef BLOCK_QCOW2_CACHE_H
#define BLOCK_QCOW2_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "aio/colock.h"
#include "base/list.h"

struct qcow2;

enum qcow2_slice_state { QCOW2_SLICE_LOADING, QCOW2_SLICE_VALID };

struct qcow2_slice {
	struct qcow2_slice *next;	/* in its bucket */
	struct list link;		/* all of the cache, in the order of the clock */
	struct list dirty_link;
	uint64_t off;			/* where it stands in the file */
	uint8_t state;			/* enum qcow2_slice_state */
	bool used;			/* since the clock last passed */
	bool dirty;
	bool writing;			/* a copy of it is being written */
	bool dropped;			/* while it was loaded: it is not what was there */
	uint8_t *data;
};

struct qcow2_cache {
	struct qcow2_slice **buckets;
	unsigned slice_bits;		/* log2 of a slice's bytes */
	size_t bucket_bits, n, max, n_dirty;
	struct list all, dirty;
	struct co_queue loaded;		/* some slice was loaded, or failed to */
};

/* -ENOMEM. */
int qcow2_cache_init(struct qcow2_cache *c, unsigned slice_bits, size_t max_slices);
void qcow2_cache_done(struct qcow2_cache *c);	/* takes a zeroed one */

/* NULL: not there, load it. */
struct qcow2_slice *qcow2_cache_find(struct qcow2_cache *c, uint64_t off);

/* Have the slice at off in the cache; it may be gone again by the time that the
 * caller looks, who does so in a loop. */
int qcow2_cache_load(struct qcow2 *q, struct qcow2_cache *c, uint64_t off);

void qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *s);

/* Forget [off, off + len), which is no table any more. */
void qcow2_cache_drop(struct qcow2_cache *c, uint64_t off, uint64_t len);

/* Forget all that is clean and was not used since the last call. */
void qcow2_cache_clean(struct qcow2_cache *c);

/* A consistent copy of all dirty slices, sorted by offset. */
struct qcow2_batch {
	struct qcow2_cache *cache;
	size_t n, room;
	struct qcow2_slice **slices;
	uint8_t *data;			/* n slices */
};

/* Room for n slices, without the lock.  -ENOMEM or 0. */
int qcow2_batch_reserve(struct qcow2 *q, struct qcow2_batch *b, size_t n);
/* Copy all dirty slices and call them clean; false if the room is too small. */
bool qcow2_batch_collect(struct qcow2 *q, struct qcow2_cache *c, struct qcow2_batch *b);
/* Write them: coroutine, without the lock. */
int qcow2_batch_write(struct qcow2 *q, struct qcow2_batch *b);
/* After writing, or instead of it: not written, they are dirty again. */
void qcow2_batch_settle(struct qcow2 *q, struct qcow2_batch *b, bool written);
void qcow2_batch_done(struct qcow2_batch *b);

#endif
