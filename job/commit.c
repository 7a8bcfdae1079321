/* SPDX-License-Identifier: Apache-2.0 */
/* Commit: what the layers from top down to above base hold goes into base; then
 * whatever used top uses base.
 *
 * Everything that can be refused is refused at the start: base, and the images above
 * top whose headers will be rewritten, are made writable before a byte moves.
 *
 * Where nobody writes to top, one walk over the disk does it.  Where clients write,
 * the filter above top keeps a set of what is dirty (block/filters/commit_top.h has
 * the argument); when the bulk is done, writes go to both nodes, the job is ready,
 * and stays so until it is told to complete.  What a longer base would show behind the
 * end of top to an image above becomes zeroes.
 *
 * Before the switch base is flushed.  So what a client was told to be safe in top is
 * safe in base before any header, or any client, relies on base. */
#include "job/commit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/planted.h"
#include "block/driver.h"
#include "block/filters/commit_top.h"
#include "block/io.h"
#include "block/node.h"
#include "block/root.h"
#include "job/commit_plan.h"
#include "job/copy.h"
#include "job/job.h"
#include "schema/types.h"

enum { IDLE_NS = 1000000000 };

struct commit {
	struct job job;
	struct node *filter, *top, *base;	/* references */
	struct node **overlays;		/* references; those that were read-only before */
	size_t n_overlays;
	struct root *root;		/* on the filter */
	uint64_t end;			/* up to here base is as those above have to see it */
	bool active, completing, pivot;
	bool opened_base;		/* it was read-only before */
	enum BlockdevOnError on_error;
	char *backing_file;
	const char *backing_fmt;
};

static struct commit *
of(void *job)
{
	return job;
}

/* ---- pieces ---- */

/* The extent of all layers above base, at off. */
static int
status(struct commit *s, uint64_t off, uint64_t len, struct extent *x)
{
	return node_status_above(s->filter, s->base, off, len, true, x);
}

/* Behind the end of a top that is shorter than it an overlay shows zeroes; what a longer
 * base has there would take their place. */
static uint64_t
end_to_see(const struct commit *s)
{
	return max_u64(node_size(s->filter),
		       min_u64(commit_top_reach(s->filter), node_size(s->base)));
}

static int
tail_next(void *user, uint64_t *cursor, uint64_t most, struct copy_piece *p)
{
	struct commit *s = user;

	(void)most;
	*cursor = max_u64(*cursor, node_size(s->filter));
	if (*cursor >= s->end)
		return 0;
	*p = (struct copy_piece){ .off = *cursor, .zero = true,
				  .len = copy_cut(*cursor, s->end - *cursor, COPY_ZERO_CHUNK) };
	*cursor += p->len;
	return 1;
}

/* Nobody writes to top: walk once over the disk. */
static int
walk_next(void *user, uint64_t *cursor, uint64_t most, struct copy_piece *p)
{
	struct commit *s = user;
	uint64_t size = node_size(s->filter);

	while (*cursor < size) {
		struct extent x;
		int err = status(s, *cursor, size - *cursor, &x);

		if (err)
			return err;
		p->off = *cursor;
		p->zero = x.flags & EXTENT_ZERO;
		p->len = copy_cut(p->off, x.len, p->zero ? COPY_ZERO_CHUNK : most);
		if (x.flags & EXTENT_ALLOCATED) {
			*cursor += p->len;
			return 1;
		}
		*cursor += x.len;
		job_progress_add(&s->job, x.len);
	}
	return tail_next(user, cursor, most, p);
}

static int
walk_move(void *user, const struct copy_piece *p, void *buf, enum IoOperationType *ret_op)
{
	struct commit *s = user;
	int err = commit_top_copy(s->filter, p->off, p->len, p->zero, buf, ret_op);

	if (!err)
		job_progress_add(&s->job, p->len);
	return err;
}

