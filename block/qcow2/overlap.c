/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/overlap.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "schema/types.h"

#define REFBLOCK_MASK (~UINT64_C(511))

/* ---- the filter ---- */

enum { FILTER_BITS = 16, WORD = 64 };

static size_t
class_of(uint64_t cluster)
{
	return (size_t)(cluster * UINT64_C(0x9e3779b97f4a7c15) >> (64 - FILTER_BITS));
}

void
qcow2_overlap_add(struct qcow2 *q, uint64_t host, uint64_t len)
{
	for (uint64_t end = host + len; host < end; host += q->cluster_size) {
		size_t i = class_of(host >> q->cluster_bits);

		q->table_filter[i / WORD] |= UINT64_C(1) << i % WORD;
	}
}

static bool
may_be_table(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t last = (off + len - 1) >> q->cluster_bits;

	for (uint64_t c = off >> q->cluster_bits; c <= last; c++) {
		size_t i = class_of(c);

		if (q->table_filter[i / WORD] >> i % WORD & 1)
			return true;
	}
	return false;
}

static void
add_all(struct qcow2 *q, const uint64_t *table, uint64_t n, uint64_t mask)
{
	for (uint64_t i = 0; i < n; i++)
		if (table[i] & mask)
			qcow2_overlap_add(q, table[i] & mask, q->cluster_size);
}

int
qcow2_overlap_init(struct qcow2 *q)
{
	/* Nothing will be written. */
	if (q->table_memory)
		return 0;
	q->table_filter = calloc((1u << FILTER_BITS) / WORD, sizeof(*q->table_filter));
	if (!q->table_filter)
		return -ENOMEM;
	add_all(q, q->l1, q->l1_size, QCOW2_OFFSET_MASK);
	add_all(q, q->reftable, q->reftable_size, REFBLOCK_MASK);
	for (uint32_t i = 0; i < q->nb_snapshots; i++)
		if (q->snapshots[i].l1)
			add_all(q, q->snapshots[i].l1, q->snapshots[i].l1_size, QCOW2_OFFSET_MASK);
	return 0;
}

void
qcow2_overlap_done(struct qcow2 *q)
{
	free(q->table_filter);
}

/* ---- looking ---- */

static bool
in_entries(const struct qcow2 *q, const uint64_t *table, uint64_t n, uint64_t mask, uint64_t off,
	   uint64_t len)
{
	for (uint64_t i = 0; i < n; i++)
		if ((table[i] & mask) &&
		    ranges_overlap(off, len, table[i] & mask, q->cluster_size))
			return true;
	return false;
}

static bool
in_inactive_l1(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		const struct qcow2_snapshot *s = &q->snapshots[i];

		/* What cannot be a table is none that could be ruined. */
		if (s->l1_off <= INT64_MAX &&
		    ranges_overlap(off, len, s->l1_off, (uint64_t)s->l1_size * 8))
			return true;
	}
	return false;
}

static bool
in_inactive_l2(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		const struct qcow2_snapshot *s = &q->snapshots[i];

		if (s->l1 && in_entries(q, s->l1, s->l1_size, QCOW2_OFFSET_MASK, off, len))
			return true;
	}
	return false;
}

static bool
is_in(const struct qcow2 *q, unsigned kind, uint64_t off, uint64_t len)
{
	const struct qcow2_header *h = &q->header;

	switch (kind) {
	case QCOW2_OVERLAP_HEADER:
		return ranges_overlap(off, len, 0, q->cluster_size);
	case QCOW2_OVERLAP_L1:
		return ranges_overlap(off, len, h->l1_off, q->l1_size * 8);
	case QCOW2_OVERLAP_L2:
		return in_entries(q, q->l1, q->l1_size, QCOW2_OFFSET_MASK, off, len);
	case QCOW2_OVERLAP_REFTABLE:
		return ranges_overlap(off, len, h->reftable_off, q->reftable_size * 8);
	case QCOW2_OVERLAP_REFBLOCK:
		return in_entries(q, q->reftable, q->reftable_size, REFBLOCK_MASK, off, len);
	case QCOW2_OVERLAP_SNAPSHOTS:
		return ranges_overlap(off, len, h->snapshots_off,
				      q->nb_snapshots ? q->snapshots_len : 0);
	case QCOW2_OVERLAP_INACTIVE_L1:
		return in_inactive_l1(q, off, len);
	case QCOW2_OVERLAP_INACTIVE_L2:
		return in_inactive_l2(q, off, len);
	default:
		return ranges_overlap(off, len, q->bitmap_dir_off, q->bitmap_dir_len);
	}
}

