/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/checkpoint.h - writing tables back in the order that qcow2.h argues.
 *
 * Context    coroutine, without q->lock.
 * Errors     0 or -errno; once a barrier failed, always that.
 */
#ifndef BLOCK_QCOW2_CHECKPOINT_H
#define BLOCK_QCOW2_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qcow2;

/* Write all that is dirty now.  Takes the checkpoint lock. */
int qcow2_checkpoint(struct qcow2 *q);

/* Before a request that changes guest data: mark what of the image will be out of
 * date (bitmaps.h), and wait for a checkpoint if there is too much to write,
 * or to free.  Holding no lock and no claim. */
int qcow2_before_write(struct qcow2 *q);

/* The second half of that, for whoever makes many changes without any request. */
int qcow2_throttle(struct qcow2 *q);

/* For whoever found no space: free what was unmapped so far, for which requests that
 * still use it are waited for, though not for long.  seen is q->reclaimed from before
 * the caller looked for space.  True: something was freed since then.  Holding no lock,
 * no claim, and no epoch. */
bool qcow2_reclaim(struct qcow2 *q, uint64_t seen);

/* ---- with the checkpoint lock held ---- */

/* Flush the image file, and an external data file; a failure is final. */
int qcow2_barrier(struct qcow2 *q);
/* Write the refcount slices that are dirty; no barrier. */
int qcow2_write_refs(struct qcow2 *q);
/* Write a field of the header, with a barrier before and behind. */
int qcow2_write_field(struct qcow2 *q, uint64_t off, const void *field, size_t len);
/* The same, within a sector, for a field that decides what the image is: after a
 * failure the disk is known to have the old one, or else the image has failed. */
int qcow2_switch_field(struct qcow2 *q, uint64_t off, const void *old, const void *field,
		       size_t len);

#endif
