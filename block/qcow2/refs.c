/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/refs.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/planted.h"
#include "block/io.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/compress.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/grow.h"
#include "block/qcow2/overlap.h"

/* Host offsets in tables have 56 bits. */
#define HOST_END (UINT64_C(1) << 56)

uint64_t
qcow2_refcount_get(const void *block, unsigned order, uint64_t i)
{
	const uint8_t *p = block;

	switch (order) {
	case 0:
	case 1:
	case 2: {
		unsigned bits = 1u << order;
		unsigned shift = (unsigned)(i << order) & 7;

		return p[(i << order) >> 3] >> shift & ((1u << bits) - 1);
	}
	case 3:
		return p[i];
	case 4:
		return get_be16(p + 2 * i);
	case 5:
		return get_be32(p + 4 * i);
	default:
		return get_be64(p + 8 * i);
	}
}

void
qcow2_refcount_put(void *block, unsigned order, uint64_t i, uint64_t count)
{
	uint8_t *p = block;

	switch (order) {
	case 0:
	case 1:
	case 2: {
		unsigned mask = (1u << (1u << order)) - 1;
		unsigned shift = (unsigned)(i << order) & 7;
		uint8_t *byte = &p[(i << order) >> 3];

		*byte = (uint8_t)((*byte & ~(mask << shift)) | (unsigned)count << shift);
		break;
	}
	case 3:
		p[i] = (uint8_t)count;
		break;
	case 4:
		put_be16(p + 2 * i, (uint16_t)count);
		break;
	case 5:
		put_be32(p + 4 * i, (uint32_t)count);
		break;
	default:
		put_be64(p + 8 * i, count);
		break;
	}
}

/* Entries of one slice, and an entry's index within it. */
static uint64_t
slice_entries(const struct qcow2 *q)
{
	return UINT64_C(8) << q->slice_bits >> q->refcount_order;
}

/* Find the slice that holds cluster's count.  1: found, with the lock held;
 * 0: its block does not exist (lock held); -errno: lock released. */
static int
lock_slice(struct qcow2 *q, uint64_t cluster, struct qcow2_slice **ret)
{
	uint64_t block = cluster >> q->refblock_bits, in_block, off;
	int r;

	in_block = cluster & ((UINT64_C(1) << q->refblock_bits) - 1);
	for (;;) {
		qcow2_lock(q);
		if (block >= q->reftable_size)
			return 0;
		off = q->reftable[block] & ~UINT64_C(511);
		if (!off)
			return 0;
		if (!is_aligned(off, q->cluster_size) || off >= (uint64_t)INT64_MAX) {
			r = qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "Refblock offset %#" PRIx64
					       " unaligned (reftable index: %#" PRIx64 ")",
					       off, block);
			qcow2_unlock(q);
			return r;
		}
		off += in_block / slice_entries(q) << q->slice_bits;
		*ret = qcow2_cache_find(&q->ref_cache, off);
		if (*ret)
			return 1;
		qcow2_unlock(q);
		r = qcow2_cache_load(q, &q->ref_cache, off);
		if (r < 0)
			return r;
	}
}

int
qcow2_refs_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count)
{
	struct qcow2_slice *s;
	int r = lock_slice(q, cluster, &s);

	if (r < 0)
		return r;
	*ret_count = r ? qcow2_refcount_get(s->data, q->refcount_order,
					    cluster % slice_entries(q))
		       : 0;
	qcow2_unlock(q);
	return 0;
}

/* As lock_slice(), and make the block if there is none. */
static int
lock_slice_made(struct qcow2 *q, uint64_t cluster, struct qcow2_slice **ret)
{
	for (;;) {
		int r = lock_slice(q, cluster, ret);

		if (r)
			return r < 0 ? r : 0;
		qcow2_unlock(q);
		r = qcow2_grow_refs(q, cluster >> q->refblock_bits);
		if (r < 0)
			return r;
	}
}

