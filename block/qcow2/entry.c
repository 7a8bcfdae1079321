/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/entry.h"

/* A host cluster and one subcluster's two bits. */
static enum qcow2_kind
kind_by_bitmap(struct qcow2_l2e e, bool has_host, unsigned sub)
{
	uint32_t data = (uint32_t)e.bitmap, zero = (uint32_t)(e.bitmap >> 32);

	/* Data and zeroes at once, or data nowhere. */
	if ((data & zero) || (data && !has_host))
		return QCOW2_RUN_INVALID;
	if (zero >> sub & 1)
		return has_host ? QCOW2_RUN_ZERO_ALLOC : QCOW2_RUN_ZERO;
	if (data >> sub & 1)
		return QCOW2_RUN_NORMAL;
	return has_host ? QCOW2_RUN_UNFILLED : QCOW2_RUN_UNALLOCATED;
}

enum qcow2_kind
qcow2_l2e_kind(const struct qcow2 *q, struct qcow2_l2e e, unsigned sub)
{
	bool has_host = qcow2_l2e_has_host(q, e);

	if (e.entry & QCOW2_COMPRESSED)
		return QCOW2_RUN_COMPRESSED;
	if (q->extended_l2)
		return kind_by_bitmap(e, has_host, sub);
	if ((e.entry & QCOW2_ZERO_BIT) && q->version < 3)
		return QCOW2_RUN_INVALID;
	if (e.entry & QCOW2_ZERO_BIT)
		return has_host ? QCOW2_RUN_ZERO_ALLOC : QCOW2_RUN_ZERO;
	return has_host ? QCOW2_RUN_NORMAL : QCOW2_RUN_UNALLOCATED;
}

uint32_t
qcow2_l2e_kind_end(const struct qcow2 *q, struct qcow2_l2e e, unsigned sub)
{
	uint32_t data = (uint32_t)e.bitmap, zero = (uint32_t)(e.bitmap >> 32), same;

	if (!q->extended_l2 || (e.entry & QCOW2_COMPRESSED))
		return q->cluster_size;
	same = data >> sub & 1 ? data : zero >> sub & 1 ? zero : ~(data | zero);
	same = ~(same >> sub);		/* the first that differs is the lowest bit */
	return same ? min_u64((sub + (unsigned)__builtin_ctz(same)) << q->sub_bits,
			      q->cluster_size)
		    : q->cluster_size;
}

void
qcow2_compressed_extent(const struct qcow2 *q, uint64_t entry, uint64_t *ret_off,
			uint64_t *ret_len)
{
	unsigned x = 62 - (q->cluster_bits - 8);
	uint64_t sectors = (entry >> x & ((UINT64_C(1) << (q->cluster_bits - 8)) - 1)) + 1;

	*ret_off = entry & ((UINT64_C(1) << x) - 1);
	*ret_len = sectors * 512 - (*ret_off & 511);
}

uint64_t
qcow2_l2e_clusters(const struct qcow2 *q, struct qcow2_l2e e, uint64_t *ret_host)
{
	uint64_t off, len;

	if (q->external_data)
		return 0;
	if (!(e.entry & QCOW2_COMPRESSED)) {
		*ret_host = e.entry & QCOW2_OFFSET_MASK;
		return qcow2_l2e_has_host(q, e) ? 1 : 0;
	}
	qcow2_compressed_extent(q, e.entry, &off, &len);
	*ret_host = round_down(off, q->cluster_size);
	return (round_up(off + len, q->cluster_size) - *ret_host) >> q->cluster_bits;
}
