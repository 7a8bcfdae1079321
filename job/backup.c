/* SPDX-License-Identifier: Apache-2.0 */
/* Backup: a copy-before-write filter above the source keeps what clients overwrite
 * (block/filters/cbw.h has the argument); the job copies the rest through the same
 * filter, so each cluster is copied once, by whoever comes first. */
#include "job/backup.h"

#include <errno.h>
#include <limits.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/filters/cbw.h"
#include "block/io.h"
#include "block/node.h"
#include "block/root.h"
#include "job/backup_bitmap.h"
#include "job/copy.h"
#include "job/job.h"
#include "schema/types.h"

struct backup {
	struct job job;
	struct node *filter;		/* reference */
	struct node *source, *target;	/* held as nodes of the job */
	struct root *root;		/* on the filter */
	enum MirrorSyncMode sync;
	struct backup_bitmap bitmap;
	enum BlockdevOnError on_source_error, on_target_error;
	uint64_t chunk;
	unsigned workers;
	uint64_t total;			/* bytes to be kept, as the job began to copy */
};

static struct backup *
of(void *job)
{
	return job;
}

/* ---- pieces ---- */

static int
next_piece(void *user, uint64_t *cursor, uint64_t most, struct copy_piece *p)
{
	struct backup *s = user;
	uint64_t cluster = cbw_cluster(s->filter);
	struct extent x;
	int err;

	if (cbw_broken(s->filter))
		return cbw_broken(s->filter);
	if (!cbw_next(s->filter, *cursor, &p->off, &p->len))
		return 0;
	err = node_status_above(s->filter, NULL, p->off, p->len, true, &x);
	if (err)
		return err;
	if (!x.len)
		return -EIO;
	/* Whole clusters that read as zeroes; the rest is data, in part perhaps. */
	p->zero = x.flags & EXTENT_ZERO && (x.len >= cluster || x.len >= p->len);
	if (x.len < p->len)
		p->len = max_u64(round_down(x.len, cluster), min_u64(cluster, p->len));
	p->len = copy_cut(p->off, p->len, p->zero ? COPY_ZERO_CHUNK : most);
	*cursor = p->off + p->len;
	return 1;
}

static void
show_progress(struct backup *s)
{
	uint64_t left = cbw_left(s->filter);

	job_progress_set(&s->job, s->total > left ? s->total - left : 0, s->total);
}

static int
move_piece(void *user, const struct copy_piece *p, void *buf, enum IoOperationType *ret_op)
{
	struct backup *s = user;
	int err = cbw_copy(s->filter, p->off, p->len, p->zero, buf, ret_op);

	show_progress(s);
	return err;
}

/* ---- the work ---- */

/* Only what the topmost layer holds is to be kept. */
static int
skip_lower_layers(struct backup *s)
{
	uint64_t size = node_size(s->filter), cluster = cbw_cluster(s->filter), off = 0;
	struct node *top = node_skip_filters(s->source);
	struct node *under = node_backing(top);

	while (off < size) {
		struct extent x;
		uint64_t end;
		int err;

		if (job_should_stop(&s->job))
			job_pause_point(&s->job);
		if (job_is_cancelled(&s->job))
			return -ECANCELED;
		err = root_enter(s->root);
		if (err)
			return err;
		err = node_status_above(s->source, under, off, size - off, false, &x);
		end = off + x.len == size ? size : round_down(off + x.len, cluster);
		if (!err && !(x.flags & EXTENT_ALLOCATED) && end > off)
			cbw_skip(s->filter, off, end - off);
		root_leave(s->root);
		if (err)
			return err;
		/* A cluster that is allocated in part is kept whole. */
		off = x.flags & EXTENT_ALLOCATED || end <= off
			      ? round_up(off + x.len, cluster)
			      : end;
	}
	return 0;
}

static int
copy_all(struct backup *s)
{
	struct copy_options o = {
		.root = s->root,
		.user = s,
		.next = next_piece,
		.move = move_piece,
		.target = s->target,
		.granule = cbw_cluster(s->filter),
		.chunk = s->chunk,
		.workers = s->workers,
		.on_source_error = s->on_source_error,
		.on_target_error = s->on_target_error,
	};
	struct copy *c = copy_new(&s->job, &o);
	int r = c ? copy_run(c) : -ENOMEM;

	copy_free(c);
	return r;
}

static int
flush_target(struct backup *s)
{
	int err = root_enter(s->root);

	if (!err) {
		err = node_flush(s->target);
		root_leave(s->root);
	}
	return err;
}

