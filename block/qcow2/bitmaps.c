/* SPDX-License-Identifier: Apache-2.0 */
/* Stored dirty bitmaps: what is on disk when, and their life.
 *
 * The header points at a directory; an entry of it is a bitmap's name, flags and
 * table; a table's entries point at clusters of bits.  On disk these hold at every
 * moment, beside what qcow2.h promises:
 *
 *   B1  A bitmap that is not flagged IN_USE marks all that was changed since it
 *       was last cleared.
 *   B2  What directory and tables point at is counted.
 *   B3  The directory that the header points at is one that was written whole.
 *
 * mark      Before the first change of guest data, or of a bitmap by a command,
 *           all entries get IN_USE, and a barrier: B1.  In the same step each
 *           bitmap gets a new place, table and data, so that storing it later
 *           needs no space; the old one is freed.
 * store     Bits go to their clusters, and the guest's data and tables to theirs;
 *           barrier; IN_USE is taken away; barrier.  A crash in between leaves the
 *           flag, and the bits are not looked at.  The data is part of it: what a
 *           crash took back is a change too, and no mark tells of it.
 * switch    A directory that gains or loses entries, or whose entries get other
 *           places, is written anew to clusters that were counted before, and a
 *           barrier; then the header, extension and autoclear bit together in one
 *           sector, which is old or new: B2, B3.  What only the old directory
 *           pointed at is freed behind the next barrier.
 * flags     Only IN_USE and AUTO change in place.  They lie in one aligned word of
 *           their entry, so a torn write leaves each entry old or new; and a mark
 *           only sets IN_USE, a store only takes it away once the bits are there.
 *
 * A crash leaks at most what a switch had counted or was about to free.
 *
 * What fails     The space for a place: the old one stays, and is replaced when the
 *                bitmap is stored, if there is space then.  The write of the flags:
 *                so does the guest's write, or the command, that it came before.
 *                A bitmap's data: it stays IN_USE; the others go on.  The write of the header:
 *                nobody knows which directory it points at; nothing of either is
 *                given back, and the header is written again before anything else
 *                is (header_unsure).
 *
 * Another program that knows no bitmaps clears the autoclear bit as it writes; then
 * none of them is looked at.  Autoclear bits that nobody here knows are cleared by
 * the first mark. */
#include "block/qcow2/bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/dirty.h"
#include "block/qcow2/bitmaps_int.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/overlap.h"
#include "schema/types.h"

void
qcow2_bitmap_free(struct qcow2_bitmap *bm)
{
	if (!bm)
		return;
	list_remove(&bm->link);
	free(bm->place.table);
	free(bm->name);
	free(bm);
}

void
qcow2_bitmaps_done(struct qcow2 *q)
{
	struct qcow2_bitmap *bm, *tmp;

	LIST_FOREACH_SAFE(bm, tmp, &q->bitmaps, link)
		qcow2_bitmap_free(bm);
}

static struct qcow2_bitmap *
find(const struct qcow2 *q, const struct dirty_bitmap *b)
{
	struct qcow2_bitmap *bm;

	LIST_FOREACH(bm, &q->bitmaps, link)
		if (bm->dirty == b)
			return bm;
	return NULL;
}

uint32_t
qcow2_bitmap_entries(const struct qcow2 *q, uint64_t size, unsigned granularity_bits)
{
	uint64_t bits = (size >> granularity_bits) +
			!!(size & ((UINT64_C(1) << granularity_bits) - 1));
	uint64_t bytes = div_up(bits, 8), n = qcow2_clusters(q, bytes);

	if (bytes > QCOW2_BITMAP_BYTES_MAX || n > QCOW2_BITMAP_TABLE_MAX)
		return 0;
	/* The format has no empty tables. */
	return n ? (uint32_t)n : 1;
}

/* ---- marking ---- */

