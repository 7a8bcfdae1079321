/* SPDX-License-Identifier: Apache-2.0 */
/* A cluster is in the set `todo` until its old content is at the target.  Whoever
 * copies claims the cluster and looks at the set again; a write first waits for
 * the claim, copies what is still in the set, gives the claim back, and only then
 * changes the source.  So while a cluster is in the set its content is the old one,
 * and what a copier learned about it before its claim still holds under it.  A
 * write to clusters outside of the set takes one short lock. */
#include "block/filters/cbw.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/dirty.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "block/filters/cbw_int.h"
#include "block/filters/filter.h"
#include "block/node.h"

enum { CLUSTER_DEFAULT = 65536 };

/* ---- the set ---- */

static bool
next_run(struct cbw *s, uint64_t off, uint64_t end, uint64_t *ret_off, uint64_t *ret_len)
{
	bool found;

	pthread_mutex_lock(&s->lock);
	found = bitmap_next(s->todo, off, end, ret_off, ret_len);
	pthread_mutex_unlock(&s->lock);
	return found;
}

static void
kept(struct cbw *s, uint64_t off, uint64_t len)
{
	pthread_mutex_lock(&s->lock);
	bitmap_clear(s->todo, off, len);
	pthread_mutex_unlock(&s->lock);
}

/* ---- copying; [off, off + len) is claimed, and whole clusters ---- */

static int
write_target(struct node *n, uint64_t off, uint64_t len, bool zero, void *buf)
{
	struct cbw *s = n->state;
	struct iov v = IOV_BUF(buf, len);

	if (zero)
		return node_zero(s->target->child, off, len,
				 IO_MAY_UNMAP | s->target_flags);
	return node_write(s->target->child, off, &v,
			  (s->compress ? IO_COMPRESSED : 0) | s->target_flags);
}

static int
copy_run(struct node *n, uint64_t off, uint64_t len, bool zero, void *buf,
	 enum IoOperationType *ret_op)
{
	struct cbw *s = n->state;
	struct iov v = IOV_BUF(buf, len);
	int err = zero ? 0 : node_read(n->file->child, off, &v);

	*ret_op = IO_OPERATION_TYPE_READ;
	if (err)
		return err;
	*ret_op = IO_OPERATION_TYPE_WRITE;
	err = write_target(n, off, len, zero, buf);
	if (err)
		return err;
	/* While writers still wait for us: a discard behind one would take its data. */
	if (s->discard_source)
		(void)node_discard(n->file->child, off, len);
	kept(s, off, len);
	return 0;
}

int
cbw_copy(struct node *filter, uint64_t off, uint64_t len, bool zero, void *buf,
	 enum IoOperationType *ret_op)
{
	struct cbw *s = filter->state;
	uint64_t at = off, run_off, run_len;
	struct claim claim;
	int err = 0;

	ranges_claim(&s->copying, &claim, off, len, true);
	while (!err && next_run(s, at, off + len, &run_off, &run_len)) {
		err = copy_run(filter, run_off, run_len, zero, buf, ret_op);
		at = run_off + run_len;
	}
	ranges_release(&s->copying, &claim);
	return err;
}

/* ---- before a write ---- */

/* Copy the run piece by piece, zeroes as zeroes. */
static int
keep_run(struct node *n, uint64_t off, uint64_t len, void **buf)
{
	enum IoOperationType op;
	struct extent x;
	int err;

	while (len) {
		struct cbw *s = n->state;
		bool zero = false;
		uint64_t piece = min_u64(len, max_u64(CBW_PIECE_MAX, s->cluster));

		if (node_status_above(n->file->child, NULL, off, piece, true, &x) == 0 &&
		    x.flags & EXTENT_ZERO && x.len >= min_u64(piece, s->cluster)) {
			zero = true;
			piece = x.len < piece ? round_down(x.len, s->cluster) : piece;
		}
		if (!zero && !*buf)
			*buf = iov_alloc(4096, max_u64(CBW_PIECE_MAX, s->cluster));
		if (!zero && !*buf)
			return -ENOMEM;
		err = copy_run(n, off, piece, zero, *buf, &op);
		if (err)
			return err;
		off += piece;
		len -= piece;
	}
	return 0;
}

