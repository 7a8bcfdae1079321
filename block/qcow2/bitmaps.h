/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/bitmaps.h - what becomes of dirty bitmaps stored in an image.
 *
 * They are not loaded, so they cannot be kept up.  While nothing is written they
 * stay as they are; before the first write their autoclear bit is cleared, by
 * which the specification says that they are not to be trusted any more.  The
 * same goes for autoclear bits that nobody here knows.
 */
#ifndef BLOCK_QCOW2_BITMAPS_H
#define BLOCK_QCOW2_BITMAPS_H

struct qcow2;

/* At open for writing: is there something to clear before the first write? */
void qcow2_bitmaps_watch(struct qcow2 *q);
/* Clear the bits on disk, with barriers.  Coroutine; 0 or -errno. */
int qcow2_bitmaps_invalidate(struct qcow2 *q);

#endif
