/* SPDX-License-Identifier: Apache-2.0 */
#include "block/filters/filter.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "block/change.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/node.h"

/* A filter cuts nothing up: the child's limits come into play below. */
static void
set_up(struct node *n, const struct node *on)
{
	const uint64_t most = (uint64_t)1 << 62;

	n->limits = (struct limits){
		.align = 1, .mem_align = 1, .max_transfer = most, .zero_align = 1,
		.max_zero = most, .discard_align = 1, .max_discard = most,
	};
	atomic_store(&n->size, node_size(on));
	n->discard_unmap = true;
	n->direct = on->direct;
	n->no_flush = on->no_flush;
	n->read_only = on->read_only;
	n->implicit = true;
}

static int
attach(struct node *n, struct node *on, struct node *other, struct error **errp)
{
	struct node *children[] = { on, other };
	struct change c;
	int r = change_begin_joining(&c, NULL, 0, children, ARRAY_SIZE(children), errp);

	if (!r)
		r = change_add_edge(&c, n, on, "file", ROLE_FILTERED | ROLE_PRIMARY, NULL,
				    errp);
	if (!r && other)
		r = change_add_edge(&c, n, other, "target", ROLE_DATA, NULL, errp);
	if (!r)
		r = change_permit(&c, errp);
	return change_end(&c, r);
}

int
filter_new(const struct driver *drv, const char *name, struct node *on,
	   struct node *other, void (*init)(struct node *n, const void *arg),
	   const void *arg, struct node **ret_node, struct error **errp)
{
	struct node *n = graph_node_new(drv, name, errp);

	if (!n)
		return -1;
	set_up(n, on);
	init(n, arg);
	n->opened = true;
	n->filename = strdup(node_filename(on));
	if (!n->filename)
		error_set(errp, "Cannot allocate memory");
	if (!n->filename || attach(n, on, other, errp) < 0) {
		node_unref(n);
		return -1;
	}
	n->life = NODE_OPEN;
	*ret_node = n;
	return 0;
}
