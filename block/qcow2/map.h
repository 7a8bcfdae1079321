/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/map.h - from guest offsets to host clusters: the L1 and L2 tables.
 *
 * Errors     -EIO: a table points at nonsense; else what loading it gave.
 */
#ifndef BLOCK_QCOW2_MAP_H
#define BLOCK_QCOW2_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "block/qcow2/entry.h"
#include "block/qcow2/qcow2.h"

/* A stretch of the guest disk of one kind, contiguous in the file; of whole
 * subclusters, but for its first. */
struct qcow2_run {
	enum qcow2_kind kind;
	bool owned;		/* what has a host cluster: the only reference is ours */
	uint64_t len;		/* bytes, from the offset asked for */
	uint64_t host;		/* of that offset; COMPRESSED: the L2 entry itself */
};

/* Known to read as zeroes, without a look at the data. */
bool qcow2_run_is_zero(const struct qcow2 *q, const struct qcow2_run *run);

/* The run at off, at most len bytes (a compressed one ends with its cluster).
 * On success q->lock is held; on failure it is not.  Coroutine; yields only if
 * a table is not in the cache. */
int qcow2_map_lock(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_run *ret);

/* The same for a write at off, of len bytes: the run at the start of off's subcluster.
 * An entry that could not be read, but gives way to what is written, is a run of
 * kind INVALID, of one cluster. */
int qcow2_map_lock_write(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_run *ret);

/* Change the entries of n clusters from guest onwards, which the caller claimed:
 * fn gets each old entry and returns the new one.  What the old entries held
 * and the new ones don't is dropped (later).  L2 tables are made where there
 * are none, unless skip says that unallocated stretches stay as they are.
 * Coroutine, without the lock.  *ret_done: clusters changed, also on failure. */
typedef struct qcow2_l2e (*qcow2_map_fn)(struct qcow2 *q, struct qcow2_l2e old, uint64_t index,
					 void *arg);
int qcow2_map_change(struct qcow2 *q, uint64_t guest, uint64_t n, bool skip,
		     enum qcow2_free_why why, qcow2_map_fn fn, void *arg, uint64_t *ret_done);

/* With the lock held since qcow2_map_lock(): the part [*lo, *hi) of the cluster at
 * guest, in bytes from its start, which a copy of it has to hold at least: all
 * that is data.  Nothing: *lo >= *hi. */
void qcow2_map_data(struct qcow2 *q, uint64_t guest, uint32_t *ret_lo, uint32_t *ret_hi);

/* Map n clusters from guest onwards to host onwards.  [lo, hi) of the guest disk,
 * whole subclusters, was written there; what lies around it in these clusters, and
 * is not data of theirs already, stays as it is, zeroes or the backing file's.
 * Without extended L2 that is nothing. */
int qcow2_map_link(struct qcow2 *q, uint64_t guest, uint64_t host, uint64_t n, uint64_t lo,
		   uint64_t hi, uint64_t *ret_done);

#endif
