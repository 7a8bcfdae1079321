/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/compressed.h - reading compressed clusters. */
#ifndef BLOCK_QCOW2_COMPRESSED_H
#define BLOCK_QCOW2_COMPRESSED_H

#include <stdint.h>

#include "block/unpack.h"

struct qcow2;

/* How the image's compressed clusters are packed. */
enum unpack_kind qcow2_compression(const struct qcow2 *q);

/* Unpack the whole cluster of a compressed L2 entry into dst, of cluster size.
 * The caller is in an epoch or has a claim.  Coroutine.  -EIO: broken data. */
int qcow2_compressed_read(struct qcow2 *q, uint64_t entry, void *dst);

#endif
