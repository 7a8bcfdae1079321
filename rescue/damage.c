/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/damage.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/node.h"
#include "rescue/pipeline.h"

bool
damage_is(int err)
{
	switch (-err) {
	case EIO:
	case ENODATA:
	case EBADMSG:
	case EUCLEAN:
	case EREMOTEIO:
	case ETIMEDOUT:
		return true;
	default:
		return false;
	}
}

static bool
lies_in_file(const struct extent *x)
{
	return x->flags & EXTENT_DATA && !(x->flags & EXTENT_ZERO) && x->flags & EXTENT_MAPPED &&
	       x->file;
}

int
damage_check_extent(const struct extent *x)
{
	return lies_in_file(x) && x->host >= node_size(x->file) ? -ENODATA : 0;
}

uint64_t
damage_end_of_file(const struct extent *x, uint64_t at, uint64_t cluster)
{
	if (!lies_in_file(x))
		return UINT64_MAX;
	return round_up(at + (node_size(x->file) - x->host), cluster);
}

/* The layer that off comes from, and what it says of it; -errno of the first that
 * says nothing. */
static int
find_layer(struct pipeline *p, uint64_t off, unsigned *ret_layer, struct extent *x)
{
	struct node *n = p->source, *next;
	int r = 0;

	*ret_layer = p->layer;
	for (;; n = next, ++*ret_layer) {
		if (off >= node_size(n))
			break;
		r = node_status(n, off, DAMAGE_UNIT, false, x);
		next = node_backing_skip(n);
		if (r < 0 || x->flags & EXTENT_ALLOCATED || !next || next == p->base)
			break;
	}
	return r;
}

void
damage_explain(struct pipeline *p, uint64_t off, int err, struct lost_range *ret)
{
	struct extent x = { .flags = 0 };
	unsigned layer;
	int r = find_layer(p, off, &layer, &x);

	*ret = (struct lost_range){ .off = off, .layer = layer, .why = LOST_UNREADABLE };
	if (r < 0)
		ret->why = LOST_MAPPING;
	else if (err == -ENODATA)
		ret->why = LOST_BEYOND_END;
	else if (x.flags & EXTENT_COMPRESSED)
		ret->why = LOST_PACKED;
}

int
damage_note(struct pipeline *p, uint64_t off, uint64_t len, int err)
{
	struct lost_range r;

	if (p->compare && lost_covers(p->lost, off, len))
		return 0;
	if (p->compare)
		return err;
	damage_explain(p, off, err, &r);
	return lost_add(p->lost, off, len, &r);
}

static int
read_part(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len)
{
	struct iov v = IOV_BUF(buf, len);

	return node_read(p->source, off, &v);
}

/* In halves, so that what is sound is read in large pieces. */
static int
read_halves(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len)
{
	size_t half = round_up(len / 2, DAMAGE_UNIT);
	int r = read_part(p, off, buf, len);

	if (r == 0 || !damage_is(r))
		return r;
	if (len > DAMAGE_UNIT) {
		r = read_halves(p, off, buf, half);
		return r < 0 ? r : read_halves(p, off + half, buf + half, len - half);
	}
	memset(buf, 0, len);
	return damage_note(p, off, len, r);
}

int
damage_read(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len)
{
	return read_halves(p, off, buf, len);
}

uint64_t
damage_find(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len)
{
	while (len > DAMAGE_UNIT) {
		size_t half = round_up(len / 2, DAMAGE_UNIT);
		int r = read_part(p, off, buf, half);

		if (r == 0)
			off += half;
		len = r == 0 ? len - half : half;
	}
	return off;
}