static int
backup_run(struct job *j, struct error **errp)
{
	struct backup *s = of(j);
	int r = 0;

	(void)errp;
	if (s->sync == MIRROR_SYNC_MODE_TOP)
		r = skip_lower_layers(s);
	if (r)
		return r;
	s->total = cbw_left(s->filter);
	job_progress_set(j, 0, s->total);
	if (s->sync == MIRROR_SYNC_MODE_NONE) {
		while (!job_is_cancelled(j) && !cbw_broken(s->filter)) {
			job_sleep(j, 1000000000);
			show_progress(s);
		}
	} else {
		r = copy_all(s);
	}
	show_progress(s);
	if (cbw_broken(s->filter))
		return cbw_broken(s->filter);
	if (job_is_cancelled(j))
		return -ECANCELED;
	return r ? r : flush_target(s);
}

static void
backup_commit(struct job *j)
{
	backup_bitmap_commit(&of(j)->bitmap);
}

static void
backup_abort(struct job *j)
{
	struct backup *s = of(j);
	struct bitmap *left = NULL;

	/* The set first: what is copied behind the flush is not covered by it. */
	if (s->bitmap.frozen && s->bitmap.mode == BITMAP_SYNC_MODE_ALWAYS &&
	    cbw_copy_set(s->filter, &left) == 0 && flush_target(s) < 0) {
		bitmap_free(left);
		left = NULL;
	}
	backup_bitmap_abort(&s->bitmap, left);
	bitmap_free(left);
}

static void
backup_clean(struct job *j)
{
	struct backup *s = of(j);

	backup_bitmap_abort(&s->bitmap, NULL);	/* it did not come to a start */
	if (s->filter) {
		(void)cbw_remove(s->filter, NULL);
		job_drop_nodes(j);
		node_unref(s->filter);
		s->filter = NULL;
	}
	job_drop_nodes(j);
}

/* Guests that wait for a copy go on without it, whatever becomes of the target. */
static bool
backup_cancel(struct job *j, bool force)
{
	(void)force;
	if (of(j)->filter)
		cbw_abandon(of(j)->filter);
	return true;
}

static const struct job_kind backup_kind = {
	.type = JOB_TYPE_BACKUP,
	.size = sizeof(struct backup),
	.run = backup_run,
	.commit = backup_commit,
	.abort = backup_abort,
	.clean = backup_clean,
	.cancel = backup_cancel,
};

/* ---- the start ---- */

static int
check_nodes(const struct BlockdevBackup *a, struct node *source, struct node *target,
	    struct error **errp)
{
	if (source == target)
		return error_set(errp, "Source and target cannot be the same");
	if (a->has_compress && a->compress &&
	    !(node_skip_filters(target)->driver->caps & DRIVER_COMPRESSED))
		return error_set(errp, "Compression is not supported for this drive ");
	if (node_check_busy(source, errp) < 0 || node_check_busy(target, errp) < 0)
		return -1;
	return 0;
}

static int
check_perf(const struct BackupPerf *p, struct error **errp)
{
	if (p->has_max_workers && (p->max_workers < 1 || p->max_workers > INT_MAX))
		return error_set(errp, "max-workers must be between 1 and %d", INT_MAX);
	if (p->has_max_chunk && p->max_chunk < 0)
		return error_set(errp, "max-chunk must be zero (which means no limit) or "
				 "positive");
	return 0;
}

static int
check_chunk(const struct BackupPerf *p, struct node *filter, struct error **errp)
{
	uint64_t cluster = cbw_cluster(filter);

	if (p->has_max_chunk && p->max_chunk && (uint64_t)p->max_chunk < cluster)
		return error_set(errp, "Required max-chunk (%lld) is less than backup "
				 "cluster size (%llu)", (long long)p->max_chunk,
				 (unsigned long long)cluster);
	return 0;
}

static int
find_node(const char *name, struct node **ret, struct error **errp)
{
	*ret = node_find(name);
	if (*ret)
		return 0;
	return error_set(errp, "Cannot find device='%s' nor node-name='%s'", name, name);
}

static int
check(const struct BlockdevBackup *a, struct node **ret_source, struct node **ret_target,
      struct error **errp)
{
	struct node *source, *target;
	struct backup_bitmap bitmap;

