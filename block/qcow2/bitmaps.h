/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/bitmaps.h - dirty bitmaps that an image stores.
 *
 * They are loaded at open, kept in memory (block/dirty.h), and stored when the
 * node is closed or becomes read-only.  bitmaps.c begins with what is on disk
 * meanwhile, and why no crash makes a bitmap say too little.
 *
 * Context    coroutine, without q->lock and the co_mutexes but q->bitmaps_busy, which
 *            these calls take themselves; on loop 0, but for what may be called on any.
 * Errors     0 or -errno; or 0 or -1 with *errp, QEMU's texts.
 */
#ifndef BLOCK_QCOW2_BITMAPS_H
#define BLOCK_QCOW2_BITMAPS_H

#include <stdbool.h>
#include <stdint.h>

struct Qcow2BitmapInfoList;
struct bitmap_ops;
struct error;
struct qcow2;

/* At open, after qcow2_load(). */
int qcow2_bitmaps_load(struct qcow2 *q, struct error **errp);
void qcow2_bitmaps_done(struct qcow2 *q);

/* Writing is possible from now on: is there something to say before the first
 * write? */
void qcow2_bitmaps_watch(struct qcow2 *q);
/* Say it, with barriers: stored bitmaps are in use, and whatever else has an autoclear
 * bit is out of date.  Any loop. */
int qcow2_bitmaps_before_write(struct qcow2 *q);

/* With no request under way: bring them all to disk.  Those that fail are in use there
 * for good; closing: somebody is told of each. */
int qcow2_bitmaps_store(struct qcow2 *q, bool closing);

/* Nothing is written any more, or again. */
void qcow2_bitmaps_set_read_only(struct qcow2 *q, bool read_only);

/* May the disk have this size? */
int qcow2_bitmaps_check_size(struct qcow2 *q, uint64_t size, struct error **errp);
/* It has; find room for them again, if there is any. */
void qcow2_bitmaps_resized(struct qcow2 *q);

/* *ret stays as it is where there are none. */
int qcow2_bitmaps_info(struct qcow2 *q, struct Qcow2BitmapInfoList **ret);

extern const struct bitmap_ops qcow2_bitmap_ops;

#endif
