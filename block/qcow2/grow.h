/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/grow.h - new refcount blocks, and a larger refcount table.
 *
 * A refcount block that comes into being is the first cluster of the range
 * that it counts, all of which was free before, and counts itself.  Where several
 * come at once they are the first clusters of the range of the first of them.
 */
#ifndef BLOCK_QCOW2_GROW_H
#define BLOCK_QCOW2_GROW_H

#include <stdint.h>

struct qcow2;

/* See to it that refcount block number `block` exists.  Coroutine, without
 * q->lock; 0 or -errno; -EFBIG: beyond the largest refcount table. */
int qcow2_grow_refs(struct qcow2 *q, uint64_t block);

/* Clusters up to here may be counted by blocks that exist; none behind it is. */
uint64_t qcow2_grow_end(struct qcow2 *q);
/* Take n clusters, all behind that, by new blocks that lie in front of them: between
 * blocks that begin their ranges there is no room for so many.  None of it reaches
 * beyond cluster number `limit`, else -ENOSPC.  As qcow2_grow_refs(). */
int qcow2_grow_take(struct qcow2 *q, uint64_t n, uint64_t limit, uint64_t *ret_host);

#endif