static int
keep(struct node *n, uint64_t start, uint64_t stop)
{
	struct cbw *s = n->state;
	uint64_t at = start, off, len;
	struct claim claim;
	void *buf = NULL;
	int err = 0;

	ranges_claim(&s->copying, &claim, start, stop - start, true);
	while (!err && !atomic_load(&s->broken) && next_run(s, at, stop, &off, &len)) {
		err = keep_run(n, off, len, &buf);
		at = off + len;
	}
	ranges_release(&s->copying, &claim);
	free(buf);
	return err;
}

static int
before_write(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct cbw *s = n->state;
	uint64_t start = round_down(off, s->cluster), size = bitmap_size(s->todo);
	uint64_t stop = min_u64(round_up(off + len, s->cluster), size);
	uint64_t run_off, run_len;
	int err, none = 0;

	if (flags & IO_WRITE_UNCHANGED || atomic_load(&s->broken) || s->stopped ||
	    start >= stop || !next_run(s, start, stop, &run_off, &run_len))
		return 0;
	err = keep(n, start, stop);
	if (atomic_load(&s->broken))
		return 0;
	if (!err || s->on_error == ON_CBW_ERROR_BREAK_GUEST_WRITE)
		return err;
	atomic_compare_exchange_strong(&s->broken, &none, err);
	return 0;
}

static int
cbw_read(struct node *n, uint64_t off, const struct iov *dst)
{
	return node_read(n->file->child, off, dst);
}

static int
cbw_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	int err = before_write(n, off, src->len, flags);

	return err ? err : node_write(n->file->child, off, src, flags);
}

static int
cbw_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	int err = before_write(n, off, len, flags);

	return err ? err : node_zero(n->file->child, off, len, flags);
}

static int
cbw_discard(struct node *n, uint64_t off, uint64_t len)
{
	int err = before_write(n, off, len, 0);

	return err ? err : node_discard(n->file->child, off, len);
}

/* What is cut off is kept as if it were written to. */
static int
cbw_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	     struct error **errp)
{
	uint64_t old = node_size(n);
	int err = size < old ? before_write(n, size, old - size, 0) : 0;

	if (err)
		return error_set_errno(errp, err, "Could not keep what is cut off"), -1;
	if (node_truncate(n->file->child, size, exact, prealloc, errp) < 0)
		return -1;
	atomic_store(&n->size, node_size(n->file->child));
	return 0;
}

/* The target may have the source in its backing chain, so its other users may
 * write.  The source is read even where those above only write. */
static void
cbw_child_perm(struct node *n, struct edge *e, unsigned role, perm_set perm,
	       perm_set shared, perm_set *ret_perm, perm_set *ret_shared)
{
	struct cbw *s = n->state;

	(void)e;
	*ret_perm = 0;
	*ret_shared = PERM_ALL;
	if (s->stopped)
		return;
	if (!(role & ROLE_FILTERED)) {
		*ret_perm = PERM_WRITE;
		*ret_shared = PERM_ALL & ~(perm_set)PERM_RESIZE;
		return;
	}
	*ret_perm = perm | (s->discard_source ? PERM_WRITE : 0);
	*ret_shared = shared;
	if (!list_empty(&n->users)) {
		*ret_perm |= PERM_CONSISTENT_READ;
		*ret_shared &= ~(perm_set)(PERM_WRITE | PERM_RESIZE);
	}
}

/* ---- opening ---- */

static int
own_cluster(struct node *target, uint64_t *ret_cluster)
{
	struct ImageInfo *info;
	int r = 0;

	target = node_skip_filters(target);
	if (!target->driver->info)
		return 0;
	info = calloc(1, sizeof(*info));
	if (!info)
		return -1;
	r = target->driver->info(target, info, NULL);
	if (!r && info->has_cluster_size)
		*ret_cluster = max_u64(*ret_cluster, (uint64_t)info->cluster_size);
	ImageInfo_free(info);
	return r;
}

int
cbw_find_cluster(struct node *target, uint64_t min_cluster, uint64_t *ret_cluster,
		 struct error **errp)
{
	uint64_t cluster = CLUSTER_DEFAULT;

