/* SPDX-License-Identifier: Apache-2.0 */
/* Opening by options, and the driver's table. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/drivers.h"
#include "block/io.h"
#include "block/open.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "block/qcow2/walk.h"
#include "schema/types.h"

enum { CLEAN_DEFAULT = 600 };	/* seconds */

/* ---- options ---- */

/* QEMU's smallest refcount cache, in clusters, and its limit of both, in entries. */
enum { REF_CACHE_MIN = 4, ENTRIES_MAX = INT_MAX };

static int
check_cache_options(const struct qcow2 *q, const struct BlockdevOptionsQcow2 *o,
		    struct error **errp)
{
	int64_t entry = o->has_l2_cache_entry_size ? o->l2_cache_entry_size : q->cluster_size;
	const struct {
		bool has;
		int64_t value;
		const char *name;
	} sizes[] = {
		{ o->has_cache_size, o->cache_size, "cache-size" },
		{ o->has_l2_cache_size, o->l2_cache_size, "l2-cache-size" },
		{ o->has_l2_cache_entry_size, entry, "l2-cache-entry-size" },
		{ o->has_refcount_cache_size, o->refcount_cache_size, "refcount-cache-size" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		if (sizes[i].has && sizes[i].value < 0)
			return error_set(errp, "Value '%" PRId64 "' is out of range for parameter "
					       "'%s'", sizes[i].value, sizes[i].name);
	if (o->has_cache_size && o->has_l2_cache_size && o->has_refcount_cache_size)
		return error_set(errp, "cache-size, l2-cache-size and refcount-cache-size may not "
				       "be set at the same time");
	if (o->has_cache_size && o->has_l2_cache_size && o->l2_cache_size > o->cache_size)
		return error_set(errp, "l2-cache-size may not exceed cache-size");
	if (o->has_cache_size && o->has_refcount_cache_size &&
	    o->refcount_cache_size > o->cache_size)
		return error_set(errp, "refcount-cache-size may not exceed cache-size");
	if (entry < 512 || entry > q->cluster_size || !is_pow2((uint64_t)entry))
		return error_set(errp, "L2 cache entry size must be a power of two between %d and "
				       "the cluster size (%" PRIu32 ")", 512, q->cluster_size);
	return 0;
}

/* Bytes of all L2 tables of the disk. */
static uint64_t
all_l2(const struct qcow2 *q)
{
	return round_up(qcow2_clusters(q, q->header.size) << q->l2e_bits, q->cluster_size);
}

/* Divide cache-size between the two: the L2 cache gets what it can use, but for the
 * least that the other needs. */
static void
divide_cache(const struct qcow2 *q, uint64_t both, uint64_t *ret_l2, uint64_t *ret_refs)
{
	uint64_t all = all_l2(q);
	uint64_t least = (uint64_t)REF_CACHE_MIN << q->cluster_bits;

	if (both >= all + least) {
		*ret_l2 = all;
		*ret_refs = both - all;
	} else {
		*ret_refs = min_u64(both, least);
		*ret_l2 = both - *ret_refs;
	}
}

static int
set_caches(struct qcow2 *q, const struct BlockdevOptionsQcow2 *o, struct error **errp)
{
	uint64_t l2 = o->has_l2_cache_size ? (uint64_t)o->l2_cache_size : 0;
	uint64_t refs = o->has_refcount_cache_size ? (uint64_t)o->refcount_cache_size : 0;
	uint64_t entry = o->has_l2_cache_entry_size ? (uint64_t)o->l2_cache_entry_size
						    : q->cluster_size;
	bool has_l2 = o->has_l2_cache_size || o->has_cache_size;
	bool has_refs = o->has_refcount_cache_size || o->has_cache_size;

	if (check_cache_options(q, o, errp))
		return -1;
	if (o->has_cache_size && o->has_l2_cache_size)
		refs = (uint64_t)o->cache_size - min_u64(l2, all_l2(q));
	else if (o->has_cache_size && o->has_refcount_cache_size)
		l2 = (uint64_t)o->cache_size - refs;
	else if (o->has_cache_size)
		divide_cache(q, (uint64_t)o->cache_size, &l2, &refs);
	/* More than all there is counts as all there is, where it was asked for alone. */
	if (!o->has_l2_cache_size && l2 / entry > ENTRIES_MAX)
		return error_set(errp, "L2 cache size too big");
	if (refs >> q->cluster_bits > ENTRIES_MAX)
		return error_set(errp, "Refcount cache size too big");
	if (o->has_cache_clean_interval &&
	    (o->cache_clean_interval < 0 || o->cache_clean_interval > UINT_MAX))
		return error_set(errp, "Cache clean interval too big");
	/* None at all is as little as there can be. */
	qcow2_set_caches(q, has_l2 ? max_u64(l2, 1) : q->table_memory, has_refs ? max_u64(refs, 1) : 0);
	return 0;
}

static int
check_encrypt_option(const struct qcow2 *q, const struct BlockdevOptionsQcow2 *o,
		     struct error **errp)
{
	static const char *const names[] = { NULL, "aes", "luks" };
	const char *is = names[q->header.crypt_method], *said;

	if (!o->encrypt)
		return 0;
	said = BlockdevQcow2EncryptionFormat_str(o->encrypt->format);
	if (!is)
		return error_set(errp, "No encryption in image header, but options specified "
				       "format '%s'", said);
	if (strcmp(is, said))
		return error_set(errp, "Header reported '%s' encryption format but options specify "
				       "'%s'", is, said);
	return 0;
}

/* What the check for snapshots' L2 tables looks at: their places. */
static int
load_inactive(struct qcow2 *q, struct error **errp)
{
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		struct qcow2_snapshot *s = &q->snapshots[i];
		int r = qcow2_walk_read_l1(q, s->l1_off, s->l1_size, &s->l1);

		if (r < 0)
			return error_set_errno(errp, r, "Could not read the L1 table of snapshot "
							"'%s'", s->name), -1;
	}
	qcow2_overlap_done(q);
	return qcow2_overlap_init(q) < 0 ? error_set(errp, "Cannot allocate memory") : 0;
}

static int
apply_options(struct qcow2 *q, const struct BlockdevOptionsQcow2 *o, struct error **errp)
{
	if (set_caches(q, o, errp))
		return -1;
	if (o->has_lazy_refcounts && o->lazy_refcounts && q->version < 3)
		return error_set(errp, "Lazy refcounts require a qcow2 image with at least qemu "
				       "1.1 compatibility level");
	if (o->has_discard_no_unref && o->discard_no_unref && q->version < 3)
		return error_set(errp, "discard-no-unref is only supported since qcow2 version 3");
	if (check_encrypt_option(q, o, errp))
		return -1;
	q->pass_discard[QCOW2_FREE_REQUEST] = o->has_pass_discard_request
						      ? o->pass_discard_request
						      : q->node->discard_unmap;
	q->pass_discard[QCOW2_FREE_SNAPSHOT] =
		!o->has_pass_discard_snapshot || o->pass_discard_snapshot;
	q->pass_discard[QCOW2_FREE_CUT] = true;
	q->pass_discard[QCOW2_FREE_OTHER] = o->has_pass_discard_other && o->pass_discard_other;
	q->discard_no_unref = o->has_discard_no_unref && o->discard_no_unref;
	if (o->has_lazy_refcounts)
		q->lazy = o->lazy_refcounts;
	q->overlap_check = qcow2_overlap_option(o->overlap_check);
	return q->overlap_check & QCOW2_OVERLAP_INACTIVE_L2 ? load_inactive(q, errp) : 0;
}

/* ---- idle caches ---- */

/* What two calls in a row find unused is forgotten. */
static void
clean(struct timer *t)
{
	struct qcow2 *q = CONTAINER_OF(t, struct qcow2, clean_timer);

	qcow2_lock(q);
	qcow2_cache_clean(&q->l2_cache);
	qcow2_cache_clean(&q->ref_cache);
	qcow2_unlock(q);
	timer_set(t, clock_ns() + q->clean_ns);
}

static void
start_cleaning(struct qcow2 *q, const struct BlockdevOptionsQcow2 *o)
{
	int64_t seconds = o->has_cache_clean_interval ? o->cache_clean_interval : CLEAN_DEFAULT;

	if (!seconds)
		return;
	q->clean_ns = seconds * 1000000000;
	q->clean_timer.fn = clean;
	timer_set(&q->clean_timer, clock_ns() + q->clean_ns);
}

/* ---- encryption ---- */

static int
open_encrypted(struct qcow2 *q, struct opener *op, struct error **errp)
{
	struct node *n = q->node;
	struct crypt_layer layer = {
		.filename = node_filename(qcow2_file(q)),
		.node_name = n->name,
		.format = "qcow2",
		.kind = q->header.crypt_method == QCOW2_CRYPT_AES ? CIPHER_QCOW2_AES
								  : CIPHER_QCOW2_LUKS,
		.file = qcow2_file(q),
		.header_offset = q->exts.crypto_off,
		.header_length = q->exts.crypto_len,
		.depth = opener_depth(op),
	};

	if (opener_encrypted(op, n, &layer, &q->key, errp))
		return -1;
	if (!q->key)
		return 0;
	q->decryptor = opener_policy(op)->decryptor;
	/* What is decrypted here is never written back. */
	if (!n->read_only)
		return error_set(errp, "An encrypted image can only be opened read-only");
	return 0;
}

/* ---- opening ---- */

static int
open_data_file(struct qcow2 *q, struct opener *op, const struct BlockdevOptionsQcow2 *o,
	       struct error **errp)
{
	struct node *n = q->node;

