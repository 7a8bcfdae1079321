/* SPDX-License-Identifier: Apache-2.0 */
/* Finding dirty bitmaps, and what clients are told of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/dirty_int.h"
#include "block/node.h"
#include "schema/types.h"

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
	if (obstacles & DIRTY_READ_ONLY && b->read_only)
		return error_set(errp, "Bitmap '%s' is readonly and cannot be modified", b->name);
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

/* ---- query-named-block-nodes ---- */

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
	i->recording = dirty_is_recording(b);
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
	i->recording = dirty_is_recording(b);
	i->busy = b->busy;
	i->persistent = b->persistent;
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
		dirty_fit(b);
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
