/* SPDX-License-Identifier: Apache-2.0 */
/* How base comes to equal top while clients write to top.
 *
 * Invariant: where base differs from what top shows, the range is dirty, or is
 * being copied, or a write to it is in flight.
 *
 * A copier takes the range off the dirty set *before* it reads top.  In mode NOTE a
 * write marks its range *after* it is done, so whatever a copier missed is dirty
 * again.  In mode BOTH a write claims its range, as copiers do, so old data that
 * was read before the write cannot arrive at base behind it, and two writes to one
 * place reach both nodes in the same order.  `gate` is held for reading by every
 * write; changing the mode takes it for writing, so that no write runs half in one
 * mode and half in another.
 *
 * FINAL is entered only with nothing dirty and no write in flight.  From then on a
 * write that fails on base fails for its writer: nothing becomes dirty any more.
 * Therefore base equals top at whatever later moment the graph changes.
 *
 * Order on disk: the caller flushes base before commit_top_pivot() rewrites a
 * header.  Once base holds everything that the layers above it showed, an overlay
 * shows the same over base as over top, whichever of the two its header names; so
 * a pivot that fails half-way, or a crash, needs no undoing. */
#include "block/filters/commit_top.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "aio/colock.h"
#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/planted.h"
#include "block/driver.h"
#include "block/filters/filter.h"
#include "block/io.h"
#include "block/node.h"
#include "block/ranges.h"

enum mode { PASS, NOTE, BOTH, FINAL };

struct commit_top {
	enum mode mode;		/* changed with the gate held for writing */
	bool grows, stopped;
	struct co_rwlock gate;
	struct ranges busy;	/* catching up, and writes in BOTH and FINAL */
	pthread_mutex_t lock;
	struct bitmap *dirty;	/* NULL: not active */
};

static struct node *
base_of(const struct node *n)
{
	return edge_find(n, "target")->child;
}

static void
mark(struct commit_top *s, uint64_t off, uint64_t len)
{
	pthread_mutex_lock(&s->lock);
	bitmap_set(s->dirty, off, len);
	pthread_mutex_unlock(&s->lock);
}

/* ---- requests of those above ---- */

/* One kind of change, to one node. */
struct change_request {
	uint64_t off, len;
	const struct iov *src;	/* NULL: zeroes */
	unsigned flags;
};

static int
apply(struct node *n, const struct change_request *q)
{
	return q->src ? node_write(n, q->off, q->src, q->flags)
		      : node_zero(n, q->off, q->len, q->flags);
}

static int
apply_to_both(struct node *n, const struct change_request *q)
{
	struct commit_top *s = n->state;
	struct claim claim;
	struct change_request again = *q;
	int err, base_err = 0;

	/* What top could do fast, base may do as it can. */
	again.flags &= ~(unsigned)IO_FAST;
	ranges_claim(&s->busy, &claim, q->off, q->len, true);
	err = apply(n->file->child, q);
	if (!err)
		base_err = apply(base_of(n), &again);
	if (s->mode == FINAL)
		err = err ? err : base_err;
	else if (err || base_err)
		mark(s, q->off, q->len);
	ranges_release(&s->busy, &claim);
	return err;
}

static int
change_top(struct node *n, const struct change_request *q)
{
	struct commit_top *s = n->state;
	int err;

	if (!s->dirty)
		return apply(n->file->child, q);
	co_rwlock_rdlock(&s->gate);
	if (s->mode == NOTE) {
		err = apply(n->file->child, q);
		if (!PLANTED(commit_misses_writes))
			mark(s, q->off, q->len);
	} else {
		err = apply_to_both(n, q);
	}
	co_rwlock_unlock(&s->gate);
	return err;
}

static int
commit_top_read(struct node *n, uint64_t off, const struct iov *dst)
{
	return node_read(n->file->child, off, dst);
}

static int
commit_top_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	const struct change_request q = { off, src->len, src, flags };

	return change_top(n, &q);
}

static int
commit_top_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	const struct change_request q = { off, len, NULL, flags };

	return change_top(n, &q);
}

/* A hint: not taken once both nodes have to stay equal. */
static int
commit_top_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct commit_top *s = n->state;
	int err = 0;

	if (!s->dirty)
		return node_discard(n->file->child, off, len);
	co_rwlock_rdlock(&s->gate);
	if (s->mode == NOTE) {
		err = node_discard(n->file->child, off, len);
		mark(s, off, len);
	}
	co_rwlock_unlock(&s->gate);
	return err;
}

