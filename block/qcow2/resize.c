/* SPDX-License-Identifier: Apache-2.0 */
/* Changing the disk's size: the L1 table, and what lies beyond the smaller end. */
#include "block/qcow2/resize.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/planted.h"
#include "block/dirty.h"
#include "block/io.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/map.h"
#include "block/qcow2/refs.h"

/* ---- the L1 table ---- */

/* Write the larger table with what the old one says, and point the header at it.
 * The checkpoint lock is held, and all of the old table is on disk. */
static int
switch_l1(struct qcow2 *q, uint64_t n, uint64_t host, uint64_t **table)
{
	CLEANUP(cleanup_free) uint8_t *buf = calloc(n, 8);
	uint64_t old_host = q->header.l1_off, old_n = q->l1_size;
	uint8_t field[12], old_field[12];
	int r;

	if (!buf)
		return -ENOMEM;
	for (uint64_t i = 0; i < old_n; i++) {
		(*table)[i] = q->l1[i];
		put_be64(buf + 8 * i, q->l1[i]);
	}
	r = PLANTED(grown_table_last) ? 0 : node_pwrite(qcow2_file(q), host, buf, n * 8);
	if (!r)
		r = qcow2_write_refs(q);
	if (r < 0)
		return r;
	put_be32(field, (uint32_t)n);
	put_be64(field + 4, host);
	put_be32(old_field, q->header.l1_size);
	put_be64(old_field + 4, old_host);
	r = qcow2_switch_field(q, QCOW2_OFF_L1_SIZE, old_field, field, sizeof(field));
	if (!r && PLANTED(grown_table_last))
		r = node_pwrite(qcow2_file(q), host, buf, n * 8);
	if (r < 0)
		return r;
	qcow2_lock(q);
	free(q->l1);
	q->l1 = STEAL(*table);
	q->l1_size = n;
	q->header.l1_size = (uint32_t)n;
	q->header.l1_off = host;
	if (old_n)
		qcow2_refs_drop_later(q, old_host, qcow2_clusters(q, old_n * 8),
				      QCOW2_FREE_OTHER);
	qcow2_unlock(q);
	return 0;
}

static int
grow_l1(struct qcow2 *q, uint64_t n)
{
	CLEANUP(cleanup_free) uint64_t *table = NULL;
	CLEANUP(co_mutex_unlockp) struct co_mutex *making = &q->making_l2;
	uint64_t host, clusters = qcow2_clusters(q, n * 8);
	int r;

	co_mutex_lock(making);	/* no L1 entry changes meanwhile */
	if (n <= q->l1_size)
		return 0;
	if (n > QCOW2_L1_MAX / 8)
		return -EFBIG;
	table = calloc(n, sizeof(*table));
	if (!table)
		return -ENOMEM;
	r = qcow2_refs_take_all(q, clusters, &host);
	if (r < 0)
		return r;
	r = qcow2_checkpoint(q);
	if (!r) {
		co_mutex_lock(&q->checkpoint);
		r = switch_l1(q, n, host, &table);
		co_mutex_unlock(&q->checkpoint);
	}
	/* Where it has failed, the disk may have either. */
	if (r < 0 && !atomic_load(&q->failed))
		(void)qcow2_refs_give_back(q, host, clusters);
	return r;
}

static int
write_size(struct qcow2 *q, uint64_t size)
{
	uint8_t field[8], old[8];
	int r;

	put_be64(field, size);
	put_be64(old, q->header.size);
	co_mutex_lock(&q->checkpoint);
	r = qcow2_switch_field(q, QCOW2_OFF_SIZE, old, field, sizeof(field));
	if (!r) {
		qcow2_lock(q);
		q->header.size = size;
		qcow2_unlock(q);
	}
	co_mutex_unlock(&q->checkpoint);
	return r;
}

/* ---- growing ---- */

/* Whole clusters, where the format has no other way. */
static int
write_zeroes(struct qcow2 *q, uint64_t from, uint64_t to)
{
	CLEANUP(cleanup_free) void *buf = calloc(1, q->cluster_size);
	struct iov v = IOV_BUF(buf, q->cluster_size);
	int r = buf ? 0 : -ENOMEM;

	for (; from < to && !r; from += q->cluster_size)
		r = qcow2_write(q->node, from, &v, 0);
	return r;
}

/* The cluster in which the old end lies may hold anything behind it. */
static int
zero_tail(struct qcow2 *q, uint64_t old, uint64_t size)
{
	uint64_t end = min_u64(round_up(old, q->cluster_size), size);
	CLEANUP(cleanup_free) void *buf = calloc(1, q->cluster_size);
	struct iov v = IOV_BUF(buf, end - old);
	struct qcow2_run run;
	int r;

	if (!buf)
		return -ENOMEM;
	if (end == old || PLANTED(regrow_shows_old))
		return 0;
	r = qcow2_map_lock(q, old, end - old, &run);
	if (r < 0)
		return r;
	qcow2_unlock(q);
	if (run.len == end - old && qcow2_run_is_zero(q, &run))
		return 0;
	return qcow2_write(q->node, old, &v, 0);
}

