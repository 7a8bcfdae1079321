/* SPDX-License-Identifier: Apache-2.0 */
#include "block/unpack.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <zlib.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

static int
unpack_deflate(const void *src, size_t src_len, void *dst, size_t dst_len)
{
	z_stream z = { 0 };
	int r;

	if (src_len > UINT_MAX || dst_len > UINT_MAX)
		return -EIO;
	z.next_in = (Bytef *)src;
	z.avail_in = (uInt)src_len;
	z.next_out = dst;
	z.avail_out = (uInt)dst_len;
	if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	/* Z_BUF_ERROR: the last byte came out before the end mark was read. */
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

#ifdef HAVE_ZSTD
/* Frame by frame, and not as a stream: for that, zstd would allocate as much as a frame
 * asks for.  Several frames may follow each other. */
static int
unpack_zstd(const void *src, size_t src_len, void *dst, size_t dst_len)
{
	ZSTD_DCtx *d = ZSTD_createDCtx();
	size_t from = 0, to = 0;
	int ret = 0;

	if (!d)
		return -ENOMEM;
	while (to < dst_len && ret == 0) {
		const char *frame = (const char *)src + from;
		size_t len = ZSTD_findFrameCompressedSize(frame, src_len - from), n;

		if (ZSTD_isError(len)) {
			ret = -EIO;
			break;
		}
		n = ZSTD_decompressDCtx(d, (char *)dst + to, dst_len - to, frame, len);
		if (ZSTD_isError(n))
			ret = -EIO;
		else
			to += n;
		from += len;
	}
	ZSTD_freeDCtx(d);
	return ret;
}
#endif

int
unpack(enum unpack_kind kind, const void *src, size_t src_len, void *dst, size_t dst_len)
{
	switch (kind) {
	case UNPACK_DEFLATE:
		return unpack_deflate(src, src_len, dst, dst_len);
	case UNPACK_ZSTD:
#ifdef HAVE_ZSTD
		return unpack_zstd(src, src_len, dst, dst_len);
#else
		return -ENOTSUP;
#endif
	}
	return -EIO;
}
