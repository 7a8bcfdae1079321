/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/walk.h - all that an L1 table refers to, and what becomes of it.
 *
 * The tables are read from the file, whole: nothing of them is dirty in memory
 * (qcow2_settle()), and no request is under way.
 *
 * Context    coroutine.
 * Errors     0 or -errno; -EIO: a table points at nonsense.
 */
#ifndef BLOCK_QCOW2_WALK_H
#define BLOCK_QCOW2_WALK_H

#include <stdint.h>

struct qcow2;

/* Read and judge the L1 table of n entries at off; the caller frees. */
int qcow2_walk_read_l1(struct qcow2 *q, uint64_t off, uint64_t n, uint64_t **ret_l1);

/* Add a reference to each cluster that the n entries of l1 lead to, L2 tables
 * included.  -EINVAL: a count is as large as it can be.  *ret_done: how many were
 * added, also on failure. */
int qcow2_walk_add(struct qcow2 *q, const uint64_t *l1, uint64_t n, uint64_t *ret_done);
/* Take back the first `done` of those: no table on disk relied on them. */
int qcow2_walk_take_back(struct qcow2 *q, const uint64_t *l1, uint64_t n, uint64_t done);
/* Drop a reference to each: nothing on disk refers to l1 any more. */
int qcow2_walk_drop(struct qcow2 *q, const uint64_t *l1, uint64_t n);

/* Let the COPIED flags of the active tables say which counts are one.  On its way
 * to the disk when it returns, with all that is dirty. */
int qcow2_walk_flags(struct qcow2 *q);

#endif
