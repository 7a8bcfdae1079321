/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/serve.c - the reader: bytes in, requests started. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "base/bytes.h"
#include "export/nbd/conn.h"
#include "export/nbd/proto.h"

enum { BATCHES_IN_A_ROW = 8 };	/* before others on this loop have their turn */

struct head {
	const struct nbd_command *command;
	uint16_t flags, type;
	uint64_t cookie, offset, len;
	struct nbd_payload payload;
};

static size_t
available(const struct nbd_conn *c)
{
	return c->in_end - c->in_start;
}

/* Receive what there is, at least one byte.  -ENODATA: the peer has hung up. */
static int
receive(struct nbd_conn *c)
{
	int r = nbd_pool_inbuf(c);

	while (r >= 0) {
		ssize_t n = sock_recv_now(c->sock, c->in->data + c->in_end,
					  NBD_INBUF_SIZE - c->in_end);

		if (n > 0) {
			c->in_end += (size_t)n;
			return 0;
		}
		if (n != -EAGAIN)
			return n ? (int)n : -ENODATA;
		r = sock_wait(c->sock, SOCK_READ, INT64_MAX);
	}
	return r;
}

/* Wait for room among the requests in flight. */
static void
wait_for_room(struct nbd_conn *c, uint32_t charge)
{
	for (;;) {
		bool full = c->in_flight >= NBD_REQUESTS_MAX ||
			    (c->bytes && c->bytes + charge > NBD_BYTES_MAX);

		if (!full)
			return;
		if (c->out && !c->sending) {
			nbd_reply_flush(c);
			continue;
		}
		c->reader_waits = true;
		co_park();
		c->reader_waits = false;
	}
}

/* Get the payload of a write that is too large to stay in the inbuf. */
static int
receive_payload(struct nbd_conn *c, struct nbd_request *q)
{
	size_t len = q->payload_len, have = min_u64(available(c), len);
	int r = nbd_pool_room(q, len);

	if (r < 0) {
		/* Its bytes come all the same. */
		c->skip = len;
		return r;
	}
	memcpy(q->data, c->in->data + c->in_start, have);
	c->in_start += have;
	q->payload = q->data;
	return have < len ? sock_recv_full(c->sock, q->data + have, len - have) : 0;
}

static int
take_payload(struct nbd_conn *c, struct nbd_request *q)
{
	int r;

	if (q->payload_len > NBD_IN_PLACE_MAX) {
		r = receive_payload(c, q);
		return r == -ENOMEM ? 0 : r;
	}
	assert(available(c) >= q->payload_len);
	q->payload = c->in->data + c->in_start;
	c->in_start += q->payload_len;
	nbd_pool_hold(q);
	return 0;
}

/* Make a request of the head, with its payload, and start it. */
static int
start_request(struct nbd_conn *c, const struct head *h)
{
	uint32_t charge = nbd_request_memory(h->command, &c->session, h->flags, h->len);
	struct nbd_request *q;
	int r = 0;

	wait_for_room(c, charge);
	q = nbd_pool_get(c);
	if (!q)
		return -ENOMEM;
	q->charge = charge;
	c->bytes += charge;
	nbd_count_add(&c->counts.requests, 1);
	nbd_count_add(h->payload.len ? &c->counts.written : &c->counts.read,
		      nbd_request_data(h->command, h->len));
	q->command = h->command;
	q->type = h->type;
	q->flags = h->flags;
	q->len = h->len;
	q->offset = h->offset;
	q->cookie = h->cookie;
	q->payload_len = h->payload.kept ? (uint32_t)h->payload.len : 0;
	if (q->payload_len)
		r = take_payload(c, q);
	else
		c->skip = h->payload.len;
	if (r < 0) {
		nbd_pool_put(q);
		return r;
	}
	if (co_start(nbd_request_run, q) < 0)
		nbd_reply_error(q, -ENOMEM, "No memory");
	return h->payload.fatal ? -EMSGSIZE : 0;
}

/* The header of a request that p begins with. */
static int
parse_head(const struct nbd_conn *c, const uint8_t *p, struct head *h)
{
	bool extended = c->session.mode == NBD_MODE_EXTENDED;

	if (get_be32(p) != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC))
		return -EPROTO;
	h->flags = get_be16(p + 4);
	h->type = get_be16(p + 6);
	if (h->type == NBD_CMD_DISC)
		return -ENODATA;
	h->cookie = get_be64(p + 8);
	h->offset = get_be64(p + 16);
	h->len = extended ? get_be64(p + 24) : get_be32(p + 24);
	h->command = nbd_request_command(h->type);
	h->payload = nbd_request_payload(h->command, c->session.mode, h->flags, h->len);
	return 0;
}

/* Start what is whole in the inbuf.  1: more bytes are needed; or -errno. */
static int
start_all(struct nbd_conn *c)
{
	size_t size = c->session.mode == NBD_MODE_EXTENDED ? NBD_EXTENDED_REQUEST_SIZE
							   : NBD_REQUEST_SIZE;

	while (available(c)) {
		struct head h;
		int r;

		if (c->skip) {
			size_t n = min_u64(c->skip, available(c));

			c->skip -= n;
			c->in_start += n;
			continue;
		}
		if (available(c) < size)
			break;
		r = parse_head(c, c->in->data + c->in_start, &h);
		if (r < 0)
			return r;
		if (h.payload.kept && h.payload.len <= NBD_IN_PLACE_MAX &&
		    available(c) - size < h.payload.len)
			break;
		c->in_start += size;
		r = start_request(c, &h);
		if (r < 0)
			return r;
		if (c->out_bytes >= NBD_FLUSH_BYTES)
			nbd_reply_flush(c);
	}
	return 1;
}

static void
flush_task(struct loop_task *t)
{
	nbd_reply_flush(CONTAINER_OF(t, struct nbd_conn, flush));
}

/* Let the last requests end, and their replies leave. */
static void
drain(struct nbd_conn *c)
{
	nbd_reply_flush(c);
	c->reader_waits = true;
	while (c->in_flight || c->sending)
		co_park();
	c->reader_waits = false;
	loop_undefer(&c->flush);
}

void
nbd_serve(struct nbd_conn *c)
{
	unsigned batches = 0;
	int r;

	c->reader = co_self();
	c->out_end = &c->out;
	c->flush.fn = flush_task;
	for (;;) {
		r = receive(c);
		if (r < 0)
			break;
		r = start_all(c);
		if (r < 0)
			break;
		nbd_reply_flush(c);
		if (++batches % BATCHES_IN_A_ROW == 0)
			co_yield();
	}
	drain(c);
	nbd_pool_free(c);
}
