/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps in memory.
 *
 * A bitmap is fitted to its node's size whenever somebody takes it up, so a node
 * that grows by being written to has nothing to tell.  A node that shrinks has: its
 * bitmap has to know how far the node once reached, in order to mark what comes back
 * there. */
#include "block/dirty.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/node.h"
#include "schema/types.h"

enum { GRANULARITY_MIN_DEFAULT = 4096, GRANULARITY_DEFAULT = 65536 };

struct dirty_bitmap {
	struct list link;		/* in its node's set */
	struct node *node;
	char *name;
	bool busy;			/* loop 0 only */

	/* Guarded by the set's lock. */
	struct bitmap *bits;
	struct bitmap *successor;	/* takes the marks; NULL: bits does */
	uint64_t reach;			/* the node's end was never beyond this one */
	bool enabled;
	const char *lost;		/* why it is inconsistent; NULL: it is not */
};

static void
lock(const struct dirty_bitmap *b)
{
	pthread_mutex_lock(&b->node->bitmaps.lock);
}

static void
unlock(const struct dirty_bitmap *b)
{
	pthread_mutex_unlock(&b->node->bitmaps.lock);
}

/* ---- with the lock held ---- */

static bool
is_recording(const struct dirty_bitmap *b)
{
	return b->enabled && !b->lost;
}

/* After a change of what bitmaps there are and what they want. */
static void
recount(struct node *n)
{
	struct dirty_bitmap *b;
	unsigned recording = 0;

	LIST_FOREACH(b, &n->bitmaps.bitmaps, link)
		recording += is_recording(b);
	atomic_store(&n->bitmaps.recording, recording);
}

static struct bitmap *
marks(struct dirty_bitmap *b)
{
	return b->successor ? b->successor : b->bits;
}

static void
lose(struct dirty_bitmap *b, const char *why)
{
	b->lost = why;
	bitmap_clear(b->bits, 0, bitmap_size(b->bits));
	if (b->successor)
		bitmap_clear(b->successor, 0, bitmap_size(b->successor));
	recount(b->node);
}

/* Give b the size that its node has now. */
static void
fit(struct dirty_bitmap *b)
{
	uint64_t old = bitmap_size(b->bits), size = node_size(b->node);
	int err = 0;

	if (size == old)
		return;
	b->reach = max_u64(b->reach, old);
	err = bitmap_resize(&b->bits, size);
	if (!err && b->successor)
		err = bitmap_resize(&b->successor, size);
	if (err)
		lose(b, "out of memory when the node's size changed");
	else if (is_recording(b) && old < min_u64(size, b->reach))
		bitmap_set(marks(b), old, min_u64(size, b->reach) - old);
}

static void
mark(struct dirty_bitmap *b, uint64_t off, uint64_t len)
{
	struct bitmap *m;

	fit(b);
	m = marks(b);
	if (is_recording(b) && off < bitmap_size(m))
		bitmap_set(m, off, min_u64(len, bitmap_size(m) - off));
}

/* ---- for the request path ---- */

void
dirty_mark(struct node *n, uint64_t off, uint64_t len)
{
	struct dirty_bitmap *b;

	pthread_mutex_lock(&n->bitmaps.lock);
	LIST_FOREACH(b, &n->bitmaps.bitmaps, link)
		if (is_recording(b))
			mark(b, off, len);
	pthread_mutex_unlock(&n->bitmaps.lock);
}

void
dirty_resized(struct node *n)
{
	struct dirty_bitmap *b;

	pthread_mutex_lock(&n->bitmaps.lock);
	LIST_FOREACH(b, &n->bitmaps.bitmaps, link)
		fit(b);
	pthread_mutex_unlock(&n->bitmaps.lock);
}

/* ---- life ---- */

void
dirty_set_init(struct dirty_set *s)
{
	pthread_mutex_init(&s->lock, NULL);
	list_init(&s->bitmaps);
}

static void
bitmap_drop(struct dirty_bitmap *b)
{
	if (!b)
		return;
	bitmap_free(b->bits);
	bitmap_free(b->successor);
	free(b->name);
	free(b);
}

void
dirty_set_done(struct dirty_set *s)
{
	struct dirty_bitmap *b, *tmp;

	LIST_FOREACH_SAFE(b, tmp, &s->bitmaps, link) {
		list_remove(&b->link);
		bitmap_drop(b);
	}
	pthread_mutex_destroy(&s->lock);
}

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
check_options(const struct node *n, const struct dirty_options *o, struct error **errp)
{
	if (!*o->name)
		return error_set(errp, "Bitmap name cannot be empty");
	if (o->granularity &&
	    (o->granularity < DIRTY_GRANULARITY_MIN || !is_pow2(o->granularity)))
		return error_set(errp, "Granularity must be power of 2 and at least %d",
				 DIRTY_GRANULARITY_MIN);
	if (dirty_find(n, o->name))
		return error_set(errp, "Bitmap already exists: %s", o->name);
	if (strlen(o->name) > DIRTY_NAME_MAX)
		return error_set(errp, "Bitmap name too long: %s", o->name);
	return 0;
}

