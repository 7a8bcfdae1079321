/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_nbd_client.c - a hostile NBD server.
 *
 * The input's first byte chooses a good handshake that the server begins with, so that
 * replies of each kind are reached, or none, and whether it is asked for TLS, which here
 * is plain text.  What follows is sent as it is, or, behind a good handshake, in pieces:
 * two bytes of length, and as many for each request that comes, with the request's cookie
 * in its place.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "aio/colock.h"
#include "aio/loop.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/node.h"
#include "block/open.h"
#include "block/root.h"
#include "schema/types.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SIZE = 1 << 20, WITH_TLS = 4, READ_MAX = 2048, PATIENCE_NS = 20 * 1000 * 1000 };

#define EXTENDED_REQUEST_MAGIC UINT32_C(0x21e41c71)

/* What a good handshake answers to each option. */
#define REPLY(option, kind, len) "\0\3\xe8\x89\4\x55\x65\xa9\0\0\0" option kind "\0\0\0" len
#define ACK(option) REPLY(option, "\0\0\0\1", "\0")
#define BYTES(replies) { (const uint8_t *)(replies), sizeof(replies) - 1 }

enum { STARTTLS = 5, GO = 7, STRUCTURED = 8, SET_META = 10, EXTENDED = 11, OPTIONS };

static const struct bytes {
	const uint8_t *data;
	size_t len;
} greeting = BYTES("NBDMAGICIHAVEOPT\0\3"),
  replies[OPTIONS] = {
	[STARTTLS] = BYTES(ACK("\5")),
	[GO] = BYTES(REPLY("\7", "\0\0\0\3", "\x0c") "\0\0" "\0\0\0\0\0\x10\0\0" "\1\x6d"
		     ACK("\7")),
	[STRUCTURED] = BYTES(ACK("\x08")),
	[SET_META] = BYTES(REPLY("\x0a", "\0\0\0\4", "\x13") "\0\0\0\1" "base:allocation"
			   ACK("\x0a")),
	[EXTENDED] = BYTES(ACK("\x0b")),
};

/* Which of them: none, and no greeting; with replies of each kind. */
static const unsigned known[] = {
	0,
	1 << STARTTLS | 1 << GO,
	1 << STARTTLS | 1 << GO | 1 << STRUCTURED | 1 << SET_META,
	1 << STARTTLS | 1 << GO | 1 << EXTENDED | 1 << SET_META,
};

struct server {
	struct sock *sock;
	unsigned choice;	/* the first byte */
	const uint8_t *data;
	size_t size;
};

/* ---- the server ---- */

static int
answer_option(struct server *s, const uint8_t *head)
{
	uint8_t skip[64], unknown[] = REPLY("?", "\x80\0\0\1", "\0");
	size_t len = get_be32(head + 12);
	unsigned option = head[11];
	int r = len <= sizeof(skip) ? sock_recv_full(s->sock, skip, len) : -EPROTO;

	if (r < 0)
		return r;
	if (option < OPTIONS && known[s->choice % ARRAY_SIZE(known)] & 1u << option)
		return sock_send(s->sock, replies[option].data, replies[option].len);
	unknown[11] = head[11];
	return sock_send(s->sock, unknown, sizeof(unknown) - 1);
}

/* Who waits for the rest of a reply would do so for ever. */
static int
next_head(struct server *s, uint8_t *head)
{
	int r = sock_wait(s->sock, SOCK_READ, clock_ns() + PATIENCE_NS);

	return r < 0 ? r : sock_recv_full(s->sock, head, 16);
}

/* What comes next, options apart: the cookie of a request. */
static int
next_request(struct server *s, uint8_t *cookie)
{
	uint8_t head[32] = { 0 };
	int r = next_head(s, head);
	size_t rest;

	while (r >= 0 && !memcmp(head, "IHAVEOPT", 8)) {
		r = answer_option(s, head);
		if (r >= 0)
			r = next_head(s, head);
	}
	rest = get_be32(head) == EXTENDED_REQUEST_MAGIC ? 16 : 12;
	if (r >= 0)
		r = sock_recv_full(s->sock, head + 16, rest);
	memcpy(cookie, head + 8, 8);
	return r;
}

static int
answer(struct server *s, const uint8_t *cookie)
{
	static uint8_t piece[65536];
	size_t len = s->size < 2 ? 0 : min_u64(get_be16(s->data), s->size - 2);

	if (s->size < 2)
		return -ENODATA;
	memcpy(piece, s->data + 2, len);
	if (len >= 16)
		memcpy(piece + 8, cookie, 8);
	s->data += 2 + len;
	s->size -= 2 + len;
	return sock_send(s->sock, piece, len);
}

