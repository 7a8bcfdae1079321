/* SPDX-License-Identifier: Apache-2.0 */
/* The check walks all that the header leads to and counts the references to each
 * host cluster, then compares with the counts in the image.
 *
 * A repair must itself survive being cut off.  Its order:
 *
 *   1  What must not refer to anything any more stops doing so (snapshots that
 *      are too many for the table, a zero cluster with an impossible place),
 *      while it is counted; barrier.
 *   2  The counts are put right, each at its place: each is right by itself, so
 *      any part of them may get to the disk.  A count that falls to zero frees
 *      a cluster that nothing on disk refers to, by 1.  Where they cannot be put
 *      right in place, all are written anew elsewhere, and the header's pointer
 *      is switched (check_rebuild.c).  Barrier.
 *   3  The COPIED flags follow the counts, which are on disk by then: no flag
 *      says "ours alone" before the count does.  Barrier.
 *   4  A snapshot table with broken entries is written anew elsewhere, and the
 *      header's pointer is switched (snapshot.c); the counts say by now where
 *      there is room.
 *   5  The dirty and corrupt bits go, if nothing is wrong any more.
 *
 * Cut off anywhere, each step leaves an image with fewer faults than before, and
 * none new but leaks, which the next repair finds; where the first was done, a
 * second one changes nothing. */
#include "block/qcow2/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/qcow2/check_int.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/mark.h"
#include "block/qcow2/overlap.h"

enum {
	LINE_MAX_LEN = 1024,
	LINES_MAX = 100000,
	WINDOW = 1 << 16,		/* clusters behind the end that a repair may take */
};

/* ---- what the parts use ---- */

void
qcow2_check_say(struct qcow2_checker *c, const char *fmt, ...)
{
	char line[LINE_MAX_LEN];
	va_list ap;

	/* A hostile image can be wrong in billions of places. */
	if (!c->report || c->lines > LINES_MAX)
		return;
	if (c->lines++ == LINES_MAX) {
		c->report->line(c->report->arg, "... and so on; no more is said");
		return;
	}
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	c->report->line(c->report->arg, line);
}

const char *
qcow2_check_verb(const struct qcow2_checker *c, unsigned fix)
{
	return c->fix & fix ? "Repairing" : "ERROR";
}

static int
count_one(struct qcow2_checker *c, uint64_t cluster)
{
	uint64_t n = qcow2_counts_get(&c->counts, cluster);

	if (n < min_u64(c->q->refcount_max, QCOW2_COUNT_MAX))
		return qcow2_counts_set(&c->counts, cluster, n + 1);
	qcow2_check_say(c, "ERROR: overflow cluster offset=0x%llx",
			(unsigned long long)cluster << c->q->cluster_bits);
	qcow2_check_say(c, "Use qemu-img amend to increase the refcount entry width or qemu-img "
			   "convert to create a clean copy if the image cannot be opened for "
			   "writing");
	c->result->corruptions++;
	return 0;
}

/* [off, off + len) is not all there.  What is, or would be if the file grew, is
 * kept from being taken or given back: it was somebody's. */
static int
remember(struct qcow2_checker *c, uint64_t off, uint64_t len)
{
	uint64_t end = c->counts.n + WINDOW, k = off >> c->q->cluster_bits;
	uint64_t max = min_u64(c->q->refcount_max, QCOW2_COUNT_MAX), n;
	int r = 0;

	if (len < UINT64_MAX - off)
		end = min_u64(end, (off + len - 1) / c->q->cluster_size + 1);
	if (k < end)
		r = qcow2_counts_grow(&c->beyond, end);
	for (; k < end && !r; k++) {
		n = qcow2_counts_get(&c->beyond, k);
		r = n < max ? qcow2_counts_set(&c->beyond, k, n + 1) : 0;
	}
	return r == -EFBIG ? 0 : r;
}

int
qcow2_check_count(struct qcow2_checker *c, uint64_t off, uint64_t len)
{
	uint64_t size = atomic_load(&qcow2_file(c->q)->size), last;
	int r;

	if (!len)
		return 0;
	/* A cluster that the file ends in is there, and one right behind it may be
	 * named by a table before it is written. */
	if (off > INT64_MAX || len > (uint64_t)INT64_MAX - off ||
	    (off + len > size && off + len - size >= c->q->cluster_size)) {
		qcow2_check_say(c, "ERROR: counting reference for region exceeding the end of the "
				   "file by one cluster or more: offset 0x%llx size 0x%llx",
				(unsigned long long)off, (unsigned long long)len);
		c->result->corruptions++;
		return remember(c, off, len);
	}
	last = (off + len - 1) >> c->q->cluster_bits;
	r = qcow2_counts_grow(&c->counts, last + 1);
	for (uint64_t k = off >> c->q->cluster_bits; k <= last && !r; k++)
		r = count_one(c, k);
	if (r < 0)
		c->result->errors++;
	return r;
}

/* ---- the order of it ---- */

static int
count_all(struct qcow2_checker *c)
{
	struct qcow2 *q = c->q;
	int r = qcow2_check_count(c, 0, q->cluster_size);

	c->result->allocated_clusters = c->result->fragmented_clusters =
		c->result->compressed_clusters = 0;
	if (!r)
		r = qcow2_check_active(c);
	if (!r)
		r = qcow2_check_snapshots(c);
	if (!r && q->exts.has_crypto)
		r = qcow2_check_count(c, q->exts.crypto_off, q->exts.crypto_len);
	if (!r)
		r = qcow2_check_bitmaps(c);
	/* Last: a refcount block must not be anything else. */
	if (!r)
		r = qcow2_check_blocks(c);
	return r;
}

