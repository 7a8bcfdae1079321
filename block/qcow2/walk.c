/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/walk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/entry.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/refs.h"

/* ---- walking ---- */

struct walk {
	/* For n clusters, one behind the other; -errno ends the walk. */
	int (*fn)(struct walk *w, uint64_t cluster, uint64_t n);
	struct qcow2 *q;
	uint64_t cluster, n;		/* collected, not told yet */
	uint64_t done, limit;		/* references told; when to end */
	bool forget;			/* the L2 tables may be none any more */
};

static void
forget_table(struct qcow2 *q, uint64_t off)
{
	qcow2_lock(q);
	qcow2_cache_drop(&q->l2_cache, off, q->cluster_size);
	qcow2_unlock(q);
}

static int
tell(struct walk *w)
{
	uint64_t n = min_u64(w->n, w->limit - w->done);

	w->n = 0;
	return n ? w->fn(w, w->cluster, n) : 0;
}

static int
collect(struct walk *w, uint64_t host, uint64_t n)
{
	uint64_t cluster = host >> w->q->cluster_bits;
	int r;

	if (w->n && w->cluster + w->n == cluster) {
		w->n += n;
		return 0;
	}
	r = tell(w);
	w->cluster = cluster;
	w->n = n;
	return r;
}

static int
unaligned_table(struct qcow2 *q, uint64_t off, uint64_t l1_index)
{
	int r;

	qcow2_lock(q);
	r = qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "L2 table offset %#" PRIx64
			       " unaligned (L1 index: %#" PRIx64 ")", off, l1_index);
	qcow2_unlock(q);
	return r;
}

static int
unaligned_cluster(struct qcow2 *q, uint64_t host, uint64_t table, uint64_t l2_index)
{
	int r;

	qcow2_lock(q);
	r = qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "Cluster allocation offset %#" PRIx64
			       " unaligned (L2 offset: %#" PRIx64 ", L2 index: %#" PRIx64 ")",
			       host, table, l2_index);
	qcow2_unlock(q);
	return r;
}

/* The L2 table at off. */
static int
walk_table(struct walk *w, uint64_t off, const uint8_t *table)
{
	struct qcow2 *q = w->q;
	int r = 0;

	for (uint64_t i = 0; i < UINT64_C(1) << q->l2_bits && !r; i++) {
		struct qcow2_l2e e = qcow2_l2e_get(q, table, i);
		uint64_t host, n = qcow2_l2e_clusters(q, e, &host);

		if (!n)
			continue;
		if (qcow2_l2e_has_host(q, e) && !is_aligned(host, q->cluster_size))
			return unaligned_cluster(q, host, off, i);
		r = collect(w, host, n);
	}
	return r;
}

static int
walk(struct walk *w, const uint64_t *l1, uint64_t n)
{
	struct qcow2 *q = w->q;
	CLEANUP(cleanup_free) uint8_t *table = malloc(q->cluster_size);
	int r = table ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < n && !r && w->done < w->limit; i++) {
		uint64_t off = l1[i] & QCOW2_OFFSET_MASK;

		if (!off)
			continue;
		if (!is_aligned(off, q->cluster_size))
			return unaligned_table(q, off, i);
		r = node_pread(qcow2_file(q), off, table, q->cluster_size);
		if (!r)
			r = walk_table(w, off, table);
		/* The table last: it is not read any more. */
		if (w->forget)
			forget_table(q, off);
		if (!r)
			r = collect(w, off, 1);
		if (!r)
			r = tell(w);
		if (!r)
			r = qcow2_throttle(q);
	}
	return r;
}

int
qcow2_walk_read_l1(struct qcow2 *q, uint64_t off, uint64_t n, uint64_t **ret_l1)
{
	uint64_t *l1;
	int r;

	if (qcow2_table_check(off, n, 8, QCOW2_L1_MAX, q->cluster_bits, "", NULL))
		return -EINVAL;
	l1 = malloc(n * 8 + 1);
	if (!l1)
		return -ENOMEM;
	r = node_pread(qcow2_file(q), off, l1, n * 8);
	if (r < 0) {
		free(l1);
		return r;
	}
	for (uint64_t i = 0; i < n; i++)
		l1[i] = be64toh(l1[i]);
	*ret_l1 = l1;
	return 0;
}

/* ---- counting ---- */

