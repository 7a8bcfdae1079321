/* SPDX-License-Identifier: Apache-2.0 */
/* block/unpack.h - decompression, as image formats need it: a piece of unknown
 * length, with rubbish behind it, that unpacks to a known number of bytes.
 *
 * Context    any thread; CPU-heavy.
 * Errors     -EIO: not that, or not that many; -ENOMEM; -ENOTSUP: built without.
 */
#ifndef BLOCK_UNPACK_H
#define BLOCK_UNPACK_H

#include <stddef.h>

enum unpack_kind {
	UNPACK_DEFLATE,		/* raw, without zlib's header */
	UNPACK_ZSTD,
};

/* Fill all of dst from what src holds; src may go on behind the end. */
int unpack(enum unpack_kind kind, const void *src, size_t src_len, void *dst, size_t dst_len);

#endif
