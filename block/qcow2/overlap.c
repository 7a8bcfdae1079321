/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/overlap.h"

#include "base/bytes.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"

bool
qcow2_overlaps_fixed(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	const struct qcow2_header *h = &q->header;

	return ranges_overlap(off, len, 0, q->cluster_size) ||
	       ranges_overlap(off, len, h->l1_off, q->l1_size * 8) ||
	       ranges_overlap(off, len, h->reftable_off, q->reftable_size * 8) ||
	       ranges_overlap(off, len, h->snapshots_off, q->nb_snapshots ? q->snapshots_len : 0);
}

bool
qcow2_overlaps(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	if (qcow2_overlaps_fixed(q, off, len))
		return true;
	for (uint32_t i = 0; i < q->nb_snapshots; i++)
		if (ranges_overlap(off, len, q->snapshots[i].l1_off,
				   (uint64_t)q->snapshots[i].l1_size * 8))
			return true;
	for (uint64_t i = 0; i < q->reftable_size; i++)
		if ((q->reftable[i] & ~UINT64_C(511)) &&
		    ranges_overlap(off, len, q->reftable[i] & ~UINT64_C(511), q->cluster_size))
			return true;
	for (uint64_t i = 0; i < q->l1_size; i++)
		if ((q->l1[i] & QCOW2_OFFSET_MASK) &&
		    ranges_overlap(off, len, q->l1[i] & QCOW2_OFFSET_MASK, q->cluster_size))
			return true;
	return false;
}