int
qcow2_refs_set(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
	struct qcow2_slice *s;
	int r;

	if (count > q->refcount_max)
		return -EINVAL;
	r = lock_slice_made(q, cluster, &s);
	if (r < 0)
		return r;
	qcow2_refcount_put(s->data, q->refcount_order, cluster % slice_entries(q), count);
	qcow2_cache_dirty(&q->ref_cache, s);
	if (!count && cluster < q->free_hint)
		q->free_hint = cluster;
	qcow2_unlock(q);
	return 0;
}

int
qcow2_refs_change(struct qcow2 *q, uint64_t cluster, uint64_t n, int delta)
{
	uint64_t per_slice = slice_entries(q);

	while (n) {
		uint64_t i = cluster % per_slice, m = min_u64(n, per_slice - i);
		struct qcow2_slice *s;
		int r = delta > 0 ? lock_slice_made(q, cluster, &s)
				  : lock_slice(q, cluster, &s);

		if (r < 0)
			return r;
		if (delta < 0 && !r) {
			qcow2_unlock(q);
			return -EINVAL;
		}
		if (delta < 0)
			qcow2_pack_forget(q, cluster << q->cluster_bits, m);
		for (uint64_t k = 0; k < m; k++) {
			uint64_t c = qcow2_refcount_get(s->data, q->refcount_order, i + k);

			if (delta < 0 ? !c : c >= q->refcount_max) {
				if (k)
					qcow2_cache_dirty(&q->ref_cache, s);
				qcow2_unlock(q);
				return -EINVAL;
			}
			c += (uint64_t)(int64_t)delta;
			qcow2_refcount_put(s->data, q->refcount_order, i + k, c);
			if (!c && cluster + k < q->free_hint)
				q->free_hint = cluster + k;
		}
		qcow2_cache_dirty(&q->ref_cache, s);
		qcow2_unlock(q);
		cluster += m;
		n -= m;
	}
	return 0;
}

/* ---- taking ---- */

/* The first free entry of a slice at or behind i; n if there is none. */
static uint64_t
find_free(const struct qcow2 *q, const uint8_t *data, uint64_t i, uint64_t n)
{
	/* Sixteen bits, the common width: four counts at a look. */
	if (q->refcount_order == 4) {
		for (; i < n && i % 4; i++)
			if (!get_be16(data + 2 * i))
				return i;
		for (; i < n; i += 4) {
			uint64_t v = get_be64(data + 2 * i);

			if ((v - UINT64_C(0x0001000100010001)) & ~v & UINT64_C(0x8000800080008000))
				break;
		}
	}
	while (i < n && qcow2_refcount_get(data, q->refcount_order, i))
		i++;
	return i;
}

/* Count the free run at i of slice s, at most want long; returns its length. */
static uint64_t
count_run(struct qcow2 *q, struct qcow2_slice *s, uint64_t i, uint64_t want)
{
	uint64_t n = min_u64(want, slice_entries(q) - i), got = 0;

	while (got < n && !qcow2_refcount_get(s->data, q->refcount_order, i + got)) {
		qcow2_refcount_put(s->data, q->refcount_order, i + got, 1);
		got++;
	}
	qcow2_cache_dirty(&q->ref_cache, s);
	return got;
}

bool
qcow2_refs_mark_used(struct qcow2 *q, uint64_t host, uint64_t len)
{
	bool fresh = (q->fresh_known && host >= q->fresh_from) || PLANTED(fresh_is_zero);

	if (host + len > q->fresh_from)
		q->fresh_from = host + len;
	return fresh;
}

/* The number of clusters that the file can have: a device does not grow. */
static uint64_t
cluster_limit(const struct qcow2 *q)
{
	const struct node *file = qcow2_file(q);

	if (file->driver->caps & DRIVER_GROWS)
		return HOST_END >> q->cluster_bits;
	return min_u64(atomic_load(&file->size), HOST_END) >> q->cluster_bits;
}

/* Find a free cluster.  0: with the lock held, *ret_slice counts it, *ret_first is
 * its number, and none from *ret_from on to there is free. */
