/* SPDX-License-Identifier: Apache-2.0 */
/* block/filters/cbw.h - copy-before-write: keep what a disk holds now.
 *
 * The filter stands above `file` and owns a set of clusters that are still to be
 * kept, at first all of them.  Before a write to such a cluster passes, its old
 * content is copied to `target`.  A backup job copies the rest by the same means.
 * As a driver of blockdev-add it works alone.  What is kept can be read through a
 * node of the driver snapshot-access above the filter.
 *
 * Context    cbw_new, cbw_remove: coroutine on loop 0.  The rest: coroutine, any
 *            loop, within root_enter() of a root on the filter.
 * Errors     cbw_new, cbw_remove: 0 or -1 with *errp; the rest 0 or -errno.
 */
#ifndef BLOCK_FILTERS_CBW_H
#define BLOCK_FILTERS_CBW_H

#include <stdbool.h>
#include <stdint.h>

#include "schema/types.h"

struct bitmap;
struct dirty_bitmap;
struct error;
struct node;

struct cbw_options {
	const char *name;		/* NULL: one is made up */
	enum OnCbwError on_error;
	uint64_t min_cluster;		/* 0: as the target likes it */
	bool discard_source;		/* what was copied goes from the source */
	bool compress;
	/* Called at the instant whose content is kept: the filter stands, and no request
	 * of those above is under way.  Its failure is cbw_new()'s.  NULL: nothing. */
	int (*now)(void *user, struct node *filter, struct error **errp);
	void *user;
};

/* Made, and put above source; the caller has a reference. */
int cbw_new(const struct cbw_options *o, struct node *source, struct node *target,
	    struct node **ret_filter, struct error **errp);
/* Let all users of the filter use its source again. */
int cbw_remove(struct node *filter, struct error **errp);

uint64_t cbw_cluster(const struct node *filter);
/* The cluster size that a filter over source with such a target would have.
 * Coroutine on loop 0. */
int cbw_find_cluster(struct node *target, uint64_t min_cluster, uint64_t *ret_cluster,
		     struct error **errp);

/* The first run of clusters at or after off that are still to be kept. */
bool cbw_next(struct node *filter, uint64_t off, uint64_t *ret_off, uint64_t *ret_len);
uint64_t cbw_left(struct node *filter);		/* bytes of them */
/* A copy of the set.  -ENOMEM or 0. */
int cbw_copy_set(struct node *filter, struct bitmap **ret);
/* Before the filter is in use, or in cbw_options.now(): keep only the clusters of which
 * b marks something.  Of the others nothing remembers what they held. */
void cbw_restrict(struct node *filter, struct dirty_bitmap *b);
/* Take [off, off + len) off the set, unkept.  Waits for copies under way there. */
void cbw_skip(struct node *filter, uint64_t off, uint64_t len);
/* Keep what is still to be kept of [off, off + len): as zeroes, or by way of buf,
 * which holds len bytes.  On failure *ret_op says which side failed. */
int cbw_copy(struct node *filter, uint64_t off, uint64_t len, bool zero, void *buf,
	     enum IoOperationType *ret_op);
/* The copy is not wanted any more: writers are not held up, and fail no more, for
 * its sake.  cbw_broken() is -ECANCELED from now on. */
void cbw_abandon(struct node *filter);
/* What made the copy worthless (on-cbw-error=break-snapshot), or 0. */
int cbw_broken(const struct node *filter);

#endif
