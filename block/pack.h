/* SPDX-License-Identifier: Apache-2.0 */
/* block/pack.h - compression, as image formats need it: a block of memory at once.
 *
 * Context    any thread; CPU-heavy.
 * Errors     -ENOSPC: it does not get as small as that; -ENOMEM; -ENOTSUP: built
 *            without.
 */
#ifndef BLOCK_PACK_H
#define BLOCK_PACK_H

#include <stddef.h>

#include "block/unpack.h"

/* Pack all of src into dst, at most dst_len bytes. */
int pack(enum unpack_kind kind, const void *src, size_t src_len, void *dst, size_t dst_len,
	 size_t *ret_len);

#endif
