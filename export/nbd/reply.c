/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/reply.c - answers: built next to their data, sent many at a time. */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "export/nbd/conn.h"
#include "export/nbd/proto.h"

enum {
	SEND_VECTORS = 256,	/* handed to the kernel in one call */
	ERROR_TEXT_MAX = 256,
};

/* ---- building ---- */

static void
simple_header(uint8_t *to, const struct nbd_request *q, int err)
{
	put_be32(to, NBD_SIMPLE_REPLY_MAGIC);
	put_be32(to + 4, nbd_proto_error(err));
	put_be64(to + 8, q->cookie);
}

uint8_t *
nbd_reply_chunk(uint8_t *data, const struct nbd_request *q, unsigned flags, unsigned type,
		uint32_t len)
{
	bool extended = q->conn->session.mode == NBD_MODE_EXTENDED;
	uint8_t *to = data - (extended ? NBD_EXTENDED_CHUNK_SIZE : NBD_CHUNK_SIZE);

	put_be32(to, extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
	put_be16(to + 4, (uint16_t)flags);
	put_be16(to + 6, (uint16_t)type);
	put_be64(to + 8, q->cookie);
	if (extended) {
		put_be64(to + 16, q->offset);
		put_be64(to + 24, len);
	} else {
		put_be32(to + 16, len);
	}
	return to;
}

void
nbd_reply_queue_one(struct nbd_request *q, uint8_t *start, size_t len)
{
	q->one = (struct iovec){ start, len };
	q->reply = &q->one;
	q->reply_count = 1;
	nbd_reply_queue(q);
}

void
nbd_reply_done(struct nbd_request *q)
{
	uint8_t *end = nbd_request_small(q), *head;

	if (q->conn->session.mode == NBD_MODE_EXTENDED) {
		head = nbd_reply_chunk(end, q, NBD_CHUNK_FLAG_DONE, NBD_CHUNK_NONE, 0);
	} else {
		head = end - NBD_SIMPLE_REPLY_SIZE;
		simple_header(head, q, 0);
	}
	nbd_reply_queue_one(q, head, (size_t)(end - head));
}

void
nbd_reply_error(struct nbd_request *q, int err, const char *fmt, ...)
{
	char *text = (char *)nbd_request_small(q);
	uint8_t *head;
	va_list ap;
	size_t len;

	assert(err);
	if (q->conn->session.mode == NBD_MODE_SIMPLE) {
		head = nbd_request_small(q) - NBD_SIMPLE_REPLY_SIZE;
		simple_header(head, q, err);
		nbd_reply_queue_one(q, head, NBD_SIMPLE_REPLY_SIZE);
		return;
	}
	va_start(ap, fmt);
	vsnprintf(text, ERROR_TEXT_MAX, fmt, ap);
	va_end(ap);
	len = strlen(text);
	put_be32((uint8_t *)text - 6, nbd_proto_error(err));
	put_be16((uint8_t *)text - 2, (uint16_t)len);
	head = nbd_reply_chunk((uint8_t *)text - 6, q, NBD_CHUNK_FLAG_DONE, NBD_CHUNK_ERROR,
			       (uint32_t)len + 6);
	nbd_reply_queue_one(q, head, (size_t)((uint8_t *)text - head) + len);
}

void
nbd_reply_data(struct nbd_request *q)
{
	uint8_t *head;

	if (q->conn->session.mode == NBD_MODE_SIMPLE) {
		head = q->data - NBD_SIMPLE_REPLY_SIZE;
		simple_header(head, q, 0);
	} else if (!q->len) {
		head = nbd_reply_chunk(q->data, q, NBD_CHUNK_FLAG_DONE, NBD_CHUNK_NONE, 0);
	} else {
		put_be64(q->data - 8, q->offset);
		head = nbd_reply_chunk(q->data - 8, q, NBD_CHUNK_FLAG_DONE,
				       NBD_CHUNK_OFFSET_DATA, (uint32_t)q->len + 8);
	}
	nbd_reply_queue_one(q, head, (size_t)(q->data - head) + q->len);
}

/* ---- sending ---- */

static size_t
reply_size(const struct nbd_request *q)
{
	size_t size = 0;

	for (unsigned i = 0; i < q->reply_count; i++)
		size += q->reply[i].iov_len;
	return size;
}

/* Take the first reply off the queue. */
static void
pop(struct nbd_conn *c, size_t size)
{
	struct nbd_request *q = c->out;

	c->out = q->next;
	if (!c->out)
		c->out_end = &c->out;
	c->out_bytes -= size;
	c->out_skip = 0;
	nbd_pool_put(q);
}

/* n more bytes of the queue have left. */
static void
sent(struct nbd_conn *c, size_t n)
{
	n += c->out_skip;
	while (c->out) {
		size_t size = reply_size(c->out);

		if (n < size)
			break;
		n -= size;
		pop(c, size);
	}
	c->out_skip = n;
}

/* Nothing more can be sent: let the requests go, and the reader see the end. */
static void
break_off(struct nbd_conn *c)
{
	c->broken = true;
	while (c->out)
		pop(c, reply_size(c->out));
	sock_shutdown(c->sock, SHUT_RDWR);
}

/* Send until the queue is empty (0), or the socket full (-EAGAIN), or broken. */
static int
send_some(struct nbd_conn *c)
{
	while (c->out) {
		struct iovec vec[SEND_VECTORS];
		struct iov v = { .vec = vec };
		ssize_t n;

		for (struct nbd_request *q = c->out; q; q = q->next) {
			if (v.count + q->reply_count > SEND_VECTORS)
				break;
			for (unsigned i = 0; i < q->reply_count; i++) {
				vec[v.count++] = q->reply[i];
				v.len += q->reply[i].iov_len;
			}
		}
		n = sock_send_now(c->sock, &v, c->out_skip);
		if (n < 0)
			return (int)n;
		sent(c, (size_t)n);
	}
	return 0;
}

/* Waits for a peer that reads more slowly than we answer. */
static void
sender(void *arg)
{
	struct nbd_conn *c = arg;
	int r;

	do {
		r = sock_wait(c->sock, SOCK_WRITE, INT64_MAX);
		if (!r)
			r = send_some(c);
	} while (r == -EAGAIN);
	c->sending = false;
	if (r < 0)
		break_off(c);
	if (c->reader_waits)
		co_wake(c->reader);
}

void
nbd_reply_flush(struct nbd_conn *c)
{
	int r;

	if (c->sending || !c->out)
		return;
	r = send_some(c);
	if (r == -EAGAIN) {
		c->sending = true;
		r = co_start(sender, c);
		if (r < 0)
			c->sending = false;
	}
	if (r < 0)
		break_off(c);
}

void
nbd_reply_queue(struct nbd_request *q)
{
	struct nbd_conn *c = q->conn;

	assert(q->reply_count && q->reply_count <= SEND_VECTORS);
	if (c->broken) {
		nbd_pool_put(q);
		return;
	}
	q->next = NULL;
	*c->out_end = q;
	c->out_end = &q->next;
	c->out_bytes += reply_size(q);
	loop_defer(&c->flush);
}