static int
lock_free(struct qcow2 *q, uint64_t limit, struct qcow2_slice **ret_slice, uint64_t *ret_from,
	  uint64_t *ret_first)
{
	uint64_t per_slice = slice_entries(q), cluster, slice;
	int r;

	qcow2_lock(q);
	cluster = q->free_hint;
	qcow2_unlock(q);
	for (;; cluster = slice + per_slice) {
		if (cluster >= limit)
			return limit < HOST_END >> q->cluster_bits ? -ENOSPC : -EFBIG;
		slice = round_down(cluster, per_slice);
		r = lock_slice_made(q, cluster, ret_slice);
		if (r < 0)
			return r;
		/* Others may have taken from here meanwhile. */
		if (q->free_hint > cluster && q->free_hint < slice + per_slice)
			cluster = q->free_hint;
		*ret_first = slice + find_free(q, (*ret_slice)->data, cluster - slice, per_slice);
		if (*ret_first < slice + per_slice)
			break;
		/* The hint may move over this slice if nothing before it is free. */
		if (q->free_hint == cluster)
			q->free_hint = slice + per_slice;
		qcow2_unlock(q);
	}
	if (*ret_first >= limit) {
		qcow2_unlock(q);
		return -ENOSPC;
	}
	*ret_from = cluster;
	return 0;
}

static int
take(struct qcow2 *q, uint64_t want, uint64_t limit, uint64_t *ret_host, uint64_t *ret_got,
     bool *ret_fresh)
{
	uint64_t from, first, got;
	struct qcow2_slice *s;
	int r = lock_free(q, limit, &s, &from, &first);

	if (r < 0)
		return r;
	got = count_run(q, s, first % slice_entries(q), min_u64(want, limit - first));
	/* The image's counts are wrong; these at least are right now. */
	r = qcow2_overlap_check(q, QCOW2_OVERLAP_CONSTANT, first << q->cluster_bits,
				got << q->cluster_bits);
	if (r < 0) {
		qcow2_unlock(q);
		return r;
	}
	if (q->free_hint >= from && q->free_hint < first + got)
		q->free_hint = first + got;
	*ret_host = first << q->cluster_bits;
	*ret_got = got;
	*ret_fresh = qcow2_refs_mark_used(q, *ret_host, got << q->cluster_bits);
	qcow2_unlock(q);
	return 0;
}

int
qcow2_refs_take(struct qcow2 *q, uint64_t want, uint64_t *ret_host, uint64_t *ret_got,
		bool *ret_fresh)
{
	return take(q, want, cluster_limit(q), ret_host, ret_got, ret_fresh);
}

/* Exactly n clusters, all of them before `limit`. */
static int
take_run(struct qcow2 *q, uint64_t n, uint64_t limit, uint64_t *ret_host)
{
	uint64_t host = 0, got = 0, end, more, next;
	bool fresh;
	int r;

	/* Collect neighbouring runs; where a hole ends too early, start anew behind
	 * it and give the short run back at the end. */
	struct { uint64_t host, n; } *rest = NULL;
	size_t n_rest = 0;

	r = take(q, n, limit, &host, &got, &fresh);
	if (r < 0)
		return r;
	while (got < n) {
		end = host + (got << q->cluster_bits);
		r = take(q, n - got, limit, &next, &more, &fresh);
		if (r < 0)
			break;
		if (next == end) {
			got += more;
			continue;
		}
		void *bigger = realloc(rest, (n_rest + 1) * sizeof(*rest));
		if (!bigger) {
			(void)qcow2_refs_give_back(q, next, more);
			r = -ENOMEM;
			break;
		}
		rest = bigger;
		rest[n_rest].host = host;
		rest[n_rest++].n = got;
		host = next;
		got = more;
	}
	if (r < 0)
		(void)qcow2_refs_give_back(q, host, got);
	for (size_t i = 0; i < n_rest; i++)
		(void)qcow2_refs_give_back(q, rest[i].host, rest[i].n);
	free(rest);
	if (!r)
		*ret_host = host;
	return r;
}

