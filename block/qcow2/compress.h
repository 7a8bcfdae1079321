/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/compress.h - writing compressed clusters. */
#ifndef BLOCK_QCOW2_COMPRESS_H
#define BLOCK_QCOW2_COMPRESS_H

#include <stdint.h>

struct iov;
struct qcow2;

/* Write src at off compressed, in whole clusters but for the disk's last; what does
 * not get smaller is written as it is.  Coroutine.  -EIO too for a cluster that has
 * a place already: a compressed one does not take over another's. */
int qcow2_write_compressed(struct qcow2 *q, uint64_t off, const struct iov *src);

/* With q->lock held: n clusters at host lose a reference.  Nothing more is packed
 * into them. */
void qcow2_pack_forget(struct qcow2 *q, uint64_t host, uint64_t n);

#endif
