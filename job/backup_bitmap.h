/* SPDX-License-Identifier: Apache-2.0 */
/* job/backup_bitmap.h - a backup's bitmap: what it says, and what becomes of it.
 *
 * At the instant that the copy will show, with no request under way, the bitmap is
 * frozen: what it marks then is what this backup copies, what its successor marks is
 * left to the next one.  A failed backup, or one that is to leave the bitmap alone,
 * melts the two into one.  A backup that ended well leaves the successor.  One that
 * failed with bitmap-mode "always" leaves the successor and what was not copied, and
 * only if what was copied is on the target's stable storage.
 *
 * Context    loop 0.
 * Errors     0 or -1 with *errp, QEMU's texts.
 */
#ifndef JOB_BACKUP_BITMAP_H
#define JOB_BACKUP_BITMAP_H

#include <stdbool.h>

#include "schema/types.h"

struct bitmap;
struct dirty_bitmap;
struct error;
struct node;

struct backup_bitmap {
	struct dirty_bitmap *bitmap;	/* NULL: the backup has none */
	enum BitmapSyncMode mode;
	bool decides;			/* it says what is copied */
	bool frozen;
};

/* What args say, judged. */
int backup_bitmap_find(const struct BlockdevBackup *args, struct node *source,
		       struct backup_bitmap *ret, struct error **errp);
/* Can it be used in its mode? */
int backup_bitmap_check(const struct backup_bitmap *b, struct error **errp);

/* With the roots above the source stopped.  On failure nothing has changed. */
int backup_bitmap_freeze(struct backup_bitmap *b, struct node *filter, struct error **errp);

/* The end, whichever comes first; later calls do nothing. */
void backup_bitmap_commit(struct backup_bitmap *b);
/* left: what was not copied, if the rest is safe; NULL: nothing counts as copied. */
void backup_bitmap_abort(struct backup_bitmap *b, const struct bitmap *left);

#endif
