/* SPDX-License-Identifier: Apache-2.0 */
/* What a range is: of one layer, and through the backing chain. */
#include <errno.h>

#include "block/io.h"
#include "block/io_int.h"
#include "block/node.h"

/* A driver that does not say: a filter shows its child, storage is all data. */
static int
default_status(struct node *n, uint64_t off, uint64_t len, struct extent *x)
{
	struct node *child = node_filtered(n);

	x->len = len;
	x->host = off;
	if (child) {
		x->flags = EXTENT_RECURSE | EXTENT_MAPPED;
		x->file = child;
	} else {
		x->flags = EXTENT_DATA | EXTENT_ALLOCATED;
		x->file = NULL;
		if (node_is_protocol(n)) {
			x->flags |= EXTENT_MAPPED;
			x->file = n;
		}
	}
	return 0;
}

/* n is transparent at x (a filter, or raw): the child's answer is n's. */
static int
status_of_child(struct extent *x, bool want_zero)
{
	struct extent below;
	int err = node_status(x->file, x->host, x->len, want_zero, &below);

	if (err)
		return err;
	*x = below;
	return 0;
}

/* Data for n, but perhaps a hole of the file below, which reads as zeroes. */
static int
zero_in_child(struct extent *x)
{
	struct extent below;
	int err;

	if (x->host >= io_node_size(x->file))
		return 0;
	err = node_status(x->file, x->host, x->len, true, &below);
	if (err)
		return 0;	/* then it is just data */
	x->len = min_u64(x->len, below.len);
	x->flags |= below.flags & EXTENT_ZERO;
	return 0;
}

static int
layer_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
	     struct extent *x)
{
	int err;

	*x = (struct extent){ .len = len };
	err = n->driver->status ? n->driver->status(n, off, len, want_zero, x)
				: default_status(n, off, len, x);
	if (err)
		return err;
	if (x->flags & EXTENT_RECURSE) {
		x->flags &= ~(unsigned)EXTENT_RECURSE;
		if (!(x->flags & EXTENT_DATA))
			return status_of_child(x, want_zero);
		if (want_zero && x->flags & EXTENT_MAPPED &&
			 !(x->flags & EXTENT_ZERO))
			err = zero_in_child(x);
	}
	if (x->flags & (EXTENT_DATA | EXTENT_ZERO))
		x->flags |= EXTENT_ALLOCATED;
	return err;
}

/* What no layer allocates reads as zeroes where there is no deeper layer. */
static void
fall_through(struct node *n, uint64_t off, struct extent *x)
{
	struct node *under = node_backing(n);
	uint64_t size;

	if (x->flags & EXTENT_ALLOCATED || node_is_filter(n))
		return;
	if (!under) {
		x->flags |= EXTENT_ZERO;
		return;
	}
	size = io_node_size(under);
	if (off >= size)
		x->flags |= EXTENT_ZERO;
	else
		x->len = min_u64(x->len, size - off);
}

int
node_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
	    struct extent *ret_extent)
{
	uint64_t size = io_node_size(n);
	struct extent x;
	int err;

	if (off >= size || !len) {
		*ret_extent = (struct extent){ .flags = EXTENT_EOF };
		return 0;
	}
	len = min_u64(len, size - off);
	err = layer_status(n, off, len, want_zero, &x);
	if (err)
		return err;
	x.len = min_u64(x.len, len);
	fall_through(n, off, &x);
	x.flags &= ~(unsigned)EXTENT_EOF;
	if (off + x.len == size)
		x.flags |= EXTENT_EOF;
	*ret_extent = x;
	return 0;
}

int
node_status_above(struct node *n, struct node *base, uint64_t off, uint64_t len,
		  bool want_zero, struct extent *ret_extent)
{
	uint64_t size = io_node_size(n);
	struct extent x = { .flags = EXTENT_EOF };
	int err = 0;

	if (off >= size || !len) {
		*ret_extent = x;
		return 0;
	}
	x.len = min_u64(len, size - off);
	for (struct node *p = n; p && p != base; p = node_below(p)) {
		uint64_t want = x.len;

		/* A filter's answer would be that of all layers below it. */
		if (node_is_filter(p) && node_below(p))
			continue;
		err = node_status(p, off, want, want_zero, &x);
		if (err)
			return err;
		if (!x.len)	/* a short layer: what it lacks is zeroes of its own */
			x = (struct extent){ .len = want,
					     .flags = EXTENT_ZERO | EXTENT_ALLOCATED };
		if (x.flags & EXTENT_ALLOCATED)
			break;
	}
	x.flags &= ~(unsigned)EXTENT_EOF;
	if (off + x.len == size)
		x.flags |= EXTENT_EOF;
	*ret_extent = x;
	return 0;
}
