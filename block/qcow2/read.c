/* SPDX-License-Identifier: Apache-2.0 */
/* Reading: one look-up, and for what is stored in one piece one read of the
 * file; and block status, which is a look-up only. */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/open.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/compressed.h"
#include "block/qcow2/data.h"
#include "block/qcow2/map.h"

/* Read [off, off + dst's part) of a child; the part is dst itself where it can. */
static int
read_child(struct node *child, uint64_t off, const struct iov *dst, size_t skip, size_t len)
{
	struct iov_part part;
	int r;

	if (!skip && len == dst->len)
		return node_read(child, off, dst);
	r = iov_part(&part, dst, skip, len);
	if (!r)
		r = node_read(child, off, &part.iov);
	iov_part_done(&part);
	return r;
}

static int
read_compressed(struct qcow2 *q, uint64_t entry, uint64_t off, const struct iov *dst,
		size_t skip, size_t len)
{
	CLEANUP(cleanup_free) uint8_t *cluster = malloc(q->cluster_size);
	int r;

	if (!cluster)
		return -ENOMEM;
	r = qcow2_compressed_read(q, entry, cluster);
	if (!r)
		iov_write(dst, skip, cluster + (off & (q->cluster_size - 1)), len);
	return r;
}

static int
read_decrypted(struct qcow2 *q, uint64_t host, uint64_t off, void *buf, size_t len)
{
	int r = node_pread(qcow2_data_file(q), host, buf, len);

	return r ? r : q->decryptor->decrypt(q->key, off, host, buf, len);
}

/* Read and decrypt, in place where the memory is of one piece; requests are whole
 * sectors. */
static int
read_encrypted(struct qcow2 *q, uint64_t host, uint64_t off, const struct iov *dst, size_t skip,
	       size_t len)
{
	CLEANUP(cleanup_free) void *buf = NULL;
	struct iov_part part;
	int r;

	if (!q->decryptor)
		return -EACCES;
	r = iov_part(&part, dst, skip, len);
	if (r)
		return r;
	if (part.iov.count == 1) {
		r = read_decrypted(q, host, off, part.iov.vec->iov_base, len);
		iov_part_done(&part);
		return r;
	}
	iov_part_done(&part);
	buf = iov_alloc(512, len);
	if (!buf)
		return -ENOMEM;
	r = read_decrypted(q, host, off, buf, len);
	if (!r)
		iov_write(dst, skip, buf, len);
	return r;
}

int
qcow2_data_read(struct qcow2 *q, const struct qcow2_run *run, uint64_t off,
		const struct iov *dst, size_t skip, size_t len)
{
	struct node *backing;

	switch (run->kind) {
	case QCOW2_RUN_UNALLOCATED:
	case QCOW2_RUN_UNFILLED:
		backing = qcow2_backing(q);
		if (backing)
			return read_child(backing, off, dst, skip, len);
		__attribute__((fallthrough));
	case QCOW2_RUN_ZERO:
	case QCOW2_RUN_ZERO_ALLOC:
		iov_fill(dst, skip, 0, len);
		return 0;
	case QCOW2_RUN_COMPRESSED:
		return read_compressed(q, run->host, off, dst, skip, len);
	case QCOW2_RUN_INVALID:
		return -EIO;
	case QCOW2_RUN_NORMAL:
		break;
	}
	if (q->encrypted)
		return read_encrypted(q, run->host, off, dst, skip, len);
	return read_child(qcow2_data_file(q), run->host, dst, skip, len);
}

int
qcow2_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct qcow2 *q = n->state;
	size_t done = 0;

	/* Not even what is not encrypted is shown without the key. */
	if (q->encrypted && !q->decryptor)
		return -EACCES;
	while (done < dst->len) {
		struct qcow2_run run;
		unsigned epoch = 0;
		bool hosted;
		int r = qcow2_map_lock(q, off + done, dst->len - done, &run);

		if (r < 0)
			return r;
		hosted = run.kind == QCOW2_RUN_NORMAL || run.kind == QCOW2_RUN_COMPRESSED;
		if (hosted)
			epoch = qcow2_epoch_enter(q);
		qcow2_unlock(q);
		r = qcow2_data_read(q, &run, off + done, dst, done, run.len);
		if (hosted)
			qcow2_epoch_leave(q, epoch);
		if (r < 0)
			return r;
		done += run.len;
	}
	return 0;
}

int
qcow2_status(struct node *n, uint64_t off, uint64_t len, bool want_zero, struct extent *ret)
{
	struct qcow2 *q = n->state;
	struct qcow2_run run;
	int r = qcow2_map_lock(q, off, len, &run);

	(void)want_zero;
	if (r < 0)
		return r;
	qcow2_unlock(q);
	*ret = (struct extent){ .len = run.len };
	switch (run.kind) {
	case QCOW2_RUN_UNALLOCATED:
	case QCOW2_RUN_UNFILLED:
		return 0;
	case QCOW2_RUN_ZERO:
	case QCOW2_RUN_ZERO_ALLOC:
		ret->flags = EXTENT_ALLOCATED | EXTENT_ZERO;
		break;
	case QCOW2_RUN_COMPRESSED:
		ret->flags = EXTENT_ALLOCATED | EXTENT_DATA | EXTENT_COMPRESSED;
		break;
	case QCOW2_RUN_NORMAL:
		ret->flags = EXTENT_ALLOCATED | EXTENT_DATA;
		break;
	case QCOW2_RUN_INVALID:
		return -EIO;
	}
	if (!q->encrypted &&
	    (run.kind == QCOW2_RUN_NORMAL || run.kind == QCOW2_RUN_ZERO_ALLOC)) {
		ret->flags |= EXTENT_MAPPED;
		ret->host = run.host;
		ret->file = qcow2_data_file(q);
	}
	return 0;
}
