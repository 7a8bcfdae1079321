/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_bitmap.c - commands on dirty bitmaps. */
#include "daemon/cmd_bitmap.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "block/dirty.h"
#include "block/node.h"
#include "schema/commands.h"
#include "schema/events.h"
#include "schema/types.h"

/* The exit status is the node's affair: it is told that its close failed. */
static void
store_failed(const char *node, const char *name, int err)
{
	log_line(LOG_LEVEL_ERROR, "bitmap '%s' of node '%s' could not be stored and is "
				  "inconsistent from now on: %s", name, node, strerror(-err));
	qmp_event_send_x_quoin_bitmap_lost(node, name, strerror(-err));
}

void
cmd_bitmap_init(void)
{
	dirty_store_failed = store_failed;
}

int
qmp_block_dirty_bitmap_add(const struct BlockDirtyBitmapAdd *args, struct error **errp)
{
	CLEANUP(node_unrefp) struct node *hold = NULL;
	struct node *n = node_find(args->node);
	struct dirty_options o = {
		.name = args->name,
		.granularity = args->has_granularity ? args->granularity : 0,
		.persistent = args->has_persistent && args->persistent,
		.disabled = args->has_disabled && args->disabled,
	};

	if (!n)
		return error_set(errp, "Cannot find device='%s' nor node-name='%s'", args->node,
				 args->node);
	if (args->has_granularity && !args->granularity)
		o.granularity = 1;	/* 0 is no default here, but as wrong as 1 is */
	hold = node_ref(n);
	return dirty_add(n, &o, errp);
}

/* The bitmap, and in *ret_hold its node, which stays while the disk is waited for. */
static struct dirty_bitmap *
find(const char *node, const char *name, struct node **ret_hold, struct error **errp)
{
	struct dirty_bitmap *b = dirty_lookup(node, name, errp);

	if (b)
		*ret_hold = node_ref(dirty_node(b));
	return b;
}

int
qmp_block_dirty_bitmap_remove(const struct BlockDirtyBitmap *args, struct error **errp)
{
	CLEANUP(node_unrefp) struct node *hold = NULL;
	struct dirty_bitmap *b = find(args->node, args->name, &hold, errp);

	return b ? dirty_remove(b, errp) : -1;
}

int
qmp_block_dirty_bitmap_clear(const struct BlockDirtyBitmap *args, struct error **errp)
{
	CLEANUP(node_unrefp) struct node *hold = NULL;
	struct dirty_bitmap *b = find(args->node, args->name, &hold, errp);

	return b ? dirty_clear(b, errp) : -1;
}

int
qmp_block_dirty_bitmap_enable(const struct BlockDirtyBitmap *args, struct error **errp)
{
	CLEANUP(node_unrefp) struct node *hold = NULL;
	struct dirty_bitmap *b = find(args->node, args->name, &hold, errp);

	return b ? dirty_enable(b, true, errp) : -1;
}

int
qmp_block_dirty_bitmap_disable(const struct BlockDirtyBitmap *args, struct error **errp)
{
	CLEANUP(node_unrefp) struct node *hold = NULL;
	struct dirty_bitmap *b = find(args->node, args->name, &hold, errp);

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
	CLEANUP(node_unrefp) struct node *hold = NULL;
	struct dirty_bitmap *b = find(args->node, args->target, &hold, errp);
	CLEANUP(cleanup_free) struct dirty_bitmap **from = NULL;

	if (!b)
		return -1;
	from = calloc(args->bitmaps->count + 1, sizeof(struct dirty_bitmap *));
	if (!from)
		return error_set(errp, "Cannot allocate memory");
	/* Again behind the wait: some may be gone. */
	if (find_sources(args, from, errp) < 0 ||
	    dirty_touch(b, DIRTY_TO_CHANGE, errp) < 0 || find_sources(args, from, errp) < 0)
		return -1;
	return dirty_merge(b, from, args->bitmaps->count, errp);
}