static int
commit_top_close(struct node *n)
{
	struct commit_top *s = n->state;

	bitmap_free(s->dirty);
	return 0;
}

/* Top is inconsistent by itself, and written to by nobody but those above; base
 * is for the commit alone. */
static void
commit_top_child_perm(struct node *n, struct edge *e, unsigned role, perm_set perm,
		      perm_set shared, perm_set *ret_perm, perm_set *ret_shared)
{
	struct commit_top *s = n->state;

	(void)e;
	*ret_perm = 0;
	*ret_shared = PERM_ALL;
	if (s->stopped)
		return;
	if (!(role & ROLE_FILTERED)) {
		*ret_perm = PERM_CONSISTENT_READ | PERM_WRITE;
		if (s->grows)
			*ret_perm |= PERM_RESIZE;
		*ret_shared = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;
	} else if (s->dirty) {
		/* A write past the filter would never get to base. */
		*ret_perm = perm & ~(perm_set)PERM_CONSISTENT_READ;
		*ret_shared = shared & ~(perm_set)(PERM_WRITE | PERM_RESIZE);
	}
}

static const struct driver commit_top_driver = {
	.name = "commit_top",
	.caps = DRIVER_FILTER | DRIVER_FUA | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST |
		DRIVER_MERGES | DRIVER_CHILDS_NAME,
	.state_size = sizeof(struct commit_top),
	.close = commit_top_close,
	.read = commit_top_read,
	.write = commit_top_write,
	.zero = commit_top_zero,
	.discard = commit_top_discard,
	.child_perm = commit_top_child_perm,
};

/* ---- for the job ---- */

static void
init(struct node *n, const void *arg)
{
	const struct commit_top_options *o = arg;
	struct commit_top *s = n->state;

	pthread_mutex_init(&s->lock, NULL);
	ranges_init(&s->busy);
	s->grows = o->grows;
	s->stopped = true;	/* nothing is claimed before it stands in its place */
}

int
commit_top_new(const struct commit_top_options *o, struct node *top, struct node *base,
	       struct node **ret_filter, struct error **errp)
{
	struct commit_top *s;
	struct node *filter;
	int r = 0;

	if (filter_new(&commit_top_driver, o->name, top, base, init, o, &filter, errp) < 0)
		return -1;
	s = filter->state;
	if (o->active) {
		s->mode = NOTE;
		if (bitmap_new(node_size(top), COMMIT_TOP_GRANULE, &s->dirty) < 0)
			r = error_set(errp, "Cannot allocate memory");
	}
	s->stopped = false;
	if (!r)
		r = node_insert_above(top, filter, errp);
	if (r < 0) {
		s->stopped = true;
		node_unref(filter);
		return -1;
	}
	*ret_filter = filter;
	return 0;
}

int
commit_top_copy(struct node *filter, uint64_t off, uint64_t len, bool zero, void *buf,
		enum IoOperationType *ret_op)
{
	struct iov v = IOV_BUF(buf, len);
	int err = 0;

	*ret_op = IO_OPERATION_TYPE_READ;
	if (!zero)
		err = node_read(filter->file->child, off, &v);
	if (!err) {
		*ret_op = IO_OPERATION_TYPE_WRITE;
		err = zero ? node_zero(base_of(filter), off, len, IO_MAY_UNMAP)
			   : node_write(base_of(filter), off, &v, 0);
	}
	return err;
}

/* What is there is looked at under the claim: else a write to both might come between,
 * and zeroes that were there before it would go to base behind it. */
int
commit_top_catch_up(struct node *filter, uint64_t off, uint64_t len, void *buf,
		    enum IoOperationType *ret_op)
{
	struct commit_top *s = filter->state;
	uint64_t end = off + len;
	struct claim claim;
	int err = 0;

	ranges_claim(&s->busy, &claim, off, len, true);
	while (off < end && !err) {
		struct extent x;

		*ret_op = IO_OPERATION_TYPE_READ;
		err = node_status_above(filter->file->child, base_of(filter), off, end - off,
					true, &x);
		if (!err && x.flags & EXTENT_ALLOCATED)
			err = commit_top_copy(filter, off, x.len, x.flags & EXTENT_ZERO, buf,
					      ret_op);
		if (!err)
			off += x.len;
	}
	ranges_release(&s->busy, &claim);
	return err;
}

void
commit_top_mark(struct node *filter, uint64_t off, uint64_t len)
{
	mark(filter->state, off, len);
}

