/* SPDX-License-Identifier: Apache-2.0 */
/* Flushing.
 *
 * Every change of a node raises its dirty flag once it is done, before whoever
 * asked for it learns of that.  A flush lowers the flag first and then stores:
 * what is finished by the time the flag falls is stored by this flush, what
 * finishes later raises the flag again.  A flush that finds the flag down has
 * nothing to do, but where another flush has only just lowered it that one's end
 * is waited for, because its end is what makes the data safe.
 *
 * A failed flush is final.  The kernel drops its dirty pages after an error, so
 * that a second fsync would succeed although the data is gone. */
#include <errno.h>

#include "base/planted.h"
#include "block/io_int.h"

/* Does what is written to n come to lie at e's child?  A backing file is not
 * written through us, and what a filter puts aside elsewhere is no promise to
 * those who write: whoever wants it there flushes it there. */
static bool
is_storage(const struct node *n, const struct edge *e)
{
	if (e->role & ROLE_COW || !e->child)
		return false;
	return e->role & ROLE_FILTERED || !node_is_filter(n) ||
	       n->driver->caps & DRIVER_MERGES;
}

static int
flush_children(struct node *n)
{
	struct edge *e;
	int err = 0;

	LIST_FOREACH(e, &n->edges, in_parent) {
		int r = is_storage(n, e) ? node_flush(e->child) : 0;

		if (r && !err)
			err = r;
	}
	return err;
}

static int
flush_now(struct node *n)
{
	bool store = !(n->no_flush && n->driver->caps & DRIVER_PROTOCOL);
	int err = n->driver->flush && store ? n->driver->flush(n) : 0;

	return err ? err : flush_children(n);
}

int
node_flush(struct node *n)
{
	int err = 0;

	/* In this order: dirty falls before flushing does. */
	if (!atomic_load(&n->dirty) && !atomic_load(&n->flushing))
		return atomic_load(&n->flush_error);

	co_mutex_lock(&n->flush_lock);
	err = atomic_load(&n->flush_error);
	if (!err && atomic_load(&n->dirty)) {
		atomic_store(&n->flushing, true);
		atomic_store(&n->dirty, false);
		err = flush_now(n);
		if (err && !PLANTED(flush_forgives))
			atomic_store(&n->flush_error, err);
		atomic_store(&n->flushing, false);
	}
	co_mutex_unlock(&n->flush_lock);
	return err;
}
