/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/status.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "block/dirty.h"
#include "block/io.h"
#include "block/node.h"
#include "block/root.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/proto.h"

enum {
	EXTENTS_MAX = 8192,		/* in a reply; a client asks again for the rest */
	EXTENTS_BEFORE_YIELD = 512,
	EXTENT_SIZE = 8,		/* on the wire: length, flags */
	CONTEXT_HEAD = NBD_CHUNK_SIZE + 4,
	WIDE_EXTENT_SIZE = 16,		/* with extended headers */
	WIDE_CONTEXT_HEAD = NBD_EXTENDED_CHUNK_SIZE + 8,
	SECTOR = 512,			/* extents are seldom shorter */
};

/* Extents of one context, as they go onto the wire. */
struct extents {
	bool wide;
	uint8_t *to, *last;
	unsigned count, max;
	uint64_t last_len;
	uint32_t last_flags;
};

static void
put_len(const struct extents *x)
{
	if (x->wide)
		put_be64(x->last, x->last_len);
	else
		put_be32(x->last, (uint32_t)x->last_len);
}

/* Append an extent, or lengthen the last one.  False: there is no room. */
static bool
extents_add(struct extents *x, uint64_t len, uint32_t flags)
{
	if (x->count && x->last_flags == flags && (x->wide || x->last_len + len <= UINT32_MAX)) {
		x->last_len += len;
		put_len(x);
		return true;
	}
	if (x->count == x->max)
		return false;
	x->last = x->to + (size_t)x->count++ * (x->wide ? WIDE_EXTENT_SIZE : EXTENT_SIZE);
	x->last_len = len;
	x->last_flags = flags;
	put_len(x);
	if (x->wide)
		put_be64(x->last + 8, flags);
	else
		put_be32(x->last + 4, flags);
	return true;
}

static int
fill_allocation(struct nbd_request *q, struct extents *x)
{
	uint64_t off = q->offset, end = q->offset + q->len;
	unsigned asked = 0;

	while (off < end) {
		struct extent e;
		uint32_t flags;
		int r = io_status(q->conn->root, off, end - off, true, &e);

		if (r < 0)
			return r;
		flags = (e.flags & EXTENT_DATA ? 0u : NBD_STATE_HOLE) |
			(e.flags & EXTENT_ZERO ? NBD_STATE_ZERO : 0u);
		e.len = min_u64(e.len, end - off);
		if (!extents_add(x, e.len, flags))
			return 0;
		off += e.len;
		if (++asked % EXTENTS_BEFORE_YIELD == 0)
			co_yield();
	}
	return 0;
}

/* In which layer of the backing chain are the bytes at off?  1 is the top, 0
 * none.  Within the root's bracket, so the chain stays as it is. */
static int
find_depth(struct root *root, uint64_t off, uint64_t *len, uint32_t *ret_depth)
{
	uint32_t depth = 1;

	for (struct node *n = node_skip_filters(root_node(root)); n;
	     n = node_backing_skip(n), depth++) {
		struct extent e;
		int r;

		n = node_skip_filters(n);
		if (off >= node_size(n))
			break;
		*len = min_u64(*len, node_size(n) - off);
		r = node_status(n, off, *len, false, &e);
		if (r < 0)
			return r;
		*len = min_u64(*len, e.len);
		if (e.flags & EXTENT_ALLOCATED) {
			*ret_depth = depth;
			return 0;
		}
	}
	*ret_depth = 0;
	return 0;
}

static int
fill_depth(struct nbd_request *q, struct extents *x)
{
	uint64_t off = q->offset, end = q->offset + q->len, len;
	struct root *root = q->conn->root;
	unsigned asked = 0;
	int r = 0;

	for (; r >= 0 && off < end; off += len) {
		uint32_t depth = 0;

		len = end - off;
		r = root_enter(root);
		if (r < 0)
			return r;
		r = find_depth(root, off, &len, &depth);
		root_leave(root);
		if (r >= 0 && !extents_add(x, len, depth))
			break;
		if (++asked % EXTENTS_BEFORE_YIELD == 0)
			co_yield();
	}
	return r;
}

