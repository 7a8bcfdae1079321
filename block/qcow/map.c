/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/bytes.h"
#include "block/qcow/qcow.h"

#define COMPRESSED (UINT64_C(1) << 63)

enum { LOOKS_MAX = 16384 };	/* for one run, so that others have their turn */

int
qcow_find_l2(struct qcow *q, uint64_t off, struct qcow_table *ret)
{
	const struct qcow_table l1 = { q->header.l1_off, q->header.l1_size };
	uint64_t i = off >> (q->header.cluster_bits + q->header.l2_bits), table;
	int r;

	*ret = (struct qcow_table){ 0, UINT64_C(1) << q->header.l2_bits };
	if (i >= l1.entries)
		return -EIO;
	r = qcow_cache_get(q, &l1, i, &table);
	if (r < 0)
		return r;
	if (table > INT64_MAX - 8 * ret->entries)
		return -EIO;
	ret->off = table;
	return 0;
}

static int
decode(const struct qcow *q, uint64_t entry, uint64_t off, struct qcow_run *run)
{
	uint64_t in_cluster = off & (q->cluster_size - 1);
	unsigned shift = 63 - q->header.cluster_bits;

	*run = (struct qcow_run){ .len = q->cluster_size - in_cluster };
	if (!entry)
		return 0;
	if (entry & COMPRESSED) {
		run->kind = QCOW_COMPRESSED;
		run->host = entry & ((UINT64_C(1) << shift) - 1);
		run->packed = entry >> shift & (q->cluster_size - 1);
		return 0;
	}
	if (entry > (uint64_t)INT64_MAX - q->cluster_size || entry % 512)
		return -EIO;
	run->kind = QCOW_NORMAL;
	run->host = entry + in_cluster;
	return 0;
}

/* What one entry says: of a cluster, or of all that an L2 table would cover. */
static int
map_one(struct qcow *q, uint64_t off, struct qcow_run *run)
{
	uint64_t span = (uint64_t)q->cluster_size << q->header.l2_bits, entry;
	struct qcow_table l2;
	int r = qcow_find_l2(q, off, &l2);

	if (r < 0)
		return r;
	if (!l2.off) {
		*run = (struct qcow_run){ .len = span - (off & (span - 1)) };
		return 0;
	}
	r = qcow_cache_get(q, &l2, off >> q->header.cluster_bits & (l2.entries - 1), &entry);
	return r < 0 ? r : decode(q, entry, off, run);
}

int
qcow_map(struct qcow *q, uint64_t off, uint64_t len, struct qcow_run *ret)
{
	struct qcow_run next;
	int r = map_one(q, off, ret);

	if (r < 0)
		return r;
	for (unsigned i = 1; i < LOOKS_MAX && ret->len < len && ret->kind != QCOW_COMPRESSED; i++) {
		r = map_one(q, off + ret->len, &next);
		/* What is wrong there is for a request that starts there. */
		if (r < 0 || next.kind != ret->kind ||
		    (next.kind == QCOW_NORMAL && next.host != ret->host + ret->len))
			break;
		ret->len += next.len;
	}
	ret->len = min_u64(ret->len, len);
	return 0;
}
