/* SPDX-License-Identifier: Apache-2.0 */
/* What commands do to dirty bitmaps.
 *
 * A bitmap that is stored in an image is touched before it is changed: until it is
 * stored anew the image says that its copy is out of date.  While the disk is waited
 * for the bitmap is busy. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/dirty_int.h"
#include "block/node.h"
#include "schema/types.h"

enum { GRANULARITY_MIN_DEFAULT = 4096, GRANULARITY_DEFAULT = 65536 };

/* ---- adding ---- */

static uint64_t
default_granularity(struct node *n)
{
	struct ImageInfo *info = calloc(1, sizeof(*info));
	uint64_t granularity = GRANULARITY_DEFAULT;

	if (info && n->driver->info && n->driver->info(n, info, NULL) == 0 &&
	    info->has_cluster_size && info->cluster_size > 0)
		granularity = max_u64(GRANULARITY_MIN_DEFAULT, (uint64_t)info->cluster_size);
	ImageInfo_free(info);
	return granularity;
}

static int
check_storable(struct node *n, const struct dirty_options *o, uint64_t granularity,
	       struct error **errp)
{
	const struct bitmap_ops *ops = n->driver->bitmaps;

	if (!ops)
		return error_set(errp, "Can't store persistent bitmaps to %s: Operation not "
				 "supported", n->name);
	return ops->check(n, o->name, granularity, errp);
}

static int
check_options(struct node *n, const struct dirty_options *o, uint64_t granularity,
	      struct error **errp)
{
	if (!*o->name)
		return error_set(errp, "Bitmap name cannot be empty");
	if (granularity < DIRTY_GRANULARITY_MIN || !is_pow2(granularity))
		return error_set(errp, "Granularity must be power of 2 and at least %d",
				 DIRTY_GRANULARITY_MIN);
	if (o->persistent && check_storable(n, o, granularity, errp) < 0)
		return -1;
	if (dirty_find(n, o->name))
		return error_set(errp, "Bitmap already exists: %s", o->name);
	if (strlen(o->name) > DIRTY_NAME_MAX)
		return error_set(errp, "Bitmap name too long: %s", o->name);
	return 0;
}

/* Have the image make room for it; nobody uses it before. */
static int
add_stored(struct node *n, struct dirty_bitmap *b, struct error **errp)
{
	int r;

	b->persistent = b->busy = true;
	r = n->driver->bitmaps->add(n, b, errp);
	b->busy = false;
	return r;
}

int
dirty_add(struct node *n, const struct dirty_options *o, struct error **errp)
{
	uint64_t granularity = o->granularity ? o->granularity : default_granularity(n);
	struct dirty_bitmap *b;

	if (check_options(n, o, granularity, errp) < 0)
		return -1;
	b = dirty_make(n, o->name, granularity, node_size(n));
	if (!b)
		return error_set(errp, "Cannot allocate memory");
	if (o->persistent && add_stored(n, b, errp) < 0) {
		dirty_drop(b);
		return -1;
	}
	dirty_lock(b);
	b->enabled = !o->disabled;
	dirty_recount(n);
	dirty_unlock(b);
	return 0;
}

int
dirty_remove(struct dirty_bitmap *b, struct error **errp)
{
	int r = 0;

	if (dirty_check(b, DIRTY_BUSY | DIRTY_READ_ONLY, errp) < 0)
		return -1;
	if (b->persistent) {
		b->busy = true;
		r = b->node->driver->bitmaps->remove(b->node, b, errp);
		b->busy = false;
	}
	if (!r)
		dirty_drop(b);
	return r;
}

/* ---- changing ---- */

int
dirty_touch(struct dirty_bitmap *b, unsigned obstacles, struct error **errp)
{
	int err;

	if (dirty_check(b, obstacles, errp) < 0)
		return -1;
	if (!b->persistent || b->read_only)
		return 0;
	b->busy = true;
	err = b->node->driver->bitmaps->touch(b->node);
	b->busy = false;
	if (err)
		return error_set_errno(errp, err, "Can't update bitmap directory"), -1;
	/* Much may have happened meanwhile. */
	return dirty_check(b, obstacles, errp);
}

int
dirty_clear(struct dirty_bitmap *b, struct error **errp)
{
	if (dirty_touch(b, DIRTY_TO_CHANGE, errp) < 0)
		return -1;
	dirty_lock(b);
	dirty_fit(b);
	bitmap_clear(b->bits, 0, bitmap_size(b->bits));
	b->reach = bitmap_size(b->bits);
	b->stored = false;
	dirty_unlock(b);
	return 0;
}

int
dirty_enable(struct dirty_bitmap *b, bool enable, struct error **errp)
{
	if (dirty_touch(b, DIRTY_TO_READ, errp) < 0)
		return -1;
	dirty_lock(b);
	dirty_fit(b);
	b->enabled = enable;
	b->stored = false;
	dirty_recount(b->node);
	dirty_unlock(b);
	return 0;
}

/* ---- merging ---- */

static int
check_merge(const struct dirty_bitmap *b, const struct dirty_bitmap *from,
	    struct error **errp)
{
	if (dirty_check(from, DIRTY_TO_READ, errp) < 0)
		return -1;
	if (node_size(b->node) != node_size(from->node))
		return error_set(errp, "Bitmaps are of different sizes (destination size is %llu, "
				 "source size is %llu) and can't be merged",
				 (unsigned long long)node_size(b->node),
				 (unsigned long long)node_size(from->node));
	return 0;
}

/* Returns how far b tells of. */
static uint64_t
copy_marks(struct dirty_bitmap *b, struct bitmap *bits)
{
	uint64_t reach;

	dirty_lock(b);
	dirty_fit(b);
	bitmap_merge(bits, b->bits);
	reach = b->reach;
	dirty_unlock(b);
	return reach;
}

int
dirty_merge(struct dirty_bitmap *b, struct dirty_bitmap *const *from, size_t n,
	    struct error **errp)
{
	struct bitmap *sum;
	uint64_t reach = 0;
	int r = 0;

	if (dirty_check(b, DIRTY_TO_CHANGE, errp) < 0)
		return -1;
	for (size_t i = 0; i < n && !r; i++)
		r = check_merge(b, from[i], errp);
	if (r < 0)
		return -1;
	/* By way of a copy: no two nodes' locks are held at once. */
	if (bitmap_new(node_size(b->node), dirty_granularity(b), &sum) < 0)
		return error_set(errp, "Cannot allocate memory");
	for (size_t i = 0; i < n; i++)
		reach = max_u64(reach, copy_marks(from[i], sum));
	dirty_lock(b);
	dirty_fit(b);
	bitmap_merge(b->bits, sum);
	b->reach = max_u64(b->reach, reach);
	b->stored = false;
	dirty_unlock(b);
	bitmap_free(sum);
	return 0;
}
