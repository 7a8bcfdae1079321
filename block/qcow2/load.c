/* SPDX-License-Identifier: Apache-2.0 */
/* From an image file to a struct qcow2, and back to nothing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/refs.h"
#include "block/qcow2/snapshots.h"

enum {
	SLICE_DEFAULT = 4096,
	L2_CACHE_DEFAULT = 32 << 20,	/* bytes, at most */
	REF_CACHE_DEFAULT = 2 << 20,
	SLICES_MIN = 16,		/* of any cache, but with table_memory */
	SLICES_LEAST = 4,
	PART_ENTRIES = 8192,		/* of a table, that are read at a time */
	L1_PIECE_BITS = 12,		/* where it comes in pieces, these are that large at most */
	L1_PIECES = 2,
};

static void
set_geometry(struct qcow2 *q, uint32_t slice)
{
	const struct qcow2_header *h = &q->header;

	if (!slice)
		slice = SLICE_DEFAULT;
	q->version = (int)h->version;
	q->cluster_bits = h->cluster_bits;
	q->cluster_size = UINT32_C(1) << h->cluster_bits;
	q->extended_l2 = h->incompat & QCOW2_INCOMPAT_EXTL2;
	q->l2e_bits = q->extended_l2 ? 4 : 3;
	q->l2_bits = h->cluster_bits - q->l2e_bits;
	q->sub_bits = h->cluster_bits - (q->extended_l2 ? 5 : 0);
	q->sub_size = UINT32_C(1) << q->sub_bits;
	q->slice_bits = (unsigned)__builtin_ctz(slice);
	if (q->slice_bits > q->cluster_bits)
		q->slice_bits = q->cluster_bits;
	q->refcount_order = h->refcount_order;
	q->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
	q->refcount_max = UINT64_MAX >> (64 - (1u << h->refcount_order));
	q->external_data = h->incompat & QCOW2_INCOMPAT_DATA_FILE;
	q->data_raw = h->autoclear & QCOW2_AUTOCLEAR_DATA_RAW;
	q->encrypted = h->crypt_method != QCOW2_CRYPT_NONE;
}

/* The check judges by itself whether there are counts and snapshots, and whether an
 * image that is marked corrupt is so. */
static struct qcow2_header
without_what_is_checked(const struct qcow2_header *h)
{
	struct qcow2_header judged = *h;

	judged.incompat &= ~(uint64_t)QCOW2_INCOMPAT_CORRUPT;
	judged.nb_snapshots = 0;
	judged.snapshots_off = 0;
	if (!judged.reftable_clusters)
		judged.reftable_clusters = 1;
	return judged;
}

/* The header, the extensions behind it, and the backing file's name. */
static int
load_header(struct qcow2 *q, struct error **errp)
{
	CLEANUP(cleanup_free) uint8_t *buf = NULL;
	uint8_t head[UINT64_C(1) << QCOW2_CLUSTER_BITS_MIN];
	struct qcow2_header *h = &q->header, judged;
	size_t end, len;
	int r;

	r = node_pread(qcow2_file(q), 0, head, sizeof(head));
	if (r < 0)
		return error_set_errno(errp, r, "Could not read qcow2 header"), -1;
	if (qcow2_header_parse(head, sizeof(head), h, errp))
		return -1;
	end = h->backing_off ? h->backing_off : (size_t)1 << h->cluster_bits;
	len = end + (h->backing_off ? QCOW2_BACKING_MAX : 0);
	buf = malloc(len);
	if (!buf)
		return error_set(errp, "Out of memory for the header extensions");
	r = node_pread(qcow2_file(q), 0, buf, len);
	if (r < 0)
		return error_set_errno(errp, r, "Could not read qcow2 header"), -1;
	if (qcow2_ext_split(buf, h->header_len, end, &q->exts, errp))
		return -1;
	judged = q->checking ? without_what_is_checked(h) : *h;
	if (qcow2_header_check(&judged, q->exts.features, q->exts.features_len,
			       q->node->read_only, errp))
		return -1;
	if (!h->backing_off)
		return 0;
	q->backing_name = strndup((const char *)buf + h->backing_off, h->backing_len);
	return q->backing_name ? 0 : error_set(errp, "Out of memory for the backing file's name");
}

/* Part by part, and what is zero is not touched: of the table of a large disk that is
 * mostly empty, only what is used takes memory. */
