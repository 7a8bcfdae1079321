/* SPDX-License-Identifier: Apache-2.0 */
/* The check walks all that the header leads to and counts the references to each
 * host cluster, then compares with the counts in the image. */
#include "block/qcow2/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/map.h"
#include "block/qcow2/refs.h"
#include "block/qcow2/snapshots.h"

enum { PAGE_BITS = 16 };		/* clusters counted by one page of memory */
#define CLUSTERS_MAX (UINT64_C(1) << 38)

struct walk {
	struct qcow2 *q;
	struct qcow2_check *result;
	unsigned fix;
	uint64_t clusters;		/* of the file */
	uint32_t **pages;		/* counts; NULL: all zero */
	uint64_t last_host;		/* of the guest cluster before */
};

/* ---- counting ---- */

static int
walk_init(struct walk *w, struct qcow2 *q, unsigned fix, struct qcow2_check *result)
{
	memset(w, 0, sizeof(*w));
	memset(result, 0, sizeof(*result));
	w->q = q;
	w->fix = fix;
	w->result = result;
	/* A cluster that the file ends in is there; one behind it may be named by
	 * a table before it is written. */
	w->clusters = qcow2_clusters(q, atomic_load(&qcow2_file(q)->size)) + 1;
	if (w->clusters > CLUSTERS_MAX)
		return -EFBIG;
	w->pages = calloc((w->clusters >> PAGE_BITS) + 1, sizeof(uint32_t *));
	return w->pages ? 0 : -ENOMEM;
}

static void
walk_done(struct walk *w)
{
	for (uint64_t i = 0; w->pages && i <= w->clusters >> PAGE_BITS; i++)
		free(w->pages[i]);
	free(w->pages);
}

static uint64_t
counted(const struct walk *w, uint64_t cluster)
{
	const uint32_t *page = cluster < w->clusters ? w->pages[cluster >> PAGE_BITS] : NULL;

	return page ? page[cluster & ((1u << PAGE_BITS) - 1)] : 0;
}

/* Count a reference to each cluster that [off, off + len) touches. */
static int
count(struct walk *w, uint64_t off, uint64_t len)
{
	uint64_t first = off >> w->q->cluster_bits, last;

	if (!len)
		return 0;
	if (off > INT64_MAX || len > INT64_MAX || (off + len - 1) >> w->q->cluster_bits >= w->clusters) {
		w->result->corruptions++;	/* beyond the end of the file */
		return 0;
	}
	last = (off + len - 1) >> w->q->cluster_bits;
	for (uint64_t c = first; c <= last; c++) {
		uint32_t **page = &w->pages[c >> PAGE_BITS], *n;

		if (!*page)
			*page = calloc(1u << PAGE_BITS, sizeof(uint32_t));
		if (!*page)
			return -ENOMEM;
		n = &(*page)[c & ((1u << PAGE_BITS) - 1)];
		if (*n < UINT32_MAX)
			++*n;
	}
	w->result->image_end = max_u64(w->result->image_end, (last + 1) << w->q->cluster_bits);
	return 0;
}

static bool
is_misplaced(struct walk *w, uint64_t off)
{
	if (is_aligned(off, w->q->cluster_size))
		return false;
	w->result->corruptions++;
	return true;
}

/* ---- tables ---- */

static void
note_place(struct walk *w, uint64_t host)
{
	w->result->allocated_clusters++;
	if (w->last_host && host != w->last_host + w->q->cluster_size)
		w->result->fragmented_clusters++;
	w->last_host = host;
}

static int
count_entry(struct walk *w, uint64_t entry, bool active)
{
	uint64_t host, n = qcow2_entry_clusters(w->q, entry, &host);

	if (!n)
		return 0;
	if (entry & QCOW2_COMPRESSED) {
		if (active) {
			w->result->allocated_clusters++;
			w->result->compressed_clusters++;
			w->result->fragmented_clusters++;
		}
		if (entry & QCOW2_COPIED)
			w->result->corruptions++;
		return count(w, host, n << w->q->cluster_bits);
	}
	if (is_misplaced(w, host))
		return 0;
	if (active)
		note_place(w, host);
	return count(w, host, w->q->cluster_size);
}

static int
count_l2(struct walk *w, uint64_t table, uint8_t *buf, bool active)
{
	int r = count(w, table, w->q->cluster_size);

	if (!r && node_pread(qcow2_file(w->q), table, buf, w->q->cluster_size) < 0) {
		w->result->errors++;
		return 0;
	}
	for (uint64_t i = 0; !r && i < w->q->cluster_size / 8; i++)
		r = count_entry(w, get_be64(buf + 8 * i), active);
	return r;
}

