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
static int
unpack_zstd(const void *src, size_t src_len, void *dst, size_t dst_len)
{
	ZSTD_inBuffer in = { src, src_len, 0 };
	ZSTD_outBuffer out = { dst, dst_len, 0 };
	ZSTD_DStream *d = ZSTD_createDStream();
	int ret = 0;

	if (!d)
		return -ENOMEM;
	/* Several frames may follow each other; stop when dst is full. */
	while (out.pos < out.size) {
		size_t in_before = in.pos, out_before = out.pos;
		size_t r = ZSTD_decompressStream(d, &out, &in);

		if (ZSTD_isError(r) || (in.pos == in_before && out.pos == out_before)) {
			ret = -EIO;
			break;
		}
	}
	ZSTD_freeDStream(d);
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
