/* SPDX-License-Identifier: Apache-2.0 */
/* A sink that is a node of the block layer: a file, a device, a qcow2 image. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/node.h"
#include "block/root.h"
#include "rescue/sink.h"

enum { WRITEBACK = 32 * 1024 * 1024 };

struct sink_node {
	struct sink sink;
	struct node *node;
	struct root *root;
	bool compress;
	int file;
	_Atomic uint64_t written, begun;	/* bytes; begun: writeback was asked for */
};

/* What the last close of a node could not store; loop 0. */
static int close_error;

static void
on_close_failed(const char *name, int err)
{
	(void)name;
	close_error = err;
}

static struct sink_node *
of(struct sink *s)
{
	return CONTAINER_OF(s, struct sink_node, sink);
}

static int
begin_work(void *arg)
{
	struct sink_node *s = arg;

	/* A hint.  What fails is told by the flush. */
	(void)sync_file_range(s->file, 0, 0, SYNC_FILE_RANGE_WRITE);
	return 0;
}

/* All is waited for in the end, so let the disk work meanwhile: left alone, the kernel
 * would begin when much more is dirty. */
static void
begin_writeback(struct sink_node *s, size_t len)
{
	uint64_t written = atomic_fetch_add(&s->written, len) + len;
	uint64_t begun = atomic_load(&s->begun);

	if (s->file >= 0 && written - begun >= WRITEBACK &&
	    atomic_compare_exchange_strong(&s->begun, &begun, written))
		work_run(begin_work, s);
}

/* Only the disk's own end may cut a compressed cluster; what was rounded up to it may
 * not. */
static bool
is_packed(const struct sink_node *s, uint64_t off, uint64_t len)
{
	return s->compress && (is_aligned(len, s->sink.grain) || off + len == node_size(s->node));
}

static int
node_sink_write(struct sink *s, uint64_t off, const struct iov *src)
{
	unsigned flags = is_packed(of(s), off, src->len) ? IO_COMPRESSED : 0;
	int r = io_write(of(s)->root, off, src, flags);

	if (r == 0)
		begin_writeback(of(s), src->len);
	return r;
}

static int
node_sink_zero(struct sink *s, uint64_t off, uint64_t len)
{
	return io_zero(of(s)->root, off, len, IO_MAY_UNMAP);
}

static int
node_sink_read(struct sink *s, uint64_t off, const struct iov *dst)
{
	return io_read(of(s)->root, off, dst);
}

static int
node_sink_status(struct sink *s, uint64_t off, uint64_t len, struct extent *ret)
{
	return node_status(of(s)->node, off, len, true, ret);
}

static int
node_sink_flush(struct sink *s)
{
	return io_flush(of(s)->root);
}

static int
node_sink_free(struct sink *s)
{
	close_error = 0;
	root_free(of(s)->root);
	node_unref(of(s)->node);
	free(of(s));
	return close_error;
}

static const struct sink_ops node_ops = {
	.write = node_sink_write,
	.zero = node_sink_zero,
	.read = node_sink_read,
	.status = node_sink_status,
	.flush = node_sink_flush,
	.free = node_sink_free,
};

int
sink_node_new(struct node *n, const struct sink_node_options *o, struct sink **ret,
	      struct error **errp)
{
	struct sink_node *s = calloc(1, sizeof(*s));
	perm_set perm = PERM_CONSISTENT_READ | (o->read_only ? 0 : PERM_WRITE);

	if (!s)
		return error_set(errp, "Cannot allocate memory");
	if (root_new(n, "root", perm, PERM_ALL, NULL, NULL, &s->root, errp) < 0) {
		free(s);
		return -1;
	}
	node_close_failed = on_close_failed;
	s->node = node_ref(n);
	s->compress = o->compress;
	s->file = o->file;
	s->sink = (struct sink){ .ops = &node_ops, .grain = o->grain };
	*ret = &s->sink;
	return 0;
}

int
sink_free(struct sink *s)
{
	return s ? s->ops->free(s) : 0;
}