static int
fill_table(struct qcow2 *q, uint64_t off, uint64_t n, uint64_t *table)
{
	CLEANUP(cleanup_free) uint64_t *part = malloc(PART_ENTRIES * 8);

	if (!part)
		return -ENOMEM;
	for (uint64_t at = 0, len; at < n; at += len) {
		int r;

		len = min_u64(n - at, PART_ENTRIES);
		r = node_pread(qcow2_file(q), off + at * 8, part, len * 8);
		if (r < 0)
			return r;
		if (bytes_are_zero(part, len * 8))
			continue;
		for (uint64_t i = 0; i < len; i++)
			table[at + i] = be64toh(part[i]);
	}
	return 0;
}

/* Read n entries of a table into memory, in host byte order. */
static int
load_table(struct qcow2 *q, uint64_t off, uint64_t n, uint64_t **ret, const char *what,
	   struct error **errp)
{
	uint64_t *t = calloc(n ? n : 1, 8);
	int r;

	if (!t)
		return error_set(errp, "Could not allocate %s", what);
	r = fill_table(q, off, n, t);
	if (r < 0) {
		free(t);
		return error_set_errno(errp, r, "Could not read %s", what), -1;
	}
	*ret = t;
	return 0;
}

/* What of a table lies behind the end of a file that was cut off says nothing: in
 * an image that is only read, look-ups there fail instead of giving zeroes. */
static void
spoil_cut_entries(struct qcow2 *q, uint64_t off, uint64_t *table, uint64_t n)
{
	uint64_t size = node_size(qcow2_file(q));

	if (!q->node->read_only || range_within(off, n * 8, size))
		return;
	for (uint64_t i = size > off ? (size - off) / 8 : 0; i < n; i++)
		table[i] = QCOW2_OFFSET_MASK;	/* neither aligned nor within the file */
}

/* Which pieces of the L1 table have something in them?  What is not read now, because
 * it cannot be, would be missed when it is too late. */
static int
find_used_pieces(struct qcow2 *q)
{
	uint64_t size = UINT64_C(1) << q->l1_cache.slice_bits, end = q->l1_stored * 8;
	CLEANUP(cleanup_free) uint8_t *piece = malloc(size);
	bool *used = calloc(div_up(end, size) + 1, sizeof(*used));
	int r = piece && used ? 0 : -ENOMEM;

	free(q->l1_used);
	q->l1_used = used;
	for (uint64_t at = 0; at < end && !r; at += size) {
		uint64_t len = min_u64(size, end - at);

		r = node_pread(qcow2_file(q), q->l1_off + at, piece, len);
		if (!r)
			used[at / size] = !bytes_are_zero(piece, len);
	}
	return r;
}

/* Let the L1 table come in pieces. */
static int
use_l1_pieces(struct qcow2 *q, uint64_t off, uint64_t stored, const char *what,
	      struct error **errp)
{
	unsigned bits = QCOW2_CLUSTER_BITS_MIN;
	int r;

	while (bits < L1_PIECE_BITS && UINT64_C(1) << bits < stored * 8)
		bits++;
	qcow2_cache_done(&q->l1_cache);
	r = qcow2_cache_init(&q->l1_cache, bits, L1_PIECES);
	q->l1_off = off;
	q->l1_stored = stored;
	if (!r)
		r = find_used_pieces(q);
	return r < 0 ? error_set_errno(errp, r, "Could not read %s", what), -1 : 0;
}

static int
load_l1(struct qcow2 *q, struct error **errp)
{
	const struct qcow2_header *h = &q->header;

	q->l1_size = h->l1_size;
	if (q->table_memory)
		return use_l1_pieces(q, h->l1_off, h->l1_size, "L1 table", errp);
	if (load_table(q, h->l1_off, q->l1_size, &q->l1, "L1 table", errp))
		return -1;
	if (!q->checking)
		spoil_cut_entries(q, h->l1_off, q->l1, q->l1_size);
	return 0;
}

static int
load_reftable(struct qcow2 *q, struct error **errp)
{
	const struct qcow2_header *h = &q->header;

	if (q->table_memory)
		return 0;
	q->reftable_size = (uint64_t)h->reftable_clusters << (q->cluster_bits - 3);
	return load_table(q, h->reftable_off, q->reftable_size, &q->reftable, "refcount table",
			  errp);
}

static int
load_tables(struct qcow2 *q, struct error **errp)
{
	if (load_l1(q, errp) || load_reftable(q, errp))
		return -1;
	if (qcow2_cache_init(&q->l2_cache, q->slice_bits, SLICES_MIN) ||
	    qcow2_cache_init(&q->ref_cache, q->slice_bits, SLICES_MIN))
		return error_set(errp, "Could not allocate metadata caches");
	qcow2_set_caches(q, 0, 0);
	return 0;
}