	if (find_node(a->device, &source, errp) < 0 ||
	    find_node(a->target, &target, errp) < 0 ||
	    backup_bitmap_find(a, source, &bitmap, errp) < 0 ||
	    check_nodes(a, source, target, errp) < 0 ||
	    (a->x_perf && check_perf(a->x_perf, errp) < 0) ||
	    backup_bitmap_check(&bitmap, errp) < 0)
		return -1;
	if (node_size(source) != node_size(target))
		return error_set(errp, "Source and target image have different sizes");
	*ret_source = source;
	*ret_target = target;
	return 0;
}

/* The bitmap, at the instant that the copy will show. */
struct start {
	const struct BlockdevBackup *args;
	struct node *source;
	struct backup_bitmap bitmap;
};

static int
freeze_bitmap(void *user, struct node *filter, struct error **errp)
{
	struct start *s = user;

	/* Found anew: it may have gone while the filter was made. */
	if (backup_bitmap_find(s->args, s->source, &s->bitmap, errp) < 0 ||
	    backup_bitmap_check(&s->bitmap, errp) < 0)
		return -1;
	return backup_bitmap_freeze(&s->bitmap, filter, errp);
}

static int
put_filter(const struct BlockdevBackup *a, struct node *source, struct node *target,
	   struct start *start, struct node **ret_filter, struct error **errp)
{
	const struct BackupPerf *perf = a->x_perf;
	struct cbw_options o = {
		.name = a->filter_node_name,
		.on_error = ON_CBW_ERROR_BREAK_GUEST_WRITE,
		.min_cluster = perf && perf->has_min_cluster_size
				       ? perf->min_cluster_size
				       : 0,
		.discard_source = a->has_discard_source && a->discard_source,
		.compress = a->has_compress && a->compress,
		.now = freeze_bitmap,
		.user = start,
	};

	if (cbw_new(&o, source, target, ret_filter, errp) == 0)
		return 0;
	error_prepend(errp, "Could not create node: ");
	return -1;
}

static void
take_options(struct backup *s, const struct BlockdevBackup *a)
{
	const struct BackupPerf *perf = a->x_perf;

	s->sync = a->sync;
	s->on_source_error = a->has_on_source_error ? a->on_source_error
						    : BLOCKDEV_ON_ERROR_REPORT;
	s->on_target_error = a->has_on_target_error ? a->on_target_error
						    : BLOCKDEV_ON_ERROR_REPORT;
	if (perf && perf->has_max_chunk && perf->max_chunk)
		s->chunk = (uint64_t)1
			   << (63 - __builtin_clzll((unsigned long long)perf->max_chunk));
	if (perf && perf->has_max_workers)
		s->workers = (unsigned)min_u64((uint64_t)perf->max_workers,
					       COPY_WORKERS_MAX);
}

static int
make_job(const struct BlockdevBackup *a, const struct backup_bitmap *bitmap,
	 struct node *filter, struct node *source, struct node *target, struct job **ret,
	 struct error **errp)
{
	struct job_options o = {
		.id = a->job_id,
		.manual_finalize = a->has_auto_finalize && !a->auto_finalize,
		.manual_dismiss = a->has_auto_dismiss && !a->auto_dismiss,
		.speed = a->has_speed ? a->speed : 0,
	};
	struct backup *s;
	struct job *j;

	if (job_new(&backup_kind, &o, &j, errp) < 0)
		return -1;
	s = of(j);
	take_options(s, a);
	s->source = source;
	s->target = target;
	if (job_hold_node(j, filter, "main node", 0, PERM_ALL, &s->root, errp) < 0 ||
	    job_hold_node(j, target, "target", 0, PERM_ALL, NULL, errp) < 0) {
		job_fail_early(j);
		return -1;
	}
	s->filter = filter;
	s->bitmap = *bitmap;
	*ret = j;
	return 0;
}

int
backup_start(const struct BlockdevBackup *a, struct error **errp)
{
	CLEANUP(node_unrefp) struct node *hold_source = NULL, *hold_target = NULL;
	struct node *source = NULL, *target = NULL, *filter;
	struct start start = { .args = a };
	struct job *j;

	if (check(a, &source, &target, errp) < 0)
		return -1;
	/* They stay while the start waits for its turns to change the graph. */
	hold_source = node_ref(source);
	hold_target = node_ref(target);
	start.source = source;
	if (put_filter(a, source, target, &start, &filter, errp) < 0)
		return -1;
	if ((a->x_perf && check_chunk(a->x_perf, filter, errp) < 0) ||
	    make_job(a, &start.bitmap, filter, source, target, &j, errp) < 0) {
		backup_bitmap_abort(&start.bitmap, NULL);
		(void)cbw_remove(filter, NULL);
		node_unref(filter);
		return -1;
	}
	return job_start(j, errp);
}
