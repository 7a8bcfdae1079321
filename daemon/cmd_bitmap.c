/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_bitmap.c - commands on dirty bitmaps. */
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/dirty.h"
#include "block/node.h"
#include "schema/commands.h"
#include "schema/types.h"

int
qmp_block_dirty_bitmap_add(const struct BlockDirtyBitmapAdd *args, struct error **errp)
{
	CLEANUP(node_unrefp) struct node *hold = NULL;
	struct node *n = node_find(args->node);
	struct dirty_options o = {
		.name = args->name,
		.granularity = args->has_granularity ? args->granularity : 0,
		.disabled = args->has_disabled && args->disabled,
	};

	if (!n)
		return error_set(errp, "Cannot find device='%s' nor node-name='%s'", args->node,
				 args->node);
	if (args->has_granularity && !args->granularity)
		o.granularity = 1;	/* 0 is no default here, but as wrong as 1 is */
	if (args->has_persistent && args->persistent)
		return error_set(errp, "Can't store persistent bitmaps to %s: Operation not "
				 "supported", args->node);
	hold = node_ref(n);
	return dirty_add(n, &o, errp);
}

int
qmp_block_dirty_bitmap_remove(const struct BlockDirtyBitmap *args, struct error **errp)
{
	struct dirty_bitmap *b = dirty_lookup(args->node, args->name, errp);

	return b ? dirty_remove(b, errp) : -1;
}

int
qmp_block_dirty_bitmap_clear(const struct BlockDirtyBitmap *args, struct error **errp)
{
	struct dirty_bitmap *b = dirty_lookup(args->node, args->name, errp);

	return b ? dirty_clear(b, errp) : -1;
}

int
qmp_block_dirty_bitmap_enable(const struct BlockDirtyBitmap *args, struct error **errp)
{
	struct dirty_bitmap *b = dirty_lookup(args->node, args->name, errp);

	return b ? dirty_enable(b, true, errp) : -1;
}

int
qmp_block_dirty_bitmap_disable(const struct BlockDirtyBitmap *args, struct error **errp)
{
	struct dirty_bitmap *b = dirty_lookup(args->node, args->name, errp);

	return b ? dirty_enable(b, false, errp) : -1;
}

/* Find all that are to be merged: from has room for them. */
static int
find_sources(const struct BlockDirtyBitmapMerge *args, struct dirty_bitmap **from,
	     struct error **errp)
{
	for (size_t i = 0; i < args->bitmaps->count; i++) {
		const struct BlockDirtyBitmapOrStr *s = args->bitmaps->items[i];

		from[i] = s->type == BLOCK_DIRTY_BITMAP_OR_STR_LOCAL
				  ? dirty_lookup(args->node, s->u.local, errp)
				  : dirty_lookup(s->u.external.node, s->u.external.name, errp);
		if (!from[i])
			return -1;
	}
	return 0;
}

int
qmp_block_dirty_bitmap_merge(const struct BlockDirtyBitmapMerge *args, struct error **errp)
{
	struct dirty_bitmap *b = dirty_lookup(args->node, args->target, errp);
	CLEANUP(cleanup_free) struct dirty_bitmap **from = NULL;

	if (!b)
		return -1;
	from = calloc(args->bitmaps->count + 1, sizeof(struct dirty_bitmap *));
	if (!from)
		return error_set(errp, "Cannot allocate memory");
	if (find_sources(args, from, errp) < 0)
		return -1;
	return dirty_merge(b, from, args->bitmaps->count, errp);
}