void
qcow2_set_caches(struct qcow2 *q, uint64_t l2_bytes, uint64_t refcount_bytes)
{
	uint64_t all = qcow2_clusters(q, q->header.size) << q->l2e_bits;
	uint64_t least = q->table_memory ? SLICES_LEAST : SLICES_MIN;

	if (!l2_bytes)
		l2_bytes = min_u64(round_up(all, q->cluster_size), L2_CACHE_DEFAULT);
	if (!refcount_bytes)
		refcount_bytes = REF_CACHE_DEFAULT;
	q->l2_cache.max = max_u64(least, l2_bytes >> q->slice_bits);
	q->ref_cache.max = max_u64(SLICES_MIN, refcount_bytes >> q->slice_bits);
}

int
qcow2_load(struct qcow2 *q, uint32_t slice, struct error **errp)
{
	struct node *n = q->node, *file = qcow2_file(q);

	pthread_mutex_init(&q->lock, NULL);
	list_init(&q->claims);
	list_init(&q->bitmaps);
	q->epoch = 2;
	if (load_header(q, errp))
		goto fail;
	set_geometry(q, slice);
	if (load_tables(q, errp) || qcow2_ext_decode(&q->header, &q->exts, errp) ||
	    (!q->checking && !q->table_memory && qcow2_snapshots_read(q, errp)))
		goto fail;
	if (q->table_memory)
		qcow2_ext_forget(&q->exts);
	if (q->exts.backing_format && q->backing_name) {
		q->backing_format = strdup(q->exts.backing_format);
		if (!q->backing_format) {
			error_set(errp, "Out of memory for the backing file's format");
			goto fail;
		}
	}
	if (qcow2_overlap_init(q) < 0) {
		error_set(errp, "Out of memory for the overlap checks");
		goto fail;
	}
	q->overlap_check = QCOW2_OVERLAP_CACHED;
	q->lazy = q->header.compat & QCOW2_COMPAT_LAZY_REFCOUNTS;
	q->bitmap_dir_off = q->exts.bitmap_dir_off;
	q->bitmap_dir_len = q->exts.has_bitmaps ? q->exts.bitmap_dir_size : 0;
	q->fresh_known = file->driver->caps & DRIVER_GROWS;
	q->fresh_from = round_up(atomic_load(&file->size), q->cluster_size);
	atomic_store(&n->size, q->header.size);
	return 0;

fail:
	qcow2_unload(q);
	return -1;
}

/* The table may be shorter than the disk: nothing of the rest is allocated. */
int
qcow2_load_snapshot(struct qcow2 *q, const struct qcow2_snapshot *s, struct error **errp)
{
	uint64_t n = max_u64(s->l1_size, qcow2_l1_entries(s->disk_size, q->cluster_bits,
							  q->extended_l2));
	uint64_t *l1, *larger;

	if (n > QCOW2_L1_MAX / sizeof(*l1) || s->disk_size > INT64_MAX)
		return error_set(errp, "The disk of snapshot '%s' is too large", s->name);
	if (!s->l1_off && s->l1_size)
		return error_set(errp, "Snapshot L1 table offset invalid");
	if (qcow2_snapshot_check(q, s, errp))
		return -1;
	if (q->table_memory) {
		if (use_l1_pieces(q, s->l1_off, s->l1_size, "snapshot L1 table", errp))
			return -1;
		goto out;
	}
	if (load_table(q, s->l1_off, s->l1_size, &l1, "snapshot L1 table", errp))
		return -1;
	spoil_cut_entries(q, s->l1_off, l1, s->l1_size);
	larger = realloc(l1, (n ? n : 1) * sizeof(*l1));
	if (!larger) {
		free(l1);
		return error_set(errp, "Could not allocate snapshot L1 table");
	}
	memset(larger + s->l1_size, 0, (n - s->l1_size) * sizeof(*larger));
	free(q->l1);
	q->l1 = larger;
out:
	q->l1_size = n;
	q->header.size = s->disk_size;
	atomic_store(&q->node->size, s->disk_size);
	return 0;
}

void
qcow2_unload(struct qcow2 *q)
{
	struct node *n = q->node;

	qcow2_bitmaps_done(q);
	qcow2_snapshots_done(q);
	qcow2_ext_done(&q->exts);
	qcow2_cache_done(&q->l1_cache);
	qcow2_cache_done(&q->l2_cache);
	qcow2_cache_done(&q->ref_cache);
	qcow2_freelist_done(&q->freed);
	qcow2_freelist_done(&q->unmapped);
	qcow2_overlap_done(q);
	free(q->l1);
	free(q->l1_used);
	free(q->reftable);
	free(q->backing_name);
	free(q->backing_format);
	pthread_mutex_destroy(&q->lock);
	memset(q, 0, sizeof(*q));
	q->node = n;
}
