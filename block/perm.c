/* SPDX-License-Identifier: Apache-2.0 */
/* Permissions of a changed graph, computed before the change is committed.
 *
 * Users first: a node's parents and roots say what they do and what they share.
 * From the sums over them each node derives what it claims on its children, so
 * the nodes are taken in an order in which parents come before their children.
 * Every value set is a step of the change, so an abort restores it; a driver
 * that has something to prepare (file locks, a reopen for writing) is a step too. */
#include "block/perm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/change.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/root.h"

const char *
perm_name(perm_set one)
{
	switch (one) {
	case PERM_CONSISTENT_READ:
		return "consistent read";
	case PERM_WRITE:
		return "write";
	case PERM_WRITE_UNCHANGED:
		return "write unchanged";
	case PERM_RESIZE:
		return "resize";
	}
	return "?";
}

void
perm_names(perm_set set, char buf[PERM_NAMES_SIZE])
{
	size_t at = 0;

	buf[0] = '\0';
	for (perm_set bit = 1; bit <= PERM_ALL; bit <<= 1)
		if (set & bit)
			at += (size_t)snprintf(buf + at, PERM_NAMES_SIZE - at, "%s%s",
					       at ? ", " : "", perm_name(bit));
}

/* ---- what a parent claims on a child, by the role of the edge ---- */

/* A backing file is only ever read; who can live with a changing overlay can
 * live with a backing file that changes. */
static void
cow_perm(perm_set perm, perm_set shared, perm_set *ret_perm, perm_set *ret_shared)
{
	*ret_perm = perm & PERM_CONSISTENT_READ;
	*ret_shared = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;
	if (shared & PERM_WRITE)
		*ret_shared |= PERM_WRITE | PERM_RESIZE;
}

static void
storage_perm(const struct node *n, unsigned role, perm_set perm, perm_set shared,
	     perm_set *ret_perm, perm_set *ret_shared)
{
	/* Metadata is touched even where the guest writes nothing, and nobody
	 * else may touch it. */
	if (role & ROLE_METADATA) {
		if (!n->read_only)
			perm |= PERM_WRITE | PERM_RESIZE;
		perm |= PERM_CONSISTENT_READ;
		shared &= ~(perm_set)(PERM_WRITE | PERM_RESIZE);
	}
	/* A format knows its file's size, copies clusters to write nothing new,
	 * and writes beyond the file's end. */
	if (role & ROLE_DATA) {
		shared &= ~(perm_set)PERM_RESIZE;
		if (perm & PERM_WRITE_UNCHANGED)
			perm |= PERM_WRITE;
		if (perm & PERM_WRITE)
			perm |= PERM_RESIZE;
	}
	*ret_perm = perm;
	*ret_shared = shared;
}

void
perm_default(const struct node *n, unsigned role, perm_set perm, perm_set shared,
	     perm_set *ret_perm, perm_set *ret_shared)
{
	if (role & ROLE_COW) {
		cow_perm(perm, shared, ret_perm, ret_shared);
	} else if (role & (ROLE_METADATA | ROLE_DATA)) {
		storage_perm(n, role, perm, shared, ret_perm, ret_shared);
	} else {
		*ret_perm = perm;
		*ret_shared = shared;
	}
}

/* ---- conflicts ---- */

static char *
describe(struct use *u)
{
	struct edge *e = CONTAINER_OF(u, struct edge, use);
	char *text;

	if (u->is_root)
		return root_describe(root_of_use(u));
	return asprintf(&text, "node '%s'", e->parent->name) < 0 ? NULL : text;
}

static int
conflict(const struct node *n, struct use *a, struct use *b, struct error **errp)
{
	CLEANUP(cleanup_free) char *a_user = describe(a);
	CLEANUP(cleanup_free) char *b_user = describe(b);
	char names[PERM_NAMES_SIZE];

	perm_names(b->perm & ~a->shared, names);
	return error_set(errp,
			 "Permission conflict on node '%s': permissions '%s' are both "
			 "required by %s (uses node '%s' as '%s' child) and unshared "
			 "by %s (uses node '%s' as '%s' child).",
			 n->name, names, b_user ? b_user : "a user", n->name, b->name,
			 a_user ? a_user : "a user", n->name, a->name);
}

/* Is b a filter's edge that writes below a's parent, which stands below the filter
 * itself and sees nothing of it? */
static bool
merges_below(struct use *b, struct use *a)
{
	const struct node *filter, *layer;

	if (a->is_root || b->is_root)
		return false;
	filter = CONTAINER_OF(b, struct edge, use)->parent;
	layer = CONTAINER_OF(a, struct edge, use)->parent;
	return filter->driver->caps & DRIVER_MERGES && filter != layer &&
	       graph_reaches(filter, layer);
}