/* A longer backing file would show in the new clusters. */
static int
hide_backing(struct qcow2 *q, uint64_t old, uint64_t size)
{
	const struct node *backing = qcow2_backing(q);
	uint64_t from = round_up(old, q->cluster_size), end;
	int r;

	if (!backing)
		return 0;
	end = round_up(min_u64(size, atomic_load(&backing->size)), q->cluster_size);
	if (end <= from)
		return 0;
	r = qcow2_zero(q->node, from, end - from, 0);
	if (r == -EOPNOTSUPP)
		r = write_zeroes(q, from, end);
	return r;
}

static int
find_space(struct qcow2 *q, uint64_t guest, uint64_t want, uint64_t *ret_host, uint64_t *ret_got,
	   bool *ret_fresh)
{
	if (!q->external_data)
		return qcow2_refs_take(q, want, ret_host, ret_got, ret_fresh);
	*ret_host = guest;
	*ret_got = want;
	*ret_fresh = false;
	return 0;
}

int
qcow2_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, bool zeroed)
{
	uint64_t file_end = 0;
	int r = 0;

	from = round_down(from, q->cluster_size);
	while (from < to && !r) {
		uint64_t host, got, linked = 0;
		struct qcow2_run run;
		bool fresh, filled;

		r = qcow2_before_write(q);
		if (!r)
			r = qcow2_map_lock(q, from, round_up(to, q->cluster_size) - from, &run);
		if (r < 0)
			return r;
		qcow2_unlock(q);
		if (run.kind != QCOW2_RUN_UNALLOCATED || run.len < q->cluster_size) {
			from = round_up(from + run.len, q->cluster_size);
			continue;
		}
		r = find_space(q, from, run.len >> q->cluster_bits, &host, &got, &fresh);
		if (r < 0)
			return r;
		/* With subclusters the space holds nothing until they are written; but a
		 * raw data file is all data. */
		filled = !q->extended_l2 || q->data_raw;
		if (!fresh && !zeroed && filled)
			r = node_zero(qcow2_data_file(q), host, got << q->cluster_bits,
				      q->external_data ? IO_MAY_UNMAP : 0);
		if (!r)
			r = qcow2_map_link(q, from, host, got, from,
					   from + (filled ? got << q->cluster_bits : 0), &linked);
		if (r < 0 && !q->external_data)
			(void)qcow2_refs_give_back(q, host + (linked << q->cluster_bits),
						   got - linked);
		from += got << q->cluster_bits;
		file_end = max_u64(file_end, host + (got << q->cluster_bits));
	}
	/* What is mapped shall lie within the file. */
	if (!r && file_end > atomic_load(&qcow2_data_file(q)->size))
		r = node_truncate(qcow2_data_file(q), file_end, false, PREALLOC_OFF, NULL) ? -EIO
											   : 0;
	return r;
}

static int
grow(struct qcow2 *q, uint64_t old, uint64_t size, enum prealloc prealloc, struct error **errp)
{
	int r = grow_l1(q, qcow2_l1_entries(size, q->cluster_bits, q->extended_l2));

	if (r < 0)
		return error_set_errno(errp, r, "Failed to grow the L1 table"), -1;
	r = zero_tail(q, old, size);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to zero out new clusters"), -1;
	if (prealloc != PREALLOC_OFF) {
		r = qcow2_preallocate(q, round_up(old, q->cluster_size), size, false);
		if (r < 0)
			return error_set_errno(errp, r, "Could not preallocate new data"), -1;
	}
	/* From the moment on that the size is on disk nothing else may show there: all
	 * that says so is on disk before it. */
	r = hide_backing(q, old, size);
	if (!r && !PLANTED(size_before_zeroes))
		r = qcow2_checkpoint(q);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to zero out new clusters"), -1;
	return 0;
}

/* ---- shrinking ---- */

static struct qcow2_l2e
no_entry(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	(void)q;
	(void)old;
	(void)index;
	(void)arg;
	return (struct qcow2_l2e){ 0, 0 };
}

