/* SPDX-License-Identifier: Apache-2.0 */
/* block/change.h - a change of the graph, as a transaction of steps.
 *
 *	CLEANUP-less use, always in this order:
 *	struct change c;
 *	r = change_begin(&c, nodes, count, errp);	stop the roots above, lock
 *	if (!r) r = change_point_edge(&c, ...);		each step takes effect at once
 *	if (!r) r = change_permit(&c, errp);		permissions of the new graph
 *	r = change_end(&c, r);				commit, or undo all; resume
 *
 * change_end() is called even after a failed change_begin().  Roots are stopped
 * before the lock is taken: a node that hangs holds up no change elsewhere.  One
 * change at a time holds the lock, and code that runs outside of it never sees a
 * graph that permissions have not been computed for, except while a step's
 * prepare waits for a disk.
 *
 * What wants a node for itself while it works on its disk does so without the lock,
 * before its steps, behind them, or without any: change_work().
 *
 * Context    coroutine on loop 0; not within a request.
 * Ownership  steps take the references that the new graph needs and drop those of
 *            the old one, after the lock is released: nodes may be closed then.
 * Errors     0 or -1 with *errp.
 */
#ifndef BLOCK_CHANGE_H
#define BLOCK_CHANGE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/list.h"
#include "block/perm.h"

struct edge;
struct error;
struct node;
struct root;
struct use;

struct change {
	struct list steps;	/* struct change_step, oldest first */
	struct list stops;	/* roots that this change stopped */
	struct list held;	/* nodes kept alive meanwhile */
	struct list in_working;
	struct node **touched;	/* nodes whose users or edges changed */
	size_t touched_count, touched_room;
	bool locked;
};

struct change_step;

struct change_ops {
	void (*commit)(struct change_step *s);	/* may be NULL */
	void (*abort)(struct change_step *s);	/* may be NULL */
	/* Frees s; after the lock is released, so it may wait. */
	void (*done)(struct change_step *s, bool committed);
};

/* First member of a step; its maker allocates it. */
struct change_step {
	struct list link;
	const struct change_ops *ops;
};

/* nodes: those whose edges, or users' edges, will change under running requests;
 * none (count 0) when users only go, or claim something else. */
int change_begin(struct change *c, struct node *const *nodes, size_t count,
		 struct error **errp);
/* joined: those that get new users, which is no reason to stop anybody. */
int change_begin_joining(struct change *c, struct node *const *nodes, size_t count,
			 struct node *const *joined, size_t joined_count,
			 struct error **errp);
/* Let go of the lock for what follows, until change_resume() or change_end(); steps so
 * far are committed.  The roots stay stopped.  Other changes go on, but those of these
 * nodes, above them or below them, and new users there, wait. */
void change_work(struct change *c);
/* The lock again, for more steps. */
void change_resume(struct change *c);
int change_end(struct change *c, int result);	/* returns result */

/* Wait until no change is under way; the last ones' nodes may still be closing. */
void change_wait_all(void);

/* Record a step that has taken effect. */
void change_add(struct change *c, struct change_step *s);
/* n's permissions are to be computed anew. */
int change_touch(struct change *c, struct node *n, struct error **errp);

int change_add_edge(struct change *c, struct node *parent, struct node *child,
		    const char *name, unsigned role, struct edge **ret_edge,
		    struct error **errp);
int change_point_edge(struct change *c, struct edge *e, struct node *child,
		      struct error **errp);
int change_drop_edge(struct change *c, struct edge *e, struct error **errp);
/* Not yet linked, fresh from root_new(). */
int change_link_root(struct change *c, struct root *r, struct node *n,
		     struct error **errp);
int change_point_root(struct change *c, struct root *r, struct node *n,
		      struct error **errp);
int change_set_perm(struct change *c, struct use *u, perm_set perm, perm_set shared,
		    struct error **errp);

/* Compute and check the permissions of all nodes touched and of what lies below
 * them, and have the drivers concerned prepare for them (block/perm.c). */
int change_permit(struct change *c, struct error **errp);

/* All users of from use to instead, but for those that to itself stands on: their
 * edges would close a cycle.  Where to stands above from, what uses the instant that
 * from keeps stays with it. */
int change_move_users(struct change *c, struct node *from, struct node *to,
		      struct error **errp);

#endif
