/* SPDX-License-Identifier: Apache-2.0 */
#include "block/change.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "aio/colock.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/root.h"

static struct co_mutex change_lock;

/* Changes that work on their nodes without the lock, and who waits for them. */
static struct list working = LIST_INIT(working);
static struct co_queue work_ends;

struct stop {
	struct list link;
	struct root *root;
};

struct hold {
	struct list link;
	struct node *node;
	bool joined;	/* it gets users; nobody is stopped for that */
};

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

/* ---- stopping ---- */

static bool
is_stopped(const struct change *c, const struct root *r)
{
	struct stop *s;

	LIST_FOREACH(s, &c->stops, link)
		if (s->root == r)
			return true;
	return false;
}

/* Stop the roots above n that this change has not stopped yet; *new counts. */
static int
stop_above(struct change *c, struct node *n, unsigned mark, unsigned *new)
{
	struct use *u;

	if (n->mark == mark)
		return 0;
	n->mark = mark;
	LIST_FOREACH(u, &n->users, link) {
		struct stop *s;

		if (!u->is_root) {
			if (stop_above(c, CONTAINER_OF(u, struct edge, use)->parent,
				       mark, new) < 0)
				return -1;
			continue;
		}
		if (is_stopped(c, root_of_use(u)))
			continue;
		s = malloc(sizeof(*s));
		if (!s)
			return -1;
		s->root = root_of_use(u);
		root_stop(s->root);
		list_append(&c->stops, &s->link);
		++*new;
	}
	return 0;
}

static int
stop_all_above(struct change *c, unsigned *new)
{
	unsigned mark = graph_mark();
	struct hold *h;

	*new = 0;
	LIST_FOREACH(h, &c->held, link)
		if (!h->joined && stop_above(c, h->node, mark, new) < 0)
			return -1;
	return 0;
}

static void
resume_all(struct change *c)
{
	struct stop *s, *next;

	LIST_FOREACH_SAFE(s, next, &c->stops, link) {
		list_remove(&s->link);
		root_resume(s->root);
		free(s);
	}
}

static int
hold(struct change *c, struct node *const *nodes, size_t count, bool joined)
{
	for (size_t i = 0; i < count; i++) {
		struct hold *h;

		if (!nodes[i])
			continue;
		h = malloc(sizeof(*h));
		if (!h)
			return -1;
		h->node = node_ref(nodes[i]);
		h->joined = joined;
		list_append(&c->held, &h->link);
	}
	return 0;
}

static void
init(struct change *c)
{
	*c = (struct change){ 0 };
	list_init(&c->steps);
	list_init(&c->stops);
	list_init(&c->held);
	list_init(&c->in_working);
}

/* ---- changes that work without the lock ---- */

/* Who gets users may not have a worker's node below him; who changes may not stand
 * below one either. */
static bool
disturbs(const struct change *c, const struct change *worker)
{
	struct hold *h, *w;

	LIST_FOREACH(h, &c->held, link)
		LIST_FOREACH(w, &worker->held, link)
			if (graph_reaches(h->node, w->node) ||
			    (!h->joined && graph_reaches(w->node, h->node)))
				return true;
	return false;
}

static bool
has_to_wait(const struct change *c)
{
	struct change *w;

	LIST_FOREACH(w, &working, in_working)
		if (disturbs(c, w))
			return true;
	return false;
}

static void
commit_steps(struct change *c)
{
	struct change_step *s;

	LIST_FOREACH(s, &c->steps, link)
		if (s->ops->commit)
			s->ops->commit(s);
}

static void
finish_steps(struct change *c, bool committed)
{
	struct change_step *s, *tmp;

	LIST_FOREACH_SAFE(s, tmp, &c->steps, link) {
		list_remove(&s->link);
		s->ops->done(s, committed);
	}
	c->touched_count = 0;
}

void
change_work(struct change *c)
{
	assert(c->locked);
	commit_steps(c);
	list_append(&working, &c->in_working);
	c->locked = false;
	co_mutex_unlock(&change_lock);
	finish_steps(c, true);
}

static void
end_work(struct change *c)
{
	if (list_empty(&c->in_working))
		return;
	list_remove(&c->in_working);
	co_queue_wake_all(&work_ends);
}

void
change_resume(struct change *c)
{
	assert(!c->locked);
	co_mutex_lock(&change_lock);
	c->locked = true;
	end_work(c);
}

void
change_wait_all(void)
{
	for (;;) {
		co_mutex_lock(&change_lock);
		co_mutex_unlock(&change_lock);
		if (list_empty(&working))
			return;
		co_queue_wait(&work_ends, NULL);
	}
}

/* ---- beginning and ending ---- */

