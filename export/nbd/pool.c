/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/pool.c - the memory of a connection, used again and again. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "export/nbd/conn.h"
#include "export/nbd/proto.h"

static_assert(offsetof(struct nbd_request, headroom) + NBD_HEADROOM <=
		      offsetof(struct nbd_request, small), "room for a header before data");
static_assert(offsetof(struct nbd_request, small) % 512 == 0, "data is aligned");

enum { BUFFER_ALIGN = 4096, BUFFER_SMALLEST = 8192 };

struct nbd_request *
nbd_pool_get(struct nbd_conn *c)
{
	struct nbd_request *q = c->free;

	if (q) {
		c->free = q->next;
	} else {
		q = iov_alloc(512, sizeof(*q));
		if (!q)
			return NULL;
		/* Data that goes out is always written before: not so much as the
		 * gap between header and data is sent. */
		q->conn = c;
	}
	q->payload = NULL;
	q->inbuf = NULL;
	q->buffer = NULL;
	q->data = nbd_request_small(q);
	q->charge = 0;
	c->in_flight++;
	return q;
}

static void
inbuf_unref(struct nbd_conn *c, struct nbd_inbuf *in)
{
	if (--in->refs)
		return;
	in->next = c->in_free;
	c->in_free = in;
}

static void
buffer_put(struct nbd_conn *c, struct nbd_buffer *b)
{
	uint64_t size = (uint64_t)BUFFER_SMALLEST << b->class;

	if (c->kept + size > NBD_KEEP_MAX) {
		free(b);
		return;
	}
	c->kept += size;
	b->next = c->buffers[b->class];
	c->buffers[b->class] = b;
}

static struct nbd_buffer *
buffer_get(struct nbd_conn *c, size_t len)
{
	uint64_t size = BUFFER_SMALLEST;
	struct nbd_buffer *b;
	unsigned class = 0;

	for (; size < len; size <<= 1)
		class++;
	assert(class < NBD_BUFFER_CLASSES);
	b = c->buffers[class];
	if (b) {
		c->buffers[class] = b->next;
		c->kept -= size;
		return b;
	}
	b = iov_alloc(BUFFER_ALIGN, BUFFER_ALIGN + size);
	if (b)
		b->class = class;
	return b;
}

void
nbd_pool_put(struct nbd_request *q)
{
	struct nbd_conn *c = q->conn;

	if (q->inbuf)
		inbuf_unref(c, q->inbuf);
	if (q->buffer)
		buffer_put(c, q->buffer);
	c->bytes -= q->charge;
	nbd_count_add(&c->counts.answered, 1);
	c->in_flight--;
	q->next = c->free;
	c->free = q;
	if (c->reader_waits)
		co_wake(c->reader);
}

int
nbd_pool_room(struct nbd_request *q, size_t len)
{
	if (len <= NBD_SMALL)
		return 0;
	q->buffer = buffer_get(q->conn, len);
	if (!q->buffer)
		return -ENOMEM;
	q->data = (uint8_t *)q->buffer + BUFFER_ALIGN;
	return 0;
}

int
nbd_pool_inbuf(struct nbd_conn *c)
{
	struct nbd_inbuf *in = c->in, *next;
	size_t rest = c->in_end - c->in_start;

	/* Alone with it: go on at its start, which is in the cache. */
	if (in && in->refs == 1) {
		if (c->in_start && (!rest || NBD_INBUF_SIZE - c->in_end < NBD_IN_PLACE_MAX)) {
			memmove(in->data, in->data + c->in_start, rest);
			c->in_start = 0;
			c->in_end = rest;
		}
		return 0;
	}
	if (in && NBD_INBUF_SIZE - c->in_end >= NBD_IN_PLACE_MAX)
		return 0;
	next = c->in_free;
	if (next) {
		c->in_free = next->next;
	} else {
		next = malloc(sizeof(*next));
		if (!next)
			return -ENOMEM;
	}
	next->refs = 1;
	if (in) {
		memcpy(next->data, in->data + c->in_start, rest);
		inbuf_unref(c, in);
	}
	c->in = next;
	c->in_start = 0;
	c->in_end = rest;
	return 0;
}

void
nbd_pool_hold(struct nbd_request *q)
{
	q->inbuf = q->conn->in;
	q->inbuf->refs++;
}

void
nbd_pool_free(struct nbd_conn *c)
{
	struct nbd_request *q;
	struct nbd_inbuf *in;
	struct nbd_buffer *b;

	assert(!c->in_flight && !c->bytes);
	while ((q = c->free)) {
		c->free = q->next;
		free(q);
	}
	for (unsigned i = 0; i < NBD_BUFFER_CLASSES; i++)
		while ((b = c->buffers[i])) {
			c->buffers[i] = b->next;
			free(b);
		}
	c->kept = 0;
	if (c->in)
		inbuf_unref(c, c->in);
	c->in = NULL;
	while ((in = c->in_free)) {
		c->in_free = in->next;
		free(in);
	}
}
