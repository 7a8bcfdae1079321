/* SPDX-License-Identifier: Apache-2.0 */
/* Two ends of a socket pair that speak TLS with each other, without certificates. */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "aio/colock.h"
#include "aio/sock.h"
#include "aio/tls.h"
#include "aio/work.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "tests/support/failheap.h"

enum { TOTAL = 3 << 20, SMALL_BUFFER = 4096 };

struct end {
	struct sock *s;
	struct tls_creds *creds;
	int (*talk)(struct end *e);
	int status;
	uint8_t *data;
};

static struct tls_creds *
anonymous(bool server)
{
	const struct tls_config config = { .kind = TLS_ANON, .server = server };
	struct tls_creds *c = NULL;

	assert_int_equal(tls_creds_load(&config, &c, NULL), 0);
	return c;
}

static void
run_end(void *arg)
{
	struct end *e = arg;

	e->status = tls_start(e->s, e->creds, NULL, NULL);
	if (e->status >= 0 && e->talk)
		e->status = e->talk(e);
	sock_close(e->s);
	tls_creds_unref(e->creds);
}

/* Both ends at the same time, over a pair whose buffers hold little.  The n-th
 * allocation of both fails; 0: none.  Was there one? */
static bool
run_failing_pair(struct end *server, struct end *client, unsigned nth)
{
	struct co_group group;
	bool failed;
	int fds[2], size = SMALL_BUFFER;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	for (int i = 0; i < 2; i++)
		setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	assert_int_equal(sock_new(fds[0], &server->s), 0);
	assert_int_equal(sock_new(fds[1], &client->s), 0);
	server->creds = anonymous(true);
	client->creds = anonymous(false);
	co_group_init(&group);
	failheap_arm(nth);
	assert_int_equal(co_group_start(&group, run_end, server), 0);
	assert_int_equal(co_group_start(&group, run_end, client), 0);
	co_group_wait(&group);
	failed = failheap_disarm();
	return failed;
}

static void
run_pair(struct end *server, struct end *client)
{
	(void)run_failing_pair(server, client, 0);
}

static uint8_t
byte_at(size_t i)
{
	return (uint8_t)(i * 7 + i / 251);
}

/* In pieces of many sizes, and several pieces a call. */
static int
sends_all(struct end *e)
{
	size_t at = 0, len = 1;
	int r = 0;

	for (size_t i = 0; i < TOTAL; i++)
		e->data[i] = byte_at(i);
	for (; r >= 0 && at < TOTAL; at += len, len = len * 5 % 600011 + 1) {
		if (len > TOTAL - at)
			len = TOTAL - at;
		struct iovec vec[2] = { { e->data + at, len / 3 },
					{ e->data + at + len / 3, len - len / 3 } };
		struct iov v = { .vec = vec, .count = 2, .len = len };

		r = sock_send_iov(e->s, &v);
	}
	return r;
}

static int
receives_all(struct end *e)
{
	int r = sock_recv_full(e->s, e->data, TOTAL);
	uint8_t more;

	for (size_t i = 0; r >= 0 && i < TOTAL; i++)
		if (e->data[i] != byte_at(i))
			return -EBADMSG;
	/* The other end says good-bye. */
	return r < 0 ? r : (int)sock_recv(e->s, &more, 1);
}

static void
carry(void *arg)
{
	struct end server = { .talk = sends_all, .data = malloc(TOTAL) };
	struct end client = { .talk = receives_all, .data = malloc(TOTAL) };

	(void)arg;
	run_pair(&server, &client);
	assert_int_equal(server.status, 0);
	assert_int_equal(client.status, 0);
	free(server.data);
	free(client.data);
}

static void
what_is_sent_arrives(void **state)
{
	(void)state;
	run(carry, NULL);
}

static int
sends_some(struct end *e)
{
	static const uint8_t some[50000];

	return sock_send(e->s, some, sizeof(some));
}

static int
receives_some(struct end *e)
{
	uint8_t buf[50000];
	int r = sock_recv_full(e->s, buf, sizeof(buf));

	return r < 0 ? r : (int)sock_recv(e->s, buf, 1);
}

static void
fail_each_allocation(void *arg)
{
	bool failed = true;
	unsigned n;

	(void)arg;
	/* The coroutines' stacks are there from the first time on. */
	for (n = 0; failed && n < 100; n++) {
		struct end server = { .talk = sends_some }, client = { .talk = receives_some };

		failed = run_failing_pair(&server, &client, n) || n == 0;
		assert_true(n && failed ? server.status < 0 || client.status < 0
					: server.status == 0 && client.status == 0);
	}
	assert_true(n > 5 && !failed);
}

static void
no_memory_ends_a_session_and_nothing_else(void **state)
{
	(void)state;
	run(fail_each_allocation, NULL);
}

