/* SPDX-License-Identifier: Apache-2.0 */
#include "job/backup_bitmap.h"

#include "base/error.h"
#include "block/dirty.h"
#include "block/filters/cbw.h"

/* Incremental is another word for one way to use a bitmap. */
static int
check_modes(const struct BlockdevBackup *a, struct error **errp)
{
	bool incremental = a->sync == MIRROR_SYNC_MODE_INCREMENTAL;

	if (!a->bitmap && (incremental || a->sync == MIRROR_SYNC_MODE_BITMAP))
		return error_set(errp, "must provide a valid bitmap name for '%s' sync mode",
				 MirrorSyncMode_str(a->sync));
	if (incremental && a->has_bitmap_mode &&
	    a->bitmap_mode != BITMAP_SYNC_MODE_ON_SUCCESS)
		return error_set(errp, "Bitmap sync mode must be '%s' when using sync mode '%s'",
				 BitmapSyncMode_str(BITMAP_SYNC_MODE_ON_SUCCESS),
				 MirrorSyncMode_str(a->sync));
	if (!a->bitmap && a->has_bitmap_mode)
		return error_set(errp, "Cannot specify bitmap sync mode without a bitmap");
	return 0;
}

int
backup_bitmap_find(const struct BlockdevBackup *a, struct node *source,
		   struct backup_bitmap *ret, struct error **errp)
{
	bool incremental = a->sync == MIRROR_SYNC_MODE_INCREMENTAL;
	struct backup_bitmap b = {
		.mode = a->has_bitmap_mode ? a->bitmap_mode : BITMAP_SYNC_MODE_ON_SUCCESS,
		.decides = incremental || a->sync == MIRROR_SYNC_MODE_BITMAP,
	};

	if (check_modes(a, errp) < 0)
		return -1;
	if (a->bitmap) {
		b.bitmap = dirty_find(source, a->bitmap);
		if (!b.bitmap)
			return error_set(errp, "Bitmap '%s' could not be found", a->bitmap);
		if (!a->has_bitmap_mode && !incremental)
			return error_set(errp, "Bitmap sync mode must be given when providing a "
					       "bitmap");
		if (dirty_check(b.bitmap, DIRTY_TO_READ, errp) < 0)
			return -1;
		if (a->sync == MIRROR_SYNC_MODE_NONE)
			return error_set(errp, "sync mode '%s' does not produce meaningful bitmap "
					       "outputs", MirrorSyncMode_str(a->sync));
		if (b.mode == BITMAP_SYNC_MODE_NEVER && !b.decides)
			return error_set(errp, "Bitmap sync mode '%s' has no meaningful effect when "
					       "combined with sync mode '%s'",
					 BitmapSyncMode_str(b.mode), MirrorSyncMode_str(a->sync));
	}
	*ret = b;
	return 0;
}

int
backup_bitmap_check(const struct backup_bitmap *b, struct error **errp)
{
	if (!b->bitmap)
		return 0;
	return dirty_check(b->bitmap, b->mode == BITMAP_SYNC_MODE_NEVER ? DIRTY_TO_READ
									: DIRTY_TO_CHANGE,
			   errp);
}

int
backup_bitmap_freeze(struct backup_bitmap *b, struct node *filter, struct error **errp)
{
	if (!b->bitmap)
		return 0;
	if (dirty_freeze(b->bitmap, errp) < 0)
		return -1;
	b->frozen = true;
	if (b->decides)
		cbw_restrict(filter, b->bitmap);
	return 0;
}

void
backup_bitmap_commit(struct backup_bitmap *b)
{
	if (b->frozen)
		dirty_melt(b->bitmap, b->mode == BITMAP_SYNC_MODE_NEVER, NULL);
	b->frozen = false;
}

void
backup_bitmap_abort(struct backup_bitmap *b, const struct bitmap *left)
{
	if (b->frozen)
		dirty_melt(b->bitmap, !left || b->mode != BITMAP_SYNC_MODE_ALWAYS, left);
	b->frozen = false;
}