/* All of a run or nothing, as far as the width of counts is concerned. */
static int
add(struct walk *w, uint64_t cluster, uint64_t n)
{
	uint64_t count;
	int r = 0;

	for (uint64_t i = 0; i < n && !r; i++) {
		r = qcow2_refs_get(w->q, cluster + i, &count);
		if (!r && count >= w->q->refcount_max)
			r = -EINVAL;
	}
	if (!r)
		r = qcow2_refs_change(w->q, cluster, n, 1);
	if (!r)
		w->done += n;
	return r;
}

static int
take_back(struct walk *w, uint64_t cluster, uint64_t n)
{
	w->done += n;
	return qcow2_refs_change(w->q, cluster, n, -1);
}

static int
drop(struct walk *w, uint64_t cluster, uint64_t n)
{
	return qcow2_refs_drop(w->q, cluster, n, QCOW2_FREE_SNAPSHOT);
}

int
qcow2_walk_add(struct qcow2 *q, const uint64_t *l1, uint64_t n, uint64_t *ret_done)
{
	struct walk w = { .fn = add, .q = q, .limit = UINT64_MAX };
	int r = walk(&w, l1, n);

	*ret_done = w.done;
	return r;
}

int
qcow2_walk_take_back(struct qcow2 *q, const uint64_t *l1, uint64_t n, uint64_t done)
{
	struct walk w = { .fn = take_back, .q = q, .limit = done };

	return walk(&w, l1, n);
}

int
qcow2_walk_drop(struct qcow2 *q, const uint64_t *l1, uint64_t n)
{
	struct walk w = { .fn = drop, .q = q, .limit = UINT64_MAX, .forget = true };

	return walk(&w, l1, n);
}

/* ---- the COPIED flags ---- */

/* entry with its flag as host's count has it. */
static int
flagged(struct qcow2 *q, uint64_t entry, uint64_t host, uint64_t *ret_entry)
{
	uint64_t count;
	int r = qcow2_refs_get(q, host >> q->cluster_bits, &count);

	if (!r)
		*ret_entry = (entry & ~QCOW2_COPIED) | (count == 1 ? QCOW2_COPIED : 0);
	return r;
}

/* Set the flags within an L2 table; 1: some were wrong. */
static int
flag_entries(struct qcow2 *q, uint8_t *table)
{
	int changed = 0;

	for (uint64_t i = 0; i < UINT64_C(1) << q->l2_bits; i++) {
		struct qcow2_l2e e = qcow2_l2e_get(q, table, i), was = e;
		int r;

		if (!qcow2_l2e_has_host(q, e))
			continue;
		r = flagged(q, e.entry, e.entry & QCOW2_OFFSET_MASK, &e.entry);
		if (r < 0)
			return r;
		if (e.entry == was.entry)
			continue;
		qcow2_l2e_put(q, table, i, e);
		changed = 1;
	}
	return changed;
}

static int
flag_table(struct qcow2 *q, uint64_t off, uint8_t *table)
{
	int r = node_pread(qcow2_file(q), off, table, q->cluster_size);
	bool wrong;

	if (!r)
		r = flag_entries(q, table);
	if (r <= 0)
		return r;
	qcow2_lock(q);
	wrong = qcow2_overlaps_fixed(q, off, q->cluster_size);
	qcow2_unlock(q);
	forget_table(q, off);
	return wrong ? -EIO : node_pwrite(qcow2_file(q), off, table, q->cluster_size);
}

static int
flag_l1(struct qcow2 *q, uint64_t i)
{
	uint64_t entry = 0;
	int r = flagged(q, q->l1[i], q->l1[i] & QCOW2_OFFSET_MASK, &entry);

	if (r < 0 || entry == q->l1[i])
		return r;
	qcow2_lock(q);
	q->l1[i] = entry;
	qcow2_dirty_add(&q->l1_dirty, i, i + 1);
	qcow2_unlock(q);
	return 0;
}

int
qcow2_walk_flags(struct qcow2 *q)
{
	CLEANUP(cleanup_free) uint8_t *table = malloc(q->cluster_size);
	int r = table ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < q->l1_size && !r; i++) {
		uint64_t off = q->l1[i] & QCOW2_OFFSET_MASK;

		if (!off)
			continue;
		if (!is_aligned(off, q->cluster_size))
			return -EIO;
		r = flag_table(q, off, table);
		if (!r)
			r = flag_l1(q, i);
	}
	return r < 0 ? r : qcow2_checkpoint(q);
}
