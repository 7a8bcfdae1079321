/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/passfilter.h"

#include <stddef.h>

#include "base/error.h"
#include "block/driver.h"
#include "block/node.h"

static int
pass_open(struct node *n, struct opener *op, struct error **errp)
{
	struct node *on = n->open_arg;

	(void)op;
	atomic_store(&n->size, node_size(on));
	return node_attach(n, on, "file", ROLE_FILTERED | ROLE_PRIMARY, NULL, errp);
}

static int
pass_read(struct node *n, uint64_t off, const struct iov *dst)
{
	return node_read(n->file->child, off, dst);
}

static int
pass_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	return node_write(n->file->child, off, src, flags);
}

static int
pass_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return node_zero(n->file->child, off, len, flags);
}

static int
pass_discard(struct node *n, uint64_t off, uint64_t len)
{
	return node_discard(n->file->child, off, len);
}

static const struct driver pass_driver = {
	.name = "pass",
	.caps = DRIVER_FILTER | DRIVER_FUA | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST,
	.open = pass_open,
	.read = pass_read,
	.write = pass_write,
	.zero = pass_zero,
	.discard = pass_discard,
};

int
passfilter_open(struct node *on, const char *name, struct node **ret_node,
		struct error **errp)
{
	return node_open_driver(&pass_driver, name, on, false, ret_node, errp);
}
