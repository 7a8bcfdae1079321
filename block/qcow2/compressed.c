/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/compressed.h"

#include <errno.h>
#include <stdlib.h>

#include "aio/work.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/qcow2/map.h"
#include "block/unpack.h"

/* Up to here a cluster is unpacked at once; a switch of threads would cost as
 * much as the work. */
enum { INLINE_MAX = 16 * 1024 };

struct unpack {
	enum unpack_kind kind;
	const void *src;
	size_t src_len;
	void *dst;
	size_t dst_len;
};

static int
run_unpack(void *arg)
{
	const struct unpack *u = arg;

	return unpack(u->kind, u->src, u->src_len, u->dst, u->dst_len);
}

enum unpack_kind
qcow2_compression(const struct qcow2 *q)
{
	return q->header.compression == QCOW2_COMPRESSION_ZSTD ? UNPACK_ZSTD : UNPACK_DEFLATE;
}

int
qcow2_compressed_read(struct qcow2 *q, uint64_t entry, void *dst)
{
	CLEANUP(cleanup_free) void *packed = NULL;
	struct unpack u = { .dst = dst, .dst_len = q->cluster_size };
	uint64_t off, len;
	int r;

	qcow2_compressed_extent(q, entry, &off, &len);
	packed = malloc(len);
	if (!packed)
		return -ENOMEM;
	r = node_pread(qcow2_file(q), off, packed, len);
	if (r < 0)
		return r;
	u.kind = qcow2_compression(q);
	u.src = packed;
	u.src_len = len;
	return q->cluster_size <= INLINE_MAX ? run_unpack(&u) : work_run(run_unpack, &u);
}
