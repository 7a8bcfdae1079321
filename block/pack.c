/* SPDX-License-Identifier: Apache-2.0 */
#include "block/pack.h"

#include <errno.h>
#include <limits.h>
#include <zlib.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

/* QEMU unpacks with a window of that many bits, and no larger one. */
enum { WINDOW_BITS = 12, MEMORY_LEVEL = 9 };

static int
pack_deflate(const void *src, size_t src_len, void *dst, size_t dst_len, size_t *ret_len)
{
	z_stream z = { 0 };
	int r;

	if (src_len > UINT_MAX || dst_len > UINT_MAX)
		return -EINVAL;
	if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -WINDOW_BITS, MEMORY_LEVEL,
			 Z_DEFAULT_STRATEGY) != Z_OK)
		return -ENOMEM;
	z.next_in = (Bytef *)src;
	z.avail_in = (uInt)src_len;
	z.next_out = dst;
	z.avail_out = (uInt)dst_len;
	r = deflate(&z, Z_FINISH);
	(void)deflateEnd(&z);
	if (r != Z_STREAM_END)
		return -ENOSPC;
	*ret_len = dst_len - z.avail_out;
	return 0;
}

#ifdef HAVE_ZSTD
static int
pack_zstd(const void *src, size_t src_len, void *dst, size_t dst_len, size_t *ret_len)
{
	size_t r = ZSTD_compress(dst, dst_len, src, src_len, ZSTD_CLEVEL_DEFAULT);

	if (!ZSTD_isError(r)) {
		*ret_len = r;
		return 0;
	}
	return ZSTD_getErrorCode(r) == ZSTD_error_dstSize_tooSmall ? -ENOSPC : -ENOMEM;
}
#endif

int
pack(enum unpack_kind kind, const void *src, size_t src_len, void *dst, size_t dst_len,
     size_t *ret_len)
{
	switch (kind) {
	case UNPACK_DEFLATE:
		return pack_deflate(src, src_len, dst, dst_len, ret_len);
	case UNPACK_ZSTD:
#ifdef HAVE_ZSTD
		return pack_zstd(src, src_len, dst, dst_len, ret_len);
#else
		return -ENOTSUP;
#endif
	}
	return -EINVAL;
}
