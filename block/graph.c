/* SPDX-License-Identifier: Apache-2.0 */
#include "block/graph.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/id.h"
#include "block/driver.h"
#include "block/node.h"
#include "schema/types.h"

struct list graph_nodes = LIST_INIT(graph_nodes);

/* A reason why a node must stay as it is.  Several may be set at once. */
struct busy {
	struct list link;
	const char *reason;
};

/* ---- names ---- */

static struct node *
find_any(const char *name)
{
	struct node *n;

	LIST_FOREACH(n, &graph_nodes, in_all)
		if (!strcmp(n->name, name))
			return n;
	return NULL;
}

static int
take_name(struct node *n, const char *name, struct error **errp)
{
	static unsigned counter;

	if (!name) {
		do
			snprintf(n->name, sizeof(n->name), "#block%u%02d", counter++,
				 rand() % 100);
		while (find_any(n->name));
		return 0;
	}
	if (!id_is_well_formed(name))
		return error_set(errp, "Invalid node-name: '%s'", name);
	if (find_any(name))
		return error_set(errp, "Duplicate nodes with node-name='%s'", name);
	if (strlen(name) > NODE_NAME_MAX)
		return error_set(errp, "Node name too long");
	strcpy(n->name, name);
	return 0;
}

/* ---- nodes and edges ---- */

struct node *
graph_node_new(const struct driver *drv, const char *name, struct error **errp)
{
	struct node *n = calloc(1, sizeof(*n));

	if (!n)
		goto no_memory;
	n->driver = drv;
	n->state = calloc(1, drv->state_size ? drv->state_size : 1);
	if (!n->state)
		goto no_memory;
	if (take_name(n, name, errp) < 0) {
		free(n->state);
		free(n);
		return NULL;
	}
	n->refs = 1;
	n->life = NODE_OPENING;
	n->shared = PERM_ALL;
	list_init(&n->edges);
	list_init(&n->users);
	list_init(&n->busy);
	dirty_set_init(&n->bitmaps);
	list_append(&graph_nodes, &n->in_all);
	return n;

no_memory:
	free(n);
	error_set(errp, "Cannot allocate memory");
	return NULL;
}

void
graph_node_free(struct node *n)
{
	assert(list_empty(&n->edges) && list_empty(&n->users));
	while (!list_empty(&n->busy))
		node_clear_busy(n, LIST_FIRST(&n->busy, struct busy, link)->reason);
	list_remove(&n->in_all);
	dirty_set_done(&n->bitmaps);
	free(n->serial);
	BlockdevOptions_free(n->options);
	free(n->filename);
	free(n->state);
	free(n);
}

struct edge *
graph_edge_new(struct node *parent, const char *name, unsigned role)
{
	struct edge *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	list_init(&e->use.link);
	e->use.name = name;
	e->use.shared = PERM_ALL;
	e->parent = parent;
	e->role = role;
	list_append(&parent->edges, &e->in_parent);
	if (!strcmp(name, "backing"))
		parent->backing = e;
	else if (!strcmp(name, "file"))
		parent->file = e;
	return e;
}

void
graph_edge_free(struct edge *e)
{
	assert(!e->child);
	if (e->parent->file == e)
		e->parent->file = NULL;
	if (e->parent->backing == e)
		e->parent->backing = NULL;
	list_remove(&e->in_parent);
	free(e);
}

void
graph_edge_point(struct edge *e, struct node *child)
{
	list_remove(&e->use.link);
	e->child = child;
	if (child)
		list_push(&child->users, &e->use.link);
}

unsigned
graph_mark(void)
{
	static unsigned mark;

	return ++mark;
}

struct edge *
edge_find(const struct node *n, const char *name)
{
	struct edge *e;

	LIST_FOREACH(e, &n->edges, in_parent)
		if (!strcmp(e->use.name, name))
			return e;
	return NULL;
}

