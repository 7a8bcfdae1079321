/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/map.h - from guest offsets to host clusters: the L1 and L2 tables.
 *
 * Errors     -EIO: a table points at nonsense; else what loading it gave.
 */
#ifndef BLOCK_QCOW2_MAP_H
#define BLOCK_QCOW2_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "block/qcow2/qcow2.h"

enum qcow2_kind {
	QCOW2_RUN_UNALLOCATED,	/* the backing file decides */
	QCOW2_RUN_ZERO,		/* reads as zeroes, has no cluster */
	QCOW2_RUN_ZERO_ALLOC,	/* reads as zeroes, has a cluster for later */
	QCOW2_RUN_NORMAL,
	QCOW2_RUN_COMPRESSED,
};

/* A stretch of the guest disk of one kind, contiguous in the file. */
struct qcow2_run {
	enum qcow2_kind kind;
	bool owned;		/* NORMAL, ZERO_ALLOC: the only reference is ours */
	uint64_t len;		/* bytes, from the offset asked for */
	uint64_t host;		/* of that offset; COMPRESSED: the L2 entry itself */
};

/* The run at off, at most len bytes (a compressed one ends with its cluster).
 * On success q->lock is held; on failure it is not.  Coroutine; yields only if
 * a table is not in the cache. */
int qcow2_map_lock(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_run *ret);

/* Change the entries of n clusters from guest onwards, which the caller claimed:
 * fn gets each old entry and returns the new one.  What the old entries held
 * and the new ones don't is dropped (later).  L2 tables are made where there
 * are none, unless skip says that unallocated stretches stay as they are.
 * Coroutine, without the lock.  *ret_done: clusters changed, also on failure. */
typedef uint64_t (*qcow2_map_fn)(struct qcow2 *q, uint64_t old, uint64_t index, void *arg);
int qcow2_map_change(struct qcow2 *q, uint64_t guest, uint64_t n, bool skip,
		     enum qcow2_free_why why, qcow2_map_fn fn, void *arg, uint64_t *ret_done);

/* Map n clusters from guest onwards to host onwards: they were written. */
int qcow2_map_link(struct qcow2 *q, uint64_t guest, uint64_t host, uint64_t n,
		   uint64_t *ret_done);

/* Host clusters that a compressed entry's data touches: offset, bytes. */
void qcow2_compressed_extent(const struct qcow2 *q, uint64_t entry, uint64_t *ret_off,
			     uint64_t *ret_len);
/* The host clusters that an L2 entry refers to: first offset, number; 0: none. */
uint64_t qcow2_entry_clusters(const struct qcow2 *q, uint64_t entry, uint64_t *ret_host);
enum qcow2_kind qcow2_entry_kind(const struct qcow2 *q, uint64_t entry);

#endif