static struct dirty_bitmap *
bitmap_make(struct node *n, const char *name, uint64_t granularity)
{
	struct dirty_bitmap *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->node = n;
	b->name = strdup(name);
	b->reach = node_size(n);
	if (b->name && bitmap_new(b->reach, granularity, &b->bits) == 0)
		return b;
	bitmap_drop(b);
	return NULL;
}

int
dirty_add(struct node *n, const struct dirty_options *o, struct error **errp)
{
	uint64_t granularity = o->granularity ? o->granularity : default_granularity(n);
	struct dirty_bitmap *b;

	if (check_options(n, o, errp) < 0)
		return -1;
	b = bitmap_make(n, o->name, granularity);
	if (!b)
		return error_set(errp, "Cannot allocate memory");
	b->enabled = !o->disabled;
	lock(b);
	list_push(&n->bitmaps.bitmaps, &b->link);
	recount(n);
	unlock(b);
	return 0;
}

int
dirty_remove(struct dirty_bitmap *b, struct error **errp)
{
	if (dirty_check(b, DIRTY_BUSY | DIRTY_READ_ONLY, errp) < 0)
		return -1;
	lock(b);
	list_remove(&b->link);
	recount(b->node);
	unlock(b);
	bitmap_drop(b);
	return 0;
}

/* ---- finding and looking ---- */

struct dirty_bitmap *
dirty_find(const struct node *n, const char *name)
{
	struct dirty_bitmap *b;

	LIST_FOREACH(b, &n->bitmaps.bitmaps, link)
		if (!strcmp(b->name, name))
			return b;
	return NULL;
}

struct dirty_bitmap *
dirty_lookup(const char *node, const char *name, struct error **errp)
{
	struct node *n = node_find(node);
	struct dirty_bitmap *b = n ? dirty_find(n, name) : NULL;

	if (!n)
		error_set(errp, "Node '%s' not found", node);
	else if (!b)
		error_set(errp, "Dirty bitmap '%s' not found", name);
	return b;
}

struct dirty_bitmap *
dirty_after(const struct node *n, const struct dirty_bitmap *b)
{
	const struct list *end = &n->bitmaps.bitmaps, *l = b ? b->link.next : end->next;

	return l == end ? NULL : LIST_ENTRY(l, struct dirty_bitmap, link);
}

int
dirty_check(const struct dirty_bitmap *b, unsigned obstacles, struct error **errp)
{
	if (obstacles & DIRTY_BUSY && b->busy)
		return error_set(errp, "Bitmap '%s' is currently in use by another operation "
				 "and cannot be used", b->name);
	if (obstacles & DIRTY_INCONSISTENT && dirty_reason(b))
		return error_set(errp, "Bitmap '%s' is inconsistent and cannot be used",
				 b->name);
	return 0;
}

const char *
dirty_name(const struct dirty_bitmap *b)
{
	return b->name;
}

struct node *
dirty_node(const struct dirty_bitmap *b)
{
	return b->node;
}

uint64_t
dirty_granularity(const struct dirty_bitmap *b)
{
	return bitmap_granularity(b->bits);
}

bool
dirty_is_enabled(const struct dirty_bitmap *b)
{
	return b->enabled;
}

const char *
dirty_reason(const struct dirty_bitmap *b)
{
	const char *why;

	lock(b);
	why = b->lost;
	unlock(b);
	return why;
}

bool
dirty_next_run(struct dirty_bitmap *b, uint64_t off, uint64_t end, uint64_t *ret_off,
	   uint64_t *ret_len)
{
	bool found;

	lock(b);
	fit(b);
	found = bitmap_next(b->bits, off, min_u64(end, bitmap_size(b->bits)), ret_off, ret_len);
	unlock(b);
	return found;
}

static int
add_info(struct BlockDirtyInfoList *l, struct BlockDirtyInfo *i)
{
	if (i && BlockDirtyInfoList_add(l, i) == 0)
		return 0;
	BlockDirtyInfo_free(i);
	return -ENOMEM;
}

/* Clients are told of a short last granule as of a whole one. */
static uint64_t
whole_granules(const struct bitmap *bits)
{
	return round_up(bitmap_count(bits), bitmap_granularity(bits));
}

