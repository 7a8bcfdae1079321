/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/corrupt.h - an image that contradicts itself, found while it is used.
 *
 * Who finds that notes it, and fails with -EIO.  The request, back at the driver's
 * entrance, then says so (node_corrupted()), once for an image; and where the image
 * could have been written, it is marked as corrupt on disk, no table is written any
 * more, and every later request fails with -ENOMEDIUM, as if it were not there.
 *
 * What does not matter any more, because it gave way, is only remarked on: an event
 * says so, once and if nothing was said before, and the image stays in use.
 */
#ifndef BLOCK_QCOW2_CORRUPT_H
#define BLOCK_QCOW2_CORRUPT_H

#include <stdbool.h>
#include <stdint.h>

#include "block/io.h"

struct iov;
struct node;
struct qcow2;

#define QCOW2_NOWHERE UINT64_MAX

/* With q->lock held: what is wrong, and where in the file (QCOW2_NOWHERE: not a
 * matter of a place).  Returns -EIO. */
int qcow2_corrupt_note(struct qcow2 *q, uint64_t off, uint64_t len, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* With q->lock held: as above, and nothing fails. */
void qcow2_corrupt_remark(struct qcow2 *q, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Where a request, or a command, ends with r: the noting has its consequences.  Returns
 * r.  Coroutine, without q->lock and the checkpoint lock. */
int qcow2_corrupt_end(struct qcow2 *q, int r);

/* After a repair, with no request under way: what was noted is so no more. */
void qcow2_corrupt_forget(struct qcow2 *q);

/* The driver's functions, with what is said above around them. */
int qcow2_guarded_read(struct node *n, uint64_t off, const struct iov *dst);
int qcow2_guarded_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags);
int qcow2_guarded_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int qcow2_guarded_discard(struct node *n, uint64_t off, uint64_t len);
int qcow2_guarded_flush(struct node *n);
int qcow2_guarded_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
			 struct extent *ret_extent);

#endif
