/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_block.c - commands on block nodes. */
#include "daemon/cmd_block.h"

#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "block/node.h"
#include "block/open.h"
#include "schema/commands.h"
#include "schema/events.h"
#include "schema/types.h"

static const struct open_policy *policy;
static int close_failures;

static void
close_failed(const char *name, int err)
{
	close_failures++;
	log_line(LOG_LEVEL_ERROR, "node '%s' could not store all of its data when it was closed: %s",
		 name, strerror(-err));
}

static void
corrupted(const char *name, const struct node_corruption *c)
{
	log_line(LOG_LEVEL_ERROR, "the image of node '%s' is corrupt%s: %s", name,
		 c->fatal ? ", is marked so, and not used any more" : "", c->text);
	qmp_event_send_block_image_corrupted("", name, c->text, c->has_place, (int64_t)c->off,
					     c->has_place, (int64_t)c->len, c->fatal);
}

void
cmd_block_set_policy(const struct open_policy *p)
{
	policy = p;
}

int
cmd_block_close_failures(void)
{
	return close_failures;
}

void
cmd_block_done(void)
{
	node_close_all();
}

int
qmp_blockdev_add(const struct BlockdevOptions *args, struct error **errp)
{
	node_close_failed = close_failed;
	node_corrupted = corrupted;
	return node_add(args, policy, errp);
}

int
qmp_blockdev_del(const struct blockdev_del_args *args, struct error **errp)
{
	return node_del(args->node_name, errp);
}

int
qmp_query_named_block_nodes(const struct query_named_block_nodes_args *args,
			    struct BlockDeviceInfoList **ret, struct error **errp)
{
	return node_query_all(args->has_flat && args->flat, ret, errp);
}

/* QMP knows nodes by two kinds of names; devices are those of guests. */
static struct node *
find_node(const char *device, const char *name, struct error **errp)
{
	struct node *n = name ? node_find(name) : NULL;

	if (!n)
		error_set(errp, "Cannot find device='%s' nor node-name='%s'",
			  device ? device : "", name ? name : "");
	return n;
}

int
qmp_block_resize(const struct block_resize_args *args, struct error **errp)
{
	struct node *n = find_node(args->device, args->node_name, errp);
	int r;

	if (!n)
		return -1;
	if (args->size < 0)
		return error_set(errp, "Parameter 'size' expects a >0 size");
	if (node_check_free(n, errp) < 0)
		return -1;
	node_ref(n);
	r = node_resize(n, (uint64_t)args->size, errp);
	node_unref(n);
	return r;
}

int
qmp_change_backing_file(const struct change_backing_file_args *args, struct error **errp)
{
	struct node *top = node_find(args->device), *n;

	if (!top)
		return error_set(errp, "Cannot find device='%s' nor node-name='%s'", args->device,
				 args->device);
	if (node_is_used_by_node(top))
		return error_set(errp, "Need a root block node");
	n = find_node(NULL, args->image_node_name, errp);
	return n ? node_rename_backing_file(top, n, args->backing_file, errp) : -1;
}