bool
commit_top_take(struct node *filter, uint64_t off, uint64_t most, uint64_t *ret_off,
		uint64_t *ret_len)
{
	struct commit_top *s = filter->state;
	bool found;

	pthread_mutex_lock(&s->lock);
	found = bitmap_next(s->dirty, off, bitmap_size(s->dirty), ret_off, ret_len);
	if (found) {
		*ret_len = min_u64(*ret_len, most);
		bitmap_clear(s->dirty, *ret_off, *ret_len);
	}
	pthread_mutex_unlock(&s->lock);
	return found;
}

uint64_t
commit_top_dirty(struct node *filter)
{
	struct commit_top *s = filter->state;
	uint64_t n;

	pthread_mutex_lock(&s->lock);
	n = bitmap_count(s->dirty);
	pthread_mutex_unlock(&s->lock);
	return n;
}

void
commit_top_follow(struct node *filter)
{
	struct commit_top *s = filter->state;

	co_rwlock_wrlock(&s->gate);
	s->mode = BOTH;
	co_rwlock_unlock(&s->gate);
}

bool
commit_top_settle(struct node *filter)
{
	struct commit_top *s = filter->state;
	bool clean;

	co_rwlock_wrlock(&s->gate);
	clean = commit_top_dirty(filter) == 0;
	if (clean)
		s->mode = FINAL;
	co_rwlock_unlock(&s->gate);
	return clean;
}

/* ---- leaving the graph ---- */

struct overlays {
	struct node **nodes;
	size_t count;
};

static int
add_overlay(struct overlays *o, struct node *n)
{
	struct node **p = realloc(o->nodes, (o->count + 1) * sizeof(*p));

	if (!p)
		return -ENOMEM;
	o->nodes = p;
	o->nodes[o->count++] = node_ref(n);
	return 0;
}

static int
find_overlays(struct node *n, struct overlays *o)
{
	struct use *u;
	int r = 0;

	LIST_FOREACH(u, &n->users, link) {
		struct edge *e = CONTAINER_OF(u, struct edge, use);

		if (u->is_root)
			continue;
		if (e->role & ROLE_FILTERED)
			r = find_overlays(e->parent, o);
		else if (e->role & ROLE_COW && e->parent->driver->change_backing)
			r = add_overlay(o, e->parent);
		if (r < 0)
			return r;
	}
	return 0;
}

static void
drop_overlays(struct overlays *o)
{
	while (o->count)
		node_unref(o->nodes[--o->count]);
	free(o->nodes);
}

int
commit_top_overlays(struct node *n, struct node ***ret, size_t *ret_count)
{
	struct overlays o = { 0 };
	int r = find_overlays(n, &o);

	if (r < 0) {
		drop_overlays(&o);
		return r;
	}
	*ret = o.nodes;
	*ret_count = o.count;
	return 0;
}

uint64_t
commit_top_reach(const struct node *filter)
{
	uint64_t reach = 0;
	struct use *u;

	LIST_FOREACH(u, &filter->users, link) {
		struct edge *e = CONTAINER_OF(u, struct edge, use);

		if (u->is_root)
			continue;
		if (e->role & ROLE_FILTERED)
			reach = max_u64(reach, commit_top_reach(e->parent));
		else if (e->role & ROLE_COW)
			reach = max_u64(reach, node_size(e->parent));
	}
	return reach;
}

static int
rename_backing(struct node *filter, const char *file, const char *fmt,
	       struct error **errp)
{
	struct overlays o = { 0 };
	int r = 0;

	if (find_overlays(filter, &o) < 0)
		r = error_set(errp, "Cannot allocate memory");
	for (size_t i = 0; i < o.count && !r; i++)
		r = node_change_backing_file(o.nodes[i], file, fmt, errp);
	drop_overlays(&o);
	return r;
}

int
commit_top_gather(struct node *filter, struct error **errp)
{
	return node_insert_above(filter->file->child, filter, errp);
}

int
commit_top_pivot(struct node *filter, const char *file, const char *fmt,
		 struct error **errp)
{
	struct commit_top *s = filter->state;

	if (rename_backing(filter, file, fmt, errp) < 0)
		return -1;
	s->stopped = true;
	if (node_replace(filter, base_of(filter), errp) < 0) {
		s->stopped = false;
		return -1;
	}
	return 0;
}

int
commit_top_remove(struct node *filter, struct error **errp)
{
	struct commit_top *s = filter->state;

	s->stopped = true;
	return node_remove_filter(filter, errp);
}