/* An L1 table of n entries at off, host byte order in l1. */
static int
count_l1(struct walk *w, uint64_t off, const uint64_t *l1, uint64_t n, bool active)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(w->q->cluster_size);
	int r = count(w, off, n * 8);

	if (!buf)
		return -ENOMEM;
	for (uint64_t i = 0; i < n && !r; i++) {
		uint64_t table = l1[i] & QCOW2_OFFSET_MASK;

		if (table && !is_misplaced(w, table))
			r = count_l2(w, table, buf, active);
	}
	return r;
}

static int
count_snapshots(struct walk *w)
{
	struct qcow2 *q = w->q;
	int r = count(w, q->header.snapshots_off, q->nb_snapshots ? q->snapshots_len : 0);

	for (uint32_t i = 0; i < q->nb_snapshots && !r; i++) {
		const struct qcow2_snapshot *s = &q->snapshots[i];
		CLEANUP(cleanup_free) uint64_t *l1 = malloc((size_t)s->l1_size * 8 + 1);

		if (!l1)
			return -ENOMEM;
		if (node_pread(qcow2_file(q), s->l1_off, l1, (uint64_t)s->l1_size * 8) < 0) {
			w->result->errors++;
			continue;
		}
		for (uint32_t k = 0; k < s->l1_size; k++)
			l1[k] = be64toh(l1[k]);
		r = count_l1(w, s->l1_off, l1, s->l1_size, false);
	}
	return r;
}

static int
count_refcounts(struct walk *w)
{
	struct qcow2 *q = w->q;
	int r = count(w, q->header.reftable_off, q->reftable_size * 8);

	for (uint64_t i = 0; i < q->reftable_size && !r; i++) {
		uint64_t block = q->reftable[i] & ~UINT64_C(511);

		if (block && !is_misplaced(w, block))
			r = count(w, block, q->cluster_size);
	}
	return r;
}

/* A bitmap's table, of n entries, and what it points at. */
static int
count_bitmap(struct walk *w, uint64_t off, uint64_t n)
{
	CLEANUP(cleanup_free) uint8_t *table = NULL;
	int r;

	if (n > QCOW2_L1_MAX / 8) {
		w->result->corruptions++;
		return 0;
	}
	r = count(w, off, n * 8);
	table = malloc(n * 8 + 1);
	if (!table)
		return -ENOMEM;
	if (!r && node_pread(qcow2_file(w->q), off, table, n * 8) < 0) {
		w->result->errors++;
		return 0;
	}
	for (uint64_t i = 0; i < n && !r; i++) {
		uint64_t data = get_be64(table + 8 * i) & QCOW2_OFFSET_MASK;

		if (data && !is_misplaced(w, data))
			r = count(w, data, w->q->cluster_size);
	}
	return r;
}

static int
count_bitmaps(struct walk *w)
{
	const struct qcow2_exts *x = &w->q->exts;
	CLEANUP(cleanup_free) uint8_t *dir = NULL;
	int r;

	if (!x->has_bitmaps)
		return 0;
	r = count(w, x->bitmap_dir_off, x->bitmap_dir_size);
	dir = malloc(x->bitmap_dir_size + 1);
	if (!dir)
		return -ENOMEM;
	if (!r && node_pread(qcow2_file(w->q), x->bitmap_dir_off, dir, x->bitmap_dir_size) < 0) {
		w->result->errors++;
		return 0;
	}
	for (uint64_t off = 0; !r && off + 24 <= x->bitmap_dir_size;) {
		const uint8_t *e = dir + off;

		r = count_bitmap(w, get_be64(e), get_be32(e + 8));
		off += round_up(24 + (uint64_t)get_be32(e + 20) + get_be16(e + 18), 8);
	}
	return r;
}

static int
count_all(struct walk *w)
{
	struct qcow2 *q = w->q;
	int r = count(w, 0, q->cluster_size);

	w->result->total_clusters = qcow2_clusters(q, q->header.size);
	if (!r)
		r = count_l1(w, q->header.l1_off, q->l1, q->l1_size, true);
	if (!r)
		r = count_snapshots(w);
	if (!r)
		r = count_refcounts(w);
	if (!r)
		r = count_bitmaps(w);
	if (!r && q->exts.has_crypto)
		r = count(w, q->exts.crypto_off, q->exts.crypto_len);
	return r;
}

/* ---- comparing ---- */

static int
compare_cluster(struct walk *w, uint64_t cluster)
{
	uint64_t want = counted(w, cluster), is;
	bool low;
	int r = qcow2_refs_get(w->q, cluster, &is);

	if (r < 0) {
		w->result->errors++;
		return r == -ENOMEM ? r : 0;
	}
	if (is == want)
		return 0;
	low = is < want;
	if (low)
		w->result->corruptions++;
	else
		w->result->leaks++;
	if (!(w->fix & (low ? QCOW2_FIX_ERRORS : QCOW2_FIX_LEAKS)))
		return 0;
	r = qcow2_refs_set(w->q, cluster, want);
	if (r < 0)
		return r;
	if (low)
		w->result->corruptions_fixed++;
	else
		w->result->leaks_fixed++;
	return 0;
}

