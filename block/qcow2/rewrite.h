/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/rewrite.h - writing the header and its extensions anew, atomically. */
#ifndef BLOCK_QCOW2_REWRITE_H
#define BLOCK_QCOW2_REWRITE_H

#include <stdbool.h>

struct qcow2;
struct qcow2_header;

/* Write h and q->exts with barriers before and behind; backing is the name of the
 * backing file, NULL for none, whose place in h is set.  Coroutine, with the
 * checkpoint lock held.  0 or -errno; -ENOSPC: no room in the header.  After a failure
 * with *ret_tried (which may be NULL) set, the disk has the old header or the new one;
 * else the old one. */
int qcow2_rewrite_header(struct qcow2 *q, struct qcow2_header *h, const char *backing,
			 bool *ret_tried);

#endif
