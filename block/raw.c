/* SPDX-License-Identifier: Apache-2.0 */
/* The driver raw: the bytes of its file, or a part of them. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "block/node.h"
#include "schema/types.h"

struct raw {
	uint64_t offset;
	bool has_size;		/* shows a part: its size is fixed */
	bool is_part;
};

static int
check_sign(const char *name, bool has, int64_t value, struct error **errp)
{
	if (has && value < 0)
		return error_set(errp, "Value '%" PRId64 "' is out of range for parameter "
				 "'%s'", value, name);
	return 0;
}

static int
check_part(const struct raw *r, const struct BlockdevOptionsRaw *o, uint64_t real,
	   uint64_t *ret_size, struct error **errp)
{
	if (r->offset > real)
		return error_set(errp, "Offset (%" PRIu64 ") cannot be greater than size "
				 "of the containing file (%" PRId64 ")", r->offset,
				 (int64_t)real);
	if (o->has_size && (uint64_t)o->size > real - r->offset)
		return error_set(errp, "The sum of offset (%" PRIu64 ") and size (%" PRIu64
				 ") has to be smaller or equal to the  actual size of the "
				 "containing file (%" PRId64 ")", r->offset,
				 (uint64_t)o->size, (int64_t)real);
	if (o->has_size && !is_aligned((uint64_t)o->size, 512))
		return error_set(errp, "Specified size is not multiple of 512");
	*ret_size = o->has_size ? (uint64_t)o->size : real - r->offset;
	return 0;
}

static int
raw_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsRaw *o = &n->options->u.raw;
	struct raw *r = n->state;
	struct edge *file;
	uint64_t size = 0;

	if (check_sign("offset", o->has_offset, o->offset, errp) < 0 ||
	    check_sign("size", o->has_size, o->size, errp) < 0)
		return -1;
	r->offset = o->has_offset ? (uint64_t)o->offset : 0;
	r->has_size = o->has_size;
	r->is_part = r->offset || o->has_size;
	if (opener_child(op, n, o->file, "file",
			 ROLE_PRIMARY | (r->is_part ? ROLE_DATA : ROLE_FILTERED), &file,
			 errp) < 0)
		return -1;
	if (check_part(r, o, node_size(file->child), &size, errp) < 0)
		return -1;
	atomic_store(&n->size, round_up(size, 512));
	return 0;
}

static int
raw_read(struct node *n, uint64_t off, const struct iov *dst)
{
	const struct raw *r = n->state;

	return node_read(n->file->child, r->offset + off, dst);
}

/* A part has an end that nothing may be written beyond. */
static bool
leaves_part(const struct node *n, uint64_t off, uint64_t len)
{
	const struct raw *r = n->state;

	return r->has_size && !range_within(off, len, node_size(n));
}

static int
raw_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	const struct raw *r = n->state;

	if (leaves_part(n, off, src->len))
		return -ENOSPC;
	return node_write(n->file->child, r->offset + off, src, flags);
}

static int
raw_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	const struct raw *r = n->state;

	if (leaves_part(n, off, len))
		return -ENOSPC;
	return node_zero(n->file->child, r->offset + off, len, flags);
}

static int
raw_discard(struct node *n, uint64_t off, uint64_t len)
{
	const struct raw *r = n->state;

	return node_discard(n->file->child, r->offset + off, len);
}

static int
raw_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
	   struct extent *x)
{
	const struct raw *r = n->state;

	(void)want_zero;
	*x = (struct extent){
		.len = len,
		.flags = EXTENT_RECURSE | EXTENT_MAPPED,
		.host = r->offset + off,
		.file = n->file->child,
	};
	return 0;
}

static int
raw_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	     struct error **errp)
{
	const struct raw *r = n->state;
	uint64_t real;

	if (r->has_size)
		return error_set(errp, "Cannot resize fixed-size raw disks");
	if (size > INT64_MAX - r->offset)
		return error_set(errp, "Disk size too large for the chosen offset");
	if (node_truncate(n->file->child, r->offset + size, exact, prealloc, errp) < 0)
		return -1;
	real = node_size(n->file->child);
	atomic_store(&n->size, real > r->offset ? real - r->offset : 0);
	return 0;
}

/* What the file knows of itself that is not its own kind of thing. */
static int
raw_info(struct node *n, struct ImageInfo *info, struct error **errp)
{
	return node_info_above(n->file->child, info, errp);
}

/* The defaults for storage ask for more than raw needs: it writes only where it
 * is written to. */
static void
raw_child_perm(struct node *n, struct edge *e, unsigned role, perm_set perm,
	       perm_set shared, perm_set *ret_perm, perm_set *ret_shared)
{
	(void)e;
	perm_default(n, role, perm, shared, ret_perm, ret_shared);
	*ret_perm &= perm | ~(perm_set)(PERM_WRITE | PERM_RESIZE);
}

const struct driver driver_raw = {
	.name = "raw",
	.caps = DRIVER_GROWS | DRIVER_FUA | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST,
	.state_size = sizeof(struct raw),
	.open = raw_open,
	.read = raw_read,
	.write = raw_write,
	.zero = raw_zero,
	.discard = raw_discard,
	.status = raw_status,
	.truncate = raw_truncate,
	.child_perm = raw_child_perm,
	.info = raw_info,
};
