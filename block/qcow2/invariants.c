/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/invariants.h"

#include <assert.h>

#include "base/bytes.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/map.h"
#include "block/qcow2/refs.h"

static void
check_cache(const struct qcow2_cache *c)
{
	const struct qcow2_slice *s;
	size_t n = 0, dirty = 0;

	LIST_FOREACH(s, &c->all, link) {
		n++;
		dirty += s->dirty;
		/* What changed is there to be written. */
		assert(!s->dirty || s->state == QCOW2_SLICE_VALID);
	}
	assert(n == c->n && dirty == c->n_dirty);
}

static void
check_claims(const struct qcow2 *q)
{
	const struct qcow2_claim *a, *b;

	LIST_FOREACH(a, &q->claims, link) {
		assert(a->start < a->end && is_aligned(a->start | a->end, q->cluster_size));
		LIST_FOREACH(b, &q->claims, link)
			assert(a == b || a->end <= b->start || b->end <= a->start);
	}
}

static void
check_freed(const struct qcow2_freelist *l)
{
	uint64_t clusters = 0;

	for (size_t i = 0; i < l->n; i++)
		clusters += l->runs[i].n;
	assert(clusters == l->clusters && l->sealed <= l->n && l->n <= l->room);
}

/* The count of a host cluster, where it is in memory; else 1, as if it were. */
static uint64_t
count_of(struct qcow2 *q, uint64_t host)
{
	uint64_t cluster = host >> q->cluster_bits, block = cluster >> q->refblock_bits;
	uint64_t per_slice = UINT64_C(8) << q->slice_bits >> q->refcount_order, off;
	const struct qcow2_slice *s;

	if (block >= q->reftable_size || !(q->reftable[block] & ~UINT64_C(511)))
		return 0;
	off = cluster & ((UINT64_C(1) << q->refblock_bits) - 1);
	off = (q->reftable[block] & ~UINT64_C(511)) + (off / per_slice << q->slice_bits);
	s = qcow2_cache_find(&q->ref_cache, off);
	return s ? qcow2_refcount_get(s->data, q->refcount_order, cluster % per_slice) : 1;
}

/* I1 in memory: what an entry refers to is counted. */
static void
check_counted(struct qcow2 *q)
{
	const struct qcow2_slice *s;

	LIST_FOREACH(s, &q->l2_cache.all, link) {
		if (s->state != QCOW2_SLICE_VALID)
			continue;
		for (uint64_t i = 0; i < qcow2_slice_l2es(q); i++) {
			struct qcow2_l2e e = qcow2_l2e_get(q, s->data, i);
			uint64_t host, n = qcow2_l2e_clusters(q, e, &host);

			/* One kind is valid or all of them are not. */
			assert(qcow2_l2e_kind(q, e, 0) != QCOW2_RUN_INVALID);
			for (; n; n--, host += q->cluster_size)
				assert(count_of(q, host) > 0);
		}
	}
	for (uint64_t i = 0; i < q->l1_size; i++)
		if (q->l1[i] & QCOW2_OFFSET_MASK)
			assert(count_of(q, q->l1[i] & QCOW2_OFFSET_MASK) > 0);
}

void
qcow2_invariants(struct qcow2 *q)
{
	qcow2_lock(q);
	check_cache(&q->l2_cache);
	check_cache(&q->ref_cache);
	check_claims(q);
	check_freed(&q->freed);
	assert(q->l1_dirty.lo >= q->l1_dirty.hi || q->l1_dirty.hi <= q->l1_size);
	assert(q->reftable_dirty.lo >= q->reftable_dirty.hi ||
	       q->reftable_dirty.hi <= q->reftable_size);
	check_counted(q);
	qcow2_unlock(q);
}