	if (!q->external_data && o->data_file)
		return error_set(errp, "'data-file' can only be set for images with an external "
				       "data file");
	if (!q->external_data)
		return q->data_raw ? error_set(errp, "data-file-raw requires a data file") : 0;
	if (!o->data_file && !q->exts.data_file)
		return error_set(errp, "'data-file' is required for this image");
	/* The image file has the tables and nothing else; permissions follow with
	 * the next edge. */
	n->file->role &= ~(unsigned)ROLE_DATA;
	if (o->data_file)
		return opener_child(op, n, o->data_file, "data-file", ROLE_DATA, &q->data_edge,
				    errp);
	return opener_data_named(op, n, q->exts.data_file, &q->data_edge, errp);
}

static int
open_backing(struct qcow2 *q, struct opener *op, const struct BlockdevOptionsQcow2 *o,
	     struct error **errp)
{
	struct node *n = q->node;

	if (o->backing)
		return opener_backing(op, n, o->backing, &n->backing, errp);
	if (!q->backing_name || !*q->backing_name)
		return 0;
	return opener_backing_named(op, n, q->backing_name, q->backing_format, &n->backing, errp);
}

static const struct open_snapshot *
wanted_snapshot(const struct opener *op)
{
	return opener_depth(op) ? NULL : opener_policy(op)->snapshot;
}

static int
show_snapshot(struct qcow2 *q, struct opener *op, struct error **errp)
{
	const struct open_snapshot *want = wanted_snapshot(op);
	struct qcow2_snapshot s;
	int r;

	if (!want)
		return 0;
	if (!q->node->read_only)
		return error_set(errp, "An internal snapshot can only be opened read-only");
	if (qcow2_snapshots_find(q, want, &s, errp) < 0)
		return -1;
	r = qcow2_load_snapshot(q, &s, errp);
	qcow2_snapshot_done(&s);
	return r;
}

static void
set_limits(struct qcow2 *q)
{
	struct limits *l = &q->node->limits;

	l->align = q->encrypted ? 512 : 1;
	l->mem_align = 1;
	l->zero_align = q->data_raw ? q->cluster_size : q->sub_size;
	l->discard_align = q->cluster_size;
	l->opt_transfer = q->cluster_size;
}

/* Now that everything is there: what writing needs. */
static int
start_writing(struct qcow2 *q, struct error **errp)
{
	if ((q->header.incompat & QCOW2_INCOMPAT_DIRTY) && qcow2_repair_dirty(q, errp))
		return -1;
	qcow2_bitmaps_set_read_only(q, false);
	qcow2_bitmaps_watch(q);
	return 0;
}

int
qcow2_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsQcow2 *o = &n->options->u.qcow2;
	struct qcow2 *q = n->state;
	uint32_t slice = 0;

