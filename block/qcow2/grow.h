/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/grow.h - new refcount blocks, and a larger refcount table.
 *
 * A refcount block that comes into being is the first cluster of the range
 * that it counts, all of which was free before, and counts itself.
 */
#ifndef BLOCK_QCOW2_GROW_H
#define BLOCK_QCOW2_GROW_H

#include <stdint.h>

struct qcow2;

/* See to it that refcount block number `block` exists.  Coroutine, without
 * q->lock; 0 or -errno; -EFBIG: beyond the largest refcount table. */
int qcow2_grow_refs(struct qcow2 *q, uint64_t block);

#endif
