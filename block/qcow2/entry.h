/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/entry.h - one entry of an L2 table: what becomes of a guest cluster.
 *
 * An entry has 8 bytes.  With extended L2 it has 16: a cluster is made of 32
 * subclusters, and the second half is a bitmap that says of each whether the
 * host cluster has its data (low bits), or whether it reads as zeroes (high
 * bits), or, with neither, that the backing file decides.
 *
 * Tables stand in memory in the image's byte order; an index counts entries.
 */
#ifndef BLOCK_QCOW2_ENTRY_H
#define BLOCK_QCOW2_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "block/qcow2/qcow2.h"

enum { QCOW2_SUBCLUSTERS = 32 };
#define QCOW2_SUB_ZEROES (UINT64_MAX << 32)	/* bitmap: all read as zeroes */

struct qcow2_l2e {
	uint64_t entry;
	uint64_t bitmap;	/* 0 without extended L2 */
};

enum qcow2_kind {
	QCOW2_RUN_UNALLOCATED,	/* the backing file decides */
	QCOW2_RUN_UNFILLED,	/* the same, but there is a cluster for later */
	QCOW2_RUN_ZERO,		/* reads as zeroes, has no cluster */
	QCOW2_RUN_ZERO_ALLOC,	/* reads as zeroes, has a cluster for later */
	QCOW2_RUN_NORMAL,
	QCOW2_RUN_COMPRESSED,
	QCOW2_RUN_INVALID,	/* nothing that can be read */
};

static inline struct qcow2_l2e
qcow2_l2e_get(const struct qcow2 *q, const void *table, uint64_t i)
{
	const uint8_t *p = (const uint8_t *)table + (i << q->l2e_bits);

	return (struct qcow2_l2e){ get_be64(p), q->extended_l2 ? get_be64(p + 8) : 0 };
}

static inline void
qcow2_l2e_put(const struct qcow2 *q, void *table, uint64_t i, struct qcow2_l2e e)
{
	uint8_t *p = (uint8_t *)table + (i << q->l2e_bits);

	put_be64(p, e.entry);
	if (q->extended_l2)
		put_be64(p + 8, e.bitmap);
}

static inline bool
qcow2_l2e_equal(struct qcow2_l2e a, struct qcow2_l2e b)
{
	return a.entry == b.entry && a.bitmap == b.bitmap;
}

/* Entries of a cached slice of an L2 table; of a whole table it is l2_bits. */
static inline uint64_t
qcow2_slice_l2es(const struct qcow2 *q)
{
	return UINT64_C(1) << (q->slice_bits - q->l2e_bits);
}

/* Which subcluster off lies in; 0 where a cluster is not divided. */
static inline unsigned
qcow2_sub_of(const struct qcow2 *q, uint64_t off)
{
	return (unsigned)((off & (q->cluster_size - 1)) >> q->sub_bits);
}

/* The bits of subclusters [lo, hi): of data; shifted left by 32, of zeroes. */
static inline uint64_t
qcow2_sub_mask(unsigned lo, unsigned hi)
{
	return (UINT64_C(1) << hi) - (UINT64_C(1) << lo);
}

/* Has the entry a host cluster, that is not compressed?  In an external data file
 * it may be the very first one, which only the flag tells from none; but as in QEMU
 * not if the cluster reads as zeroes. */
static inline bool
qcow2_l2e_has_host(const struct qcow2 *q, struct qcow2_l2e e)
{
	if (e.entry & (QCOW2_COMPRESSED | QCOW2_OFFSET_MASK))
		return !(e.entry & QCOW2_COMPRESSED);
	return q->external_data && e.entry & QCOW2_COPIED &&
	       (q->extended_l2 || !(e.entry & QCOW2_ZERO_BIT));
}

/* Is there data in its host cluster?  Its kinds are sound. */
static inline bool
qcow2_l2e_has_data(const struct qcow2 *q, struct qcow2_l2e e)
{
	return q->extended_l2 ? (uint32_t)e.bitmap : !(e.entry & QCOW2_ZERO_BIT);
}

/* A cluster that reads as zeroes and has no place; of version 3. */
static inline struct qcow2_l2e
qcow2_l2e_zero(const struct qcow2 *q)
{
	return q->extended_l2 ? (struct qcow2_l2e){ 0, QCOW2_SUB_ZEROES }
			      : (struct qcow2_l2e){ QCOW2_ZERO_BIT, 0 };
}

/* What the entry says of one subcluster (0 where there are none). */
enum qcow2_kind qcow2_l2e_kind(const struct qcow2 *q, struct qcow2_l2e e, unsigned sub);
/* Where, in bytes from the cluster's start, the kind of that subcluster ends. */
uint32_t qcow2_l2e_kind_end(const struct qcow2 *q, struct qcow2_l2e e, unsigned sub);

/* The clusters of the image file that an entry refers to, those that are counted:
 * first offset, number; 0: none. */
uint64_t qcow2_l2e_clusters(const struct qcow2 *q, struct qcow2_l2e e, uint64_t *ret_host);
/* Where a compressed entry's data lies: offset, bytes. */
void qcow2_compressed_extent(const struct qcow2 *q, uint64_t entry, uint64_t *ret_off,
			     uint64_t *ret_len);

#endif