	q->node = n;
	if (opener_child(op, n, o->file, "file", ROLE_IMAGE, &n->file, errp))
		return -1;
	if (o->has_l2_cache_entry_size && o->l2_cache_entry_size >= 512 &&
	    o->l2_cache_entry_size <= 1 << QCOW2_CLUSTER_BITS_MAX &&
	    is_pow2((uint64_t)o->l2_cache_entry_size))
		slice = (uint32_t)o->l2_cache_entry_size;
	q->checking = opener_policy(op)->check && !opener_depth(op);
	if (n->read_only && !q->checking)
		q->table_memory = opener_policy(op)->table_memory;
	if (qcow2_load(q, slice, errp))
		return -1;
	set_limits(q);
	if (q->checking)
		return 0;
	if (show_snapshot(q, op, errp) || apply_options(q, o, errp))
		goto fail;
	if (q->encrypted && open_encrypted(q, op, errp))
		goto fail;
	if (open_data_file(q, op, o, errp) || open_backing(q, op, o, errp))
		goto fail;
	if (!q->encrypted && !q->table_memory && !wanted_snapshot(op) &&
	    qcow2_bitmaps_load(q, errp))
		goto fail;
	if (!n->read_only && !q->encrypted && start_writing(q, errp))
		goto fail;
	start_cleaning(q, o);
	return 0;

fail:
	if (q->key)
		opener_policy(op)->decryptor->forget(q->key);
	qcow2_unload(q);
	return -1;
}

