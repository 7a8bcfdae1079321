/* SPDX-License-Identifier: Apache-2.0 */
/* block/dirty.h - dirty bitmaps: what of a node was changed since some moment.
 *
 * A bitmap belongs to a node and lives as long as it, unless it is removed before.
 * While it is enabled it marks every granule that a write, a zeroing or a discard
 * of the node touches, whoever asked for it and whether it succeeded or not.
 *
 * A change is marked after it was made and before its caller learns of it.  So a
 * clear, or any other act on a bitmap, that comes between the two loses nothing:
 * the mark follows.  With the roots above the node stopped nothing is under way,
 * and a bitmap says exactly what has changed.
 *
 * A bitmap in use by a job or an export is busy: it cannot be removed or changed
 * by commands.  A job that copies what a bitmap marks freezes it; new changes are
 * marked in its successor until the job melts the two into one again.
 *
 * A bitmap is inconsistent where its content was lost.  It marks nothing any more
 * and is good for nothing but to be removed; dirty_reason() says what happened.
 *
 * Size       the node's, also when that changes.  Space that a node lost and got
 *            back is marked: its content is another.
 * Units      offsets and lengths are bytes.
 * Context    loop 0, but for what is said to be good for any thread: it needs a
 *            bitmap that cannot go away, because it is busy and its node is held.
 * Ownership  pointers are borrowed; they are good until the bitmap is removed.
 * Errors     0 or -1 with *errp, QEMU's texts; or 0 or -errno.
 */
#ifndef BLOCK_DIRTY_H
#define BLOCK_DIRTY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

struct BlockDirtyInfoList;	/* generated, schema/ */
struct dirty_bitmap;
struct error;
struct node;

enum { DIRTY_NAME_MAX = 1023, DIRTY_GRANULARITY_MIN = 512 };

/* A node's bitmaps; part of struct node. */
struct dirty_set {
	pthread_mutex_t lock;		/* guards all of its bitmaps; never over a yield */
	struct list bitmaps;		/* changed on loop 0 only; newest first */
	_Atomic unsigned recording;	/* so many of them want marks */
};

void dirty_set_init(struct dirty_set *s);
void dirty_set_done(struct dirty_set *s);	/* frees the bitmaps */

/* ---- finding and looking ---- */

struct dirty_bitmap *dirty_find(const struct node *n, const char *name);	/* NULL: none */
/* By the names that a client gave, with the text for what is not there. */
struct dirty_bitmap *dirty_lookup(const char *node, const char *name, struct error **errp);
/* The bitmap behind b, of the newest; b NULL: the newest; NULL: no more. */
struct dirty_bitmap *dirty_after(const struct node *n, const struct dirty_bitmap *b);

/* What of a bitmap stands in the way of whoever wants to use it. */
enum dirty_obstacle {
	DIRTY_BUSY	   = 1 << 0,
	DIRTY_READ_ONLY	   = 1 << 1,	/* it is stored in an image that is read-only */
	DIRTY_INCONSISTENT = 1 << 2,
	DIRTY_TO_READ	   = DIRTY_BUSY | DIRTY_INCONSISTENT,
	DIRTY_TO_CHANGE	   = DIRTY_TO_READ | DIRTY_READ_ONLY,
};
int dirty_check(const struct dirty_bitmap *b, unsigned obstacles, struct error **errp);

const char *dirty_name(const struct dirty_bitmap *b);
struct node *dirty_node(const struct dirty_bitmap *b);
uint64_t dirty_granularity(const struct dirty_bitmap *b);
bool dirty_is_enabled(const struct dirty_bitmap *b);
const char *dirty_reason(const struct dirty_bitmap *b);	/* NULL: it is consistent */

/* The first marked run at or after off, cut to end; any thread.  False: none. */
bool dirty_next_run(struct dirty_bitmap *b, uint64_t off, uint64_t end, uint64_t *ret_off,
		uint64_t *ret_len);

/* The list for query-named-block-nodes; *ret_list stays as it is where there are no
 * bitmaps.  -ENOMEM or 0. */
int dirty_query(struct node *n, struct BlockDirtyInfoList **ret_list);

/* ---- what commands do; each takes effect at one instant ---- */

struct dirty_options {
	const char *name;
	uint64_t granularity;	/* 0: as the node's clusters suggest */
	bool persistent;	/* stored in the node's image */
	bool disabled;
};

/* Coroutine, and the caller holds the node: the image may have to be written. */
int dirty_add(struct node *n, const struct dirty_options *o, struct error **errp);
int dirty_remove(struct dirty_bitmap *b, struct error **errp);
int dirty_clear(struct dirty_bitmap *b, struct error **errp);
int dirty_enable(struct dirty_bitmap *b, bool enable, struct error **errp);
/* Mark in b what n others mark, which may be of other nodes.  It waits for nothing,
 * so dirty_touch() has to come before, and finding the others behind that. */
int dirty_merge(struct dirty_bitmap *b, struct dirty_bitmap *const *from, size_t n,
		struct error **errp);
/* Have the image say that what it knows of b is out of date.  Fails for what of
 * obstacles (enum dirty_obstacle) there is. */
int dirty_touch(struct dirty_bitmap *b, unsigned obstacles, struct error **errp);

/* ---- for jobs and exports ---- */

void dirty_set_busy(struct dirty_bitmap *b, bool busy);

/* From now on b, which is busy then, stays as it is, and its successor marks what
 * changes. */
int dirty_freeze(struct dirty_bitmap *b, struct error **errp);
/* The end of it.  keep: b marks what it did and what the successor does; else only
 * what the successor does, and what `left`, which may be NULL, still marks. */
struct bitmap;
void dirty_melt(struct dirty_bitmap *b, bool keep, const struct bitmap *left);

/* Set in bits what b marks. */
void dirty_copy(struct dirty_bitmap *b, struct bitmap *bits);

/* ---- for drivers that store them ---- */

/* A bitmap that the image of n has, marking nothing yet.  NULL: no memory. */
struct dirty_bitmap *dirty_new_stored(struct node *n, const char *name, uint64_t granularity,
				      bool enabled);
/* One whose content is lost; why is a literal. */
struct dirty_bitmap *dirty_new_lost(struct node *n, const char *name, uint64_t granularity,
				    const char *why);
/* Bytes of a bitmap (base/bitmap.h) from `first` on; zeroes behind its end. */
void dirty_load(struct dirty_bitmap *b, uint64_t first, const void *bytes, size_t len);
void dirty_save(struct dirty_bitmap *b, uint64_t first, void *bytes, size_t len);
/* Is the image's copy as good?  It is from dirty_set_stored() to the next change. */
bool dirty_is_stored(const struct dirty_bitmap *b);
void dirty_set_stored(struct dirty_bitmap *b);
void dirty_set_read_only(struct dirty_bitmap *b, bool read_only);

/* Called, where set, when bitmap `name` could not be stored as its node was closed; err
 * is a negative errno. */
extern void (*dirty_store_failed)(const char *node, const char *name, int err);

/* ---- for the request path; any thread ---- */

/* [off, off + len) was changed.  Call it where n->bitmaps.recording is not 0. */
void dirty_mark(struct node *n, uint64_t off, uint64_t len);
/* The node's size is another one now. */
void dirty_resized(struct node *n);

#endif
