/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_nbd.c - a hostile NBD client.
 *
 * The input is what the client sends after its flags.  Its first byte chooses a
 * good handshake that stands before the rest, so that commands of each mode are
 * reached, or none.
 */
#include <errno.h>
#include <sys/socket.h>

#include "aio/colock.h"
#include "aio/loop.h"
#include "aio/sock.h"
#include "base/cleanup.h"
#include "tests/unit/nbd_test.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t flags[] = "\0\0\0\3";

#define CONTEXTS                                                                             \
	"IHAVEOPT\0\0\0\x0a\0\0\0\x38\0\0\0\4disk\0\0\0\2\0\0\0\x0f" "base:allocation" \
	"\0\0\0\x15qemu:allocation-depth"
#define GO "IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\4disk\0\0"
#define HANDSHAKE(options) { (const uint8_t *)(options), sizeof(options) - 1 }

static const struct handshake {
	const uint8_t *data;
	size_t len;
} handshakes[] = {
	{ NULL, 0 },
	HANDSHAKE("IHAVEOPT\0\0\0\x08\0\0\0\0" CONTEXTS GO),
	HANDSHAKE("IHAVEOPT\0\0\0\x0b\0\0\0\0" CONTEXTS GO),
	HANDSHAKE(GO),
};

struct client {
	struct sock *sock;
	const uint8_t *data;
	size_t size;
};

static void
sends(void *arg)
{
	struct client *c = arg;
	const struct handshake *h = &handshakes[c->size ? c->data[0] % ARRAY_SIZE(handshakes) : 0];
	int r = sock_send(c->sock, flags, sizeof(flags) - 1);

	if (r >= 0 && h->len)
		r = sock_send(c->sock, h->data, h->len);
	if (r >= 0 && c->size)
		r = sock_send(c->sock, c->data + 1, c->size - 1);
	if (r >= 0)
		sock_shutdown(c->sock, SHUT_WR);
}

static void
one_session(void *arg)
{
	struct nbd_server *server = nbd_server_default();
	struct client *c = arg;
	struct co_group group;
	uint8_t buf[4096];
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
	    sock_new(fds[0], &c->sock) < 0)
		abort();
	nbd_conn_start(server, fds[1]);
	co_group_init(&group);
	if (co_group_start(&group, sends, c) < 0)
		abort();
	while (sock_recv(c->sock, buf, sizeof(buf)) > 0)
		;
	co_group_wait(&group);
	sock_close(c->sock);
	while (!list_empty(&server->conns))
		co_queue_wait(&server->quiet, NULL);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool started;
	struct client c = { .data = data, .size = size };

	if (!started) {
		if (loops_start(0, LOOPS_NO_URING, NULL) < 0 ||
		    loop_run_co(nbd_test_start, NULL) < 0)
			abort();
		started = true;
	}
	if (loop_run_co(one_session, &c) < 0)
		abort();
	return 0;
}