/* A counter for each cluster of the file. */
static int
start_counting(struct qcow2_checker *c)
{
	uint64_t size = atomic_load(&qcow2_file(c->q)->size);
	int r = qcow2_counts_grow(&c->counts, qcow2_clusters(c->q, size));

	if (r < 0)
		c->result->errors++;
	return r;
}

/* Count and compare anew what was rebuilt: what it replaced is a leak now, which
 * was none before. */
static int
recheck(struct qcow2_checker *c, unsigned fix)
{
	struct check_result *res = c->result, before = *res, compared;
	int r;

	res->corruptions = res->leaks = res->errors = 0;
	c->rebuild = false;
	c->fix = 0;
	qcow2_counts_done(&c->counts);
	qcow2_counts_done(&c->beyond);
	r = start_counting(c);
	if (!r)
		r = count_all(c);
	c->fix = fix;
	if (r < 0)
		return r;
	compared = *res;
	if (fix & CHECK_FIX_LEAKS) {
		r = qcow2_check_compare(c, CHECK_FIX_LEAKS);
		if (c->rebuild)
			qcow2_check_say(c, "ERROR rebuilt refcount structure is still broken");
	}
	compared.leaks = res->leaks;
	compared.errors = res->errors;
	*res = compared;
	if (before.corruptions > res->corruptions)
		res->corruptions_fixed += before.corruptions - res->corruptions;
	if (before.leaks > res->leaks)
		res->leaks_fixed += before.leaks - res->leaks;
	return r;
}

static int
rebuild(struct qcow2_checker *c)
{
	int r;

	qcow2_check_say(c, "Rebuilding refcount structure");
	r = qcow2_check_rebuild(c);
	if (r < 0) {
		qcow2_check_say(c, "ERROR rebuilding refcount structure: %s", strerror(-r));
		c->result->errors++;
		return r;
	}
	return recheck(c, c->fix);
}

/* Compare without changing anything first: only then it is known how to repair. */
static int
compare_and_fix(struct qcow2_checker *c)
{
	struct check_result before = *c->result;
	int r = qcow2_check_compare(c, 0);

	if (r < 0 || !c->fix)
		return r;
	if (c->rebuild && (c->fix & CHECK_FIX_ERRORS))
		return rebuild(c);
	if (c->rebuild) {
		qcow2_check_say(c, "ERROR need to rebuild refcount structures");
		c->result->errors++;
		return -EIO;
	}
	if (!c->result->leaks && !c->result->corruptions)
		return 0;
	*c->result = before;
	return qcow2_check_compare(c, c->fix);
}

static int
check_counts(struct qcow2_checker *c)
{
	int r = count_all(c);

	if (!r && c->fix)
		r = qcow2_settle(c->q);
	if (!r)
		r = compare_and_fix(c);
	if (!r)
		r = qcow2_check_flags(c);
	if (!r)
		c->result->image_end = (c->last + 1) << c->q->cluster_bits;
	return r;
}

static int
check_all(struct qcow2_checker *c)
{
	struct check_result *res = c->result;
	int r = qcow2_check_read_snapshots(c);

	if (!r)
		r = check_counts(c);
	if (!r)
		r = qcow2_check_write_snapshots(c);
	res->errors += c->snapshots.errors;
	res->corruptions += c->snapshots.corruptions;
	res->corruptions_fixed += c->snapshots.corruptions_fixed;
	/* Nothing is wrong any more. */
	if (!r && c->fix && !res->errors && !res->corruptions)
		r = qcow2_unmark(c->q, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
	return r;
}

static void
checker_done(struct qcow2_checker *c)
{
	qcow2_counts_done(&c->counts);
	qcow2_counts_done(&c->beyond);
}

int
qcow2_check(struct qcow2 *q, unsigned fix, const struct check_report *report,
	    struct check_result *ret)
{
	CLEANUP(checker_done) struct qcow2_checker c = {
		.q = q, .fix = fix, .report = report, .result = ret,
	};
	int r;

	memset(ret, 0, sizeof(*ret));
	ret->total_clusters = qcow2_clusters(q, round_down(q->header.size, 512));
	r = start_counting(&c);
	if (r < 0)
		return r;
	return check_all(&c);
}

int
qcow2_check_image(struct node *n, unsigned fix, const struct check_report *report,
		  struct check_result *ret)
{
	return qcow2_check(n->state, fix, report, ret);
}

int
qcow2_repair_dirty(struct qcow2 *q, struct error **errp)
{
	struct check_result res;
	int r = qcow2_check(q, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, NULL, &res);

	if (!r && res.errors)
		r = -EIO;
	if (r < 0)
		return error_set_errno(errp, r, "Could not repair dirty image"), -1;
	/* What was wrong is right, and tables may lie elsewhere. */
	qcow2_corrupt_forget(q);
	qcow2_overlap_done(q);
	return qcow2_overlap_init(q) < 0 ? error_set(errp, "Cannot allocate memory") : 0;
}