/* Clients write: take what is dirty. */
static int
dirty_next(void *user, uint64_t *cursor, uint64_t most, struct copy_piece *p)
{
	struct commit *s = user;
	uint64_t off = *cursor, len;

	if (!commit_top_take(s->filter, off, copy_cut(off, UINT64_MAX, most), &off, &len))
		return 0;
	*p = (struct copy_piece){ .off = off, .len = len };
	*cursor = off + len;
	return 1;
}

static int
dirty_move(void *user, const struct copy_piece *p, void *buf, enum IoOperationType *ret_op)
{
	struct commit *s = user;
	int err = commit_top_catch_up(s->filter, p->off, p->len, buf, ret_op);

	if (!err)
		job_progress_add(&s->job, p->len);
	return err;
}

/* ---- the work ---- */

static int
copy_pieces(struct commit *s,
	    int (*next)(void *user, uint64_t *cursor, uint64_t most, struct copy_piece *p),
	    int (*move)(void *user, const struct copy_piece *p, void *buf,
			enum IoOperationType *ret_op))
{
	struct copy_options o = {
		.root = s->root,
		.user = s,
		.next = next,
		.move = move,
		.target = s->base,
		.granule = COMMIT_TOP_GRANULE,
		.on_source_error = s->on_error,
		.on_target_error = s->on_error,
	};
	struct copy *c = copy_new(&s->job, &o);
	int r = c ? copy_run(c) : -ENOMEM;

	copy_free(c);
	return r;
}

static int
copy_dirty(struct commit *s)
{
	return copy_pieces(s, dirty_next, dirty_move);
}

static int
grow_base(struct commit *s, struct error **errp)
{
	uint64_t size = node_size(s->top);

	if (node_size(s->base) >= size)
		return 0;
	return node_truncate(s->base, size, false, PREALLOC_OFF, errp) < 0 ? -EIO : 0;
}

static int
flush_base(struct commit *s)
{
	int err = root_enter(s->root);

	if (!err) {
		err = PLANTED(commit_unflushed) ? 0 : node_flush(s->base);
		root_leave(s->root);
	}
	return err;
}

/* Mark all that lies above base. */
static int
mark_all(struct commit *s)
{
	uint64_t size = node_size(s->top), off = 0;
	struct extent x;

	while (off < size) {
		int err;

		if (job_should_stop(&s->job))
			job_pause_point(&s->job);
		if (job_cancel_requested(&s->job))
			return -ECANCELED;
		err = root_enter(s->root);
		if (err)
			return err;
		err = status(s, off, size - off, &x);
		root_leave(s->root);
		if (err)
			return err;
		if (x.flags & EXTENT_ALLOCATED)
			commit_top_mark(s->filter, off, x.len);
		off += x.len;
	}
	job_progress_set(&s->job, 0,
			 commit_top_dirty(s->filter) + (s->end - node_size(s->filter)));
	return 0;
}

