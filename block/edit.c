/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of the graph as commands and jobs ask for them, each one a change. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "block/change.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/node.h"

enum { BACKING_NAME_MAX = 1023 };	/* bytes, in any format */

/* ---- filters and replacing ---- */

/* What is to be done last in a change, and may fail; fn NULL: nothing. */
struct finish {
	int (*fn)(void *arg, struct error **errp);
	void *arg;
};

static int
move_all(struct node *from, struct node *to, struct edge *drop, struct finish finish,
	 struct error **errp)
{
	struct node *concerned[] = { from, to };
	struct change c;
	int r = change_begin(&c, concerned, ARRAY_SIZE(concerned), errp);

	if (!r)
		r = change_move_users(&c, from, to, errp);
	/* Also where there was no user to move: a filter claims its children only
	 * from now on, or no longer. */
	if (!r)
		r = change_touch(&c, from, errp);
	if (!r)
		r = change_touch(&c, to, errp);
	if (!r && drop)
		r = change_drop_edge(&c, drop, errp);
	if (!r)
		r = change_permit(&c, errp);
	if (!r && finish.fn)
		r = finish.fn(finish.arg, errp);
	return change_end(&c, r);
}

int
node_insert_above(struct node *on, struct node *filter, struct error **errp)
{
	return move_all(on, filter, NULL, (struct finish){ 0 }, errp);
}

int
node_insert_above_then(struct node *on, struct node *filter,
		       int (*now)(void *arg, struct error **errp), void *arg,
		       struct error **errp)
{
	return move_all(on, filter, NULL, (struct finish){ now, arg }, errp);
}

static struct edge *
filtered_edge(const struct node *n)
{
	struct edge *e;

	LIST_FOREACH(e, &n->edges, in_parent)
		if (e->role & ROLE_FILTERED)
			return e;
	return NULL;
}

int
node_remove_filter(struct node *n, struct error **errp)
{
	struct edge *e = filtered_edge(n);

	if (!e)
		return error_set(errp, "Node '%s' is not a filter", n->name);
	return move_all(n, e->child, e, (struct finish){ 0 }, errp);
}

int
node_replace(struct node *from, struct node *to, struct error **errp)
{
	return from == to ? 0 : move_all(from, to, NULL, (struct finish){ 0 }, errp);
}

/* ---- backing files ---- */

static int
write_backing(struct node *n, const char *file, const char *fmt, struct error **errp)
{
	if (!n->driver->change_backing)
		return error_set(errp, "Driver '%s' of node '%s' records no backing file",
				 n->driver->name, n->name);
	if (n->read_only)
		return error_set(errp, "Node '%s' is read only", n->name);
	return n->driver->change_backing(n, file, fmt, errp);
}

int
node_change_backing_file(struct node *n, const char *file, const char *fmt,
			 struct error **errp)
{
	struct change c;
	int r = change_begin(&c, &n, 1, errp);

	if (!r) {
		change_work(&c);
		r = write_backing(n, file, fmt, errp);
	}
	return change_end(&c, r);
}

/* ---- read-only and back ---- */

/* A change of two halves: the nodes are switched, files with them, and permissions
 * computed, with the lock held; and the formats are told, who may have much to write
 * (tables and bitmaps) or to repair, without it.  A format writes by a file that is
 * writable, so it is told before the switch to reading, and behind the switch to
 * writing.  Nobody is under way above n meanwhile. */

/* Undoes what one node's switch has done. */
struct mode_step {
	struct change_step step;
	struct node *node;
	bool read_only;		/* what it was switched to */
	bool driver_done;	/* the driver has switched too */
};

static void
mode_commit(struct change_step *s)
{
	((struct mode_step *)s)->node->turning = false;
}

static void
mode_abort(struct change_step *s)
{
	struct mode_step *m = (struct mode_step *)s;

	m->node->read_only = !m->read_only;
	m->node->turning = false;
	if (m->driver_done)
		(void)m->node->driver->set_read_only(m->node, !m->read_only, NULL);
}

static void
mode_done(struct change_step *s, bool committed)
{
	(void)committed;
	free(s);
}

static const struct change_ops mode_ops = {
	.commit = mode_commit,
	.abort = mode_abort,
	.done = mode_done,
};

/* Switch the flag, and the driver of a file as well. */
static int
switch_node(struct change *c, struct node *n, bool read_only, struct error **errp)
{
	struct mode_step *m = malloc(sizeof(*m));

	if (!m || change_touch(c, n, errp) < 0) {
		if (!m)
			error_set(errp, "Cannot allocate memory");
		free(m);
		return -1;
	}
	*m = (struct mode_step){ .step.ops = &mode_ops, .node = n,
				 .read_only = read_only };
	n->read_only = read_only;
	n->turning = true;
	change_add(c, &m->step);
	if (!node_is_protocol(n) || !n->driver->set_read_only)
		return 0;
	if (n->driver->set_read_only(n, read_only, errp) < 0)
		return -1;
	m->driver_done = true;
	return 0;
}

/* Is e to storage of n's own, that was opened with it and follows its mode?  A
 * filter stores nothing but what passes through it. */
