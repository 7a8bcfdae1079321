/* SPDX-License-Identifier: Apache-2.0 */
/* From an image to memory, and back. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/planted.h"
#include "base/error.h"
#include "block/dirty.h"
#include "block/io.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/bitmaps_int.h"
#include "block/qcow2/checkpoint.h"

/* All bitmaps of an image in memory; whoever has more has an image of another's. */
enum { LOADED_MAX = 1 << 30 };

/* ---- loading ---- */

static int
load_bits(struct qcow2 *q, struct qcow2_bitmap *bm)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(q->cluster_size);
	struct qcow2_place *p = &bm->place;
	int r = 0;

	if (!buf)
		return -ENOMEM;
	if (p->n != qcow2_bitmap_entries(q, node_size(q->node), bm->granularity_bits))
		return -EINVAL;
	for (uint32_t i = 0; i < p->n && !r; i++) {
		uint64_t host = p->table[i] & QCOW2_OFFSET_MASK;

		if (!p->table[i])
			continue;
		if (host)
			r = node_pread(qcow2_file(q), host, buf, q->cluster_size);
		else
			memset(buf, 0xff, q->cluster_size);
		if (!r)
			dirty_load(bm->dirty, (uint64_t)i << q->cluster_bits, buf,
				   q->cluster_size);
	}
	return r;
}

static int
load_lost(struct qcow2 *q, struct qcow2_bitmap *bm, const char *why, struct error **errp)
{
	bm->dirty = dirty_new_lost(q->node, bm->name, UINT64_C(1) << bm->granularity_bits, why);
	return bm->dirty ? 0 : error_set(errp, "Cannot allocate memory");
}

/* Does some of it lie behind the end of the file?  There it would read as zeroes, which
 * in a bitmap say that nothing was changed. */
static bool
is_cut_off(struct qcow2 *q, const struct qcow2_place *p)
{
	uint64_t size = node_size(qcow2_file(q));

	if (p->off >= size)
		return true;
	for (uint32_t i = 0; i < p->n; i++)
		if ((p->table[i] & QCOW2_OFFSET_MASK) >= size)
			return true;
	return false;
}

static int
load_bitmap(struct qcow2 *q, struct qcow2_bitmap *bm, struct error **errp)
{
	int r;

	if (dirty_find(q->node, bm->name))
		return error_set(errp, "Bitmap already exists: %s", bm->name);
	if (bm->flags & QCOW2_BITMAP_IN_USE)
		return load_lost(q, bm, "it is marked as in use in the image: whoever used it last "
					"did not store it, or is still using it", errp);
	r = qcow2_place_read(q, &bm->place);
	if (r < 0)
		return error_set_errno(errp, r, "Could not read bitmap_table table from image for "
						"bitmap '%s'", bm->name), -1;
	if (is_cut_off(q, &bm->place))
		return load_lost(q, bm, "some of it lies behind the end of the image file", errp);
	bm->dirty = dirty_new_stored(q->node, bm->name, UINT64_C(1) << bm->granularity_bits,
				     bm->flags & QCOW2_BITMAP_AUTO);
	if (!bm->dirty)
		return error_set(errp, "Cannot allocate memory");
	r = load_bits(q, bm);
	if (r < 0)
		return error_set_errno(errp, r, "Could not read bitmap '%s' from image",
				       bm->name), -1;
	return 0;
}

int
qcow2_bitmaps_load(struct qcow2 *q, struct error **errp)
{
	struct qcow2_bitmap *bm;
	uint64_t bytes = 0;

	if (!q->exts.has_bitmaps)
		return 0;
	if (qcow2_bitmaps_read_dir(q, errp))
		return -1;
	LIST_FOREACH(bm, &q->bitmaps, link) {
		if (!(bm->flags & QCOW2_BITMAP_IN_USE))
			bytes += (uint64_t)bm->place.n << q->cluster_bits;
		if (bytes > LOADED_MAX)
			return error_set(errp, "The image's bitmaps take more than %d bytes of memory",
					 LOADED_MAX);
		if (load_bitmap(q, bm, errp))
			return -1;
	}
	qcow2_bitmaps_set_read_only(q, q->node->read_only);
	return 0;
}

/* ---- room for storing ---- */

/* The entries that bm's place has to have; 0: it is not stored. */
static uint32_t
entries_wanted(const struct qcow2 *q, const struct qcow2_bitmap *bm)
{
	if (!(bm->flags & QCOW2_BITMAP_IN_USE) || dirty_reason(bm->dirty))
		return 0;
	return qcow2_bitmap_entries(q, node_size(q->node), bm->granularity_bits);
}

static bool
is_placed(const struct qcow2 *q, const struct qcow2_bitmap *bm)
{
	uint32_t n = entries_wanted(q, bm);

	return !n || (bm->place.ours && bm->place.n == n);
}

/* The places of all bitmaps, to go back to. */
struct places {
	struct qcow2_bitmap **owner;
	struct qcow2_place *old;
	size_t n;
};

static int
places_init(const struct qcow2 *q, struct places *p)
{
	struct qcow2_bitmap *bm;
	size_t n = 0;

	LIST_FOREACH(bm, &q->bitmaps, link)
		n += !is_placed(q, bm);
	*p = (struct places){ 0 };
	if (!n)
		return 0;
	p->owner = calloc(n, sizeof(struct qcow2_bitmap *));
	p->old = calloc(n, sizeof(*p->old));
	return p->owner && p->old ? 0 : -ENOMEM;
}

static void
places_done(struct places *p)
{
	free(p->owner);
	free(p->old);
}

static int
replace(struct qcow2 *q, struct qcow2_bitmap *bm, struct places *p)
{
	struct qcow2_place new;
	int r = qcow2_place_make(q, entries_wanted(q, bm), &new);

	if (r < 0)
		return r;
	p->owner[p->n] = bm;
	p->old[p->n++] = bm->place;
	bm->place = new;
	return 0;
}