static int
serve(struct server *s)
{
	uint8_t flags[4], cookie[8];
	int r;

	if (!known[s->choice % ARRAY_SIZE(known)])
		return sock_send(s->sock, s->data, s->size);
	r = sock_send(s->sock, greeting.data, greeting.len);
	if (r >= 0)
		r = sock_recv_full(s->sock, flags, sizeof(flags));
	while (r >= 0) {
		r = next_request(s, cookie);
		if (r >= 0)
			r = answer(s, cookie);
	}
	return r;
}

static void
run_server(void *arg)
{
	struct server *s = arg;
	uint8_t rest[4096];

	(void)serve(s);
	sock_shutdown(s->sock, SHUT_WR);
	while (sock_recv(s->sock, rest, sizeof(rest)) > 0)
		;
}

/* ---- the client ---- */

static void
read_some(void *arg)
{
	static uint8_t buf[READ_MAX];
	struct iov v = IOV_BUF(buf, READ_MAX);

	(void)io_read(arg, 4096, &v);
}

static void
read_block(void *arg)
{
	uint8_t buf[512];
	struct iov v = IOV_BUF(buf, sizeof(buf));

	(void)io_read(arg, SIZE - 512, &v);
}

static void
ask_status(void *arg)
{
	struct extent e;

	if (io_status(arg, 0, SIZE, true, &e) >= 0 && (!e.len || e.len > SIZE))
		abort();
}

/* All at the same time: who comes after the end would wait for another server. */
static void
use(struct node *n)
{
	static void (*const uses[])(void *) = { read_some, ask_status, read_block, ask_status };
	static const struct root_ops ops = { 0 };
	struct co_group group;
	struct root *root;

	if (node_size(n) < SIZE ||
	    root_new(n, "fuzz", PERM_CONSISTENT_READ, PERM_ALL, &ops, NULL, &root, NULL) < 0)
		return;
	co_group_init(&group);
	for (size_t i = 0; i < ARRAY_SIZE(uses); i++)
		if (co_group_start(&group, uses[i], root) < 0)
			abort();
	co_group_wait(&group);
	root_free(root);
}

static void
run_client(const struct server *s, int fd)
{
	char number[12];
	struct SocketAddress at = { .type = SOCKET_ADDRESS_TYPE_FD, .u.fd.str = number };
	struct BlockdevOptions o = {
		.driver = BLOCKDEV_DRIVER_NBD, .node_name = (char *)"n", .has_read_only = true,
		.read_only = true,
		.u.nbd = { .server = &at, .tls_creds = s->choice & WITH_TLS ? (char *)"tls" : NULL },
	};
	struct error *err = NULL;
	struct node *n;

	snprintf(number, sizeof(number), "%d", fd);
	if (node_open(&o, &open_policy_default, &n, &err) < 0) {
		error_free(err);
		return;
	}
	use(n);
	node_unref(n);
}

static void
one_session(void *arg)
{
	struct server *s = arg;
	struct co_group group;
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
	    sock_new(fds[0], &s->sock) < 0)
		abort();
	co_group_init(&group);
	if (co_group_start(&group, run_server, s) < 0)
		abort();
	run_client(s, fds[1]);
	shutdown(fds[1], SHUT_RDWR);
	close(fds[1]);
	co_group_wait(&group);
	sock_close(s->sock);
}

/* ---- TLS that is none ---- */

static struct tls_creds *
take(const char *id, struct error **errp)
{
	static char any;

	(void)id;
	(void)errp;
	return (struct tls_creds *)&any;
}

static void
drop(struct tls_creds *creds)
{
	(void)creds;
}

static ssize_t
plain_recv(struct sock_filter *f, struct sock *s, void *buf, size_t len)
{
	(void)f;
	return sock_recv_wire(s, buf, len);
}

static ssize_t
plain_send(struct sock_filter *f, struct sock *s, const struct iov *src, size_t skip)
{
	(void)f;
	return sock_send_wire(s, src, skip);
}

static void
plain_close(struct sock_filter *f, struct sock *s)
{
	(void)f;
	(void)s;
}

static int
start(struct sock *s, struct tls_creds *creds, const char *hostname, struct error **errp)
{
	static struct sock_filter plain = { plain_recv, plain_send, plain_close };

	(void)creds;
	(void)hostname;
	(void)errp;
	sock_set_filter(s, &plain);
	return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct tls_client tls = { take, drop, start };
	static bool started;
	struct server s = { 0 };

	if (!started) {
		if (loops_start(0, LOOPS_NO_URING, NULL) < 0)
			abort();
		open_set_tls_client(&tls);
		started = true;
	}
	if (size) {
		s.choice = data[0];
		s.data = data + 1;
		s.size = size - 1;
	}
	if (loop_run_co(one_session, &s) < 0)
		abort();
	return 0;
}