/* Let go of the L2 tables that lie beyond the end altogether. */
static void
drop_tables(struct qcow2 *q, uint64_t first)
{
	qcow2_lock(q);
	for (uint64_t i = first; i < q->l1_size; i++) {
		uint64_t table = q->l1[i] & QCOW2_OFFSET_MASK;

		if (!table || !is_aligned(table, q->cluster_size))
			continue;
		qcow2_cache_drop(&q->l2_cache, table, q->cluster_size);
		q->l1[i] = 0;
		qcow2_dirty_add(&q->l1_dirty, i, i + 1);
		if (PLANTED(shrink_frees_first)) {
			qcow2_unlock(q);
			(void)qcow2_refs_give_back(q, table, 1);
			qcow2_lock(q);
			continue;
		}
		qcow2_refs_drop_later(q, table, 1, QCOW2_FREE_CUT);
	}
	qcow2_unlock(q);
}

static int
shrink(struct qcow2 *q, uint64_t old, uint64_t size, enum prealloc prealloc,
       struct error **errp)
{
	uint64_t from = round_up(size, q->cluster_size), to = round_up(old, q->cluster_size);
	uint64_t done;
	int r = 0;

	if (prealloc != PREALLOC_OFF)
		return error_set(errp, "Preallocation can't be used for shrinking an image");
	if (from < to)
		r = qcow2_map_change(q, from, (to - from) >> q->cluster_bits, true,
				     QCOW2_FREE_CUT, no_entry, NULL, &done);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to discard cropped clusters"), -1;
	/* What was in the tables is written before they go. */
	r = qcow2_checkpoint(q);
	if (!r) {
		drop_tables(q, qcow2_l1_entries(size, q->cluster_bits, q->extended_l2));
		r = qcow2_checkpoint(q);
	}
	return r < 0 ? (error_set_errno(errp, r, "Failed to reduce the number of L2 tables"), -1)
		     : 0;
}

/* The end of the file that nothing is in any more goes; failing costs space only. */
static void
trim_file(struct qcow2 *q)
{
	struct node *file = qcow2_file(q);
	uint64_t size = atomic_load(&file->size), n = qcow2_clusters(q, size), count;

	/* Twice: what is unmapped by the first is free when the second is done. */
	if (!(file->driver->caps & DRIVER_GROWS) || qcow2_checkpoint(q) < 0 ||
	    qcow2_checkpoint(q) < 0)
		return;
	for (; n; n--)
		if (qcow2_refs_get(q, n - 1, &count) < 0 || count)
			break;
	if (n << q->cluster_bits < size)
		(void)node_truncate(file, n << q->cluster_bits, false, PREALLOC_OFF, NULL);
}

/* An external data file is made longer first: nothing is mapped that it has not.
 * If it is a raw image in its own right, so is all of the new space. */
static int
grow_data(struct qcow2 *q, uint64_t size, bool exact, enum prealloc *prealloc,
	  struct error **errp)
{
	struct node *data = qcow2_data_file(q);

	if (q->data_raw && *prealloc == PREALLOC_OFF)
		*prealloc = PREALLOC_METADATA;
	if (atomic_load(&data->size) >= size && !(exact && q->data_raw))
		return 0;
	return node_truncate(data, size, exact && q->data_raw, PREALLOC_OFF, errp);
}

/* What the guest sees, and then the size on disk. */
static int
change_size(struct qcow2 *q, uint64_t old, uint64_t size, enum prealloc prealloc,
	    struct error **errp)
{
	int r = size > old ? grow(q, old, size, prealloc, errp)
			   : shrink(q, old, size, prealloc, errp);

	if (r)
		return -1;
	r = write_size(q, size);
	return r < 0 ? (error_set_errno(errp, r, "Failed to update the image size"), -1) : 0;
}

int
qcow2_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	       struct error **errp)
{
	struct qcow2 *q = n->state;
	uint64_t old = q->header.size;
	int r;

	if (!is_aligned(size, 512))
		return error_set(errp, "The new size must be a multiple of %u", 512);
	if (q->nb_snapshots && q->version < 3)
		return error_set(errp, "Can't resize a v2 image which has snapshots");
	if (prealloc == PREALLOC_FALLOC || prealloc == PREALLOC_FULL)
		return error_set(errp, "Unsupported preallocation mode '%s'",
				 prealloc == PREALLOC_FULL ? "full" : "falloc");
	if (qcow2_bitmaps_check_size(q, size, errp))
		return -1;
	r = qcow2_before_write(q);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to update the image size"), -1;
	if (q->data_edge && size > old && grow_data(q, size, exact, &prealloc, errp))
		return -1;
	if (change_size(q, old, size, prealloc, errp)) {
		/* What would have been cut off is there still, and may show something else. */
		if (size < old)
			dirty_mark(n, size, old - size);
		return -1;
	}
	atomic_store(&n->size, size);
	/* What is behind the end in a data file is only in the way: let it go. */
	if (q->data_edge && size < old)
		(void)node_truncate(qcow2_data_file(q), size, exact && q->data_raw, PREALLOC_OFF,
				    NULL);
	qcow2_bitmaps_resized(q);
	if (size < old)
		trim_file(q);
	return 0;
}
