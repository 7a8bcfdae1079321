/* SPDX-License-Identifier: Apache-2.0 */
/* The driver compress: a filter that lets all that is written be compressed by the
 * format below it.
 *
 * Formats compress whole clusters only, so that is this node's block size: the
 * request path makes whole clusters of smaller writes, by what was there before.
 * Whether a cluster that holds something can be written anew is up to the format;
 * qcow2 says EIO. */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "block/io.h"
#include "block/node.h"
#include "schema/types.h"

static int
cluster_of(struct node *n, uint32_t *ret, struct error **errp)
{
	struct ImageInfo *info = calloc(1, sizeof(*info));
	int r;

	if (!info)
		return error_set(errp, "Cannot allocate memory");
	r = n->driver->info ? n->driver->info(n, info, errp) : 0;
	if (!r && info->has_cluster_size)
		*ret = (uint32_t)info->cluster_size;
	ImageInfo_free(info);
	return r;
}

static int
compress_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsGenericFormat *o = &n->options->u.compress;
	struct node *child;

	if (opener_child(op, n, o->file, "file", ROLE_FILTERED | ROLE_PRIMARY, &n->file,
			 errp) < 0)
		return -1;
	child = n->file->child;
	if (!(child->driver->caps & DRIVER_COMPRESSED))
		return error_set(errp, "Compression is not supported for underlying format: %s",
				 node_driver_name(child));
	if (cluster_of(child, &n->limits.align, errp) < 0)
		return -1;
	atomic_store(&n->size, node_size(child));
	return 0;
}

static int
compress_read(struct node *n, uint64_t off, const struct iov *dst)
{
	return node_read(n->file->child, off, dst);
}

static int
compress_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct node *child = n->file->child;
	uint64_t size = node_size(child);
	struct iov_part part;
	int err;

	flags |= IO_COMPRESSED;
	if (range_within(off, src->len, size))
		return node_write(child, off, src, flags);
	/* The last cluster may go beyond the end, by what we made it up with. */
	if (off >= size)
		return -EIO;
	err = iov_part(&part, src, 0, size - off);
	if (!err)
		err = node_write(child, off, &part.iov, flags);
	iov_part_done(&part);
	return err;
}

static int
compress_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return node_zero(n->file->child, off, len, flags);
}

static int
compress_discard(struct node *n, uint64_t off, uint64_t len)
{
	return node_discard(n->file->child, off, len);
}

static int
compress_info(struct node *n, struct ImageInfo *info, struct error **errp)
{
	(void)errp;
	info->has_cluster_size = true;
	info->cluster_size = n->limits.align;
	info->has_dirty_flag = true;
	return 0;
}

const struct driver driver_compress = {
	.name = "compress",
	.caps = DRIVER_FILTER | DRIVER_FUA | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST,
	.open = compress_open,
	.read = compress_read,
	.write = compress_write,
	.zero = compress_zero,
	.discard = compress_discard,
	.info = compress_info,
};