static void
go_back(struct qcow2 *q, struct places *p)
{
	while (p->n) {
		struct qcow2_bitmap *bm = p->owner[--p->n];

		/* The header may point at a directory with the new places. */
		if (q->header_unsure)
			free(bm->place.table);
		else
			qcow2_place_undo(q, &bm->place);
		bm->place = p->old[p->n];
	}
}

int
qcow2_bitmaps_reserve(struct qcow2 *q)
{
	CLEANUP(places_done) struct places p;
	struct qcow2_bitmap *bm;
	int r = places_init(q, &p);

	if (r < 0 || !p.owner)
		return r;
	LIST_FOREACH(bm, &q->bitmaps, link)
		if (!r && !is_placed(q, bm))
			r = replace(q, bm, &p);
	if (!r)
		r = qcow2_bitmaps_switch_dir(q);
	if (r < 0) {
		go_back(q, &p);
		return r;
	}
	while (p.n)
		qcow2_place_drop(q, &p.old[--p.n]);
	return 1;
}

/* ---- storing ---- */

static int
store_bits(struct qcow2 *q, struct qcow2_bitmap *bm)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(q->cluster_size);
	const struct qcow2_place *p = &bm->place;
	int r = 0;

	if (!buf)
		return -ENOMEM;
	for (uint32_t i = 0; i < p->n && !r; i++) {
		dirty_save(bm->dirty, (uint64_t)i << q->cluster_bits, buf, q->cluster_size);
		r = node_pwrite(qcow2_file(q), p->table[i], buf, q->cluster_size);
	}
	return r;
}

/* As they are to be on disk. */
static uint32_t
flags_of(const struct qcow2_bitmap *bm)
{
	return dirty_is_enabled(bm->dirty) ? QCOW2_BITMAP_AUTO : 0;
}

/* Is there a copy that is out of date, and something to put in its place? */
static bool
is_due(const struct qcow2_bitmap *bm)
{
	if (dirty_reason(bm->dirty))
		return false;
	return bm->flags & QCOW2_BITMAP_IN_USE || !dirty_is_stored(bm->dirty);
}

static bool
nothing_is_due(const struct qcow2 *q)
{
	struct qcow2_bitmap *bm;

	LIST_FOREACH(bm, &q->bitmaps, link)
		if (is_due(bm))
			return false;
	return true;
}

static int
barrier(struct qcow2 *q)
{
	int r;

	co_mutex_lock(&q->checkpoint);
	r = atomic_load(&q->failed);
	if (!r)
		r = qcow2_barrier(q);
	co_mutex_unlock(&q->checkpoint);
	return r;
}

/* Of an empty disk the peer takes no bitmap: its tables must not be empty, and a longer
 * one has the wrong size for it.  Trusted, it would keep the peer from opening the image. */
static int
store_one(struct qcow2 *q, struct qcow2_bitmap *bm, int no_room)
{
	if (!node_size(q->node))
		return -EOPNOTSUPP;
	return is_placed(q, bm) ? store_bits(q, bm) : no_room;
}

/* All bits that there is room for, all that the guest wrote, and a barrier. */
static int
store_all_bits(struct qcow2 *q, int no_room)
{
	struct qcow2_bitmap *bm;
	int r;

	LIST_FOREACH(bm, &q->bitmaps, link)
		if (bm->storing)
			bm->error = store_one(q, bm, no_room);
	r = qcow2_checkpoint(q);
	if (r < 0 || PLANTED(bitmap_trusted_early))
		return r;
	return barrier(q);
}

/* Take IN_USE from those whose bits are there.  If that fails the disk may say one or
 * the other: here they count as not in use, so that the next mark flags them. */
static int
unflag(struct qcow2 *q)
{
	struct qcow2_bitmap *bm;
	int r;

	LIST_FOREACH(bm, &q->bitmaps, link)
		if (bm->storing && !bm->error)
			bm->flags = flags_of(bm);
	r = qcow2_bitmaps_write_flags(q);
	return r < 0 ? r : barrier(q);
}

/* Tell of those that failed, r being what failed for all; the first error. */
static int
conclude(struct qcow2 *q, int r, bool closing)
{
	struct qcow2_bitmap *bm;
	int first = r;

	LIST_FOREACH(bm, &q->bitmaps, link) {
		if (!bm->storing)
			continue;
		bm->storing = false;
		if (!bm->error)
			bm->error = r;
		if (!bm->error)
			dirty_set_stored(bm->dirty);
		else if (closing && dirty_store_failed)
			dirty_store_failed(q->node->name, bm->name, bm->error);
		if (!first)
			first = bm->error;
	}
	return first;
}

int
qcow2_bitmaps_store(struct qcow2 *q, bool closing)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->bitmaps_busy;
	struct qcow2_bitmap *bm;
	int r, room = 0;

	co_mutex_lock(held);
	if (nothing_is_due(q))
		return 0;
	LIST_FOREACH(bm, &q->bitmaps, link)
		bm->storing = is_due(bm);
	r = atomic_load(&q->failed);
	if (!r)
		r = qcow2_bitmaps_resolve(q);
	/* Also those that were not due: marking moves them. */
	if (!r)
		r = qcow2_bitmaps_mark(q);
	LIST_FOREACH(bm, &q->bitmaps, link)
		bm->storing |= is_due(bm);
	if (!r)
		room = qcow2_bitmaps_reserve(q);
	if (!r && q->header_unsure)
		r = room;
	if (!r)
		r = store_all_bits(q, room);
	if (!r)
		r = unflag(q);
	qcow2_bitmaps_watch(q);
	return conclude(q, r, closing);
}
