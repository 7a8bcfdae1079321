/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <libnbd.h>
#include <stdlib.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/nbd/nbd.h"

/* The link of this loop, or the one that there is. */
static struct nbd_link *
pick(struct nbd_client *c)
{
	unsigned i = loop_index(loop_self());

	if (c->n_links == 1 || atomic_load_explicit(&c->single, memory_order_relaxed))
		return &c->links[0];
	return &c->links[i % c->n_links];
}

static int
run(struct nbd_client *c, struct nbd_client_command *k)
{
	list_init(&k->in_link);
	k->waiter = co_self();
	nbd_link_post(pick(c), k);
	while (!atomic_load(&k->done))
		co_park();
	return k->result;
}

static int
run_simple(struct nbd_client *c, enum nbd_client_op op, uint64_t off, uint64_t len, uint32_t flags)
{
	struct nbd_client_command k = { .op = op, .off = off, .len = len, .flags = flags };

	return run(c, &k);
}

/* libnbd takes one piece of memory; what is scattered goes through a copy. */
static int
run_data(struct nbd_client *c, struct nbd_client_command *k, const struct iov *v)
{
	CLEANUP(cleanup_free) void *copy = NULL;
	int r;

	k->len = v->len;
	k->buf = v->vec[0].iov_base;
	if (v->vec[0].iov_len < v->len) {
		k->buf = copy = malloc(v->len);
		if (!copy)
			return -ENOMEM;
		if (k->op == NBD_CLIENT_WRITE)
			iov_read(v, 0, copy, v->len);
	}
	r = run(c, k);
	if (!r && copy && k->op == NBD_CLIENT_READ)
		iov_write(v, 0, copy, v->len);
	return r;
}

int
nbd_client_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct nbd_client_command k = { .op = NBD_CLIENT_READ, .off = off };

	return run_data(n->state, &k, dst);
}

/* What the server cannot do in the same command, by one behind. */
static int
flush_behind(struct nbd_client *c, unsigned flags, int r)
{
	if (r < 0 || !(flags & IO_FUA) || c->export.fua || !c->export.flush)
		return r;
	return run_simple(c, NBD_CLIENT_FLUSH, 0, 0, 0);
}

static uint32_t
fua_flag(const struct nbd_client *c, unsigned flags)
{
	return flags & IO_FUA && c->export.fua ? LIBNBD_CMD_FLAG_FUA : 0;
}

int
nbd_client_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct nbd_client *c = n->state;
	struct nbd_client_command k = {
		.op = NBD_CLIENT_WRITE, .off = off, .flags = fua_flag(c, flags),
	};

	return flush_behind(c, flags, run_data(c, &k, src));
}

int
nbd_client_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct nbd_client *c = n->state;
	uint32_t f = fua_flag(c, flags);

	if (!c->export.zero || (flags & IO_FAST && !c->export.fast_zero))
		return -EOPNOTSUPP;
	if (!(flags & IO_MAY_UNMAP))
		f |= LIBNBD_CMD_FLAG_NO_HOLE;
	if (flags & IO_FAST)
		f |= LIBNBD_CMD_FLAG_FAST_ZERO;
	return flush_behind(c, flags, run_simple(c, NBD_CLIENT_ZERO, off, len, f));
}

int
nbd_client_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct nbd_client *c = n->state;

	return c->export.trim ? run_simple(c, NBD_CLIENT_TRIM, off, len, 0) : 0;
}

/* A server that does not offer flushes has nothing that could be lost. */
int
nbd_client_flush(struct node *n)
{
	struct nbd_client *c = n->state;

	return c->export.flush ? run_simple(c, NBD_CLIENT_FLUSH, 0, 0, 0) : 0;
}

/* NBD_STATE_HOLE and _ZERO, whatever context they came in: with x-dirty-bitmap
 * what is dirty shows as a hole, as in QEMU. */
static unsigned
extent_flags(uint32_t state)
{
	return (state & LIBNBD_STATE_HOLE ? 0u : EXTENT_DATA) |
	       (state & LIBNBD_STATE_ZERO ? EXTENT_ZERO : 0u);
}

/* An extent that does not end with a block, against the protocol, counts as far as its
 * whole blocks; less than one is data, whatever it is said to be. */
static void
set_extent(const struct nbd_client_command *k, uint32_t align, struct extent *x)
{
	/* A server may tell of more than it was asked about. */
	uint64_t len = round_down(min_u64(k->extent_len, k->len), align);

	if (len)
		x->flags = EXTENT_ALLOCATED | EXTENT_MAPPED | extent_flags(k->extent_flags);
	else
		len = align;
	x->len = min_u64(x->len, k->off + len - x->host);
}

/* Asked in whole blocks, which the node's size is made of. */
int
nbd_client_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		  struct extent *ret_extent)
{
	struct nbd_client *c = n->state;
	uint32_t align = n->limits.align;
	struct nbd_client_command k = {
		.op = NBD_CLIENT_STATUS, .off = round_down(off, align),
		.flags = LIBNBD_CMD_FLAG_REQ_ONE,
	};
	int r;

	(void)want_zero;
	*ret_extent = (struct extent){
		.len = len, .host = off, .file = n,
		.flags = EXTENT_ALLOCATED | EXTENT_MAPPED | EXTENT_DATA,
	};
	if (!c->export.status)
		return 0;
	k.len = min_u64(round_up(off + len, align) - k.off, round_down(UINT32_MAX, align));
	r = run(c, &k);
	if (!r && !k.extent_len)
		r = -EIO;
	if (!r)
		set_extent(&k, align, ret_extent);
	return r;
}
