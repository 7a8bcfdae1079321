/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_snapshot.c - commands on internal snapshots. */
#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "block/snapshot.h"
#include "schema/commands.h"
#include "schema/types.h"

static struct node *
find_node(const char *name, struct error **errp)
{
	struct node *n = node_find(name);

	if (!n) {
		error_set(errp, "Cannot find device='%s' nor node-name='%s'", name, name);
		return NULL;
	}
	return node_ref(n);
}

int
qmp_blockdev_snapshot_internal_sync(const struct BlockdevSnapshotInternal *args,
				    struct error **errp)
{
	CLEANUP(node_unrefp) struct node *n = find_node(args->device, errp);

	return n ? node_snapshot_take(n, args->name, errp) : -1;
}

int
qmp_blockdev_snapshot_delete_internal_sync(
	const struct blockdev_snapshot_delete_internal_sync_args *args, struct SnapshotInfo **ret,
	struct error **errp)
{
	CLEANUP(node_unrefp) struct node *n = find_node(args->device, errp);

	return n ? node_snapshot_drop(n, args->id, args->name, ret, errp) : -1;
}