/* Who breaks off without a good-bye might be cut off by somebody else. */
static int
breaks_off(struct end *e)
{
	shutdown(sock_fd(e->s), SHUT_RDWR);
	return 0;
}

static int
receives_one(struct end *e)
{
	uint8_t b;

	return (int)sock_recv(e->s, &b, 1);
}

static void
break_off(void *arg)
{
	struct end server = { .talk = breaks_off }, client = { .talk = receives_one };

	(void)arg;
	run_pair(&server, &client);
	assert_int_equal(client.status, -ECONNRESET);
}

static void
an_end_without_good_bye_is_an_error(void **state)
{
	(void)state;
	run(break_off, NULL);
}

static void
talk_plainly(void *arg)
{
	static const uint8_t junk[600] = "GET / HTTP/1.0\r\n\r\n";
	struct error *err = NULL;
	struct tls_creds *creds = anonymous(true);
	struct sock *s;
	int fds[2];

	(void)arg;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(send(fds[1], junk, sizeof(junk), MSG_NOSIGNAL), sizeof(junk));
	assert_int_equal(sock_new(fds[0], &s), 0);
	assert_true(tls_start(s, creds, NULL, &err) < 0);
	assert_non_null(strstr(error_text(err), "TLS handshake failed"));
	error_free(err);
	assert_null(sock_filter(s));
	assert_null(tls_peer(s));
	sock_close(s);
	close(fds[1]);
	tls_creds_unref(creds);
}

static void
plain_text_is_no_handshake(void **state)
{
	(void)state;
	run(talk_plainly, NULL);
}

static void
hang_up(void *arg)
{
	struct tls_creds *creds = anonymous(true);
	struct sock *s;
	int fds[2];

	(void)arg;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	close(fds[1]);
	assert_int_equal(sock_new(fds[0], &s), 0);
	assert_int_equal(tls_start(s, creds, NULL, NULL), -ECONNRESET);
	sock_close(s);
	tls_creds_unref(creds);
}

static void
a_peer_that_hangs_up_ends_the_handshake(void **state)
{
	(void)state;
	run(hang_up, NULL);
}

