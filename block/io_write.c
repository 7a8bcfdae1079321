/* SPDX-License-Identifier: Apache-2.0 */
/* Writing: bounds, claims, padding to the driver's blocks by read-modify-write,
 * splitting, zero detection, FUA. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "block/change.h"
#include "block/io_int.h"

int
io_check_write(const struct node *n, uint64_t off, uint64_t len)
{
	if (n->read_only)
		return -EPERM;
	if (len > INT64_MAX || off > INT64_MAX - len)
		return -EFBIG;
	if (off + len > io_node_size(n) && !(n->driver->caps & DRIVER_GROWS))
		return -EIO;
	return 0;
}

bool
io_claim_write(struct node *n, struct claim *c, uint64_t off, uint64_t len,
	       unsigned flags)
{
	uint64_t align = n->limits.align;
	uint64_t start = round_down(off, align), stop = round_up(off + len, align);

	if (!n->serial)
		return false;
	ranges_claim(n->serial, c, start, stop - start,
		     (flags & IO_SERIALISING) || !is_aligned(off | len, align));
	return true;
}

unsigned
io_driver_flags(const struct node *n, unsigned flags)
{
	flags &= IO_FUA | IO_MAY_UNMAP | IO_FAST | IO_COMPRESSED | IO_WRITE_UNCHANGED;
	if (!(n->driver->caps & DRIVER_FUA) || n->no_flush)
		flags &= ~(unsigned)IO_FUA;
	return flags;
}

void
node_grew(struct node *n, uint64_t end)
{
	uint64_t size = atomic_load(&n->size);

	while (size < end && !atomic_compare_exchange_weak(&n->size, &size, end))
		;
}

/* Does a FUA write to n end in a sync of a cached file?  The kernel reports a page
 * that it lost once for each descriptor, to whatever syncs next; the page may be
 * another write's, and an fsync behind that one would succeed. */
static bool
writes_through(const struct node *n, unsigned flags)
{
	return flags & IO_FUA && n->driver->caps & DRIVER_FUA &&
	       node_is_protocol(n) && !n->direct && !n->no_flush;
}

int
io_write_done(struct node *n, uint64_t off, uint64_t len, unsigned flags, int result)
{
	if (!result && off + len > io_node_size(n))
		node_grew(n, off + len);
	io_mark_changed(n, off, len);
	if (result == -EIO && writes_through(n, flags))
		atomic_store(&n->flush_error, result);
	if (result)
		return result;
	if ((flags & IO_FUA) && !(n->driver->caps & DRIVER_FUA))
		return node_flush(n);
	return 0;
}

/* ---- padding ---- */

/* Fill one block of buf, which starts at node offset start, with what is there. */
static int
read_block(struct node *n, uint64_t start, uint8_t *buf, uint64_t block)
{
	struct iov v = IOV_BUF(buf + (block - start), n->limits.align);

	if (block >= io_node_size(n)) {
		memset(buf + (block - start), 0, n->limits.align);
		return 0;
	}
	return n->driver->read(n, block, &v);
}

/* Write some blocks from src's pos on by way of a buffer of our own, keeping
 * what the first and the last one hold outside of src. */
static int
write_bounced(struct node *n, uint64_t off, const struct iov *src, size_t pos,
	      unsigned flags, size_t *ret_len)
{
	uint64_t align = n->limits.align, from = off + pos;
	uint64_t start = round_down(from, align);
	uint64_t most = io_bounce_max(n);
	uint64_t stop = min_u64(round_up(off + src->len, align), start + most);
	size_t len = min_u64(stop - from, src->len - pos);
	CLEANUP(cleanup_free) uint8_t *buf = iov_alloc(n->limits.mem_align, stop - start);
	struct iov view = IOV_BUF(buf, stop - start);
	uint64_t last = stop - align;
	int err = 0;

	if (!buf)
		return -ENOMEM;
	if (from > start)
		err = read_block(n, start, buf, start);
	if (!err && from + len < stop && (last > start || from == start))
		err = read_block(n, start, buf, last);
	if (err)
		return err;
	iov_read(src, pos, buf + (from - start), len);
	err = n->driver->write(n, start, &view, flags);
	if (!err)
		*ret_len = len;
	return err;
}

static int
write_direct(struct node *n, uint64_t off, const struct iov *src, size_t pos, size_t len,
	     unsigned flags)
{
	struct iov_part part;
	int err = iov_part(&part, src, pos, len);

	if (!err)
		err = n->driver->write(n, off + pos, &part.iov, flags);
	iov_part_done(&part);
	return err;
}

int
io_write_pieces(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	bool mem_ok = n->limits.mem_align <= 1 || iov_is_aligned(src, n->limits.mem_align);
	uint64_t align = n->limits.align;
	size_t pos = 0, len;
	int err = 0;

	for (; pos < src->len && !err; pos += len) {
		len = min_u64(round_down(src->len - pos, align), n->limits.max_transfer);
		if (mem_ok && len && is_aligned(off + pos, align))
			err = write_direct(n, off, src, pos, len, flags);
		else
			err = write_bounced(n, off, src, pos, flags, &len);
	}
	return err;
}

/* ---- the request ---- */

static __attribute__((noinline)) int
write_claimed(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct claim claim;
	bool claimed = io_claim_write(n, &claim, off, src->len, flags);
	int err = io_write_pieces(n, off, src, io_driver_flags(n, flags));

	/* Before the release: who waits for us may count on the new size. */
	if (!err && off + src->len > io_node_size(n))
		node_grew(n, off + src->len);
	if (claimed)
		ranges_release(n->serial, &claim);
	return err;
}

int
node_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	int err = io_check_write(n, off, src->len);

	if (err)
		return err;
	if (!src->len)
		return flags & IO_FUA ? node_flush(n) : 0;
	if ((flags & IO_COMPRESSED) && !(n->driver->caps & DRIVER_COMPRESSED))
		return -EOPNOTSUPP;
	if (n->detect_zeroes && n->driver->zero && !(flags & IO_COMPRESSED) &&
	    iov_is_zero(src))
		return node_zero(n, off, src->len,
				 flags | (n->detect_zeroes_unmap ? IO_MAY_UNMAP : 0));
	if (__builtin_expect(!n->serial && io_is_plain(n, off, src), 1))
		err = n->driver->write(n, off, src, io_driver_flags(n, flags));
	else
		err = write_claimed(n, off, src, flags);
	return io_write_done(n, off, src->len, flags, err);
}

/* ---- tracking ---- */

int
node_track(struct node *n, struct error **errp)
{
	struct change c;
	int r;

	if (n->tracked)
		return 0;
	r = change_begin(&c, &n, 1, errp);
	if (!r && !n->serial) {
		n->serial = malloc(sizeof(*n->serial));
		if (n->serial)
			ranges_init(n->serial);
		else
			r = error_set(errp, "Cannot allocate memory");
	}
	if (!r)
		n->tracked = true;
	return change_end(&c, r);
}