/* A successor shows itself, as one without a name. */
static int
add_successor(struct BlockDirtyInfoList *l, const struct dirty_bitmap *b)
{
	struct BlockDirtyInfo *i = calloc(1, sizeof(*i));

	if (!i)
		return -ENOMEM;
	i->count = (int64_t)whole_granules(b->successor);
	i->granularity = (uint32_t)bitmap_granularity(b->successor);
	i->recording = is_recording(b);
	return add_info(l, i);
}

static int
add_bitmap(struct BlockDirtyInfoList *l, const struct dirty_bitmap *b)
{
	struct BlockDirtyInfo *i = calloc(1, sizeof(*i));

	if (!i)
		return -ENOMEM;
	i->name = strdup(b->name);
	i->count = (int64_t)whole_granules(b->bits);
	i->granularity = (uint32_t)bitmap_granularity(b->bits);
	i->recording = is_recording(b);
	i->busy = b->busy;
	i->has_inconsistent = i->inconsistent = b->lost;
	i->x_quoin_inconsistent_reason = b->lost ? strdup(b->lost) : NULL;
	if (i->name && (i->x_quoin_inconsistent_reason || !i->inconsistent))
		return add_info(l, i);
	BlockDirtyInfo_free(i);
	return -ENOMEM;
}

int
dirty_query(struct node *n, struct BlockDirtyInfoList **ret_list)
{
	struct BlockDirtyInfoList *list;
	struct dirty_bitmap *b;
	int err = 0;

	if (list_empty(&n->bitmaps.bitmaps))
		return 0;
	list = calloc(1, sizeof(*list));
	if (!list)
		return -ENOMEM;
	pthread_mutex_lock(&n->bitmaps.lock);
	LIST_FOREACH(b, &n->bitmaps.bitmaps, link) {
		fit(b);
		if (!err && b->successor)
			err = add_successor(list, b);
		if (!err)
			err = add_bitmap(list, b);
	}
	pthread_mutex_unlock(&n->bitmaps.lock);
	if (err)
		BlockDirtyInfoList_free(list);
	else
		*ret_list = list;
	return err;
}

/* ---- what commands do ---- */

int
dirty_clear(struct dirty_bitmap *b, struct error **errp)
{
	if (dirty_check(b, DIRTY_TO_CHANGE, errp) < 0)
		return -1;
	lock(b);
	fit(b);
	bitmap_clear(b->bits, 0, bitmap_size(b->bits));
	b->reach = bitmap_size(b->bits);
	unlock(b);
	return 0;
}

int
dirty_enable(struct dirty_bitmap *b, bool enable, struct error **errp)
{
	if (dirty_check(b, DIRTY_TO_READ, errp) < 0)
		return -1;
	lock(b);
	fit(b);
	b->enabled = enable;
	recount(b->node);
	unlock(b);
	return 0;
}

/* Returns how far they tell of. */
static uint64_t
copy_marks(struct dirty_bitmap *b, struct bitmap *bits)
{
	uint64_t reach;

	lock(b);
	fit(b);
	bitmap_merge(bits, b->bits);
	reach = b->reach;
	unlock(b);
	return reach;
}

void
dirty_copy(struct dirty_bitmap *b, struct bitmap *bits)
{
	(void)copy_marks(b, bits);
}

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
	lock(b);
	fit(b);
	bitmap_merge(b->bits, sum);
	b->reach = max_u64(b->reach, reach);
	unlock(b);
	bitmap_free(sum);
	return 0;
}

/* ---- for jobs and exports ---- */

void
dirty_set_busy(struct dirty_bitmap *b, bool busy)
{
	assert(b->busy != busy);
	b->busy = busy;
}

int
dirty_freeze(struct dirty_bitmap *b, struct error **errp)
{
	struct bitmap *successor;

	if (dirty_check(b, DIRTY_TO_READ, errp) < 0)
		return -1;
	lock(b);
	fit(b);
	if (bitmap_new(bitmap_size(b->bits), bitmap_granularity(b->bits), &successor) == 0) {
		b->successor = successor;
		b->busy = true;
	}
	unlock(b);
	return b->successor ? 0 : error_set(errp, "Cannot allocate memory");
}

void
dirty_melt(struct dirty_bitmap *b, bool keep, const struct bitmap *left)
{
	lock(b);
	fit(b);
	if (keep)
		bitmap_merge(b->successor, b->bits);
	else if (left)
		bitmap_merge(b->successor, left);
	bitmap_free(b->bits);
	b->bits = b->successor;
	b->successor = NULL;
	b->busy = false;
	unlock(b);
}
