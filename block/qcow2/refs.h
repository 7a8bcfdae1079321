/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/refs.h - reference counts of host clusters, and who gets which.
 *
 * Counts live in refcount blocks, found through the refcount table, cached as
 * slices; they change in memory, and a checkpoint writes them.
 *
 * Context    coroutine, without q->lock, unless a call says otherwise.
 * Errors     0 or -errno.  -EFBIG: the format's limits; -ENOSPC and -EIO as the
 *            file below gives them; -EIO too for a refcount table that points at
 *            nonsense.
 */
#ifndef BLOCK_QCOW2_REFS_H
#define BLOCK_QCOW2_REFS_H

#include <stdbool.h>
#include <stdint.h>

#include "block/qcow2/qcow2.h"

/* Take up to want clusters that lie one behind the other; counted in memory,
 * not on disk yet, when it returns.  *ret_fresh: they were never written, and
 * read as zeroes. */
int qcow2_refs_take(struct qcow2 *q, uint64_t want, uint64_t *ret_host, uint64_t *ret_got,
		    bool *ret_fresh);
/* Exactly n. */
int qcow2_refs_take_all(struct qcow2 *q, uint64_t n, uint64_t *ret_host);

/* With q->lock held: is what was just taken fresh?  From now on it is not. */
bool qcow2_refs_mark_used(struct qcow2 *q, uint64_t host, uint64_t len);

/* Give back what was taken and never mapped. */
int qcow2_refs_give_back(struct qcow2 *q, uint64_t host, uint64_t n);

int qcow2_refs_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count);
/* Add delta to n clusters' counts.  -EINVAL, and nothing more is changed, where
 * a count would leave 0..max.  Counts go down only by the rules of qcow2.h. */
int qcow2_refs_change(struct qcow2 *q, uint64_t cluster, uint64_t n, int delta);
/* Set one cluster's count; for repair. */
int qcow2_refs_set(struct qcow2 *q, uint64_t cluster, uint64_t count);

/* With q->lock held: n clusters at host lost a reference in memory; their
 * counts go down once that is so on disk too.  Out of memory leaks them. */
void qcow2_refs_drop_later(struct qcow2 *q, uint64_t host, uint64_t n,
			   enum qcow2_free_why why);
/* With the checkpoint lock held: carry out what q->unmapped holds and no request
 * uses any more (all: every one of them, nothing is in flight). */
int qcow2_refs_drop_now(struct qcow2 *q, bool all);

/* Clusters that lost a reference on disk, and that no request uses: where it was
 * the last, the file below may forget them; then the counts go down. */
int qcow2_refs_drop(struct qcow2 *q, uint64_t cluster, uint64_t n, enum qcow2_free_why why);

void qcow2_freelist_done(struct qcow2_freelist *l);

/* An entry of a refcount block, of 1 << order bits. */
uint64_t qcow2_refcount_get(const void *block, unsigned order, uint64_t i);
void qcow2_refcount_put(void *block, unsigned order, uint64_t i, uint64_t count);

#endif