static bool
is_own(const struct node *n, const struct edge *e)
{
	if (!e->child || !e->child->inherits || e->role & ROLE_COW)
		return false;
	return e == n->file || (e->role & ROLE_DATA && !node_is_filter(n));
}

static int switch_own(struct change *c, struct node *n, bool read_only, struct error **errp);

/* The file first on the way to writing, last on the way back. */
static int
switch_tree(struct change *c, struct node *n, bool read_only, struct error **errp)
{
	if (n->read_only == read_only)
		return 0;
	if (!read_only && switch_own(c, n, false, errp) < 0)
		return -1;
	if (switch_node(c, n, read_only, errp) < 0)
		return -1;
	return read_only ? switch_own(c, n, true, errp) : 0;
}

static int
switch_own(struct change *c, struct node *n, bool read_only, struct error **errp)
{
	struct edge *e;

	LIST_FOREACH(e, &n->edges, in_parent)
		if (is_own(n, e) && switch_tree(c, e->child, read_only, errp) < 0)
			return -1;
	return 0;
}

static int tell_formats(struct node *n, bool read_only, struct error **errp);

/* n's own children, all or none. */
static int
tell_own(struct node *n, bool read_only, struct error **errp)
{
	struct edge *e, *failed = NULL;

	LIST_FOREACH(e, &n->edges, in_parent) {
		if (is_own(n, e) && tell_formats(e->child, read_only, errp) < 0) {
			failed = e;
			break;
		}
	}
	if (!failed)
		return 0;
	LIST_FOREACH(e, &n->edges, in_parent) {
		if (e == failed)
			break;
		if (is_own(n, e))
			(void)tell_formats(e->child, !read_only, NULL);
	}
	return -1;
}

/* The formats of n and its own storage, all or none: each before what it writes by on
 * the way to reading, behind it on the way back. */
static int
tell_formats(struct node *n, bool read_only, struct error **errp)
{
	bool tell = !node_is_protocol(n) && n->driver->set_read_only;

	if (read_only && tell && n->driver->set_read_only(n, true, errp) < 0)
		return -1;
	if (tell_own(n, read_only, errp) < 0) {
		if (read_only && tell)
			(void)n->driver->set_read_only(n, false, NULL);
		return -1;
	}
	if (!read_only && tell && n->driver->set_read_only(n, false, errp) < 0) {
		(void)tell_own(n, true, NULL);
		return -1;
	}
	return 0;
}

static int
switch_all(struct change *c, struct node *n, bool read_only, struct error **errp)
{
	return switch_tree(c, n, read_only, errp) < 0 ? -1 : change_permit(c, errp);
}

static int
turn_read_only(struct change *c, struct node *n, struct error **errp)
{
	int r;

	change_work(c);
	r = tell_formats(n, true, errp);
	change_resume(c);
	if (!r) {
		r = switch_all(c, n, true, errp);
		if (r)
			(void)tell_formats(n, false, NULL);
	}
	return change_end(c, r);
}

static int
turn_writable(struct change *c, struct node *n, struct error **errp)
{
	int r = switch_all(c, n, false, errp);

	if (r)
		return change_end(c, r);
	change_work(c);
	r = tell_formats(n, false, errp);
	if (!r)
		return change_end(c, 0);
	/* As it was. */
	change_resume(c);
	(void)change_end(c, switch_all(c, n, true, NULL));
	return r;
}

int
node_set_read_only(struct node *n, bool read_only, struct error **errp)
{
	struct change c;

	if (n->read_only == read_only)
		return 0;
	if (change_begin(&c, &n, 1, errp) < 0)
		return change_end(&c, -1);
	return read_only ? turn_read_only(&c, n, errp) : turn_writable(&c, n, errp);
}

/* ---- the backing file's name, by command ---- */

static int
check_rename(struct node *top, struct node *n, const char *file, struct error **errp)
{
	if (!node_backing_skip(n))
		return error_set(errp, "not allowing backing file change on an image without a "
				       "backing file");
	if (node_check_busy(top, errp) < 0)
		return -1;
	if (!node_chain_contains(top, n))
		return error_set(errp, "'%s' and image file are not in the same chain", top->name);
	if (strlen(file) > BACKING_NAME_MAX)
		return error_set_errno(errp, EINVAL, "Could not change backing file to '%s'", file),
		       -1;
	return 0;
}

int
node_rename_backing_file(struct node *top, struct node *n, const char *file, struct error **errp)
{
	bool read_only = n->read_only;
	struct node *under;
	int r;

	if (check_rename(top, n, file, errp) < 0)
		return -1;
	node_pin(top);
	node_pin(n);
	r = read_only ? node_set_read_only(n, false, errp) : 0;
	if (!r) {
		under = node_skip_filters(node_backing_skip(n));
		r = node_change_backing_file(n, file, under ? under->driver->name : NULL, errp);
		if (read_only && node_set_read_only(n, true, r ? NULL : errp) < 0)
			r = -1;
	}
	node_unpin(n);
	node_unpin(top);
	return r;
}