static int
fill_bitmap(struct nbd_request *q, unsigned context, struct extents *x)
{
	struct dirty_bitmap *b = q->conn->export->bitmaps[context - NBD_CONTEXT_BITMAPS];
	uint64_t off = q->offset, end = q->offset + q->len, run, len;

	while (off < end) {
		if (!dirty_next_run(b, off, end, &run, &len)) {
			run = end;
			len = 0;
		}
		if ((run > off && !extents_add(x, run - off, 0)) ||
		    (len && !extents_add(x, len, NBD_STATE_DIRTY)))
			break;
		off = run + len;
	}
	return 0;
}

static int
fill(struct nbd_request *q, unsigned context, struct extents *x)
{
	switch (context) {
	case NBD_CONTEXT_ALLOCATION:
		return fill_allocation(q, x);
	case NBD_CONTEXT_DEPTH:
		return fill_depth(q, x);
	default:
		return fill_bitmap(q, context, x);
	}
}

/* ---- names ---- */

void
nbd_status_context_name(const struct nbd_export *e, unsigned context, char *to)
{
	static_assert(sizeof("qemu:dirty-bitmap:") + DIRTY_NAME_MAX <= NBD_CONTEXT_NAME_SIZE,
		      "there is room for each name");

	if (context == NBD_CONTEXT_ALLOCATION)
		strcpy(to, "base:allocation");
	else if (context == NBD_CONTEXT_DEPTH)
		strcpy(to, "qemu:allocation-depth");
	else
		snprintf(to, NBD_CONTEXT_NAME_SIZE, "qemu:dirty-bitmap:%s",
			 dirty_name(e->bitmaps[context - NBD_CONTEXT_BITMAPS]));
}

uint64_t
nbd_status_offered(const struct nbd_export *e)
{
	uint64_t bits = UINT64_C(1) << NBD_CONTEXT_ALLOCATION;

	if (e->allocation_depth)
		bits |= UINT64_C(1) << NBD_CONTEXT_DEPTH;
	for (unsigned i = 0; i < e->n_bitmaps; i++)
		bits |= UINT64_C(1) << (NBD_CONTEXT_BITMAPS + i);
	return bits;
}

/* If text begins with prefix, what follows it; else NULL. */
static const char *
behind(const char *text, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(text, prefix, n) ? NULL : text + n;
}

static uint64_t
query_bitmaps(const struct nbd_export *e, const char *name)
{
	for (unsigned i = 0; i < e->n_bitmaps; i++)
		if (!strcmp(dirty_name(e->bitmaps[i]), name))
			return UINT64_C(1) << (NBD_CONTEXT_BITMAPS + i);
	return 0;
}

uint64_t
nbd_status_query(const struct nbd_export *e, const char *query, bool listing)
{
	const uint64_t allocation = UINT64_C(1) << NBD_CONTEXT_ALLOCATION;
	const uint64_t depth = UINT64_C(1) << NBD_CONTEXT_DEPTH;
	uint64_t all = nbd_status_offered(e);
	const char *base = behind(query, "base:"), *qemu = behind(query, "qemu:"), *bitmap;

	if (base)
		return !strcmp(base, "allocation") || (listing && !*base) ? allocation : 0;
	if (!qemu)
		return 0;
	if (!*qemu)
		return listing ? all & ~allocation : 0;
	if (!strcmp(qemu, "allocation-depth"))
		return all & depth;
	bitmap = behind(qemu, "dirty-bitmap:");
	if (!bitmap)
		return 0;
	if (!*bitmap)
		return listing ? all & ~(allocation | depth) : 0;
	return query_bitmaps(e, bitmap);
}

/* ---- the command ---- */

