/* SPDX-License-Identifier: Apache-2.0 */
#include "block/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/change.h"
#include "block/driver.h"
#include "schema/types.h"

enum { NAME_LEN_MAX = 255 };	/* what is longer is cut, as QEMU does */

struct node *
snapshot_holder(struct node *n)
{
	while (n && !n->driver->snapshots) {
		struct node *child = NULL;
		struct edge *e;

		LIST_FOREACH(e, &n->edges, in_parent) {
			if (!(e->role & (ROLE_DATA | ROLE_METADATA | ROLE_FILTERED)))
				continue;
			if (child)
				return NULL;
			child = e->child;
		}
		n = child;
	}
	return n;
}

/* 1: *ret_info; 0: none; -1. */
static int
find(struct node *holder, const char *id, const char *name, struct SnapshotInfo **ret_info,
     struct error **errp)
{
	int r = holder ? holder->driver->snapshots->find(holder, id, name, ret_info) : -ENOTSUP;

	return r < 0 ? (error_set_errno(errp, r, "Failed to get a snapshot list"), -1) : r;
}

/* ---- taking ---- */

static int
check_take(struct node *n, struct node *holder, const char *name, struct error **errp)
{
	struct SnapshotInfo *other = NULL;
	int r;

	if (node_is_used_by_node(n))
		return error_set(errp, "Need a root block node");
	if (node_check_busy(n, errp) < 0)
		return -1;
	if (n->read_only)
		return error_set(errp, "Device '%s' is read only", n->name);
	if (!holder)
		return error_set(errp, "Block format '%s' used by device '%s' does not support "
				       "internal snapshots", n->driver->name, n->name);
	if (!*name)
		return error_set(errp, "Name is empty");
	r = find(holder, NULL, name, &other, errp);
	SnapshotInfo_free(other);
	if (r > 0)
		return error_set(errp, "Snapshot with name '%s' already exists on device '%s'",
				 name, n->name);
	return r;
}

int
node_snapshot_take(struct node *n, const char *name, struct error **errp)
{
	CLEANUP(cleanup_free) char *cut = strndup(name, NAME_LEN_MAX);
	struct node *holder = snapshot_holder(n);
	struct change c;
	int r;

	if (!cut)
		return error_set(errp, "Cannot allocate memory");
	r = change_begin(&c, &holder, 1, errp);
	if (!r)
		r = check_take(n, holder, name, errp);
	if (!r) {
		change_work(&c);
		r = holder->driver->snapshots->take(holder, cut);
		if (r < 0) {
			error_set_errno(errp, r, "Failed to create snapshot '%s' on device '%s'",
					name, n->name);
			r = -1;
		}
	}
	return change_end(&c, r);
}

/* ---- dropping ---- */

static int
drop(struct node *n, struct node *holder, const char *id, const char *name,
     struct SnapshotInfo **ret_info, struct error **errp)
{
	struct SnapshotInfo *info = NULL;
	int r;

	if (node_is_used_by_node(n))
		return error_set(errp, "Need a root block node");
	if (!id && !name)
		return error_set(errp, "Name or id must be provided");
	if (node_check_busy(n, errp) < 0)
		return -1;
	r = find(holder, id, name, &info, errp);
	if (r < 0)
		return -1;
	if (!r)
		return error_set(errp, "Snapshot with id '%s' and name '%s' does not exist on "
				       "device '%s'", id ? id : "null", name ? name : "null",
				 n->name);
	if (holder->read_only)
		r = (error_set_errno(errp, EPERM, "Failed to remove snapshot from snapshot list"),
		     -1);
	else
		r = holder->driver->snapshots->drop(holder, info->id, info->name, errp);
	if (r < 0) {
		SnapshotInfo_free(info);
		return -1;
	}
	*ret_info = info;
	return 0;
}

int
node_snapshot_drop(struct node *n, const char *id, const char *name,
		   struct SnapshotInfo **ret_info, struct error **errp)
{
	struct node *holder = snapshot_holder(n);
	struct change c;
	int r = change_begin(&c, &holder, 1, errp);

	if (!r) {
		change_work(&c);
		r = drop(n, holder, id, name, ret_info, errp);
	}
	return change_end(&c, r);
}