/* Copy until nothing is dirty; new dirt is more work to do. */
static int
catch_up(struct commit *s)
{
	uint64_t left;

	while ((left = commit_top_dirty(s->filter))) {
		uint64_t done = atomic_load(&s->job.progress);
		int r;

		job_progress_set(&s->job, done, done + left);
		r = copy_dirty(s);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
run_active(struct commit *s)
{
	int r = mark_all(s);

	/* The bulk in one pass, then no new dirt but for errors: so however busy
	 * clients are, there is an end to it. */
	if (!r)
		r = copy_pieces(s, tail_next, walk_move);
	if (!r)
		r = copy_dirty(s);
	if (!r) {
		commit_top_follow(s->filter);
		r = catch_up(s);
	}
	if (r)
		return r;
	job_set_ready(&s->job);
	for (;;) {
		if (job_is_cancelled(&s->job))
			return -ECANCELED;
		if (job_cancel_requested(&s->job))
			return 0;	/* softly: top stays */
		r = catch_up(s);
		if (r)
			return r == -ECANCELED && !job_is_cancelled(&s->job) ? 0 : r;
		if (!s->completing)
			job_sleep(&s->job, IDLE_NS);
		else if (commit_top_settle(s->filter))
			break;	/* else a write below has failed meanwhile */
	}
	s->pivot = true;
	return flush_base(s);
}

static int
commit_run(struct job *j, struct error **errp)
{
	struct commit *s = of(j);
	int r = grow_base(s, errp);

	if (r < 0)
		return r;
	s->end = end_to_see(s);
	if (s->active)
		return run_active(s);
	job_progress_set(j, 0, s->end);
	r = copy_pieces(s, walk_next, walk_move);
	if (r)
		return r;
	s->pivot = true;
	return flush_base(s);
}

/* ---- the end ---- */

static int
commit_prepare(struct job *j, struct error **errp)
{
	struct commit *s = of(j);

	if (!s->pivot)
		return 0;
	if (commit_top_gather(s->filter, errp) < 0)
		return -EIO;
	if (end_to_see(s) > s->end) {
		error_set(errp, "An image above '%s' has grown, and would show what '%s' holds "
			  "behind the end of '%s'; start the commit again",
			  s->top->name, s->base->name, s->top->name);
		return -EBUSY;
	}
	return commit_top_pivot(s->filter, s->backing_file, s->backing_fmt, errp) < 0
		       ? -EIO
		       : 0;
}

static void
commit_abort(struct job *j)
{
	/* A prepared job of a group that fails has pivoted already; that loses
	 * nothing, and there is no way back. */
	of(j)->pivot = false;
}

static void
release(struct node **n)
{
	if (*n)
		node_unref(*n);
	*n = NULL;
}

static void
commit_clean(struct job *j)
{
	struct commit *s = of(j);
	bool base_is_top = s->active && s->pivot;

	job_loosen_nodes(j);
	if (s->filter) {
		/* No-op where the pivot has left it without users. */
		(void)commit_top_remove(s->filter, NULL);
		job_drop_nodes(j);
		release(&s->filter);
	}
	job_drop_nodes(j);
	if (s->opened_base && !base_is_top)
		(void)node_set_read_only(s->base, true, NULL);
	while (s->n_overlays) {
		struct node **n = &s->overlays[--s->n_overlays];

		(void)node_set_read_only(*n, true, NULL);
		release(n);
	}
	release(&s->base);
	release(&s->top);
}

static void
commit_free(struct job *j)
{
	free(of(j)->backing_file);
	free(of(j)->overlays);
}

static void
commit_complete(struct job *j)
{
	of(j)->completing = true;
}

/* A ready job that is asked softly ends well, and leaves everything at top. */
static bool
commit_cancel(struct job *j, bool force)
{
	return force || !of(j)->active || !job_is_ready(j);
}

static const struct job_kind commit_kind = {
	.type = JOB_TYPE_COMMIT,
	.size = sizeof(struct commit),
	.run = commit_run,
	.prepare = commit_prepare,
	.abort = commit_abort,
	.clean = commit_clean,
	.free = commit_free,
	.cancel = commit_cancel,
};

static const struct job_kind active_kind = {
	.type = JOB_TYPE_COMMIT,
	.size = sizeof(struct commit),
	.run = commit_run,
	.prepare = commit_prepare,
	.abort = commit_abort,
	.clean = commit_clean,
	.free = commit_free,
	.complete = commit_complete,
	.cancel = commit_cancel,
};

/* ---- the start ---- */

static int
open_for_writing(struct node *n, bool *ret_opened, struct error **errp)
{
	if (!node_is_read_only(n))
		return 0;
	if (node_set_read_only(n, false, errp) < 0)
		return -1;
	*ret_opened = true;
	return 0;
}

/* All images above top whose headers name it: they will name base. */
static int
open_overlays(struct commit *s, struct error **errp)
{
	size_t count;
	int r = 0;

	if (commit_top_overlays(s->top, &s->overlays, &count) < 0)
		return error_set(errp, "Cannot allocate memory");
	for (size_t i = 0; i < count; i++) {
		struct node *n = s->overlays[i];
		bool opened = false;

		if (!r)
			r = node_check_busy(n, errp);
		if (!r)
			r = open_for_writing(n, &opened, errp);
		if (opened)
			s->overlays[s->n_overlays++] = n;
		else
			node_unref(n);
	}
	return r;
}

/* What the headers of those above shall say. */
static int
name_backing(struct commit *s, const struct block_commit_args *a, struct error **errp)
{
	bool mask = a->has_backing_mask_protocol && a->backing_mask_protocol;

	s->backing_file = strdup(a->backing_file ? a->backing_file
						 : node_filename(s->base));
	if (!s->backing_file)
		return error_set(errp, "Cannot allocate memory");
	s->backing_fmt = mask && node_is_protocol(s->base) ? "raw"
							   : node_driver_name(s->base);
	return 0;
}

static int
put_filter(struct commit *s, const char *name, struct error **errp)
{
	struct commit_top_options o = {
		.name = name,
		.active = s->active,
		.grows = node_size(s->base) < node_size(s->top),
	};

	return commit_top_new(&o, s->top, s->base, &s->filter, errp);
}

/* A layer between: what it shows by itself means nothing any more once data goes past
 * it into base, so nobody may read it as a disk.  A filter on base shows base. */
static int
hold_between(struct commit *s, struct node *n, struct error **errp)
{
	perm_set shared = PERM_WRITE | PERM_WRITE_UNCHANGED;
	struct root *unused;

	if (n == s->top)
		return job_hold_node(&s->job, n, "intermediate node", 0, PERM_ALL, NULL,
				     errp);
	if (node_skip_filters(n) == node_skip_filters(s->base))
		shared |= PERM_CONSISTENT_READ;
	return job_hold_node(&s->job, n, "intermediate node", 0, shared, &unused, errp);
}

/* Mark everything between the device and base as busy, and claim the filter. */
static int
hold_chain(struct commit *s, struct node *device, struct error **errp)
{
	struct node *n = s->top;
	struct root *unused;

	if (job_hold_node(&s->job, s->filter, "main node", 0, PERM_ALL, &s->root, errp) < 0)
		return -1;
	/* In the middle of a chain it is the overlay that keeps the filter. */
	if (!s->active)
		node_clear_busy(s->filter, s->job.reason);
	if (device != s->top &&
	    job_hold_node(&s->job, device, "main node", 0, PERM_ALL, &unused, errp) < 0)
		return -1;
	for (;;) {
		bool own = n == s->base || (n == s->top && !s->active);

		if ((own ? job_use_node(&s->job, n, errp) : hold_between(s, n, errp)) < 0)
			return -1;
		if (n == s->base)
			return 0;
		n = node_below(n);
	}
}

static int
set_up(struct commit *s, const struct commit_plan *p, const struct block_commit_args *a,
       struct error **errp)
{
	s->active = p->active;
	s->on_error = a->has_on_error ? a->on_error : BLOCKDEV_ON_ERROR_REPORT;
	s->top = node_ref(p->top);
	s->base = node_ref(p->base);
	if (name_backing(s, a, errp) < 0 ||
	    open_for_writing(s->base, &s->opened_base, errp) < 0 ||
	    open_overlays(s, errp) < 0 ||
	    put_filter(s, a->filter_node_name, errp) < 0)
		return -1;
	return hold_chain(s, p->device, errp);
}

int
commit_start(const struct block_commit_args *a, struct error **errp)
{
	struct job_options o = {
		.id = a->job_id,
		.manual_finalize = a->has_auto_finalize && !a->auto_finalize,
		.manual_dismiss = a->has_auto_dismiss && !a->auto_dismiss,
		.speed = a->has_speed ? a->speed : 0,
	};
	CLEANUP(node_unrefp) struct node *device = NULL;
	struct commit_plan plan;
	struct job *j;

	if (commit_plan_make(a, &plan, errp) < 0 ||
	    job_new(plan.active ? &active_kind : &commit_kind, &o, &j, errp) < 0)
		return -1;
	device = node_ref(plan.device);	/* the start waits for its turns */
	if (set_up(of(j), &plan, a, errp) < 0) {
		job_fail_early(j);
		return -1;
	}
	return job_start(j, errp);
}
