/* SPDX-License-Identifier: Apache-2.0 */
/* Counting what the L1 and L2 tables refer to. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/qcow2/check_int.h"
#include "block/qcow2/map.h"
#include "block/qcow2/overlap.h"

#define L1_RESERVED UINT64_C(0x7f000000000001ff)
#define L2_RESERVED UINT64_C(0x3f000000000001fe)	/* but for compressed entries */

/* The L2 table being walked. */
struct table {
	uint64_t off;
	uint8_t *data;
	bool active;
	uint64_t next;		/* where the cluster behind the last one found starts */
};

/* Compressed data can be neither in an external data file nor in subclusters. */
static bool
is_impossible(struct qcow2_checker *c, uint64_t i, struct qcow2_l2e e)
{
	if (c->q->external_data)
		qcow2_check_say(c, "ERROR compressed cluster %" PRIu64 " with data file, "
				   "entry=0x%" PRIx64, i, e.entry & ~QCOW2_COPIED);
	else if (e.bitmap)
		qcow2_check_say(c, "ERROR compressed cluster %" PRIu64 " with non-zero subcluster "
				   "allocation bitmap, entry=0x%" PRIx64, i, e.entry & ~QCOW2_COPIED);
	else
		return false;
	c->result->corruptions++;
	return true;
}

static int
check_compressed(struct qcow2_checker *c, const struct table *t, uint64_t i, struct qcow2_l2e e)
{
	uint64_t off, len;

	qcow2_compressed_extent(c->q, e.entry, &off, &len);
	if (e.entry & QCOW2_COPIED) {
		qcow2_check_say(c, "ERROR: coffset=0x%" PRIx64 ": copied flag must never be set "
				   "for compressed clusters", off);
		c->result->corruptions++;
	}
	if (is_impossible(c, i, e))
		return 0;
	if (t->active) {
		c->result->allocated_clusters++;
		c->result->compressed_clusters++;
		c->result->fragmented_clusters++;
	}
	return qcow2_check_count(c, off, len);
}

/* Would a write to this L2 table ruin something else?  What overlaps what is for
 * people to sort out. */
static bool
is_shared_place(const struct qcow2 *q, uint64_t off)
{
	if (qcow2_overlaps_fixed(q, off, q->cluster_size))
		return true;
	for (uint64_t i = 0; i < q->reftable_size; i++)
		if ((q->reftable[i] & ~UINT64_C(511)) &&
		    ranges_overlap(off, q->cluster_size, q->reftable[i] & ~UINT64_C(511),
				   q->cluster_size))
			return true;
	return false;
}

/* Entry i, a zero cluster with a place that cannot be: it loses the place.  It
 * refers to nothing then, so this may be on disk before or after all else. */
static int
fix_by_zero(struct qcow2_checker *c, const struct table *t, uint64_t i)
{
	struct qcow2 *q = c->q;
	uint64_t len = UINT64_C(1) << q->l2e_bits;
	struct qcow2_l2e zero = qcow2_l2e_zero(q);
	int r;

	if (is_shared_place(q, t->off)) {
		c->result->errors++;
		qcow2_check_say(c, "ERROR: Overlap check failed");
		return -EIO;
	}
	/* Subclusters that the backing file decides on stay so. */
	if (q->extended_l2)
		zero.bitmap = qcow2_l2e_get(q, t->data, i).bitmap & QCOW2_SUB_ZEROES;
	qcow2_l2e_put(q, t->data, i, zero);
	r = node_pwrite(qcow2_file(q), t->off + i * len, t->data + i * len, len);
	if (r < 0) {
		c->result->errors++;
		qcow2_check_say(c, "ERROR: Failed to overwrite L2 table entry: %s", strerror(-r));
		return r;
	}
	qcow2_lock(q);
	qcow2_cache_drop(&q->l2_cache, t->off, q->cluster_size);
	qcow2_unlock(q);
	c->result->corruptions--;
	c->result->corruptions_fixed++;
	return 0;
}

/* 1: entry i was repaired, and refers to nothing. */
static int
check_place(struct qcow2_checker *c, const struct table *t, uint64_t i, struct qcow2_l2e e)
{
	uint64_t host = e.entry & QCOW2_OFFSET_MASK;
	int r;

	if (is_aligned(host, c->q->cluster_size))
		return 0;
	c->result->corruptions++;
	if (qcow2_l2e_has_data(c->q, e)) {
		qcow2_check_say(c, "ERROR offset=%" PRIx64 ": Data cluster is not properly "
				   "aligned; L2 entry corrupted.", host);
		return 0;
	}
	qcow2_check_say(c, "%s offset=%" PRIx64 ": Preallocated cluster is not properly aligned; "
			   "L2 entry corrupted.", qcow2_check_verb(c, CHECK_FIX_ERRORS), host);
	if (!(c->fix & CHECK_FIX_ERRORS))
		return 0;
	r = fix_by_zero(c, t, i);
	return r < 0 ? r : 1;
}