int
qcow2_set_read_only(struct node *n, bool read_only, struct error **errp)
{
	struct qcow2 *q = n->state;
	int r;

	if (read_only) {
		r = qcow2_bitmaps_store(q, false);
		if (r < 0)
			return error_set_errno(errp, r, "Could not store the image's bitmaps"), -1;
		r = qcow2_settle_clean(q);
		if (r < 0)
			return error_set_errno(errp, r, "Could not write back the image's tables"),
			       -1;
		qcow2_bitmaps_set_read_only(q, true);
		return 0;
	}
	if (q->encrypted)
		return error_set(errp, "An encrypted image can only be opened read-only");
	if (q->table_memory)
		return error_set(errp, "Opened to be read once, which cannot be changed");
	if (q->header.incompat & QCOW2_INCOMPAT_CORRUPT)
		return error_set(errp, "qcow2: Image is corrupt; cannot be opened read/write");
	return start_writing(q, errp);
}

const struct driver driver_qcow2 = {
	.name = "qcow2",
	.caps = DRIVER_BACKING | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST | DRIVER_COMPRESSED,
	.state_size = sizeof(struct qcow2),
	.open = qcow2_open,
	.close = qcow2_close,
	.set_read_only = qcow2_set_read_only,
	.read = qcow2_guarded_read,
	.write = qcow2_guarded_write,
	.zero = qcow2_guarded_zero,
	.discard = qcow2_guarded_discard,
	.flush = qcow2_guarded_flush,
	.status = qcow2_guarded_status,
	.truncate = qcow2_truncate,
	.info = qcow2_info,
	.create = qcow2_create,
	.change_backing = qcow2_change_backing,
	.bitmaps = &qcow2_bitmap_ops,
	.snapshots = &qcow2_snapshot_ops,
	.check = qcow2_check_image,
};
