/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/mark.h - the marks in the header by which an image says that it is
 * not to be relied on: dirty (counts and COPIED flags may be wrong) and corrupt.
 *
 * An image of version 2 has no place for them: there nothing is done.
 *
 * Context    coroutine, without the checkpoint lock, but for the last.
 * Errors     0 or -errno: the disk may have the mark or not, here it counts as not
 *            set.
 */
#ifndef BLOCK_QCOW2_MARK_H
#define BLOCK_QCOW2_MARK_H

#include <stdint.h>

struct qcow2;

/* marks is a mask of enum qcow2_incompat.  On stable storage when they return. */
int qcow2_mark(struct qcow2 *q, uint64_t marks);
int qcow2_unmark(struct qcow2 *q, uint64_t marks);

/* With the checkpoint lock held. */
int qcow2_mark_locked(struct qcow2 *q, uint64_t set, uint64_t clear);

#endif
