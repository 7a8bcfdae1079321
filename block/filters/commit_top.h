/* SPDX-License-Identifier: Apache-2.0 */
/* block/filters/commit_top.h - the filter above what a commit moves down.
 *
 * It stands above `top` while data goes from top, and the layers between, into
 * `base`.  Reads pass.  Where top is the active layer, writes pass too, and the
 * filter sees to it that base gets them:
 *
 * follow mode NOTE   what was written to top is marked dirty, to be copied;
 *             BOTH   it is written to base as well, and marked only if that failed;
 *             FINAL  base equals top, and a write that base does not take fails.
 *
 * After FINAL the users of top may be moved to base at any time.
 *
 * Context    new, gather, pivot, remove: coroutine on loop 0.  The rest: coroutine, any
 *            loop; within root_enter() of a root on the filter.
 * Errors     new, gather, pivot, remove: 0 or -1 with *errp; the rest 0 or -errno.
 */
#ifndef BLOCK_FILTERS_COMMIT_TOP_H
#define BLOCK_FILTERS_COMMIT_TOP_H

#include <stdbool.h>
#include <stdint.h>

#include "schema/types.h"

struct error;
struct node;

struct commit_top_options {
	const char *name;	/* NULL: one is made up */
	bool active;		/* top is written to */
	bool grows;		/* base will be made larger */
};

/* Made, and put above top; the caller has a reference.  From now on base belongs
 * to the commit: nobody else may write to it. */
int commit_top_new(const struct commit_top_options *o, struct node *top,
		   struct node *base, struct node **ret_filter, struct error **errp);

/* Write what top shows at [off, off + len) into base: zeroes, or data by way of buf.
 * On failure *ret_op says which side failed.  Nobody writes to top. */
int commit_top_copy(struct node *filter, uint64_t off, uint64_t len, bool zero, void *buf,
		    enum IoOperationType *ret_op);
/* The same for a top that is written to; what no layer above base holds stays.  buf has
 * room for len bytes. */
int commit_top_catch_up(struct node *filter, uint64_t off, uint64_t len, void *buf,
			enum IoOperationType *ret_op);

/* The dirty set, at a granularity of COMMIT_TOP_GRANULE; active only. */
enum { COMMIT_TOP_GRANULE = 65536 };
void commit_top_mark(struct node *filter, uint64_t off, uint64_t len);
/* Take the first dirty run at or after off, at most `most` long, off the set. */
bool commit_top_take(struct node *filter, uint64_t off, uint64_t most, uint64_t *ret_off,
		     uint64_t *ret_len);
uint64_t commit_top_dirty(struct node *filter);

/* From NOTE to BOTH.  Waits for writes in flight. */
void commit_top_follow(struct node *filter);
/* From BOTH to FINAL, unless something is dirty: then false.  No commit_top_catch_up()
 * is under way. */
bool commit_top_settle(struct node *filter);

/* The images above n, top or the filter, whose headers name what is below them: an
 * array to free, of references.  Loop 0.  0 or -ENOMEM. */
int commit_top_overlays(struct node *n, struct node ***ret, size_t *ret_count);
/* The size of the largest image above that shows what is below, 0 if there is none.
 * Loop 0. */
uint64_t commit_top_reach(const struct node *filter);
/* Let those who have come to top meanwhile use the filter, so that they go along. */
int commit_top_gather(struct node *filter, struct error **errp);
/* Let all users of the filter use base.  Images above that name a layer as their
 * backing file get `file` and `fmt` in their headers instead. */
int commit_top_pivot(struct node *filter, const char *file, const char *fmt,
		     struct error **errp);
/* Let all users of the filter use top again. */
int commit_top_remove(struct node *filter, struct error **errp);

#endif
