/* SPDX-License-Identifier: Apache-2.0 */
/* The driver snapshot-access: shows what another node, a copy-before-write filter,
 * keeps of an instant.  It needs no permissions, since it neither reads nor writes
 * what that node shows; nothing can be written. */
#include <errno.h>

#include "block/driver.h"
#include "block/drivers.h"
#include "block/node.h"
#include "schema/types.h"

static int
access_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsGenericFormat *o = &n->options->u.snapshot_access;

	if (opener_child(op, n, o->file, "file", ROLE_DATA | ROLE_PRIMARY | ROLE_INSTANT,
			 &n->file, errp) < 0)
		return -1;
	atomic_store(&n->size, node_size(n->file->child));
	return 0;
}

/* NULL: it keeps nothing. */
static const struct instant_ops *
ops_of(const struct node *n)
{
	return n->file->child->driver->instant;
}

static int
access_read(struct node *n, uint64_t off, const struct iov *dst)
{
	const struct instant_ops *ops = ops_of(n);

	return ops ? ops->read(n->file->child, off, dst) : -ENOTSUP;
}

static int
access_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	(void)n;
	(void)off;
	(void)src;
	(void)flags;
	return -ENOTSUP;
}

static int
access_discard(struct node *n, uint64_t off, uint64_t len)
{
	const struct instant_ops *ops = ops_of(n);

	return ops ? ops->discard(n->file->child, off, len) : -ENOTSUP;
}

/* All of it is decided here: there is no layer to look through to. */
static int
access_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
	      struct extent *ret_extent)
{
	const struct instant_ops *ops = ops_of(n);
	int err = ops ? ops->status(n->file->child, off, len, want_zero, ret_extent) : -ENOTSUP;

	if (!err)
		ret_extent->flags |= EXTENT_ALLOCATED;
	return err;
}

static void
access_child_perm(struct node *n, struct edge *e, unsigned role, perm_set perm,
		  perm_set shared, perm_set *ret_perm, perm_set *ret_shared)
{
	(void)n;
	(void)e;
	(void)role;
	(void)perm;
	(void)shared;
	*ret_perm = 0;
	*ret_shared = PERM_ALL;
}

const struct driver driver_snapshot_access = {
	.name = "snapshot-access",
	.caps = DRIVER_CHILDS_NAME,
	.open = access_open,
	.read = access_read,
	.write = access_write,
	.discard = access_discard,
	.status = access_status,
	.child_perm = access_child_perm,
};