/* Autoclear bits of what is kept up here. */
static uint64_t
kept_bits(const struct qcow2 *q)
{
	return (q->exts.has_bitmaps ? QCOW2_AUTOCLEAR_BITMAPS : 0) |
	       (q->data_raw ? QCOW2_AUTOCLEAR_DATA_RAW : 0);
}

void
qcow2_bitmaps_watch(struct qcow2 *q)
{
	bool due = q->header.autoclear & ~kept_bits(q);
	struct qcow2_bitmap *bm;

	LIST_FOREACH(bm, &q->bitmaps, link)
		due |= !(bm->flags & QCOW2_BITMAP_IN_USE);
	atomic_store(&q->mark_due, due);
}

static int
clear_bits(struct qcow2 *q)
{
	uint64_t left = q->header.autoclear & kept_bits(q);
	uint8_t field[8];
	int r;

	if (left == q->header.autoclear)
		return 0;
	put_be64(field, left);
	co_mutex_lock(&q->checkpoint);
	r = qcow2_write_field(q, QCOW2_OFF_AUTOCLEAR, field, sizeof(field));
	if (!r) {
		qcow2_lock(q);
		q->header.autoclear = left;
		qcow2_unlock(q);
	}
	co_mutex_unlock(&q->checkpoint);
	return r;
}

/* Flag all in place, where the directory as it is has to do. */
static int
flag_in_place(struct qcow2 *q)
{
	int r = qcow2_bitmaps_write_flags(q);

	if (r < 0)
		return r;
	co_mutex_lock(&q->checkpoint);
	r = qcow2_barrier(q);
	co_mutex_unlock(&q->checkpoint);
	return r;
}

static int
flag_all(struct qcow2 *q)
{
	size_t n = 0;
	bool unflagged = false;
	CLEANUP(cleanup_free) uint32_t *before = NULL;
	struct qcow2_bitmap *bm;
	int r;

	LIST_FOREACH(bm, &q->bitmaps, link)
		unflagged |= !(bm->flags & QCOW2_BITMAP_IN_USE);
	if (!unflagged)
		return 0;
	/* It is written to, or given back. */
	qcow2_lock(q);
	r = qcow2_overlap_check_bitmaps(q, q->exts.bitmap_dir_off, q->exts.bitmap_dir_size);
	qcow2_unlock(q);
	if (r < 0)
		return r;
	before = calloc(qcow2_bitmaps_count(q), sizeof(*before));
	if (!before)
		return -ENOMEM;
	LIST_FOREACH(bm, &q->bitmaps, link) {
		before[n++] = bm->flags;
		bm->flags |= QCOW2_BITMAP_IN_USE;
	}
	r = qcow2_bitmaps_reserve(q);
	if (r == 1)
		return 0;
	r = q->header_unsure ? -EIO : flag_in_place(q);
	if (r < 0) {
		n = 0;
		LIST_FOREACH(bm, &q->bitmaps, link)
			bm->flags = before[n++];
	}
	return r;
}

int
qcow2_bitmaps_mark(struct qcow2 *q)
{
	int r;

	if (!atomic_load(&q->mark_due))
		return 0;
	r = qcow2_bitmaps_resolve(q);
	if (!r)
		r = clear_bits(q);
	if (!r)
		r = flag_all(q);
	if (!r)
		atomic_store_explicit(&q->mark_due, false, memory_order_release);
	return r;
}

int
qcow2_bitmaps_before_write(struct qcow2 *q)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->bitmaps_busy;

	co_mutex_lock(held);
	return qcow2_bitmaps_mark(q);
}

static int
touch(struct node *n)
{
	struct qcow2 *q = n->state;
	int r = atomic_load(&q->failed);

	return r < 0 ? r : qcow2_bitmaps_before_write(q);
}

/* ---- adding and removing ---- */

