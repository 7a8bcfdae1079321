/* SPDX-License-Identifier: Apache-2.0 */
/* The COPIED flags of the active tables: set where the count is one. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/qcow2/check_int.h"
#include "block/qcow2/entry.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/refs.h"

struct flags {
	struct qcow2_checker *c;
	bool repair;
	uint8_t *buf;		/* an L2 table */
};

/* Is entry's flag right for the count of the cluster at host?  True too where the
 * count cannot be had, which was said before. */
static bool
is_right(struct qcow2 *q, uint64_t entry, uint64_t host, uint64_t *ret_refs)
{
	*ret_refs = 0;
	return qcow2_refs_get(q, host >> q->cluster_bits, ret_refs) < 0 ||
	       (*ret_refs == 1) == !!(entry & QCOW2_COPIED);
}

/* What an external data file holds is not counted, and the image's alone. */
static bool
is_right_data(struct qcow2 *q, uint64_t entry, uint64_t *ret_refs)
{
	if (!q->external_data)
		return is_right(q, entry, entry & QCOW2_OFFSET_MASK, ret_refs);
	*ret_refs = 1;
	return entry & QCOW2_COPIED;
}

static void
check_l1_entry(struct flags *f, uint64_t i)
{
	struct qcow2 *q = f->c->q;
	uint64_t entry = q->l1[i], refs;

	if (is_right(q, entry, entry & QCOW2_OFFSET_MASK, &refs))
		return;
	qcow2_check_say(f->c, "%s OFLAG_COPIED L2 cluster: l1_index=%" PRIu64 " l1_entry=%" PRIx64
			      " refcount=%" PRIu64, f->repair ? "Repairing" : "ERROR", i, entry, refs);
	if (!f->repair) {
		f->c->result->corruptions++;
		return;
	}
	qcow2_lock(q);
	q->l1[i] = entry ^ QCOW2_COPIED;
	qcow2_dirty_add(&q->l1_dirty, i, i + 1);
	qcow2_unlock(q);
	f->c->result->corruptions_fixed++;
}

/* Entries of the table in f->buf whose flag is wrong; they are right there when
 * it returns. */
static uint64_t
check_entries(struct flags *f)
{
	struct qcow2 *q = f->c->q;
	uint64_t wrong = 0, refs;

	for (uint64_t i = 0; i < UINT64_C(1) << q->l2_bits; i++) {
		struct qcow2_l2e e = qcow2_l2e_get(q, f->buf, i);

		if (!qcow2_l2e_has_host(q, e) || is_right_data(q, e.entry, &refs))
			continue;
		qcow2_check_say(f->c, "%s OFLAG_COPIED data cluster: l2_entry=%" PRIx64
				      " refcount=%" PRIu64, f->repair ? "Repairing" : "ERROR",
				e.entry, refs);
		e.entry ^= QCOW2_COPIED;
		qcow2_l2e_put(q, f->buf, i, e);
		wrong++;
	}
	return wrong;
}

/* Straight to its place: nothing of it is dirty in the cache. */
static int
write_l2(struct flags *f, uint64_t table)
{
	struct qcow2 *q = f->c->q;
	int r;

	if (qcow2_overlaps_fixed(q, table, q->cluster_size)) {
		qcow2_check_say(f->c, "ERROR: Could not write L2 table; metadata overlap check "
				      "failed: %s", strerror(EIO));
		f->c->result->errors++;
		return -EIO;
	}
	qcow2_lock(q);
	qcow2_cache_drop(&q->l2_cache, table, q->cluster_size);
	qcow2_unlock(q);
	r = node_pwrite(qcow2_file(q), table, f->buf, q->cluster_size);
	if (r < 0) {
		qcow2_check_say(f->c, "ERROR: Could not write L2 table: %s", strerror(-r));
		f->c->result->errors++;
	}
	return r;
}

static int
check_l2(struct flags *f, uint64_t table)
{
	struct qcow2 *q = f->c->q;
	int r = node_pread(qcow2_file(q), table, f->buf, q->cluster_size);
	uint64_t wrong;

	if (r < 0) {
		qcow2_check_say(f->c, "ERROR: Could not read L2 table: %s", strerror(-r));
		f->c->result->errors++;
		return r;
	}
	wrong = check_entries(f);
	f->c->result->corruptions += wrong;
	if (!wrong || !f->repair)
		return 0;
	r = write_l2(f, table);
	if (!r) {
		f->c->result->corruptions -= wrong;
		f->c->result->corruptions_fixed += wrong;
	}
	return r;
}

int
qcow2_check_flags(struct qcow2_checker *c)
{
	const struct check_result *res = c->result;
	CLEANUP(cleanup_free) uint8_t *buf = malloc(c->q->cluster_size);
	struct flags f = { .c = c, .buf = buf };
	int r = 0;

	if (!buf)
		return -ENOMEM;
	/* With leaks gone and nothing else wrong, flags may be what is left of them. */
	f.repair = (c->fix & CHECK_FIX_ERRORS) ||
		   ((c->fix & CHECK_FIX_LEAKS) && !res->errors && !res->corruptions && !res->leaks);
	for (uint64_t i = 0; i < c->q->l1_size && !r; i++) {
		uint64_t table = c->q->l1[i] & QCOW2_OFFSET_MASK;

		if (!table)
			continue;
		check_l1_entry(&f, i);
		r = check_l2(&f, table);
	}
	return !r && f.repair ? qcow2_settle(c->q) : r;
}
