/* SPDX-License-Identifier: Apache-2.0 */
/* Holding nodes, and closing them when nobody does any more. */
#include <assert.h>
#include <stddef.h>

#include "aio/colock.h"
#include "base/error.h"
#include "block/change.h"
#include "block/driver.h"
#include "block/give_up.h"
#include "block/graph.h"
#include "block/io.h"
#include "block/node.h"
#include "block/root.h"

void (*node_close_failed)(const char *name, int err);
void (*node_corrupted)(const char *name, const struct node_corruption *what);

struct node *
node_ref(struct node *n)
{
	assert(n->refs > 0);
	n->refs++;
	return n;
}

/* Let go of all children, and have what is locked for us on their files loosened. */
static void
drop_edges(struct node *n)
{
	struct change c;
	struct edge *e, *tmp;
	int r = change_begin(&c, NULL, 0, NULL);

	LIST_FOREACH(e, &n->edges, in_parent)
		if (!r)
			r = change_drop_edge(&c, e, NULL);
	if (!r)
		r = change_permit(&c, NULL);
	if (change_end(&c, r) == 0)
		return;
	/* No memory to do it properly: the locks stay wider than need be. */
	LIST_FOREACH_SAFE(e, tmp, &n->edges, in_parent) {
		struct node *child = e->child;

		graph_edge_point(e, NULL);
		graph_edge_free(e);
		node_unref(child);
	}
}

/* A peer that has been silent for so long will not answer, and the node is closed
 * all the same. */
#define SILENT_NS INT64_C(10000000000)

/* What a client wrote and never flushed is stored, as far as that is possible: a
 * format writes back what it holds, and the last user's file is flushed. */
static int
store(struct node *n)
{
	struct give_up_patience p;
	int err, r = 0;

	give_up_begin(&p, n, SILENT_NS);
	err = node_is_protocol(n) && !n->read_only ? node_flush(n) : 0;
	if (!node_is_protocol(n) && n->driver->close)
		r = n->driver->close(n);
	give_up_end(&p);
	/* It has no children that could be silent, and may be asked no more. */
	if (node_is_protocol(n) && n->driver->close)
		r = n->driver->close(n);
	return err ? err : r;
}

static void
node_close(struct node *n)
{
	int err;

	n->life = NODE_CLOSING;
	while (n->pins)
		co_queue_wait(&n->unpinned, NULL);
	if (n->opened) {
		err = store(n);
		if (err && node_close_failed)
			node_close_failed(n->name, err);
	}
	drop_edges(n);
	graph_node_free(n);
}

void
node_unref(struct node *n)
{
	if (!n)
		return;
	assert(n->refs > 0);
	if (--n->refs == 0)
		node_close(n);
}

void
node_unrefp(struct node **n)
{
	node_unref(*n);
	*n = NULL;
}

struct node *
node_pin(struct node *n)
{
	n->pins++;
	return n;
}

void
node_unpin(struct node *n)
{
	if (n && --n->pins == 0)
		co_queue_wake_all(&n->unpinned);
}

/* ---- the monitor's claim ---- */

int
node_add(const struct BlockdevOptions *opts, const struct open_policy *policy,
	 struct error **errp)
{
	struct node *n;

	if (node_open(opts, policy, &n, errp) < 0)
		return -1;
	n->monitor_owned = true;
	return 0;
}

static bool
has_outside_user(const struct node *n)
{
	struct use *u;

	LIST_FOREACH(u, &n->users, link)
		if (u->is_root && !root_is_job(root_of_use(u)))
			return true;
	return false;
}

int
node_del(const char *name, struct error **errp)
{
	struct node *n = node_find(name);

	if (!n)
		return error_set(errp, "Failed to find node with node-name='%s'", name);
	if (has_outside_user(n))
		return error_set(errp, "Node %s is in use", name);
	if (node_check_free(n, errp) < 0)
		return -1;
	if (!n->monitor_owned)
		return error_set(errp, "Node %s is not owned by the monitor", name);
	if (n->refs > 1)
		return error_set(errp, "Block device %s is in use", name);
	n->monitor_owned = false;
	node_unref(n);
	return 0;
}

static bool
is_idle_peer(const struct node *n)
{
	return n->refs == 1 && node_has_peer(n);
}

/* Of those that the monitor owns the last one that fits, where that is asked. */
static struct node *
last_owned(bool (*fits)(const struct node *n))
{
	for (struct list *l = graph_nodes.prev; l != &graph_nodes; l = l->prev) {
		struct node *n = LIST_ENTRY(l, struct node, in_all);

		if (n->monitor_owned && (!fits || fits(n)))
			return n;
	}
	return NULL;
}

static void
close_owned(bool (*fits)(const struct node *n))
{
	struct node *n;

	while ((n = last_owned(fits))) {
		n->monitor_owned = false;
		node_unref(n);
	}
}

void
node_close_all(void)
{
	struct give_up_patience p;

	/* A change may hang on its disk, and hold what is to be closed. */
	give_up_begin(&p, NULL, SILENT_NS);
	change_wait_all();
	close_owned(NULL);
	give_up_end(&p);
}

void
node_close_peers(void)
{
	close_owned(is_idle_peer);
}