static int
check(struct node *n, const char *name, uint64_t granularity, struct error **errp)
{
	struct qcow2 *q = n->state;
	unsigned bits = (unsigned)__builtin_ctzll(granularity);
	size_t size = qcow2_bitmaps_dir_size(q) + QCOW2_BITMAP_ENTRY + strlen(name) + 7;
	int r = 0;

	if (q->version < 3)
		r = error_set(errp, "Cannot store dirty bitmaps in qcow2 v2 files");
	else if (n->read_only)
		r = error_set(errp, "Image is read-only");
	else if (bits > QCOW2_BITMAP_GRANULARITY_MAX)
		r = error_set(errp, "Granularity exceeds maximum (%llu bytes)",
			      1ull << QCOW2_BITMAP_GRANULARITY_MAX);
	else if (!qcow2_bitmap_entries(q, node_size(n), bits))
		r = error_set(errp, "Too much space will be occupied by the bitmap. Use larger "
				    "granularity");
	else if (strlen(name) > QCOW2_BITMAP_NAME_MAX)
		r = error_set(errp, "Name length exceeds maximum (%u characters)",
			      QCOW2_BITMAP_NAME_MAX);
	else if (qcow2_bitmaps_count(q) >= QCOW2_BITMAPS_MAX)
		r = error_set(errp, "Maximum number of persistent bitmaps is already reached");
	else if (size > QCOW2_BITMAP_DIR_MAX)
		r = error_set(errp, "Not enough space in the bitmap directory");
	if (r < 0)
		error_prepend(errp, "Can't make bitmap '%s' persistent in '%s': ", name, n->name);
	return r;
}

/* New entries stand behind those that were loaded, the latest first, as the peer has
 * them. */
static struct list *
place_in_dir(struct qcow2 *q)
{
	struct list *at = &q->bitmaps;

	while (at->next != &q->bitmaps &&
	       LIST_ENTRY(at->next, struct qcow2_bitmap, link)->loaded)
		at = at->next;
	return at;
}

/* An entry that is in use, and a place for it. */
static int
add_entry(struct qcow2 *q, struct qcow2_bitmap *bm)
{
	uint32_t entries = qcow2_bitmap_entries(q, node_size(q->node), bm->granularity_bits);
	int r = entries ? qcow2_place_make(q, entries, &bm->place) : -EFBIG;

	if (r < 0)
		return r;
	list_insert(place_in_dir(q), &bm->link);
	r = qcow2_bitmaps_switch_dir(q);
	if (r < 0)
		list_remove(&bm->link);
	if (r < 0 && !q->header_unsure)
		qcow2_place_undo(q, &bm->place);
	return r;
}

static int
add(struct node *n, struct dirty_bitmap *b, struct error **errp)
{
	struct qcow2 *q = n->state;
	struct qcow2_bitmap *bm = calloc(1, sizeof(*bm));
	int r = bm ? 0 : -ENOMEM;

	if (bm) {
		list_init(&bm->link);
		bm->dirty = b;
		bm->flags = QCOW2_BITMAP_IN_USE;
		bm->granularity_bits = (unsigned)__builtin_ctzll(dirty_granularity(b));
		bm->name = strdup(dirty_name(b));
		r = bm->name ? 0 : -ENOMEM;
	}
	co_mutex_lock(&q->bitmaps_busy);
	if (!r)
		r = qcow2_bitmaps_resolve(q);
	if (!r)
		r = add_entry(q, bm);
	co_mutex_unlock(&q->bitmaps_busy);
	if (!r)
		return 0;
	qcow2_bitmap_free(bm);
	error_set_errno(errp, r, "Failed to update bitmap extension");
	error_prepend(errp, "Can't make bitmap '%s' persistent in '%s': ", dirty_name(b), n->name);
	return -1;
}

static int
remove_entry(struct qcow2 *q, struct qcow2_bitmap *bm)
{
	struct list *before = bm->link.prev;
	int r = qcow2_bitmaps_resolve(q);

	if (r < 0)
		return r;
	list_remove(&bm->link);
	r = qcow2_bitmaps_switch_dir(q);
	if (r < 0) {
		list_insert(before, &bm->link);
		return r;
	}
	qcow2_place_drop(q, &bm->place);
	qcow2_bitmap_free(bm);
	return 0;
}

