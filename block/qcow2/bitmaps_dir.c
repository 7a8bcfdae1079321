/* SPDX-License-Identifier: Apache-2.0 */
/* The directory of stored bitmaps: reading, judging and writing it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/bitmaps_int.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/refs.h"
#include "block/qcow2/rewrite.h"

/* ---- reading ---- */

/* All but the name of an entry. */
struct entry {
	struct qcow2_bitmap bm;
	uint8_t type;
	uint16_t name_len;
	uint32_t extra_len;
};

static struct entry
decode(const uint8_t *p)
{
	return (struct entry){
		.bm = { .place = { .off = get_be64(p), .n = get_be32(p + 8) },
			.flags = get_be32(p + 12), .granularity_bits = p[17] },
		.type = p[16],
		.name_len = get_be16(p + 18),
		.extra_len = get_be32(p + 20),
	};
}

static bool
is_sound(const struct qcow2 *q, const struct entry *e)
{
	const struct qcow2_place *p = &e->bm.place;
	uint64_t bytes = (uint64_t)p->n << q->cluster_bits;

	if (!p->off || !is_aligned(p->off, q->cluster_size) ||
	    p->off > (uint64_t)INT64_MAX - 8 * (uint64_t)p->n || !p->n ||
	    p->n > QCOW2_BITMAP_TABLE_MAX || bytes > QCOW2_BITMAP_BYTES_MAX)
		return false;
	if ((e->bm.flags & ~(uint32_t)(QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO)) ||
	    e->type != QCOW2_BITMAP_TYPE || e->bm.granularity_bits < QCOW2_BITMAP_GRANULARITY_MIN ||
	    e->bm.granularity_bits > QCOW2_BITMAP_GRANULARITY_MAX ||
	    e->name_len > QCOW2_BITMAP_NAME_MAX)
		return false;
	/* One in use may be too small: the disk may have grown meanwhile. */
	return e->bm.flags & QCOW2_BITMAP_IN_USE ||
	       q->header.size <= (bytes * 8) << e->bm.granularity_bits;
}

static int
append(struct qcow2 *q, const struct entry *e, const uint8_t *name)
{
	struct qcow2_bitmap *bm = malloc(sizeof(*bm));

	if (!bm)
		return -ENOMEM;
	*bm = e->bm;
	list_init(&bm->link);
	bm->loaded = true;
	/* A zero within ends a name early. */
	bm->name = strndup((const char *)name, e->name_len);
	if (!bm->name) {
		qcow2_bitmap_free(bm);
		return -ENOMEM;
	}
	list_append(&q->bitmaps, &bm->link);
	return 0;
}

/* The entry at p, with `left` bytes there; *ret_len is its length. */
static int
read_entry(struct qcow2 *q, const uint8_t *p, uint64_t left, uint64_t *ret_len,
	   struct error **errp)
{
	struct entry e;

	if (left < QCOW2_BITMAP_ENTRY)
		return error_set(errp, "Broken bitmap directory");
	e = decode(p);
	*ret_len = round_up(QCOW2_BITMAP_ENTRY + (uint64_t)e.extra_len + e.name_len, 8);
	if (*ret_len > left)
		return error_set(errp, "Broken bitmap directory");
	if (e.extra_len)
		return error_set(errp, "Bitmap extra data is not supported");
	if (!is_sound(q, &e))
		return error_set(errp, "Bitmap '%.*s' doesn't satisfy the constraints",
				 (int)e.name_len, (const char *)p + QCOW2_BITMAP_ENTRY);
	if (append(q, &e, p + QCOW2_BITMAP_ENTRY) < 0)
		return error_set(errp, "Cannot allocate memory");
	return 0;
}

int
qcow2_bitmaps_read_dir(struct qcow2 *q, struct error **errp)
{
	uint64_t size = q->exts.bitmap_dir_size, at = 0, len = 0;
	CLEANUP(cleanup_free) uint8_t *dir = malloc(size + 1);
	uint32_t n = 0;
	int r;

	if (!size)
		return error_set(errp, "Requested bitmap directory size is zero");
	if (!dir)
		return error_set(errp, "Failed to allocate space for bitmap directory");
	r = node_pread(qcow2_file(q), q->exts.bitmap_dir_off, dir, size);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to read bitmap directory"), -1;
	for (; at < size; at += len) {
		if (size - at >= QCOW2_BITMAP_ENTRY && ++n > q->exts.nb_bitmaps)
			return error_set(errp, "More bitmaps found than specified in header "
					       "extension");
		if (read_entry(q, dir + at, size - at, &len, errp))
			return -1;
	}
	if (n != q->exts.nb_bitmaps)
		return error_set(errp, "Less bitmaps found than specified in header extension");
	return 0;
}

/* ---- writing ---- */

static size_t
entry_size(const struct qcow2_bitmap *bm)
{
	return round_up(QCOW2_BITMAP_ENTRY + strlen(bm->name), 8);
}

uint32_t
qcow2_bitmaps_count(const struct qcow2 *q)
{
	struct qcow2_bitmap *bm;
	uint32_t n = 0;

	LIST_FOREACH(bm, &q->bitmaps, link)
		n++;
	return n;
}

size_t
qcow2_bitmaps_dir_size(const struct qcow2 *q)
{
	struct qcow2_bitmap *bm;
	size_t size = 0;

	LIST_FOREACH(bm, &q->bitmaps, link)
		size += entry_size(bm);
	return size;
}

