/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "block/change.h"
#include "block/graph.h"
#include "block/io_int.h"
#include "block/node.h"
#include "block/root.h"

static int
check(const struct node *n, uint64_t size, struct error **errp)
{
	if (n->read_only)
		return error_set(errp, "Image is read-only");
	if (size > IO_OFFSET_MAX)
		return error_set(errp, "offset(%" PRIu64 ") exceeds maximum(%" PRIu64 ")", size,
				 IO_OFFSET_MAX);
	return 0;
}

/* The driver hides a longer backing file behind zeroes; that is as good as a write. */
static void
mark_hidden(struct node *n, uint64_t from, uint64_t to)
{
	struct node *under = node_backing(n);
	uint64_t end = under ? min_u64(to, io_node_size(under)) : 0;

	if (end > from)
		dirty_mark(n, from, end - from);
}

int
node_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	      struct error **errp)
{
	struct node *child = node_filtered(n);
	uint64_t old = io_node_size(n);
	int r;

	if (check(n, size, errp) < 0)
		return -1;
	if (n->driver->truncate)
		r = n->driver->truncate(n, size, exact, prealloc, errp);
	else if (child)
		r = node_truncate(child, size, exact, prealloc, errp);
	else
		r = error_set(errp, "Image format driver does not support resize");
	io_mark_dirty(n);
	if (r < 0)
		return -1;
	if (child && !n->driver->truncate)
		size = io_node_size(child);
	/* A driver that knows better, as with a rounded size, has set it; and a device
	 * that is larger than need be stays as large as it is. */
	if (io_node_size(n) == old && (exact || size > old))
		atomic_store(&n->size, size);
	dirty_resized(n);
	mark_hidden(n, old, size);
	return 0;
}

/* Tell the roots that see n's size through filters. */
static void
tell_users(struct node *n)
{
	struct use *u;

	LIST_FOREACH(u, &n->users, link) {
		struct edge *e = CONTAINER_OF(u, struct edge, use);

		if (u->is_root) {
			root_resized(root_of_use(u), node_size(n));
		} else if (e->role & ROLE_FILTERED && node_is_filter(e->parent)) {
			atomic_store(&e->parent->size, node_size(n));
			dirty_resized(e->parent);
			tell_users(e->parent);
		}
	}
}

/* n, and where it stores: nobody else may write there meanwhile. */
enum { STORAGE_MAX = 8 };

static size_t
storage_of(struct node *n, struct node *nodes[STORAGE_MAX])
{
	size_t count = 0;

	for (; n && count < STORAGE_MAX; n = node_is_filter(n) ? node_filtered(n) : node_file(n))
		nodes[count++] = n;
	return count;
}

int
node_resize(struct node *n, uint64_t size, struct error **errp)
{
	struct node *nodes[STORAGE_MAX];
	struct root *r;
	struct change c;
	int err;

	if (root_new(n, "root", PERM_RESIZE, PERM_ALL, NULL, NULL, &r, errp) < 0)
		return -1;
	/* A request that was judged by the old size must not be under way. */
	err = change_begin(&c, nodes, storage_of(n, nodes), errp);
	if (!err) {
		change_work(&c);
		err = node_truncate(n, size, false, PREALLOC_OFF, errp);
	}
	if (!err)
		tell_users(n);
	err = change_end(&c, err);
	root_free(r);
	return err;
}
