/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation fails in turn, in the start of a server and an export, and
 * in a session with a client: an error comes out, or the connection ends, the
 * server goes on, and nothing is left behind. */
#include "tests/unit/aio_test.h"

#include <sys/socket.h>

#include "aio/colock.h"
#include "aio/sock.h"
#include "tests/support/failheap.h"
#include "tests/unit/nbd_test.h"

enum {
	SESSIONS_MAX = 400,

	/* greeting, list, structured replies, contexts refused and set, go */
	OPTIONS_SIZE = 18 + (28 + 20) + 20 + (20 + 47) + (39 + 20) + (34 + 32 + 20),
	/* two reads of holes, five without data, status */
	REPLIES_SIZE = OPTIONS_SIZE + 2 * 32 + 5 * 16 + 32,
};

/* Options of each kind, and requests of each kind. */
static const uint8_t session[] =
	"\0\0\0\3"
	"IHAVEOPT\0\0\0\x03\0\0\0\0"
	"IHAVEOPT\0\0\0\x08\0\0\0\0"
	"IHAVEOPT\0\0\0\x0a\0\0\0\x23\0\0\0\4disk\0\0\0\1\0\0\0\x0f" "base:allocation\0\0\0\0"
	"IHAVEOPT\0\0\0\x0a\0\0\0\x1f\0\0\0\4disk\0\0\0\1\0\0\0\x0f" "base:allocation"
	"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\4disk\0\0"
	"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\x10\0"
	"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\0\0\1\x10\0"
	"\x25\x60\x95\x13\0\0\0\1\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0\4data"
	"\x25\x60\x95\x13\0\0\0\3\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0"
	"\x25\x60\x95\x13\0\0\0\4\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0\0\0\0\x10\0"
	"\x25\x60\x95\x13\0\0\0\5\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0\0\0\0\x90\0"
	"\x25\x60\x95\x13\0\0\0\6\0\0\0\0\0\0\0\7\0\0\0\0\0\0\0\0\0\0\x10\0"
	"\x25\x60\x95\x13\0\0\0\7\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\x10\0"
	"\x25\x60\x95\x13\0\0\0\2\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0";

struct play {
	unsigned nth;
	bool failed;
	size_t received;
};

static void
one_session(void *arg)
{
	struct nbd_server *server = nbd_server_default();
	struct play *p = arg;
	static uint8_t buf[1 << 20];
	struct sock *s;
	int fds[2];
	ssize_t n;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(sock_new(fds[0], &s), 0);
	failheap_arm(p->nth);
	nbd_conn_start(server, fds[1]);
	if (sock_send(s, session, sizeof(session) - 1) == 0)
		sock_shutdown(s, SHUT_WR);
	while ((n = sock_recv(s, buf, sizeof(buf))) > 0)
		p->received += (size_t)n;
	while (!list_empty(&server->conns))
		co_queue_wait(&server->quiet, NULL);
	p->failed = failheap_disarm();
	sock_close(s);
}

static void
each_allocation_of_a_session_fails(void **state)
{
	struct play whole = { 0 }, p = { .failed = true };

	(void)state;
	run(nbd_test_start, NULL);
	run(one_session, &whole);
	assert_int_equal(whole.received, REPLIES_SIZE);
	for (unsigned n = 1; p.failed && n < SESSIONS_MAX; n++) {
		p = (struct play){ .nth = n };
		run(one_session, &p);
	}
	assert_false(p.failed);
	assert_int_equal(p.received, whole.received);
	run(nbd_test_stop, NULL);
}

struct start {
	unsigned nth;
	bool failed;
};

/* A server and an export, made again, while the n-th allocation fails. */
static void
start_again(void *arg)
{
	static char name[] = "quoin-nbd-heap-test";
	struct SocketAddress addr = {
		.type = SOCKET_ADDRESS_TYPE_UNIX,
		.u.q_unix = { .path = name, .has_abstract = true, .abstract = true },
	};
	struct NbdServerOptions opts = { .addr = &addr };
	struct start *s = arg;
	struct error *err = NULL;
	int r;

	assert_int_equal(nbd_server_stop(NULL, NULL), 0);
	failheap_arm(s->nth);
	r = nbd_server_start(NULL, &opts, false, &err);
	if (r >= 0)
		r = nbd_test_add("e", "disk", true, &err);
	s->failed = failheap_disarm();
	assert_true(s->failed || r == 0);
	assert_true(r >= 0 || err);
	error_free(err);
	if (r < 0 && !nbd_server_default())
		assert_int_equal(nbd_server_start(NULL, &opts, false, NULL), 0);
}

static void
each_allocation_of_a_start_fails(void **state)
{
	struct start s = { .failed = true };

	(void)state;
	run(nbd_test_start, NULL);
	for (unsigned n = 1; s.failed && n < SESSIONS_MAX; n++) {
		s = (struct start){ .nth = n };
		run(start_again, &s);
	}
	assert_false(s.failed);
	run(nbd_test_stop, NULL);
}

/* All on one thread, which is the one that counts. */
static int
one_loop(void **state)
{
	(void)state;
	alarm(TEST_SECONDS);
	return loops_start(0, 0, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(each_allocation_of_a_session_fails, one_loop,
						loops_teardown),
		cmocka_unit_test_setup_teardown(each_allocation_of_a_start_fails, one_loop,
						loops_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