/* The lock, with nobody above the nodes held under way, or at work.
 *
 * Only roots above these nodes are ever stopped: what hangs below one of them holds up
 * the others, as all of them must stand still at one moment, and nobody else. */
static int
stop_and_lock(struct change *c, struct error **errp)
{
	unsigned new;

	for (;;) {
		struct stop *s;

		if (stop_all_above(c, &new) < 0)
			return no_memory(errp);
		/* A root cannot go while this change keeps it stopped: root_free()
		 * waits for its own turn of the lock, and tells us below. */
		LIST_FOREACH(s, &c->stops, link)
			root_wait_idle(s->root);
		co_mutex_lock(&change_lock);
		c->locked = true;
		/* While we waited, another change may have put a root above. */
		if (stop_all_above(c, &new) < 0)
			return no_memory(errp);
		if (!new && !has_to_wait(c))
			return 0;
		c->locked = false;
		co_mutex_unlock(&change_lock);
		if (new)
			continue;
		/* The work may hang on its disk for as long as it likes.  Whoever is above
		 * other nodes of this change has nothing to do with that. */
		resume_all(c);
		co_queue_wait(&work_ends, NULL);
	}
}

int
change_begin(struct change *c, struct node *const *nodes, size_t count,
	     struct error **errp)
{
	return change_begin_joining(c, nodes, count, NULL, 0, errp);
}

int
change_begin_joining(struct change *c, struct node *const *nodes, size_t count,
		     struct node *const *joined, size_t joined_count, struct error **errp)
{
	init(c);
	if (hold(c, nodes, count, false) < 0 || hold(c, joined, joined_count, true) < 0)
		return no_memory(errp);
	return stop_and_lock(c, errp);
}

int
change_end(struct change *c, int result)
{
	struct change_step *s;
	struct hold *h, *next_hold;

	if (result == 0) {
		commit_steps(c);
	} else {
		for (struct list *l = c->steps.prev; l != &c->steps; l = l->prev) {
			s = LIST_ENTRY(l, struct change_step, link);
			if (s->ops->abort)
				s->ops->abort(s);
		}
	}
	if (c->locked)
		co_mutex_unlock(&change_lock);
	end_work(c);
	resume_all(c);
	finish_steps(c, result == 0);
	LIST_FOREACH_SAFE(h, next_hold, &c->held, link) {
		node_unref(h->node);
		free(h);
	}
	free(c->touched);
	return result;
}

void
change_add(struct change *c, struct change_step *s)
{
	list_append(&c->steps, &s->link);
}

int
change_touch(struct change *c, struct node *n, struct error **errp)
{
	for (size_t i = 0; i < c->touched_count; i++)
		if (c->touched[i] == n)
			return 0;
	if (c->touched_count == c->touched_room) {
		size_t room = c->touched_room ? 2 * c->touched_room : 8;
		struct node **p = realloc(c->touched, room * sizeof(*p));

		if (!p)
			return no_memory(errp);
		c->touched = p;
		c->touched_room = room;
	}
	c->touched[c->touched_count++] = n;
	return 0;
}

/* ---- the step that points an edge or a root elsewhere ---- */

struct point_step {
	struct change_step step;
	struct edge *edge;	/* or NULL, then: */
	struct root *root;
	struct node *old, *new;
	bool fresh;		/* the edge is new: an abort frees it */
	bool drops;		/* the edge goes: a commit frees it */
};

static void
point_to(struct point_step *p, struct node *n)
{
	if (p->edge)
		graph_edge_point(p->edge, n);
	else
		root_point(p->root, n);
}

/* Requests find children by the shortcuts: they show what is there. */
static void
shortcut(struct edge *e, bool on)
{
	struct node *n = e->parent;

	if (!strcmp(e->use.name, "file"))
		n->file = on ? e : NULL;
	else if (!strcmp(e->use.name, "backing"))
		n->backing = on ? e : NULL;
}

static void
point_abort(struct change_step *s)
{
	struct point_step *p = (struct point_step *)s;

	point_to(p, p->old);
	if (p->drops)
		shortcut(p->edge, true);
	if (p->fresh)
		shortcut(p->edge, false);
}

static void
point_commit(struct change_step *s)
{
	struct point_step *p = (struct point_step *)s;

	if (p->drops)
		graph_edge_free(p->edge);
}

static void
point_done(struct change_step *s, bool committed)
{
	struct point_step *p = (struct point_step *)s;
	struct node *unused = committed ? p->old : p->new;

	if (!committed && p->fresh)
		graph_edge_free(p->edge);
	if (unused)
		node_unref(unused);
	free(p);
}

