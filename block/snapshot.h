/* SPDX-License-Identifier: Apache-2.0 */
/* block/snapshot.h - internal snapshots: earlier states that an image keeps in itself.
 *
 * Where a node cannot hold any, its child does for which it is but a view.  Nothing
 * is under way on the image while one is taken or dropped: the roots above it wait.
 *
 * Context    loop 0, coroutine.
 * Errors     0 or -1 with *errp, QEMU's texts.
 */
#ifndef BLOCK_SNAPSHOT_H
#define BLOCK_SNAPSHOT_H

struct SnapshotInfo;		/* generated, schema/ */
struct error;
struct node;

/* What a driver offers whose images hold snapshots. */
struct snapshot_ops {
	/* The first one with this id and this name (NULL: any).  1, and the caller
	 * frees *ret_info; 0: there is none; -errno: there can be none. */
	int (*find)(struct node *n, const char *id, const char *name,
		    struct SnapshotInfo **ret_info);
	/* No request is under way.  0, or -errno and all is as it was. */
	int (*take)(struct node *n, const char *name);
	/* As find() found it.  On failure it may be gone, with space lost. */
	int (*drop)(struct node *n, const char *id, const char *name, struct error **errp);
};

/* The node that holds the snapshots of n: n or one below it, NULL if there is none.
 * Borrowed. */
struct node *snapshot_holder(struct node *n);

int node_snapshot_take(struct node *n, const char *name, struct error **errp);
/* id and name: NULL where they do not matter, but not both.  What was dropped is
 * told; the caller frees. */
int node_snapshot_drop(struct node *n, const char *id, const char *name,
		       struct SnapshotInfo **ret_info, struct error **errp);

#endif