static int
check_users(struct node *n, struct error **errp)
{
	struct use *a, *b;

	LIST_FOREACH(a, &n->users, link)
		LIST_FOREACH(b, &n->users, link)
			if (a != b && (b->perm & ~a->shared) && !merges_below(b, a))
				return conflict(n, a, b, errp);
	return 0;
}

static int
check_node(const struct node *n, perm_set perm, struct error **errp)
{
	if ((perm & (PERM_WRITE | PERM_WRITE_UNCHANGED)) && n->read_only) {
		if (n->turning)
			return error_set(errp, "Read-only block node '%s' cannot support "
					 "read-write users", n->name);
		return error_set(errp, "Block node is read-only");
	}
	if ((perm & PERM_WRITE) && !(perm & PERM_RESIZE) && n->limits.align > 1 &&
	    !is_aligned(node_size(n), n->limits.align))
		return error_set(errp, "Cannot get 'write' permission without 'resize': "
				 "Image size is not a multiple of request alignment");
	return 0;
}

/* ---- the step that sets a node's sums ---- */

struct sum_step {
	struct change_step step;
	struct node *node;
	perm_set perm, shared;	/* before */
	bool prepared;
};

static void
sum_commit(struct change_step *step)
{
	struct sum_step *s = (struct sum_step *)step;

	if (s->prepared && s->node->driver->perm_commit)
		s->node->driver->perm_commit(s->node, s->node->perm, s->node->shared);
}

static void
sum_abort(struct change_step *step)
{
	struct sum_step *s = (struct sum_step *)step;

	s->node->perm = s->perm;
	s->node->shared = s->shared;
	if (s->prepared && s->node->driver->perm_abort)
		s->node->driver->perm_abort(s->node);
}

static void
sum_done(struct change_step *step, bool committed)
{
	(void)committed;
	free(step);
}

static const struct change_ops sum_ops = {
	.commit = sum_commit,
	.abort = sum_abort,
	.done = sum_done,
};

static int
set_sums(struct change *c, struct node *n, perm_set perm, perm_set shared,
	 struct error **errp)
{
	struct sum_step *s;

	if (n->perm == perm && n->shared == shared)
		return 0;
	s = malloc(sizeof(*s));
	if (!s)
		return error_set(errp, "Cannot allocate memory");
	*s = (struct sum_step){ .step.ops = &sum_ops, .node = n, .perm = n->perm,
				.shared = n->shared };
	if (n->driver->perm_prepare && n->life != NODE_CLOSING) {
		if (n->driver->perm_prepare(n, perm, shared, errp) < 0) {
			free(s);
			return -1;
		}
		s->prepared = true;
	}
	n->perm = perm;
	n->shared = shared;
	change_add(c, &s->step);
	return 0;
}

/* ---- the walk ---- */

/* Nodes in reverse: each after all that can be reached from it. */
struct order {
	struct node **nodes;
	size_t count, room;
	unsigned mark;
};

static int
visit(struct order *o, struct node *n)
{
	struct edge *e;

	if (n->mark == o->mark)
		return 0;
	n->mark = o->mark;
	LIST_FOREACH(e, &n->edges, in_parent)
		if (e->child && visit(o, e->child) < 0)
			return -1;
	if (o->count == o->room) {
		size_t room = o->room ? 2 * o->room : 16;
		struct node **p = realloc(o->nodes, room * sizeof(*p));

		if (!p)
			return -1;
		o->nodes = p;
		o->room = room;
	}
	o->nodes[o->count++] = n;
	return 0;
}

static int
permit_edge(struct change *c, struct node *n, struct edge *e, struct error **errp)
{
	perm_set perm, shared;

	if (n->driver->child_perm)
		n->driver->child_perm(n, e, e->role, n->perm, n->shared, &perm, &shared);
	else
		perm_default(n, e->role, n->perm, n->shared, &perm, &shared);
	if (e->child->force_share)
		shared = PERM_ALL;
	return change_set_perm(c, &e->use, perm, shared, errp);
}

static int
permit_node(struct change *c, struct node *n, struct error **errp)
{
	perm_set perm = 0, shared = PERM_ALL;
	struct use *u;
	struct edge *e;

	if (check_users(n, errp) < 0)
		return -1;
	LIST_FOREACH(u, &n->users, link) {
		perm |= u->perm;
		shared &= u->shared;
	}
	if (check_node(n, perm, errp) < 0 || set_sums(c, n, perm, shared, errp) < 0)
		return -1;
	LIST_FOREACH(e, &n->edges, in_parent)
		if (e->child && permit_edge(c, n, e, errp) < 0)
			return -1;
	return 0;
}

int
change_permit(struct change *c, struct error **errp)
{
	struct order o = { .mark = graph_mark() };
	int r = 0;

	for (size_t i = 0; i < c->touched_count && !r; i++)
		if (visit(&o, c->touched[i]) < 0)
			r = error_set(errp, "Cannot allocate memory");
	while (!r && o.count)
		r = permit_node(c, o.nodes[--o.count], errp);
	free(o.nodes);
	return r;
}