static const struct change_ops point_ops = {
	.commit = point_commit,
	.abort = point_abort,
	.done = point_done,
};

/* What was written on the old way may not be stored yet, and a flush on the new
 * way must not think that there is nothing to do. */
static void
expect_flush(const struct point_step *p)
{
	if (!p->old || !p->new)
		return;
	atomic_store(&p->new->dirty, true);
	if (p->edge)
		atomic_store(&p->edge->parent->dirty, true);
}

static int
point(struct change *c, struct point_step p, struct error **errp)
{
	struct point_step *s;

	if ((p.old && change_touch(c, p.old, errp) < 0) ||
	    (p.new && change_touch(c, p.new, errp) < 0) ||
	    (p.edge && change_touch(c, p.edge->parent, errp) < 0))
		return -1;
	s = malloc(sizeof(*s));
	if (!s)
		return no_memory(errp);
	*s = p;
	s->step.ops = &point_ops;
	if (s->new)
		node_ref(s->new);
	point_to(s, s->new);
	expect_flush(s);
	if (s->drops)
		shortcut(s->edge, false);
	change_add(c, &s->step);
	return 0;
}

int
change_add_edge(struct change *c, struct node *parent, struct node *child,
		const char *name, unsigned role, struct edge **ret_edge,
		struct error **errp)
{
	struct edge *e = graph_edge_new(parent, name, role);

	if (!e)
		return no_memory(errp);
	if (point(c, (struct point_step){ .edge = e, .new = child, .fresh = true },
		  errp) < 0) {
		graph_edge_free(e);
		return -1;
	}
	if (ret_edge)
		*ret_edge = e;
	return 0;
}

int
change_point_edge(struct change *c, struct edge *e, struct node *child,
		  struct error **errp)
{
	return point(c, (struct point_step){ .edge = e, .old = e->child, .new = child },
		     errp);
}

int
change_drop_edge(struct change *c, struct edge *e, struct error **errp)
{
	return point(c, (struct point_step){ .edge = e, .old = e->child, .drops = true },
		     errp);
}

int
change_link_root(struct change *c, struct root *r, struct node *n, struct error **errp)
{
	return point(c, (struct point_step){ .root = r, .new = n }, errp);
}

int
change_point_root(struct change *c, struct root *r, struct node *n, struct error **errp)
{
	return point(c, (struct point_step){ .root = r, .old = root_node(r), .new = n },
		     errp);
}

/* Whom moving would put into a cycle, and who wants what `from` itself keeps, not what
 * a node above it shows or keeps. */
static bool
stays(const struct edge *e, const struct node *from, const struct node *to)
{
	return graph_reaches(to, e->parent) ||
	       (e->role & ROLE_INSTANT && graph_reaches(to, from));
}

int
change_move_users(struct change *c, struct node *from, struct node *to,
		  struct error **errp)
{
	struct list users = LIST_INIT(users);
	struct use *u;
	int r = 0;

	/* Oldest first, so that the order on `to` is as it was here.  Each one is
	 * parked on a list of our own, because pointing it moves it. */
	list_splice(&users, &from->users);
	while (!r && !list_empty(&users)) {
		struct edge *e;

		u = LIST_ENTRY(users.prev, struct use, link);
		list_remove(&u->link);
		list_push(&from->users, &u->link);
		e = CONTAINER_OF(u, struct edge, use);
		if (u->is_root)
			r = change_point_root(c, root_of_use(u), to, errp);
		else if (!stays(e, from, to))
			r = change_point_edge(c, e, to, errp);
	}
	list_splice(&from->users, &users);
	return r;
}

/* ---- the step that sets what a use claims ---- */

struct perm_step {
	struct change_step step;
	struct use *use;
	perm_set perm, shared;	/* before */
};

static void
perm_step_abort(struct change_step *s)
{
	struct perm_step *p = (struct perm_step *)s;

	p->use->perm = p->perm;
	p->use->shared = p->shared;
}

static void
perm_step_done(struct change_step *s, bool committed)
{
	(void)committed;
	free(s);
}

static const struct change_ops perm_step_ops = {
	.abort = perm_step_abort,
	.done = perm_step_done,
};

int
change_set_perm(struct change *c, struct use *u, perm_set perm, perm_set shared,
		struct error **errp)
{
	struct perm_step *p;

	if (u->perm == perm && u->shared == shared)
		return 0;
	p = malloc(sizeof(*p));
	if (!p)
		return no_memory(errp);
	p->step.ops = &perm_step_ops;
	p->use = u;
	p->perm = u->perm;
	p->shared = u->shared;
	u->perm = perm;
	u->shared = shared;
	change_add(c, &p->step);
	return 0;
}