/* Is no kind at all there?  What is true of nearly all, and quick to say. */
static inline bool
is_data(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	const struct qcow2_header *h = &q->header;

	return q->table_filter && !q->nb_snapshots && !may_be_table(q, off, len) &&
	       !ranges_overlap(off, len, 0, q->cluster_size) &&
	       !ranges_overlap(off, len, h->l1_off, q->l1_size * 8) &&
	       !ranges_overlap(off, len, h->reftable_off, q->reftable_size * 8) &&
	       !ranges_overlap(off, len, q->bitmap_dir_off, q->bitmap_dir_len);
}

/* The first of kinds that has some of it; 0: none. */
static unsigned
find(const struct qcow2 *q, unsigned kinds, uint64_t off, uint64_t len)
{
	const unsigned many = QCOW2_OVERLAP_L2 | QCOW2_OVERLAP_REFBLOCK | QCOW2_OVERLAP_INACTIVE_L2;

	if (!len || is_data(q, off, len))
		return 0;
	if ((kinds & many) && q->table_filter && !may_be_table(q, off, len))
		kinds &= ~many;
	for (unsigned kind = 1; kind <= kinds; kind <<= 1)
		if ((kinds & kind) && is_in(q, kind, off, len))
			return kind;
	return 0;
}

bool
qcow2_overlaps_fixed(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	return find(q, QCOW2_OVERLAP_CONSTANT & ~QCOW2_OVERLAP_BITMAPS, off, len);
}

static int
check(struct qcow2 *q, unsigned kinds, uint64_t off, uint64_t len)
{
	static const char *const names[] = {
		"qcow2_header", "active L1 table", "active L2 table", "refcount table",
		"refcount block", "snapshot table", "inactive L1 table", "inactive L2 table",
		"bitmap directory",
	};
	unsigned kind = find(q, kinds, off, len);

	if (!kind)
		return 0;
	return qcow2_corrupt_note(q, off, len, "Preventing invalid write on metadata (overlaps "
					       "with %s)", names[__builtin_ctz(kind)]);
}

int
qcow2_overlap_check(struct qcow2 *q, unsigned kinds, uint64_t off, uint64_t len)
{
	return check(q, kinds | q->overlap_check, off, len);
}

int
qcow2_overlap_check_bitmaps(struct qcow2 *q, uint64_t off, uint64_t len)
{
	return check(q, q->overlap_check & ~(unsigned)QCOW2_OVERLAP_BITMAPS, off, len);
}

/* ---- the option ---- */

static unsigned
template_of(enum Qcow2OverlapCheckMode mode)
{
	switch (mode) {
	case QCOW2_OVERLAP_CHECK_MODE_NONE:
		return 0;
	case QCOW2_OVERLAP_CHECK_MODE_CONSTANT:
		return QCOW2_OVERLAP_CONSTANT;
	case QCOW2_OVERLAP_CHECK_MODE_ALL:
		return QCOW2_OVERLAP_ALL;
	default:
		return QCOW2_OVERLAP_CACHED;
	}
}

unsigned
qcow2_overlap_option(const struct Qcow2OverlapChecks *o)
{
	const struct Qcow2OverlapCheckFlags *f;
	unsigned kinds;

	if (!o)
		return QCOW2_OVERLAP_CACHED;
	if (o->type == QCOW2_OVERLAP_CHECKS_MODE)
		return template_of(o->u.mode);
	f = &o->u.flags;
	kinds = f->has_template ? template_of(f->template) : QCOW2_OVERLAP_CACHED;
#define FLAG(name, kind) \
	if (f->has_##name) \
		kinds = f->name ? kinds | (kind) : kinds & ~(unsigned)(kind)
	FLAG(main_header, QCOW2_OVERLAP_HEADER);
	FLAG(active_l1, QCOW2_OVERLAP_L1);
	FLAG(active_l2, QCOW2_OVERLAP_L2);
	FLAG(refcount_table, QCOW2_OVERLAP_REFTABLE);
	FLAG(refcount_block, QCOW2_OVERLAP_REFBLOCK);
	FLAG(snapshot_table, QCOW2_OVERLAP_SNAPSHOTS);
	FLAG(inactive_l1, QCOW2_OVERLAP_INACTIVE_L1);
	FLAG(inactive_l2, QCOW2_OVERLAP_INACTIVE_L2);
	FLAG(bitmap_directory, QCOW2_OVERLAP_BITMAPS);
#undef FLAG
	return kinds;
}
