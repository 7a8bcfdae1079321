/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/bitmaps_int.h - what the files of stored bitmaps share.
 *
 * Context    with q->bitmaps_busy held.
 */
#ifndef BLOCK_QCOW2_BITMAPS_INT_H
#define BLOCK_QCOW2_BITMAPS_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "block/qcow2/qcow2.h"

struct dirty_bitmap;

enum {
	QCOW2_BITMAP_IN_USE = 1 << 0,	/* flags of an entry */
	QCOW2_BITMAP_AUTO = 1 << 1,
	QCOW2_BITMAP_TYPE = 1,		/* of dirty tracking bitmaps, the only one there is */
	QCOW2_BITMAP_ENTRY = 24,	/* bytes of an entry before its name */
	QCOW2_BITMAP_NAME_MAX = 1023,
	QCOW2_BITMAP_GRANULARITY_MIN = 9,	/* bits */
	QCOW2_BITMAP_GRANULARITY_MAX = 31,
	QCOW2_BITMAP_TABLE_MAX = 0x8000000,	/* entries */
	QCOW2_BITMAP_BYTES_MAX = 0x20000000,	/* of a bitmap's data */
};

/* Where a bitmap lies: a table, whose entries point at clusters of data. */
struct qcow2_place {
	uint64_t off;
	uint32_t n;		/* entries */
	uint64_t *table;	/* host byte order; NULL: not read */
	bool ours;		/* made here: each entry has a cluster, and nothing else does */
};

/* An entry of the directory. */
struct qcow2_bitmap {
	struct list link;	/* in q->bitmaps, in the directory's order */
	char *name;
	unsigned granularity_bits;
	uint32_t flags;		/* as on disk */
	struct qcow2_place place;
	struct dirty_bitmap *dirty;
	bool loaded;		/* it was there when the image was opened */
	bool storing;		/* while bitmaps are stored: it is one of them, */
	int error;		/* and has failed */
};

void qcow2_bitmap_free(struct qcow2_bitmap *bm);	/* out of the list; takes NULL */

/* Table entries that a bitmap takes on a disk of this size; 0: it is too large. */
uint32_t qcow2_bitmap_entries(const struct qcow2 *q, uint64_t size, unsigned granularity_bits);

/* ---- bitmaps_dir.c ---- */

/* Read the directory into q->bitmaps.  0 or -1. */
int qcow2_bitmaps_read_dir(struct qcow2 *q, struct error **errp);
/* Entries, and their bytes; on loop 0 also without the lock. */
uint32_t qcow2_bitmaps_count(const struct qcow2 *q);
size_t qcow2_bitmaps_dir_size(const struct qcow2 *q);
/* Write the flags of all entries, which is all that may differ from the disk; no
 * barrier. */
int qcow2_bitmaps_write_flags(struct qcow2 *q);
/* Write a new directory and let the header point there.  On failure the header points
 * at the old one or, where q->header_unsure is set then, at either: nothing of either
 * may be given back. */
int qcow2_bitmaps_switch_dir(struct qcow2 *q);
/* Make sure of the header again. */
int qcow2_bitmaps_resolve(struct qcow2 *q);

/* ---- bitmaps_place.c ---- */

/* Find room for a table of n entries, n >= 1, and all its data, and write the table.
 * Both are counted in memory. */
int qcow2_place_make(struct qcow2 *q, uint32_t n, struct qcow2_place *ret);
/* Nothing on disk points there: give it back, and forget it. */
void qcow2_place_undo(struct qcow2 *q, struct qcow2_place *p);
/* Nothing points there any more: it is free once that is so on disk.  What cannot be
 * read is leaked.  Forgets it. */
void qcow2_place_drop(struct qcow2 *q, struct qcow2_place *p);
/* Read the table, if that was not done.  -EINVAL: an entry is nonsense. */
int qcow2_place_read(struct qcow2 *q, struct qcow2_place *p);

/* ---- bitmaps_store.c ---- */

/* Give a place to each bitmap that is in use and has none of ours, or one of another
 * size; all or none.  1: the directory was switched; 0: there was no need. */
int qcow2_bitmaps_reserve(struct qcow2 *q);
/* As qcow2_bitmaps_before_write(), with the lock held. */
int qcow2_bitmaps_mark(struct qcow2 *q);

#endif