/* What the subclusters of an entry that is not compressed say. */
static void
check_subclusters(struct qcow2_checker *c, struct qcow2_l2e e)
{
	uint64_t host = e.entry & QCOW2_OFFSET_MASK;

	if (!host && !(c->q->external_data && (e.entry & QCOW2_COPIED))) {
		if (!(uint32_t)e.bitmap)
			return;
		qcow2_check_say(c, "ERROR: Unallocated cluster has non-zero subcluster allocation "
				   "map");
	} else {
		if (!(e.bitmap >> 32 & e.bitmap))
			return;
		qcow2_check_say(c, "ERROR offset=%" PRIx64 ": Allocated cluster has corrupted "
				   "subcluster allocation bitmap", host);
	}
	c->result->corruptions++;
}

static int
check_entry(struct qcow2_checker *c, struct table *t, uint64_t i)
{
	struct qcow2_l2e e = qcow2_l2e_get(c->q, t->data, i);
	uint64_t host = e.entry & QCOW2_OFFSET_MASK;
	int r;

	if (e.entry & QCOW2_COMPRESSED)
		return check_compressed(c, t, i, e);
	if (e.entry & L2_RESERVED) {
		qcow2_check_say(c, "ERROR found l2 entry with reserved bits set: %" PRIx64, e.entry);
		c->result->corruptions++;
	}
	check_subclusters(c, e);
	if (!qcow2_l2e_has_host(c->q, e))
		return 0;
	r = check_place(c, t, i, e);
	if (r)
		return r < 0 ? r : 0;
	if (t->active) {
		c->result->allocated_clusters++;
		if (t->next && host != t->next)
			c->result->fragmented_clusters++;
		t->next = host + c->q->cluster_size;
	}
	/* What lies in an external data file is not counted. */
	return c->q->external_data ? 0 : qcow2_check_count(c, host, c->q->cluster_size);
}

static int
check_l2(struct qcow2_checker *c, uint64_t off, uint8_t *buf, bool active)
{
	struct table t = { .off = off, .data = buf, .active = active };
	int r = node_pread(qcow2_file(c->q), off, buf, c->q->cluster_size);

	if (r < 0) {
		qcow2_check_say(c, "ERROR: I/O error in check_refcounts_l2");
		c->result->errors++;
		return r;
	}
	for (uint64_t i = 0; i < UINT64_C(1) << c->q->l2_bits && !r; i++)
		r = check_entry(c, &t, i);
	return r;
}

/* What an L1 table of n entries, in host byte order, leads to. */
static int
check_l1(struct qcow2_checker *c, const uint64_t *l1, uint64_t n, bool active)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(c->q->cluster_size);
	int r = buf ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < n && !r; i++) {
		uint64_t table = l1[i] & QCOW2_OFFSET_MASK;

		if (!l1[i])
			continue;
		if (l1[i] & L1_RESERVED) {
			qcow2_check_say(c, "ERROR found L1 entry with reserved bits set: %" PRIx64,
					l1[i]);
			c->result->corruptions++;
		}
		r = qcow2_check_count(c, table, c->q->cluster_size);
		if (!is_aligned(table, c->q->cluster_size)) {
			qcow2_check_say(c, "ERROR l2_offset=%" PRIx64 ": Table is not cluster "
					   "aligned; L1 entry corrupted", table);
			c->result->corruptions++;
		}
		if (!r)
			r = check_l2(c, table, buf, active);
	}
	return r;
}

int
qcow2_check_active(struct qcow2_checker *c)
{
	int r = qcow2_check_count(c, c->q->header.l1_off, c->q->l1_size * 8);

	return r < 0 ? r : check_l1(c, c->q->l1, c->q->l1_size, true);
}

int
qcow2_check_inactive(struct qcow2_checker *c, uint64_t off, uint64_t n)
{
	CLEANUP(cleanup_free) uint64_t *l1 = NULL;
	int r;

	/* The place of a table without entries is nobody's business. */
	if (!n)
		return 0;
	l1 = malloc(n * 8);
	r = l1 ? qcow2_check_count(c, off, n * 8) : -ENOMEM;
	if (r < 0)
		return r;
	r = off > (uint64_t)INT64_MAX - 8 * n ? -EIO
					      : node_pread(qcow2_file(c->q), off, l1, n * 8);
	if (r < 0) {
		qcow2_check_say(c, "ERROR: I/O error in check_refcounts_l1");
		c->result->errors++;
		return r;
	}
	for (uint64_t i = 0; i < n; i++)
		l1[i] = be64toh(l1[i]);
	return check_l1(c, l1, n, false);
}