/* All clusters that have a reference or a count. */
static int
compare_all(struct walk *w)
{
	struct qcow2 *q = w->q;
	uint64_t per_block = UINT64_C(1) << q->refblock_bits;
	uint64_t end = max_u64(w->clusters, q->reftable_size << q->refblock_bits);

	for (uint64_t c = 0; c < end; c++) {
		uint64_t block = c >> q->refblock_bits;
		int r;

		/* Neither counted nor referred to: on to the next block. */
		if ((block >= q->reftable_size || !q->reftable[block]) &&
		    (c >= w->clusters || !w->pages[c >> PAGE_BITS])) {
			c = min_u64(round_down(c, per_block) + per_block,
				    round_down(c, 1u << PAGE_BITS) + (1u << PAGE_BITS)) - 1;
			continue;
		}
		r = compare_cluster(w, c);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- COPIED flags ---- */

/* What entry should be, by its cluster's count as it now stands in the image. */
static uint64_t
flag_by_count(struct walk *w, uint64_t entry, uint64_t host)
{
	uint64_t refs, right;

	if (!host || qcow2_refs_get(w->q, host >> w->q->cluster_bits, &refs) < 0)
		return entry;
	right = refs == 1 ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
	if (right == entry)
		return entry;
	w->result->corruptions++;
	if (!(w->fix & QCOW2_FIX_ERRORS))
		return entry;
	w->result->corruptions_fixed++;
	return right;
}

/* A wrong flag in an L2 table is put right at its place: nothing is cached. */
static int
check_flags_l2(struct walk *w, uint64_t table, uint8_t *buf)
{
	bool changed = false;

	if (node_pread(qcow2_file(w->q), table, buf, w->q->cluster_size) < 0)
		return 0;	/* counted as an error before */
	for (uint64_t i = 0; i < w->q->cluster_size / 8; i++) {
		uint64_t entry = get_be64(buf + 8 * i), right = entry;

		if (!(entry & QCOW2_COMPRESSED))
			right = flag_by_count(w, entry, entry & QCOW2_OFFSET_MASK);
		if (right != entry) {
			put_be64(buf + 8 * i, right);
			changed = true;
		}
	}
	if (!changed)
		return 0;
	qcow2_lock(w->q);
	qcow2_cache_drop(w->q, &w->q->l2_cache, table, w->q->cluster_size);
	qcow2_unlock(w->q);
	return node_pwrite(qcow2_file(w->q), table, buf, w->q->cluster_size);
}

static int
check_flags(struct walk *w)
{
	struct qcow2 *q = w->q;
	CLEANUP(cleanup_free) uint8_t *buf = malloc(q->cluster_size);
	int r = 0;

	if (!buf)
		return -ENOMEM;
	for (uint64_t i = 0; i < q->l1_size && !r; i++) {
		uint64_t table = q->l1[i] & QCOW2_OFFSET_MASK, right;

		if (!table || !is_aligned(table, q->cluster_size))
			continue;
		right = flag_by_count(w, q->l1[i], table);
		if (right != q->l1[i]) {
			qcow2_lock(q);
			q->l1[i] = right;
			qcow2_dirty_add(&q->l1_dirty, i, i + 1);
			qcow2_unlock(q);
		}
		r = check_flags_l2(w, table, buf);
	}
	return r;
}

int
qcow2_check(struct qcow2 *q, unsigned fix, struct qcow2_check *ret)
{
	CLEANUP(walk_done) struct walk w;
	int r = walk_init(&w, q, fix, ret);

	if (!r)
		r = count_all(&w);
	if (!r)
		r = compare_all(&w);
	/* The counts first: flags must not say "ours alone" before they do. */
	if (!r && fix)
		r = qcow2_settle(q);
	if (!r)
		r = check_flags(&w);
	if (!r && fix)
		r = qcow2_settle(q);
	return r;
}

int
qcow2_repair_dirty(struct qcow2 *q, struct error **errp)
{
	struct qcow2_check c;
	uint8_t field[8];
	int r = qcow2_check(q, QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS, &c);

	if (!r && (c.errors || c.corruptions != c.corruptions_fixed))
		r = -EIO;
	if (!r) {
		put_be64(field, q->header.incompat & ~(uint64_t)QCOW2_INCOMPAT_DIRTY);
		co_mutex_lock(&q->checkpoint);
		r = qcow2_write_field(q, QCOW2_OFF_INCOMPAT, field, sizeof(field));
		co_mutex_unlock(&q->checkpoint);
	}
	if (r < 0)
		return error_set_errno(errp, r, "Could not repair dirty image"), -1;
	q->header.incompat &= ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
	return 0;
}
