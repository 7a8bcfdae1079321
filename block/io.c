/* SPDX-License-Identifier: Apache-2.0 */
/* The entrance of requests, and reading.  Writing is in io_write.c, zeroes and
 * discards in io_zero.c, flushing in io_flush.c, status in status.c. */
#include "block/io.h"

#include <errno.h>
#include <stdlib.h>

#include "block/io_int.h"
#include "block/node.h"
#include "block/root.h"

/* ---- through a root ---- */

/* Enter, and check that the range lies within the node. */
static int
enter(struct root *r, uint64_t off, uint64_t len, struct node **ret_node)
{
	int err = root_enter(r);

	if (err)
		return err;
	*ret_node = root_node(r);
	if (__builtin_expect(range_within(off, len, io_node_size(*ret_node)), 1))
		return 0;
	root_leave(r);
	return -EIO;
}

int
io_read(struct root *r, uint64_t off, const struct iov *dst)
{
	struct node *n;
	int err = enter(r, off, dst->len, &n);

	if (!err) {
		err = node_read(n, off, dst);
		root_leave(r);
	}
	if (err)
		iov_fill(dst, 0, 0, dst->len);
	return err;
}

int
io_write(struct root *r, uint64_t off, const struct iov *src, unsigned flags)
{
	struct node *n;
	int err = enter(r, off, src->len, &n);

	if (err)
		return err;
	err = node_write(n, off, src, flags);
	root_leave(r);
	return err;
}

int
io_zero(struct root *r, uint64_t off, uint64_t len, unsigned flags)
{
	struct node *n;
	int err = enter(r, off, len, &n);

	if (err)
		return err;
	err = node_zero(n, off, len, flags);
	root_leave(r);
	return err;
}

int
io_discard(struct root *r, uint64_t off, uint64_t len)
{
	struct node *n;
	int err = enter(r, off, len, &n);

	if (err)
		return err;
	err = node_discard(n, off, len);
	root_leave(r);
	return err;
}

int
io_flush(struct root *r)
{
	struct node *n;
	int err = enter(r, 0, 0, &n);

	if (err)
		return err;
	err = node_flush(n);
	root_leave(r);
	return err;
}

int
io_status(struct root *r, uint64_t off, uint64_t len, bool want_zero,
	  struct extent *ret_extent)
{
	struct node *n;
	int err = enter(r, off, len, &n);

	if (err)
		return err;
	err = node_status_above(n, NULL, off, len, want_zero, ret_extent);
	root_leave(r);
	return err;
}

uint64_t
io_size(const struct root *r)
{
	return node_size(root_node(r));
}

/* ---- reading ---- */

/* Read what the driver's limits do not let pass: some blocks by way of a buffer
 * of our own.  *ret_len says how much of dst from pos on was filled. */
static int
read_bounced(struct node *n, uint64_t off, const struct iov *dst, size_t pos,
	     size_t *ret_len)
{
	uint64_t start = round_down(off + pos, n->limits.align);
	uint64_t most = io_bounce_max(n);
	uint64_t stop = min_u64(round_up(off + dst->len, n->limits.align), start + most);
	uint64_t skip = off + pos - start;
	size_t len = min_u64(stop - start - skip, dst->len - pos);
	CLEANUP(cleanup_free) uint8_t *buf = iov_alloc(n->limits.mem_align, stop - start);
	struct iov view = IOV_BUF(buf, stop - start);
	int err;

	if (!buf)
		return -ENOMEM;
	err = n->driver->read(n, start, &view);
	if (err)
		return err;
	iov_write(dst, pos, buf + skip, len);
	*ret_len = len;
	return 0;
}

static int
read_direct(struct node *n, uint64_t off, const struct iov *dst, size_t pos, size_t len)
{
	struct iov_part part;
	int err = iov_part(&part, dst, pos, len);

	if (!err)
		err = n->driver->read(n, off + pos, &part.iov);
	iov_part_done(&part);
	return err;
}

static int
read_pieces(struct node *n, uint64_t off, const struct iov *dst)
{
	bool mem_ok = n->limits.mem_align <= 1 || iov_is_aligned(dst, n->limits.mem_align);
	uint64_t align = n->limits.align;
	size_t pos = 0, len;
	int err = 0;

	for (; pos < dst->len && !err; pos += len) {
		len = min_u64(round_down(dst->len - pos, align), n->limits.max_transfer);
		if (mem_ok && len && is_aligned(off + pos, align))
			err = read_direct(n, off, dst, pos, len);
		else
			err = read_bounced(n, off, dst, pos, &len);
	}
	return err;
}

/* As node_read(), for a range that may end beyond the end, or needs a claim.  Kept
 * out of line: a read passes through as many node_read()s as a chain has layers,
 * all on one stack. */
static __attribute__((noinline)) int
read_slow(struct node *n, uint64_t off, const struct iov *dst)
{
	uint64_t size = io_node_size(n);
	uint64_t within = off < size ? min_u64(dst->len, size - off) : 0;
	struct iov_part part;
	struct claim claim;
	bool claimed = n->serial && n->tracked;
	int err;

	if (dst->len > IO_OFFSET_MAX || off > IO_OFFSET_MAX - dst->len)
		return -EIO;
	if (within < dst->len)
		iov_fill(dst, within, 0, dst->len - within);
	if (!within)
		return 0;
	err = iov_part(&part, dst, 0, within);
	if (err)
		return err;
	if (claimed)
		ranges_claim(n->serial, &claim, off, within, false);
	err = read_pieces(n, off, &part.iov);
	if (claimed)
		ranges_release(n->serial, &claim);
	iov_part_done(&part);
	return err;
}

int
node_read(struct node *n, uint64_t off, const struct iov *dst)
{
	if (__builtin_expect(!n->tracked && io_is_plain(n, off, dst) &&
			     range_within(off, dst->len, io_node_size(n)), 1))
		return n->driver->read(n, off, dst);
	return read_slow(n, off, dst);
}

/* ---- plain memory ---- */

int
node_pread(struct node *n, uint64_t off, void *buf, uint64_t len)
{
	struct iov v = IOV_BUF(buf, len);

	return node_read(n, off, &v);
}

int
node_pwrite(struct node *n, uint64_t off, const void *buf, uint64_t len)
{
	struct iov v = IOV_BUF(buf, len);

	return node_write(n, off, &v, 0);
}