bool
graph_reaches(const struct node *from, const struct node *to)
{
	struct edge *e;

	if (from == to)
		return true;
	LIST_FOREACH(e, &from->edges, in_parent)
		if (e->child && graph_reaches(e->child, to))
			return true;
	return false;
}

/* ---- finding and looking ---- */

struct node *
node_find(const char *name)
{
	struct node *n = find_any(name);

	return n && n->life == NODE_OPEN ? n : NULL;
}

struct node *
node_lookup(const char *name, struct error **errp)
{
	struct node *n = node_find(name);

	if (!n)
		error_set(errp, "Cannot find device='' nor node-name='%s'", name);
	return n;
}

const char *
node_name(const struct node *n)
{
	return n->name;
}

const char *
node_driver_name(const struct node *n)
{
	return n->driver->name;
}

const char *
node_filename(const struct node *n)
{
	return n->filename ? n->filename : "";
}

uint64_t
node_size(const struct node *n)
{
	return atomic_load_explicit(&n->size, memory_order_acquire);
}

bool
node_is_read_only(const struct node *n)
{
	return n->read_only;
}

bool
node_is_filter(const struct node *n)
{
	return n->driver->caps & DRIVER_FILTER;
}

bool
node_is_protocol(const struct node *n)
{
	return n->driver->caps & DRIVER_PROTOCOL;
}

struct node *
node_file(const struct node *n)
{
	return n->file ? n->file->child : NULL;
}

struct node *
node_backing(const struct node *n)
{
	if (!n->backing || !(n->backing->role & ROLE_COW))
		return NULL;
	return n->backing->child;
}

struct node *
node_filtered(const struct node *n)
{
	struct edge *e;

	if (!node_is_filter(n))
		return NULL;
	LIST_FOREACH(e, &n->edges, in_parent)
		if (e->role & ROLE_FILTERED)
			return e->child;
	return NULL;
}

struct node *
node_skip_filters(struct node *n)
{
	while (n && node_is_filter(n))
		n = node_filtered(n);
	return n;
}

struct node *
node_backing_skip(struct node *n)
{
	n = node_skip_filters(n);
	n = n ? node_backing(n) : NULL;
	return node_skip_filters(n);
}

struct node *
node_below(const struct node *n)
{
	return node_is_filter(n) ? node_filtered(n) : node_backing(n);
}

bool
node_chain_contains(const struct node *top, const struct node *base)
{
	while (top && top != base)
		top = node_below(top);
	return top;
}

bool
node_is_used_by_node(const struct node *n)
{
	struct use *u;

	LIST_FOREACH(u, &n->users, link)
		if (!u->is_root)
			return true;
	return false;
}

/* ---- busy marks ---- */

void
node_set_busy(struct node *n, const char *reason)
{
	struct busy *b = malloc(sizeof(*b));

	/* Without memory for a mark the graph is still guarded by permissions and
	 * references; only the text is a different one. */
	if (!b)
		return;
	b->reason = reason;
	list_push(&n->busy, &b->link);
}

void
node_clear_busy(struct node *n, const char *reason)
{
	struct busy *b;

	LIST_FOREACH(b, &n->busy, link) {
		if (strcmp(b->reason, reason) != 0)
			continue;
		list_remove(&b->link);
		free(b);
		return;
	}
}

int
node_check_busy(const struct node *n, struct error **errp)
{
	const struct busy *b = LIST_FIRST(&n->busy, struct busy, link);

	if (b)
		return error_set(errp, "Node '%s' is busy: %s", n->name, b->reason);
	return 0;
}

int
node_check_free(const struct node *n, struct error **errp)
{
	struct use *u;

	if (node_check_busy(n, errp) < 0)
		return -1;
	LIST_FOREACH(u, &n->users, link) {
		const struct edge *e = CONTAINER_OF(u, struct edge, use);

		if (!u->is_root && e->role & ROLE_COW)
			return error_set(errp, "Node '%s' is busy: node is used as "
					 "backing hd of '%s'", n->name, e->parent->name);
	}
	return 0;
}