	if (min_cluster && !is_pow2(min_cluster))
		return error_set(errp, "Cannot create block-copy-state: min-cluster-size "
				 "needs to be a power of 2");
	if (own_cluster(target, &cluster) < 0)
		return error_set(errp, "Cannot create block-copy-state: Couldn't determine "
				 "the cluster size of the target image");
	*ret_cluster = max_u64(cluster, min_cluster);
	return 0;
}

static int
make_set(struct node *n, uint64_t cluster, struct error **errp)
{
	struct cbw *s = n->state;

	s->cluster = cluster;
	if (bitmap_new(node_size(n), cluster, &s->todo) < 0 ||
	    bitmap_new(node_size(n), cluster, &s->known) < 0)
		return error_set(errp, "Cannot allocate memory");
	bitmap_set(s->todo, 0, bitmap_size(s->todo));
	bitmap_set(s->known, 0, bitmap_size(s->known));
	return 0;
}

static void
free_sets(struct cbw *s)
{
	bitmap_free(s->todo);
	bitmap_free(s->known);
}

/* Fleecing: the target shows through to the source.  Who reads the target may have
 * found a cluster missing there and be on his way to the source, so the copy waits
 * for him before the guest's write may go on. */
static int
order_readers(struct cbw *s, struct node *source, struct node *target,
	      struct error **errp)
{
	if (!node_chain_contains(target, source))
		return 0;
	s->target_flags = IO_SERIALISING;
	return node_track(target, errp);
}

static void
init_state(struct node *n)
{
	struct cbw *s = n->state;

	pthread_mutex_init(&s->lock, NULL);
	ranges_init(&s->copying);
	s->on_error = ON_CBW_ERROR_BREAK_GUEST_WRITE;
}

static int
check_options(const struct BlockdevOptionsCbw *o, struct error **errp)
{
	if (o->has_cbw_timeout && o->cbw_timeout)
		return error_set(errp, "Parameter 'cbw-timeout' is not supported yet");
	return 0;
}

/* Keep only what a bitmap marks now. */
static int
restrict_to(struct node *n, const struct BlockDirtyBitmap *which, struct error **errp)
{
	struct dirty_bitmap *b = dirty_lookup(which->node, which->name, errp);

	if (!b || dirty_check(b, DIRTY_TO_READ, errp) < 0)
		return -1;
	if (node_size(dirty_node(b)) != node_size(n))
		return error_set(errp, "Cannot create block-copy-state: Failed to merge bitmap "
				 "'%s' to internal copy-bitmap: Bitmaps are of different sizes "
				 "(destination size is %llu, source size is %llu) and can't be "
				 "merged", which->name,
				 (unsigned long long)node_size(n),
				 (unsigned long long)node_size(dirty_node(b)));
	cbw_restrict(n, b);
	return 0;
}

static int
cbw_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsCbw *o = &n->options->u.copy_before_write;
	struct cbw *s = n->state;
	struct edge *file;
	uint64_t cluster;

	init_state(n);
	if (check_options(o, errp) < 0)
		return -1;
	if (o->has_on_cbw_error)
		s->on_error = o->on_cbw_error;
	if (opener_child(op, n, o->file, "file", ROLE_FILTERED | ROLE_PRIMARY, &file,
			 errp) < 0 ||
	    opener_child(op, n, o->target, "target", ROLE_DATA, &s->target, errp) < 0)
		return -1;
	if (cbw_find_cluster(s->target->child,
			     o->has_min_cluster_size ? o->min_cluster_size : 0, &cluster,
			     errp) < 0)
		return -1;
	atomic_store(&n->size, node_size(file->child));
	if (order_readers(s, file->child, s->target->child, errp) < 0)
		return -1;
	if (make_set(n, cluster, errp) < 0 ||
	    (o->bitmap && restrict_to(n, o->bitmap, errp) < 0)) {
		free_sets(s);
		return -1;
	}
	return 0;
}

static int
cbw_close(struct node *n)
{
	free_sets(n->state);
	return 0;
}

const struct driver driver_copy_before_write = {
	.name = "copy-before-write",
	.caps = DRIVER_FILTER | DRIVER_FUA | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST |
		DRIVER_CHILDS_NAME,
	.state_size = sizeof(struct cbw),
	.open = cbw_open,
	.close = cbw_close,
	.read = cbw_read,
	.write = cbw_write,
	.zero = cbw_zero,
	.discard = cbw_discard,
	.truncate = cbw_truncate,
	.child_perm = cbw_child_perm,
	.instant = &cbw_instant_ops,
};