/* The contexts that the payload of an extended request is limited to: its bits, or 0
 * if it is malformed or names what was not negotiated. */
static uint64_t
payload_contexts(const struct nbd_request *q)
{
	uint64_t found = 0;

	for (uint32_t at = 8; at + 4 <= q->payload_len; at += 4) {
		uint32_t id = get_be32(q->payload + at);

		if (id >= NBD_CONTEXTS_MAX || !(q->conn->session.contexts >> id & 1) ||
		    found >> id & 1)
			return 0;
		found |= UINT64_C(1) << id;
	}
	return found;
}

bool
nbd_status_unpack(struct nbd_request *q)
{
	q->contexts = q->conn->session.contexts;
	if (q->conn->session.mode < NBD_MODE_EXTENDED || !(q->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
		return true;
	q->contexts = q->payload && q->payload_len % 4 == 0 ? payload_contexts(q) : 0;
	if (!q->contexts) {
		nbd_reply_error(q, -EINVAL, "CMD_BLOCK_STATUS payload not valid");
		return false;
	}
	q->len = get_be64(q->payload);
	return true;
}

/* Put the chunk of one context at to; returns where the next one goes. */
static int
put_context(struct nbd_request *q, unsigned context, unsigned max, bool last, uint8_t *to,
	    uint8_t **ret_end)
{
	bool wide = q->conn->session.mode == NBD_MODE_EXTENDED;
	size_t size = wide ? WIDE_EXTENT_SIZE : EXTENT_SIZE, before = wide ? 8 : 4;
	struct extents x = { .wide = wide, .max = max };
	int r;

	x.to = to + (wide ? WIDE_CONTEXT_HEAD : CONTEXT_HEAD);
	r = fill(q, context, &x);
	if (r < 0)
		return r;
	put_be32(x.to - before, context);
	if (wide)
		put_be32(x.to - 4, x.count);
	nbd_reply_chunk(x.to - before, q, last ? NBD_CHUNK_FLAG_DONE : 0,
			wide ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS,
			(uint32_t)(before + x.count * size));
	*ret_end = x.to + x.count * size;
	return 0;
}

/* In an answer of one context. */
static unsigned
most_extents(uint16_t flags, uint64_t len)
{
	return flags & NBD_CMD_FLAG_REQ_ONE ? 1
					    : (unsigned)min_u64(EXTENTS_MAX, div_up(len, SECTOR) + 1);
}

static size_t
room_for(uint64_t contexts, unsigned extents)
{
	return (size_t)__builtin_popcountll(contexts) *
	       (WIDE_CONTEXT_HEAD + (size_t)extents * WIDE_EXTENT_SIZE);
}

uint32_t
nbd_status_memory(const struct nbd_session *session, uint16_t flags, uint64_t len)
{
	/* The length of a payload says nothing of the range. */
	uint64_t range = flags & NBD_CMD_FLAG_PAYLOAD_LEN ? UINT64_MAX : len;

	return (uint32_t)room_for(session->contexts, most_extents(flags, range));
}

void
nbd_status_run(struct nbd_request *q)
{
	size_t n = (size_t)__builtin_popcountll(q->contexts);
	unsigned max = most_extents(q->flags, q->len);
	uint8_t *to;
	int r = 0;

	if (!n) {
		nbd_reply_error(q, -EINVAL, "CMD_BLOCK_STATUS not negotiated");
		return;
	}
	if (!q->len) {
		nbd_reply_error(q, -EINVAL, "need non-zero length");
		return;
	}
	r = nbd_pool_room(q, room_for(q->contexts, max));
	to = q->data;
	for (unsigned i = 0; r >= 0 && i < NBD_CONTEXTS_MAX; i++)
		if (q->contexts >> i & 1)
			r = put_context(q, i, max, !--n, to, &to);
	if (r < 0) {
		nbd_reply_error(q, r, "can't get block status");
		return;
	}
	nbd_reply_queue_one(q, q->data, (size_t)(to - q->data));
}
