/* SPDX-License-Identifier: Apache-2.0 */
/* Zeroing and discarding: the part that the driver can do at its granularity,
 * and data for the rest. */
#include <errno.h>

#include "block/io_int.h"

enum { ZERO_PIECE = 1 << 16 };

static _Alignas(4096) const uint8_t zero_piece[ZERO_PIECE];

void
io_zeroes_view(struct io_zeroes *z, uint64_t len)
{
	z->iov = (struct iov){ .vec = z->vec, .count = 0, .len = len };
	while (len) {
		uint64_t piece = min_u64(len, ZERO_PIECE);

		z->vec[z->iov.count++] = (struct iovec){ (void *)zero_piece, piece };
		len -= piece;
	}
}

static int
write_zero_data(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct io_zeroes z;
	int err = 0;

	flags &= ~(unsigned)(IO_MAY_UNMAP | IO_FAST);
	while (len && !err) {
		uint64_t piece = min_u64(len, IO_ZEROES_MAX);

		io_zeroes_view(&z, piece);
		err = io_write_pieces(n, off, &z.iov, flags);
		off += piece;
		len -= piece;
	}
	return err;
}

/* A range that the driver's granularity divides. */
static int
zero_by_driver(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	unsigned pass = flags;
	int err = 0;

	if (!(n->driver->caps & DRIVER_ZERO_UNMAP))
		pass &= ~(unsigned)IO_MAY_UNMAP;
	if (!(n->driver->caps & DRIVER_ZERO_FAST))
		pass &= ~(unsigned)IO_FAST;
	while (len && !err) {
		uint64_t piece = min_u64(len, n->limits.max_zero);

		err = n->driver->zero(n, off, piece, pass);
		if (err == -EOPNOTSUPP && !(flags & IO_FAST))
			return write_zero_data(n, off, len, flags);
		off += piece;
		len -= piece;
	}
	return err;
}

static int
zero_part(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	if (n->driver->zero && is_aligned(off | len, n->limits.align))
		return zero_by_driver(n, off, len, flags);
	return flags & IO_FAST ? -EOPNOTSUPP : write_zero_data(n, off, len, flags);
}

/* What the driver's granularity divides, and what lies before and behind that: a
 * driver may know that the rest of such a piece reads as zeroes anyway. */
static int
zero_pieces(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	uint64_t align = max_u64(n->limits.zero_align, n->limits.align);
	uint64_t end = off + len;
	uint64_t start = min_u64(round_up(off, align), end);
	uint64_t stop = max_u64(round_down(end, align), start);
	int err = 0;

	if (start > off)
		err = zero_part(n, off, start - off, flags);
	if (!err && stop > start)
		err = zero_part(n, start, stop - start, flags);
	if (!err && end > stop)
		err = zero_part(n, stop, end - stop, flags);
	return err;
}

int
node_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct claim claim;
	bool claimed;
	int err = io_check_write(n, off, len);

	if (err)
		return err;
	if (!len)
		return flags & IO_FUA ? node_flush(n) : 0;
	if (!n->discard_unmap)
		flags &= ~(unsigned)IO_MAY_UNMAP;
	claimed = io_claim_write(n, &claim, off, len, flags);
	err = zero_pieces(n, off, len, io_driver_flags(n, flags & ~(unsigned)IO_COMPRESSED));
	if (claimed)
		ranges_release(n->serial, &claim);
	return io_write_done(n, off, len, flags, err);
}

static int
discard_pieces(struct node *n, uint64_t off, uint64_t len)
{
	uint64_t align = max_u64(n->limits.discard_align, n->limits.align), end = off + len;
	uint64_t start = round_up(off, align), stop = round_down(end, align);

	/* What the node ends in is whole, even if the node is no multiple. */
	if (end == io_node_size(n))
		stop = round_down(end, n->limits.align);
	while (start < stop) {
		uint64_t piece = min_u64(stop - start, n->limits.max_discard);
		int err = n->driver->discard(n, start, piece);

		if (err)
			return err == -EOPNOTSUPP ? 0 : err;
		start += piece;
	}
	return 0;
}

int
node_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct claim claim;
	bool claimed;
	int err = n->read_only ? -EPERM : 0;

	if (err)
		return err;
	if (!range_within(off, len, io_node_size(n)))
		return -EIO;
	if (!len || !n->discard_unmap || !n->driver->discard)
		return 0;
	claimed = io_claim_write(n, &claim, off, len, 0);
	err = discard_pieces(n, off, len);
	if (claimed)
		ranges_release(n->serial, &claim);
	io_mark_changed(n, off, len);
	return err;
}
