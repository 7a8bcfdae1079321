/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/overlap.h - is a place that counts as free really none of the
 * image's tables?  In an image whose refcounts are wrong it may be one, and
 * writing there would ruin the image.
 *
 * Context    with q->lock held.
 */
#ifndef BLOCK_QCOW2_OVERLAP_H
#define BLOCK_QCOW2_OVERLAP_H

#include <stdbool.h>
#include <stdint.h>

struct qcow2;

/* The header, the L1 and refcount tables, the snapshot table: a few comparisons. */
bool qcow2_overlaps_fixed(const struct qcow2 *q, uint64_t off, uint64_t len);

/* Those, the snapshots' L1 tables, all refcount blocks and all L2 tables in use:
 * takes as long as the tables are. */
bool qcow2_overlaps(const struct qcow2 *q, uint64_t off, uint64_t len);

#endif