/* The directory, with zeroes up to `room` bytes behind it.  NULL: no memory. */
static uint8_t *
encode(const struct qcow2 *q, size_t room)
{
	uint8_t *dir = calloc(1, room), *p = dir;
	struct qcow2_bitmap *bm;

	if (!dir)
		return NULL;
	LIST_FOREACH(bm, &q->bitmaps, link) {
		size_t len = strlen(bm->name);

		put_be64(p, bm->place.off);
		put_be32(p + 8, bm->place.n);
		put_be32(p + 12, bm->flags);
		p[16] = QCOW2_BITMAP_TYPE;
		p[17] = (uint8_t)bm->granularity_bits;
		put_be16(p + 18, (uint16_t)len);
		memcpy(p + QCOW2_BITMAP_ENTRY, bm->name, len);
		p += entry_size(bm);
	}
	return dir;
}

int
qcow2_bitmaps_write_flags(struct qcow2 *q)
{
	size_t size = qcow2_bitmaps_dir_size(q);
	CLEANUP(cleanup_free) uint8_t *dir = encode(q, size + 1);

	/* Names that end early may have made it shorter. */
	if (size != q->exts.bitmap_dir_size)
		return -EINVAL;
	return dir ? node_pwrite(qcow2_file(q), q->exts.bitmap_dir_off, dir, size) : -ENOMEM;
}

/* ---- another directory ---- */

/* What the header shall say of one of `size` bytes at host; size 0: there is none. */
static int
set_ext(struct qcow2_exts *x, uint64_t host, uint64_t size, uint32_t n)
{
	uint8_t data[24] = { 0 };
	int r;

	put_be32(data, n);
	put_be64(data + 8, size);
	put_be64(data + 16, host);
	r = qcow2_ext_set(x, QCOW2_EXT_BITMAPS, data, size ? sizeof(data) : 0);
	if (r < 0)
		return r;
	x->has_bitmaps = size;
	x->nb_bitmaps = n;
	x->bitmap_dir_off = host;
	x->bitmap_dir_size = size;
	return 0;
}

/* With the checkpoint lock held. */
static int
write_header(struct qcow2 *q, bool *ret_tried)
{
	struct qcow2_header h = q->header;
	int r;

	h.autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
	if (q->exts.has_bitmaps)
		h.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
	r = qcow2_rewrite_header(q, &h, q->backing_name, ret_tried);
	if (r < 0)
		return r;
	qcow2_lock(q);
	q->header.autoclear = h.autoclear;
	q->header.backing_off = h.backing_off;
	q->header.backing_len = h.backing_len;
	qcow2_unlock(q);
	return 0;
}

/* Point the header at the directory, or undo that in memory. */
static int
point_header(struct qcow2 *q, uint64_t host, uint64_t size, uint32_t n)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->checkpoint;
	uint64_t old_off, old_size;
	bool tried = false;
	uint32_t old_n;
	int r;

	co_mutex_lock(held);
	old_off = q->exts.bitmap_dir_off;
	old_size = q->exts.has_bitmaps ? q->exts.bitmap_dir_size : 0;
	old_n = q->exts.nb_bitmaps;
	r = set_ext(&q->exts, host, size, n);
	if (r < 0)
		return r;
	r = write_header(q, &tried);
	if (!r) {
		qcow2_lock(q);
		q->bitmap_dir_off = host;
		q->bitmap_dir_len = size;
		qcow2_unlock(q);
		return 0;
	}
	if (tried) {
		q->header_unsure = true;
		atomic_store(&q->mark_due, true);
	}
	/* With no memory to remember in what is there, nothing more is written. */
	if (set_ext(&q->exts, old_off, old_size, old_n) < 0)
		atomic_store(&q->failed, -ENOMEM);
	return r;
}

/* Write a directory of `size` bytes to clusters that are counted on disk then. */
static int
write_dir(struct qcow2 *q, size_t size, uint64_t *ret_host)
{
	size_t room = round_up(size, q->cluster_size);
	CLEANUP(cleanup_free) uint8_t *dir = encode(q, room);
	uint64_t clusters = room >> q->cluster_bits;
	int r = dir ? qcow2_refs_take_all(q, clusters, ret_host) : -ENOMEM;

	if (r < 0)
		return r;
	r = qcow2_checkpoint(q);
	if (!r)
		r = node_pwrite(qcow2_file(q), *ret_host, dir, room);
	if (r < 0)
		(void)qcow2_refs_give_back(q, *ret_host, clusters);
	return r;
}

int
qcow2_bitmaps_switch_dir(struct qcow2 *q)
{
	size_t size = qcow2_bitmaps_dir_size(q);
	uint64_t old_off = q->exts.bitmap_dir_off, host = 0;
	uint64_t old_size = q->exts.has_bitmaps ? q->exts.bitmap_dir_size : 0;
	int r = size ? write_dir(q, size, &host) : qcow2_checkpoint(q);

	if (r < 0)
		return r;
	r = point_header(q, host, size, qcow2_bitmaps_count(q));
	if (r < 0) {
		if (size && !q->header_unsure)
			(void)qcow2_refs_give_back(q, host, qcow2_clusters(q, size));
		return r;
	}
	if (old_size) {
		qcow2_lock(q);
		qcow2_refs_drop_later(q, old_off, qcow2_clusters(q, old_size), QCOW2_FREE_OTHER);
		qcow2_unlock(q);
	}
	return 0;
}

int
qcow2_bitmaps_resolve(struct qcow2 *q)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->checkpoint;
	int r;

	if (!q->header_unsure) {
		held = NULL;
		return 0;
	}
	co_mutex_lock(held);
	r = write_header(q, NULL);
	if (!r)
		q->header_unsure = false;
	return r;
}
