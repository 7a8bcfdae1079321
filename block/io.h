/* SPDX-License-Identifier: Apache-2.0 */
/* block/io.h - the request path: every byte an export or a job moves.
 *
 * io_* enter through a root: they wait while the graph changes, check bounds
 * against the node's size, split at the driver's limits, order overlapping
 * requests where alignment demands it, and emulate what a driver leaves out.
 * node_* are the same below the entrance, for drivers that use their children:
 * they may write beyond the end of a child that can grow, and a read beyond the
 * end gives zeroes.
 *
 * Units      offsets and lengths are bytes; they need no alignment.
 * Context    coroutine, on any loop; every call may yield.
 * Ownership  roots, nodes and buffers are borrowed until the call returns.
 * Errors     0 or a negative errno, as the driver gave it; nothing is logged.
 *            -EIO: out of bounds.  -ESHUTDOWN: the root is closing, nothing
 *            was done.  -EPERM: a write on a read-only node.  -ENOMEDIUM never.
 */
#ifndef BLOCK_IO_H
#define BLOCK_IO_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct iov;	/* base/iov.h */
struct node;
struct root;

enum io_flag {
	IO_FUA		   = 1 << 0,	/* success means the data is on stable storage */
	IO_MAY_UNMAP	   = 1 << 1,	/* io_zero: freeing the space is welcome */
	IO_FAST		   = 1 << 2,	/* io_zero: -EOPNOTSUPP rather than write data */
	IO_COMPRESSED	   = 1 << 3,	/* io_write: whole clusters, written compressed */
	IO_SERIALISING	   = 1 << 4,	/* wait for, and hold off, every overlapping request */
	IO_WRITE_UNCHANGED = 1 << 5,	/* the visible content stays as it is */
};

/* What a range of a node is (qemu, include/block/block-common.h, BDRV_BLOCK_*). */
enum extent_flag {
	EXTENT_DATA	  = 1 << 0,	/* reads come from this node's own storage */
	EXTENT_ZERO	  = 1 << 1,	/* reads as zeroes */
	EXTENT_ALLOCATED  = 1 << 2,	/* decided by this layer, not by its backing */
	EXTENT_MAPPED	  = 1 << 3,	/* host and file below are valid */
	EXTENT_COMPRESSED = 1 << 4,
	EXTENT_EOF	  = 1 << 5,	/* reaches the end of the node */
	EXTENT_RECURSE	  = 1 << 6,	/* driver to io.c: ask the child at host for the rest */
};

struct extent {
	uint64_t len;		/* bytes from the offset asked for, never 0 within the node */
	unsigned flags;		/* enum extent_flag */
	uint64_t host;		/* offset in file, with EXTENT_MAPPED */
	struct node *file;	/* borrowed, with EXTENT_MAPPED */
};

/* ---- through a root ---- */

/* Fill dst from off onwards.  On failure the content of dst is unspecified,
 * but all of it is initialized: stale memory never leaves the process. */
int io_read(struct root *r, uint64_t off, const struct iov *dst);
int io_write(struct root *r, uint64_t off, const struct iov *src, unsigned flags);
int io_zero(struct root *r, uint64_t off, uint64_t len, unsigned flags);
/* A hint: 0 also where the driver cannot or the operator does not let it. */
int io_discard(struct root *r, uint64_t off, uint64_t len);
/* Make every write that returned before this call began survive power loss.
 * A failure is final: later calls fail alike until the node is reopened. */
int io_flush(struct root *r);
/* The extent at off, as the guest sees it, looking through the backing chain;
 * at most len bytes long.  want_zero false: EXTENT_ZERO may be left out where
 * it would be expensive to find. */
int io_status(struct root *r, uint64_t off, uint64_t len, bool want_zero,
	      struct extent *ret_extent);
uint64_t io_size(const struct root *r);

/* ---- below the entrance, for drivers and for jobs on nodes they hold ---- */

int node_read(struct node *n, uint64_t off, const struct iov *dst);
int node_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags);
int node_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int node_discard(struct node *n, uint64_t off, uint64_t len);
int node_flush(struct node *n);
/* This layer only: EXTENT_ALLOCATED absent means that the backing decides. */
int node_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		struct extent *ret_extent);
/* As node_status, through the chain down to, not including, base (NULL: to its end). */
int node_status_above(struct node *n, struct node *base, uint64_t off, uint64_t len,
		      bool want_zero, struct extent *ret_extent);

enum prealloc { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };

/* Change the node's size; new space reads as zeroes.  exact false: the file may
 * end up larger (a device).  -1 with *errp on failure (and the size unchanged). */
int node_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
		  struct error **errp);

/* From now on requests of n claim their ranges, so that IO_SERIALISING ones are
 * ordered against all others.  Loop 0; stops the roots above for a moment. */
int node_track(struct node *n, struct error **errp);

/* Helpers for plain memory: one piece. */
int node_pread(struct node *n, uint64_t off, void *buf, uint64_t len);
int node_pwrite(struct node *n, uint64_t off, const void *buf, uint64_t len);

#endif
