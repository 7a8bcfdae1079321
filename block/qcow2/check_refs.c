/* SPDX-License-Identifier: Apache-2.0 */
/* The counts in the image: what holds them is counted too, and then they are
 * compared with the references found. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/check_int.h"
#include "block/qcow2/refs.h"

#define ENTRY_RESERVED UINT64_C(511)

enum { DIRTY_MAX = 512 };	/* slices, before they are written back */

/* ---- the blocks ---- */

/* A block behind the end of the file: the file grows to have it. */
static int
grow_file(struct qcow2_checker *c, uint64_t off)
{
	struct node *file = qcow2_file(c->q);
	struct error *err = NULL;
	int r;

	if (off > (uint64_t)INT64_MAX - c->q->cluster_size)
		return -EINVAL;
	if (node_truncate(file, off + c->q->cluster_size, false, PREALLOC_OFF, &err)) {
		qcow2_check_say(c, "%s", error_text(err));
		error_free(err);
		return -EIO;
	}
	r = qcow2_counts_grow(&c->counts, qcow2_clusters(c->q, atomic_load(&file->size)));
	if (!r && off >> c->q->cluster_bits >= c->counts.n)
		r = -EINVAL;
	return r;
}

static int
check_outside(struct qcow2_checker *c, uint64_t i, uint64_t off)
{
	int r;

	c->result->corruptions++;
	qcow2_check_say(c, "%s refcount block %" PRIu64 " is outside image",
			qcow2_check_verb(c, CHECK_FIX_ERRORS), i);
	if (!(c->fix & CHECK_FIX_ERRORS))
		return 0;
	r = grow_file(c, off);
	if (r == -ENOMEM) {
		c->result->errors++;
		return r;
	}
	if (r < 0) {
		c->rebuild = true;
		qcow2_check_say(c, "ERROR could not resize image: %s", strerror(-r));
		return 0;
	}
	c->result->corruptions--;
	c->result->corruptions_fixed++;
	return qcow2_check_count(c, off, c->q->cluster_size);
}

static int
check_block(struct qcow2_checker *c, uint64_t i, uint64_t entry)
{
	uint64_t off = entry & ~ENTRY_RESERVED, cluster = off >> c->q->cluster_bits, n;
	int r;

	if (entry & ENTRY_RESERVED) {
		qcow2_check_say(c, "ERROR refcount table entry %" PRIu64 " has reserved bits set", i);
		c->result->corruptions++;
		c->rebuild = true;
		return 0;
	}
	if (!is_aligned(off, c->q->cluster_size)) {
		qcow2_check_say(c, "ERROR refcount block %" PRIu64 " is not cluster aligned; "
				   "refcount table entry corrupted", i);
		c->result->corruptions++;
		c->rebuild = true;
		return 0;
	}
	if (cluster >= c->counts.n)
		return check_outside(c, i, off);
	if (!off)
		return 0;
	r = qcow2_check_count(c, off, c->q->cluster_size);
	n = qcow2_counts_get(&c->counts, cluster);
	if (!r && n != 1) {
		qcow2_check_say(c, "ERROR refcount block %" PRIu64 " refcount=%" PRIu64, i, n);
		c->result->corruptions++;
		c->rebuild = true;
	}
	return r;
}

int
qcow2_check_blocks(struct qcow2_checker *c)
{
	struct qcow2 *q = c->q;
	int r = qcow2_check_count(c, q->header.reftable_off, q->reftable_size * 8);

	for (uint64_t i = 0; i < q->reftable_size && !r; i++)
		r = check_block(c, i, q->reftable[i]);
	return r;
}

/* ---- comparing ---- */

/* Clusters that became free, kept together to be discarded at once.  Where a table
 * is broken they are not: perhaps it once led to them, and their bytes are all that
 * somebody can still find. */
struct free_run {
	uint64_t first, n;
	bool keep;
};

static void
discard_run(struct qcow2_checker *c, struct free_run *f)
{
	/* The file may refuse: the space is free for the image all the same. */
	if (f->n && !f->keep)
		(void)node_discard(qcow2_file(c->q), f->first << c->q->cluster_bits,
				   f->n << c->q->cluster_bits);
	f->n = 0;
}

static void
add_to_run(struct qcow2_checker *c, struct free_run *f, uint64_t cluster)
{
	if (f->n && f->first + f->n != cluster)
		discard_run(c, f);
	if (!f->n)
		f->first = cluster;
	f->n++;
}

static bool
is_dirty_enough(struct qcow2 *q)
{
	bool much;

	qcow2_lock(q);
	much = q->ref_cache.n_dirty >= DIRTY_MAX;
	qcow2_unlock(q);
	return much;
}

/* Set the count of a cluster.  Each count is right by itself, so they may get to
 * the disk in any order. */
static int
fix_count(struct qcow2_checker *c, uint64_t cluster, uint64_t want, struct free_run *freed)
{
	int r = qcow2_refs_set(c->q, cluster, want);

	if (!r && !want)
		add_to_run(c, freed, cluster);
	if (!r && is_dirty_enough(c->q))
		r = qcow2_settle(c->q);
	return r;
}

static int
compare_cluster(struct qcow2_checker *c, uint64_t cluster, unsigned fix, struct free_run *freed)
{
	uint64_t want = qcow2_counts_get(&c->counts, cluster), is;
	uint64_t *fixed = NULL;
	int r = qcow2_refs_get(c->q, cluster, &is);

	if (r < 0) {
		qcow2_check_say(c, "Can't get refcount for cluster %" PRIu64 ": %s", cluster,
				strerror(-r));
		c->result->errors++;
		return 0;
	}
	if (is || want)
		c->last = cluster;
	if (is == want)
		return 0;
	if (!is)
		c->rebuild = true;
	else if (is > want && (fix & CHECK_FIX_LEAKS) && !qcow2_counts_get(&c->beyond, cluster))
		fixed = &c->result->leaks_fixed;
	else if (is < want && (fix & CHECK_FIX_ERRORS))
		fixed = &c->result->corruptions_fixed;
	qcow2_check_say(c, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
			fixed ? "Repairing" : is < want ? "ERROR" : "Leaked", cluster, is, want);
	if (fixed && !fix_count(c, cluster, want, freed))
		++*fixed;
	else if (is < want)
		c->result->corruptions++;
	else
		c->result->leaks++;
	return 0;
}

int
qcow2_check_compare(struct qcow2_checker *c, unsigned fix)
{
	struct qcow2 *q = c->q;
	uint64_t per_block = UINT64_C(1) << q->refblock_bits;
	struct free_run freed = { .keep = c->result->corruptions || c->result->errors };

	c->last = 0;
	for (uint64_t i = 0; i < c->counts.n; i++) {
		uint64_t block = i >> q->refblock_bits;

		/* Neither counted nor referred to: on to what may be. */
		if (block >= q->reftable_size || !(q->reftable[block] & ~ENTRY_RESERVED)) {
			uint64_t next = qcow2_counts_next(&c->counts, i);

			if (next > i) {
				i = min_u64(next, round_down(i, per_block) + per_block) - 1;
				continue;
			}
		}
		compare_cluster(c, i, fix, &freed);
	}
	discard_run(c, &freed);
	return fix ? qcow2_settle(q) : 0;
}