/* ---- for the job ---- */

static void
init(struct node *n, const void *arg)
{
	const struct cbw_options *o = arg;
	struct cbw *s = n->state;

	init_state(n);
	s->on_error = o->on_error;
	s->discard_source = o->discard_source;
	s->compress = o->compress;
	s->stopped = true;	/* nothing is claimed before it stands in its place */
}

struct instant {
	const struct cbw_options *options;
	struct node *filter;
};

static int
at_instant(void *arg, struct error **errp)
{
	const struct instant *i = arg;

	return i->options->now ? i->options->now(i->options->user, i->filter, errp) : 0;
}

int
cbw_new(const struct cbw_options *o, struct node *source, struct node *target,
	struct node **ret_filter, struct error **errp)
{
	struct instant now = { .options = o };
	struct node *filter;
	uint64_t cluster;
	struct cbw *s;

	if (cbw_find_cluster(target, o->min_cluster, &cluster, errp) < 0)
		return -1;
	if (filter_new(&driver_copy_before_write, o->name, source, target, init, o,
		       &filter, errp) < 0)
		return -1;
	s = filter->state;
	s->target = edge_find(filter, "target");
	s->stopped = false;
	now.filter = filter;
	if (make_set(filter, cluster, errp) < 0 ||
	    order_readers(s, source, target, errp) < 0 ||
	    node_insert_above_then(source, filter, at_instant, &now, errp) < 0) {
		s->stopped = true;
		node_unref(filter);
		return -1;
	}
	*ret_filter = filter;
	return 0;
}

int
cbw_remove(struct node *filter, struct error **errp)
{
	struct cbw *s = filter->state;

	s->stopped = true;
	return node_remove_filter(filter, errp);
}

uint64_t
cbw_cluster(const struct node *filter)
{
	return ((const struct cbw *)filter->state)->cluster;
}

bool
cbw_next(struct node *filter, uint64_t off, uint64_t *ret_off, uint64_t *ret_len)
{
	struct cbw *s = filter->state;

	return next_run(s, off, bitmap_size(s->todo), ret_off, ret_len);
}

uint64_t
cbw_left(struct node *filter)
{
	struct cbw *s = filter->state;
	uint64_t n;

	pthread_mutex_lock(&s->lock);
	n = bitmap_count(s->todo);
	pthread_mutex_unlock(&s->lock);
	return n;
}

int
cbw_copy_set(struct node *filter, struct bitmap **ret)
{
	struct cbw *s = filter->state;
	struct bitmap *copy;

	if (bitmap_new(bitmap_size(s->todo), s->cluster, &copy) < 0)
		return -ENOMEM;
	pthread_mutex_lock(&s->lock);
	bitmap_merge(copy, s->todo);
	pthread_mutex_unlock(&s->lock);
	*ret = copy;
	return 0;
}

void
cbw_restrict(struct node *filter, struct dirty_bitmap *b)
{
	struct cbw *s = filter->state;

	pthread_mutex_lock(&s->lock);
	bitmap_clear(s->todo, 0, bitmap_size(s->todo));
	dirty_copy(b, s->todo);
	bitmap_clear(s->known, 0, bitmap_size(s->known));
	bitmap_merge(s->known, s->todo);
	pthread_mutex_unlock(&s->lock);
}

void
cbw_skip(struct node *filter, uint64_t off, uint64_t len)
{
	struct cbw *s = filter->state;
	struct claim claim;

	ranges_claim(&s->copying, &claim, off, len, true);
	pthread_mutex_lock(&s->lock);
	bitmap_clear(s->todo, off, len);
	bitmap_clear(s->known, off, len);
	pthread_mutex_unlock(&s->lock);
	ranges_release(&s->copying, &claim);
}

void
cbw_abandon(struct node *filter)
{
	int none = 0;

	atomic_compare_exchange_strong(&((struct cbw *)filter->state)->broken, &none, -ECANCELED);
}

int
cbw_broken(const struct node *filter)
{
	return atomic_load(&((struct cbw *)filter->state)->broken);
}
