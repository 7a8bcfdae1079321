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
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t len;
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
	size_t have = min_u64(available(c), q->len);
	int r = nbd_pool_room(q, q->len);

	if (r < 0) {
		/* Its bytes come all the same. */
		c->skip = q->len;
		return r;
	}
	memcpy(q->data, c->in->data + c->in_start, have);
	c->in_start += have;
	q->payload = q->data;
	return have < q->len ? sock_recv_full(c->sock, q->data + have, q->len - have) : 0;
}

static int
take_payload(struct nbd_conn *c, struct nbd_request *q)
{
	int r;

	if (q->len > NBD_IN_PLACE_MAX) {
		r = receive_payload(c, q);
		return r == -ENOMEM ? 0 : r;
	}
	assert(available(c) >= q->len);
	q->payload = c->in->data + c->in_start;
	c->in_start += q->len;
	nbd_pool_hold(q);
	return 0;
}

/* Make a request of the head, with its payload, and start it. */
static int
start_request(struct nbd_conn *c, const struct head *h, const struct nbd_command *cmd)
{
	uint32_t payload = nbd_request_payload(cmd, h->len);
	/* Too long a payload is not received; the connection ends. */
	bool fatal = payload && nbd_request_too_long(cmd, h->len);
	uint32_t charge = nbd_request_memory(cmd, h->len);
	struct nbd_request *q;
	int r = 0;

	wait_for_room(c, charge);
	q = nbd_pool_get(c);
	if (!q)
		return -ENOMEM;
	q->charge = charge;
	c->bytes += charge;
	q->command = cmd;
	q->type = h->type;
	q->flags = h->flags;
	q->len = h->len;
	q->offset = h->offset;
	q->cookie = h->cookie;
	if (payload && !fatal)
		r = take_payload(c, q);
	if (r < 0) {
		nbd_pool_put(q);
		return r;
	}
	if (co_start(nbd_request_run, q) < 0)
		nbd_reply_error(q, -ENOMEM, "No memory");
	return fatal ? -EMSGSIZE : 0;
}

/* Start what is whole in the inbuf.  1: more bytes are needed; or -errno. */
static int
start_all(struct nbd_conn *c)
{
	while (available(c)) {
		const uint8_t *p = c->in->data + c->in_start;
		const struct nbd_command *cmd;
		struct head h;
		uint32_t payload;
		int r;

		if (c->skip) {
			size_t n = min_u64(c->skip, available(c));

			c->skip -= n;
			c->in_start += n;
			continue;
		}
		if (available(c) < NBD_REQUEST_SIZE)
			break;
		if (get_be32(p) != NBD_REQUEST_MAGIC)
			return -EPROTO;
		h = (struct head){
			.flags = get_be16(p + 4), .type = get_be16(p + 6),
			.cookie = get_be64(p + 8), .offset = get_be64(p + 16),
			.len = get_be32(p + 24),
		};
		if (h.type == NBD_CMD_DISC)
			return -ENODATA;
		cmd = nbd_request_command(h.type);
		payload = nbd_request_payload(cmd, h.len);
		if (payload <= NBD_IN_PLACE_MAX && available(c) - NBD_REQUEST_SIZE < payload)
			break;
		c->in_start += NBD_REQUEST_SIZE;
		r = start_request(c, &h, cmd);
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