int
qcow2_refs_take_all(struct qcow2 *q, uint64_t n, uint64_t *ret_host)
{
	uint64_t limit = cluster_limit(q);
	int r;

	if (n < UINT64_C(1) << q->refblock_bits)
		return take_run(q, n, limit, ret_host);
	/* No such run begins where each range has its block in it.  But blocks that came
	 * otherwise may have left one. */
	r = take_run(q, n, min_u64(limit, qcow2_grow_end(q)), ret_host);
	return r == -ENOSPC ? qcow2_grow_take(q, n, limit, ret_host) : r;
}

int
qcow2_refs_give_back(struct qcow2 *q, uint64_t host, uint64_t n)
{
	return qcow2_refs_change(q, host >> q->cluster_bits, n, -1);
}

/* ---- dropping ---- */

void
qcow2_freelist_done(struct qcow2_freelist *l)
{
	free(l->runs);
	memset(l, 0, sizeof(*l));
}

static struct qcow2_freed *
freelist_add(struct qcow2_freelist *l)
{
	if (l->n == l->room) {
		size_t room = l->room ? 2 * l->room : 64;
		struct qcow2_freed *runs = realloc(l->runs, room * sizeof(*runs));

		if (!runs)
			return NULL;
		l->runs = runs;
		l->room = room;
	}
	return &l->runs[l->n++];
}

void
qcow2_refs_drop_later(struct qcow2 *q, uint64_t host, uint64_t n, enum qcow2_free_why why)
{
	struct qcow2_freelist *l = &q->freed;
	struct qcow2_freed *last = l->n > l->sealed ? &l->runs[l->n - 1] : NULL;
	uint64_t cluster = host >> q->cluster_bits;

	qcow2_pack_forget(q, host, n);
	if (last && last->cluster + last->n == cluster && last->why == why &&
	    last->epoch == q->epoch) {
		last->n += n;
	} else {
		last = freelist_add(l);
		if (!last)
			return;
		*last = (struct qcow2_freed){
			.cluster = cluster, .n = n, .epoch = q->epoch, .why = why,
		};
	}
	l->clusters += n;
}

/* Tell the file below of those among n clusters that have `left` references left. */
static void
discard_last(struct qcow2 *q, uint64_t cluster, uint64_t n, uint64_t left)
{
	uint64_t start = 0, len = 0, count;

	for (uint64_t i = 0; i <= n; i++) {
		count = UINT64_MAX;
		if (i < n && qcow2_refs_get(q, cluster + i, &count) < 0)
			count = UINT64_MAX;
		if (count == left && len++ == 0)
			start = cluster + i;
		if (count != left && len) {
			(void)node_discard(qcow2_file(q), start << q->cluster_bits,
					   len << q->cluster_bits);
			len = 0;
		}
	}
}

int
qcow2_refs_drop(struct qcow2 *q, uint64_t cluster, uint64_t n, enum qcow2_free_why why)
{
	bool late = PLANTED(discard_after_free);
	int r;

	/* Before the count goes down, while nobody can take it. */
	if (q->pass_discard[why] && !late)
		discard_last(q, cluster, n, 1);
	r = qcow2_refs_change(q, cluster, n, -1);
	if (q->pass_discard[why] && late)
		discard_last(q, cluster, n, 0);
	return r;
}

int
qcow2_refs_drop_now(struct qcow2 *q, bool all)
{
	struct qcow2_freelist *l = &q->unmapped;
	uint64_t safe;
	size_t kept = 0;
	int r = 0;

	if (!l->n)
		return 0;
	qcow2_lock(q);
	qcow2_epoch_advance(q);
	safe = q->epoch;
	qcow2_unlock(q);
	for (size_t i = 0; i < l->n; i++) {
		struct qcow2_freed f = l->runs[i];

		if (!all && f.epoch + 2 > safe && !PLANTED(reuse_under_a_reader)) {
			l->runs[kept++] = f;
			continue;
		}
		l->clusters -= f.n;
		/* A count that is zero already: the image was wrong before. */
		if (qcow2_refs_drop(q, f.cluster, f.n, f.why) < 0 && !r)
			r = -EIO;
		atomic_fetch_add(&q->reclaimed, 1);
	}
	l->n = kept;
	return r;
}
