/* SPDX-License-Identifier: Apache-2.0 */
/* block/io_int.h - what the files of the request path share. */
#ifndef BLOCK_IO_INT_H
#define BLOCK_IO_INT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/ranges.h"

enum { IO_BOUNCE_MAX = 1 << 20 };	/* bytes of a request that is copied at a time */

/* May a driver see this request as it is?  Bounds aside. */
static inline bool
io_is_plain(const struct node *n, uint64_t off, const struct iov *v)
{
	return is_aligned(off | v->len, n->limits.align) &&
	       v->len <= n->limits.max_transfer &&
	       (n->limits.mem_align <= 1 || iov_is_aligned(v, n->limits.mem_align));
}

/* No request ends behind it: what any alignment leaves of the largest signed offset. */
#define IO_OFFSET_MAX (((uint64_t)INT64_MAX >> 30) << 30)

/* Bytes that are copied at a time: whole blocks of n, and one block at least. */
static inline uint64_t
io_bounce_max(const struct node *n)
{
	return min_u64(max_u64(IO_BOUNCE_MAX, n->limits.align), n->limits.max_transfer);
}

static inline uint64_t
io_node_size(const struct node *n)
{
	return atomic_load_explicit(&n->size, memory_order_acquire);
}

/* There is something to flush. */
static inline void
io_mark_dirty(struct node *n)
{
	if (!atomic_load(&n->dirty))
		atomic_store(&n->dirty, true);
}

/* For whatever changed n's content, or tried to: after it is done, before its caller
 * learns of it. */
static inline void
io_mark_changed(struct node *n, uint64_t off, uint64_t len)
{
	io_mark_dirty(n);
	if (__builtin_expect(atomic_load(&n->bitmaps.recording) != 0, 0))
		dirty_mark(n, off, len);
}

/* A write below bounds, claims and zero detection: split and padded. */
int io_write_pieces(struct node *n, uint64_t off, const struct iov *src, unsigned flags);

/* Is [off, off + len) one that n can be written at?  0 or -errno. */
int io_check_write(const struct node *n, uint64_t off, uint64_t len);
/* The flags that n's driver takes itself, and what is left to do after it. */
unsigned io_driver_flags(const struct node *n, unsigned flags);
int io_write_done(struct node *n, uint64_t off, uint64_t len, unsigned flags, int result);

/* A write's claim on all blocks that it touches; off and len in bounds.  Returns
 * false, and needs no release, where no two requests of n ever collide. */
bool io_claim_write(struct node *n, struct claim *c, uint64_t off, uint64_t len,
		    unsigned flags);

/* A view of len zero bytes, aligned to any mem_align up to a page. */
enum { IO_ZEROES_MAX = 1 << 20 };
struct io_zeroes {
	struct iov iov;
	struct iovec vec[IO_ZEROES_MAX >> 16];
};
void io_zeroes_view(struct io_zeroes *z, uint64_t len);

#endif
