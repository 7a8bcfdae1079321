/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/open.h"
#include "block/qcow/qcow.h"
#include "block/unpack.h"

static int
read_child(struct node *child, uint64_t off, const struct iov *dst, size_t skip, size_t len)
{
	struct iov_part part;
	int r = iov_part(&part, dst, skip, len);

	if (!r)
		r = node_read(child, off, &part.iov);
	iov_part_done(&part);
	return r;
}

struct job {
	const void *src;
	size_t src_len;
	void *dst;
	size_t dst_len;
};

static int
run_unpack(void *arg)
{
	const struct job *j = arg;

	return unpack(UNPACK_DEFLATE, j->src, j->src_len, j->dst, j->dst_len);
}

static int
read_compressed(struct qcow *q, const struct qcow_run *run, uint64_t off, const struct iov *dst,
		size_t skip)
{
	CLEANUP(cleanup_free) uint8_t *cluster = malloc(q->cluster_size);
	CLEANUP(cleanup_free) uint8_t *packed = malloc(run->packed + 1);
	struct job j = { packed, run->packed, cluster, q->cluster_size };
	int r;

	if (!cluster || !packed)
		return -ENOMEM;
	r = node_pread(q->node->file->child, run->host, packed, run->packed);
	if (!r)
		r = work_run(run_unpack, &j);
	if (!r)
		iov_write(dst, skip, cluster + (off & (q->cluster_size - 1)), run->len);
	return r;
}

static int
read_decrypted(struct qcow *q, const struct qcow_run *run, uint64_t off, void *buf)
{
	int r = node_pread(q->node->file->child, run->host, buf, run->len);

	return r ? r : q->decryptor->decrypt(q->key, off, run->host, buf, run->len);
}

/* In place where the memory is of one piece; requests are whole sectors. */
static int
read_encrypted(struct qcow *q, const struct qcow_run *run, uint64_t off, const struct iov *dst,
	       size_t skip)
{
	CLEANUP(cleanup_free) void *buf = NULL;
	struct iov_part part;
	int r = iov_part(&part, dst, skip, run->len);

	if (r)
		return r;
	if (part.iov.count == 1) {
		r = read_decrypted(q, run, off, part.iov.vec->iov_base);
		iov_part_done(&part);
		return r;
	}
	iov_part_done(&part);
	buf = iov_alloc(512, run->len);
	if (!buf)
		return -ENOMEM;
	r = read_decrypted(q, run, off, buf);
	if (!r)
		iov_write(dst, skip, buf, run->len);
	return r;
}

static int
read_run(struct qcow *q, const struct qcow_run *run, uint64_t off, const struct iov *dst,
	 size_t skip)
{
	struct edge *backing = q->node->backing;

	switch (run->kind) {
	case QCOW_UNALLOCATED:
		if (backing)
			return read_child(backing->child, off, dst, skip, run->len);
		iov_fill(dst, skip, 0, run->len);
		return 0;
	case QCOW_COMPRESSED:
		return read_compressed(q, run, off, dst, skip);
	case QCOW_NORMAL:
		break;
	}
	if (q->header.aes)
		return read_encrypted(q, run, off, dst, skip);
	return read_child(q->node->file->child, run->host, dst, skip, run->len);
}

int
qcow_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct qcow *q = n->state;
	size_t done = 0;
	int r = 0;

	/* Not even what is not encrypted is shown without the key. */
	if (q->header.aes && !q->decryptor)
		return -EACCES;
	while (!r && done < dst->len) {
		struct qcow_run run;

		r = qcow_map(q, off + done, dst->len - done, &run);
		if (!r)
			r = read_run(q, &run, off + done, dst, done);
		done += run.len;
	}
	return r;
}

int
qcow_status(struct node *n, uint64_t off, uint64_t len, bool want_zero, struct extent *ret)
{
	struct qcow *q = n->state;
	struct qcow_run run;
	int r = qcow_map(q, off, len, &run);

	(void)want_zero;
	if (r < 0)
		return r;
	*ret = (struct extent){ .len = run.len };
	if (run.kind != QCOW_UNALLOCATED)
		ret->flags = EXTENT_ALLOCATED | EXTENT_DATA;
	if (run.kind == QCOW_COMPRESSED)
		ret->flags |= EXTENT_COMPRESSED;
	if (run.kind == QCOW_NORMAL && !q->header.aes) {
		ret->flags |= EXTENT_MAPPED;
		ret->host = run.host;
		ret->file = n->file->child;
	}
	return 0;
}