static int
remove_bitmap(struct node *n, struct dirty_bitmap *b, struct error **errp)
{
	struct qcow2 *q = n->state;
	struct qcow2_bitmap *bm;
	int r = 0;

	co_mutex_lock(&q->bitmaps_busy);
	bm = find(q, b);
	if (bm)
		r = remove_entry(q, bm);
	co_mutex_unlock(&q->bitmaps_busy);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to update bitmap extension"), -1;
	return 0;
}

const struct bitmap_ops qcow2_bitmap_ops = {
	.check = check,
	.add = add,
	.remove = remove_bitmap,
	.touch = touch,
};

/* ---- the rest of an image's life ---- */

void
qcow2_bitmaps_set_read_only(struct qcow2 *q, bool read_only)
{
	struct qcow2_bitmap *bm;

	LIST_FOREACH(bm, &q->bitmaps, link)
		dirty_set_read_only(bm->dirty, read_only);
}

int
qcow2_bitmaps_check_size(struct qcow2 *q, uint64_t size, struct error **errp)
{
	struct qcow2_bitmap *bm;

	LIST_FOREACH(bm, &q->bitmaps, link) {
		if (dirty_check(bm->dirty, DIRTY_TO_CHANGE, errp) < 0)
			return -1;
		if (!qcow2_bitmap_entries(q, size, bm->granularity_bits))
			return error_set(errp, "Bitmap '%s' doesn't satisfy the constraints: Too "
					       "much space will be occupied by the bitmap. Use "
					       "larger granularity", bm->name);
	}
	return 0;
}

void
qcow2_bitmaps_resized(struct qcow2 *q)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->bitmaps_busy;

	co_mutex_lock(held);
	if (!q->header_unsure)
		(void)qcow2_bitmaps_reserve(q);
}

static int
add_info(struct Qcow2BitmapInfoList *list, const struct qcow2_bitmap *bm)
{
	static const struct {
		uint32_t flag;
		enum Qcow2BitmapInfoFlags name;
	} flags[] = {
		{ QCOW2_BITMAP_IN_USE, QCOW2_BITMAP_INFO_FLAGS_IN_USE },
		{ QCOW2_BITMAP_AUTO, QCOW2_BITMAP_INFO_FLAGS_AUTO },
	};
	struct Qcow2BitmapInfo *i = calloc(1, sizeof(*i));
	int r = i ? 0 : -ENOMEM;

	if (!r) {
		i->name = strdup(bm->name);
		i->granularity = UINT32_C(1) << bm->granularity_bits;
		i->flags = calloc(1, sizeof(*i->flags));
		r = i->name && i->flags ? 0 : -ENOMEM;
	}
	for (size_t k = 0; k < ARRAY_SIZE(flags) && !r; k++)
		if (bm->flags & flags[k].flag)
			r = Qcow2BitmapInfoFlagsList_add(i->flags, flags[k].name);
	if (!r)
		r = Qcow2BitmapInfoList_add(list, i);
	if (r < 0)
		Qcow2BitmapInfo_free(i);
	return r;
}

int
qcow2_bitmaps_info(struct qcow2 *q, struct Qcow2BitmapInfoList **ret)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->bitmaps_busy;
	struct Qcow2BitmapInfoList *list;
	struct qcow2_bitmap *bm;
	int r = 0;

	co_mutex_lock(held);
	if (list_empty(&q->bitmaps))
		return 0;
	list = calloc(1, sizeof(*list));
	if (!list)
		return -ENOMEM;
	LIST_FOREACH(bm, &q->bitmaps, link)
		if (!r)
			r = add_info(list, bm);
	if (r < 0)
		Qcow2BitmapInfoList_free(list);
	else
		*ret = list;
	return r;
}