static void
ask_for_nonsense(void *arg)
{
	const struct tls_config config = { .kind = TLS_ANON, .server = true, .priority = "JUNK" };
	struct tls_creds *creds = NULL;
	struct error *err = NULL;
	struct sock *s;
	int fds[2];

	(void)arg;
	assert_int_equal(tls_creds_load(&config, &creds, NULL), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(sock_new(fds[0], &s), 0);
	assert_true(tls_start(s, creds, NULL, &err) < 0);
	assert_non_null(strstr(error_text(err), "Unable to set TLS session priority JUNK"));
	error_free(err);
	sock_close(s);
	close(fds[1]);
	tls_creds_unref(creds);
}

static void
a_priority_that_is_nonsense_is_told(void **state)
{
	(void)state;
	run(ask_for_nonsense, NULL);
}

/* ---- a peer that we make ourselves ---- */

/* Says what it has to say in one piece. */
struct peer {
	const char *priority;
	int (*talk)(struct peer *p, gnutls_session_t session);
	int update;		/* a flag of gnutls_session_key_update() */
	int fd;
	bool holds;
	uint8_t held[4096];
	size_t n;
	int result;
};

static ssize_t
hold(gnutls_transport_ptr_t ptr, const void *data, size_t len)
{
	struct peer *p = ptr;

	if (!p->holds)
		return send(p->fd, data, len, MSG_NOSIGNAL);
	assert_true(len <= sizeof(p->held) - p->n);
	memcpy(p->held + p->n, data, len);
	p->n += len;
	return (ssize_t)len;
}

static ssize_t
take(gnutls_transport_ptr_t ptr, void *data, size_t len)
{
	return recv(((struct peer *)ptr)->fd, data, len, 0);
}

static gnutls_session_t
peer_session(struct peer *p, gnutls_psk_client_credentials_t *ret_creds)
{
	static const gnutls_datum_t key = { (unsigned char *)"00112233", 8 };
	gnutls_session_t session;

	gnutls_psk_allocate_client_credentials(ret_creds);
	gnutls_psk_set_client_credentials(*ret_creds, "me", &key, GNUTLS_PSK_KEY_HEX);
	gnutls_init(&session, GNUTLS_CLIENT);
	gnutls_priority_set_direct(session, p->priority, NULL);
	gnutls_credentials_set(session, GNUTLS_CRD_PSK, *ret_creds);
	gnutls_transport_set_ptr(session, p);
	gnutls_transport_set_push_function(session, hold);
	gnutls_transport_set_pull_function(session, take);
	return session;
}

/* A new key before each word. */
static int
says_words(struct peer *p, gnutls_session_t session)
{
	uint8_t echo[12] = { 0 };
	int r = 0;

	p->holds = true;
	for (int i = 0; r >= 0 && i < 3; i++) {
		r = gnutls_session_key_update(session, (unsigned)p->update);
		if (r >= 0)
			r = (int)gnutls_record_send(session, "word", 4);
	}
	p->holds = false;
	if (r >= 0 && send(p->fd, p->held, p->n, MSG_NOSIGNAL) != (ssize_t)p->n)
		r = -1;
	for (size_t at = 0; r >= 0 && at < sizeof(echo); at += (size_t)r)
		r = (int)gnutls_record_recv(session, echo + at, sizeof(echo) - at);
	return r < 0 ? r : memcmp(echo, "wordwordword", 12);
}

/* Would begin anew within its session, as TLS 1.2 knows it. */
static int
shakes_hands_again(struct peer *p, gnutls_session_t session)
{
	(void)p;
	return gnutls_handshake(session);
}

static int
peer_talks(void *arg)
{
	struct peer *p = arg;
	gnutls_psk_client_credentials_t creds;
	gnutls_session_t session = peer_session(p, &creds);
	int r = gnutls_handshake(session);

	if (r >= 0)
		r = p->talk(p, session);
	gnutls_deinit(session);
	gnutls_psk_free_client_credentials(creds);
	return r;
}

static void
run_peer(void *arg)
{
	struct peer *p = arg;

	p->result = work_run(peer_talks, p);
}

/* What a server of ours hears and says while the peer talks. */
static void
serve_peer(struct peer *peer, void (*serve)(struct sock *s))
{
	char dir[] = "/tmp/q-test-tls-XXXXXX", path[64];
	struct tls_config config = { .kind = TLS_PSK, .server = true, .dir = mkdtemp(dir) };
	struct tls_creds *creds = NULL;
	struct co_group group;
	struct sock *s;
	int fds[2];
	FILE *f;

	snprintf(path, sizeof(path), "%s/keys.psk", dir);
	f = fopen(path, "we");
	fputs("me:00112233\n", f);
	fclose(f);
	assert_int_equal(tls_creds_load(&config, &creds, NULL), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	peer->fd = fds[1];
	assert_int_equal(sock_new(fds[0], &s), 0);
	co_group_init(&group);
	assert_int_equal(co_group_start(&group, run_peer, peer), 0);
	assert_int_equal(tls_start(s, creds, NULL, NULL), 0);
	serve(s);
	sock_close(s);
	co_group_wait(&group);
	close(fds[1]);
	tls_creds_unref(creds);
	unlink(path);
	rmdir(dir);
}

/* In several pieces, the first of which finds out that the peer wants new keys. */
static void
echo(struct sock *s)
{
	char words[13] = "";
	struct iovec vec[] = { { words, 5 }, { words + 5, 1 }, { words + 6, 6 } };
	struct iov v = { .vec = vec, .count = 3, .len = 12 };

	assert_int_equal(sock_recv_full(s, words, 12), 0);
	assert_string_equal(words, "wordwordword");
	assert_int_equal(sock_send_iov(s, &v), 0);
}

static void
hear_new_keys(void *arg)
{
	const int updates[] = { 0, GNUTLS_KU_PEER };

	(void)arg;
	for (size_t i = 0; i < ARRAY_SIZE(updates); i++) {
		struct peer peer = {
			.priority = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+PSK",
			.talk = says_words, .update = updates[i],
		};

		serve_peer(&peer, echo);
		assert_int_equal(peer.result, 0);
	}
}

static void
new_keys_come_between_data(void **state)
{
	(void)state;
	run(hear_new_keys, NULL);
}

static void
refuse(struct sock *s)
{
	uint8_t b;

	assert_int_equal(sock_recv(s, &b, 1), -EPROTO);
	/* Nor does it go on. */
	assert_true(sock_recv(s, &b, 1) < 0);
	sock_shutdown(s, SHUT_RDWR);
}

static void
hear_a_second_hello(void *arg)
{
	struct peer peer = {
		.priority = "NORMAL:-VERS-ALL:+VERS-TLS1.2:+ECDHE-PSK:+PSK",
		.talk = shakes_hands_again,
	};

	(void)arg;
	serve_peer(&peer, refuse);
	assert_true(peer.result < 0);
}

static void
a_second_handshake_ends_the_session(void **state)
{
	(void)state;
	run(hear_a_second_hello, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(what_is_sent_arrives),
		CO_TEST(no_memory_ends_a_session_and_nothing_else),
		CO_TEST(an_end_without_good_bye_is_an_error),
		CO_TEST(plain_text_is_no_handshake),
		CO_TEST(a_peer_that_hangs_up_ends_the_handshake),
		CO_TEST(a_priority_that_is_nonsense_is_told),
		CO_TEST(new_keys_come_between_data),
		CO_TEST(a_second_handshake_ends_the_session),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
