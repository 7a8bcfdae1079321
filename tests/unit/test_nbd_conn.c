/* SPDX-License-Identifier: Apache-2.0 */
/* Connections over a socket pair: the server on its loops, a client that is a
 * plain blocking thread, as clients are. */
#include "tests/unit/aio_test.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "aio/colock.h"
#include "aio/timer.h"
#include "base/bytes.h"
#include "tests/unit/nbd_test.h"

struct session {
	void (*play)(int fd);
	int fds[2];
	pthread_t thread;
};

/* ---- the client's side; runs in its thread, asserts by abort ---- */

#define MUST(cond)                                                             \
	do {                                                                   \
		if (!(cond)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			abort();                                               \
		}                                                              \
	} while (0)

static void
put(int fd, const void *p, size_t len)
{
	MUST(send(fd, p, len, MSG_NOSIGNAL) == (ssize_t)len);
}

static void
get(int fd, void *p, size_t len)
{
	MUST(recv(fd, p, len, MSG_WAITALL) == (ssize_t)len);
}

static bool
at_end(int fd)
{
	char c;

	return recv(fd, &c, 1, 0) <= 0;
}

static void
put_option(int fd, uint32_t option, const void *data, uint32_t len)
{
	uint8_t head[NBD_OPTION_SIZE];

	put_be64(head, NBD_OPTION_MAGIC);
	put_be32(head + 8, option);
	put_be32(head + 12, len);
	put(fd, head, sizeof(head));
	if (len)
		put(fd, data, len);
}

/* The type of the final reply to an option. */
static uint32_t
final_reply(int fd)
{
	uint8_t head[NBD_OPTION_REPLY_SIZE], data[8192];
	uint32_t type;

	do {
		get(fd, head, sizeof(head));
		MUST(get_be64(head) == NBD_REPLY_MAGIC);
		type = get_be32(head + 12);
		MUST(get_be32(head + 16) <= sizeof(data));
		if (get_be32(head + 16))
			get(fd, data, get_be32(head + 16));
	} while (type != NBD_REP_ACK && !(type & NBD_REP_ERR(0)));
	return type;
}

static const uint8_t go_disk[] = "\0\0\0\4disk\0\0";
static const uint8_t meta_disk[] = "\0\0\0\4disk\0\0\0\2\0\0\0\x0f" "base:allocation"
				   "\0\0\0\x15qemu:allocation-depth";

static void
greet(int fd)
{
	uint8_t hello[NBD_GREETING_SIZE], flags[4];

	get(fd, hello, sizeof(hello));
	MUST(get_be64(hello) == NBD_MAGIC && get_be64(hello + 8) == NBD_OPTION_MAGIC);
	put_be32(flags, 3);
	put(fd, flags, sizeof(flags));
}

static void
enter(int fd, bool structured)
{
	greet(fd);
	if (structured) {
		put_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		MUST(final_reply(fd) == NBD_REP_ACK);
		put_option(fd, NBD_OPT_SET_META_CONTEXT, meta_disk, sizeof(meta_disk) - 1);
		MUST(final_reply(fd) == NBD_REP_ACK);
	}
	put_option(fd, NBD_OPT_GO, go_disk, sizeof(go_disk) - 1);
	MUST(final_reply(fd) == NBD_REP_ACK);
}

static void
request(uint8_t *to, uint16_t type, uint64_t cookie, uint64_t offset, uint32_t len)
{
	put_be32(to, NBD_REQUEST_MAGIC);
	put_be16(to + 4, 0);
	put_be16(to + 6, type);
	put_be64(to + 8, cookie);
	put_be64(to + 16, offset);
	put_be32(to + 24, len);
}

static void
put_request(int fd, uint16_t type, uint64_t offset, uint32_t len)
{
	uint8_t head[NBD_REQUEST_SIZE];

	request(head, type, 9, offset, len);
	put(fd, head, sizeof(head));
}

/* The error of a simple reply without data. */
static uint32_t
get_simple(int fd)
{
	uint8_t head[NBD_SIMPLE_REPLY_SIZE];

	get(fd, head, sizeof(head));
	MUST(get_be32(head) == NBD_SIMPLE_REPLY_MAGIC);
	return get_be32(head + 4);
}

/* ---- the server's side ---- */

static void *
client(void *arg)
{
	struct session *s = arg;

	s->play(s->fds[0]);
	close(s->fds[0]);
	loop_quit();
	return NULL;
}

/* Wait until all connections have gone.  Coroutine. */
static void
wait_quiet(void *arg)
{
	struct nbd_server *server = nbd_server_default();

	(void)arg;
	while (!list_empty(&server->conns))
		co_queue_wait(&server->quiet, NULL);
}

static void
accept_one(void *arg)
{
	struct session *s = arg;

	nbd_conn_start(nbd_server_default(), s->fds[1]);
}

static void
play(void (*fn)(int fd))
{
	struct session s = { .play = fn };

	run(nbd_test_start, NULL);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s.fds), 0);
	run(accept_one, &s);
	assert_int_equal(pthread_create(&s.thread, NULL, client, &s), 0);
	loop_run();
	assert_int_equal(pthread_join(s.thread, NULL), 0);
	run(wait_quiet, NULL);
	run(nbd_test_stop, NULL);
}

/* ---- tests ---- */

static void
reads_and_writes(int fd)
{
	static uint8_t data[300000];

	enter(fd, false);
	for (uint32_t len = 1; len <= sizeof(data); len = len * 7 + 1) {
		put_request(fd, NBD_CMD_WRITE, 5, len);
		put(fd, data, len);
		MUST(!get_simple(fd));
		put_request(fd, NBD_CMD_READ, 5, len);
		MUST(!get_simple(fd));
		data[0] = 1;
		get(fd, data, len);
		MUST(bytes_are_zero(data, len));
	}
	put_request(fd, NBD_CMD_DISC, 0, 0);
	MUST(at_end(fd));
}

static void
serves_reads_and_writes(void **state)
{
	(void)state;
	play(reads_and_writes);
}

/* More requests in one send than may be in flight, and more replies than the
 * socket holds, before the first is read. */
static void
a_flood(int fd)
{
	enum { COUNT = 1000, LEN = 4096 };
	static uint8_t batch[COUNT][NBD_REQUEST_SIZE], data[LEN];
	bool seen[COUNT] = { false };
	uint8_t head[NBD_SIMPLE_REPLY_SIZE];

	enter(fd, false);
	for (unsigned i = 0; i < COUNT; i++)
		request(batch[i], NBD_CMD_READ, i, i * 512, LEN);
	put(fd, batch, sizeof(batch));
	for (unsigned i = 0; i < COUNT; i++) {
		get(fd, head, sizeof(head));
		MUST(!get_be32(head + 4) && get_be64(head + 8) < COUNT);
		MUST(!seen[get_be64(head + 8)]);
		seen[get_be64(head + 8)] = true;
		get(fd, data, sizeof(data));
	}
}

static void
answers_each_of_a_flood_once(void **state)
{
	(void)state;
	play(a_flood);
}

static void
hangs_up_in_a_flood(int fd)
{
	enum { COUNT = 500 };
	static uint8_t batch[COUNT][NBD_REQUEST_SIZE];

	enter(fd, true);
	for (unsigned i = 0; i < COUNT; i++)
		request(batch[i], i % 2 ? NBD_CMD_READ : NBD_CMD_BLOCK_STATUS, i, 0, 65536);
	put(fd, batch, sizeof(batch));
}

static void
survives_a_peer_that_hangs_up_in_a_flood(void **state)
{
	(void)state;
	play(hangs_up_in_a_flood);
}

static void
asks_status(int fd)
{
	uint8_t chunk[NBD_CHUNK_SIZE + 4 + 8];

	enter(fd, true);
	put_request(fd, NBD_CMD_BLOCK_STATUS, 4096, 8192);
	for (unsigned context = 0; context < 2; context++) {
		get(fd, chunk, sizeof(chunk));
		MUST(get_be32(chunk) == NBD_STRUCTURED_REPLY_MAGIC);
		MUST(get_be16(chunk + 4) == context);	/* DONE on the last */
		MUST(get_be16(chunk + 6) == NBD_CHUNK_BLOCK_STATUS);
		MUST(get_be32(chunk + 16) == 12);
		MUST(get_be32(chunk + 20) == context);
		MUST(get_be32(chunk + 24) == 8192);
	}
}

static void
tells_status_by_all_contexts_chosen(void **state)
{
	(void)state;
	play(asks_status);
}

static void
sends_options_in_pieces(int fd)
{
	uint8_t head[NBD_OPTION_SIZE];

	greet(fd);
	put_be64(head, NBD_OPTION_MAGIC);
	put_be32(head + 8, NBD_OPT_GO);
	put_be32(head + 12, sizeof(go_disk) - 1);
	for (unsigned i = 0; i < sizeof(head); i++)
		put(fd, head + i, 1);
	for (unsigned i = 0; i < sizeof(go_disk) - 1; i++)
		put(fd, go_disk + i, 1);
	MUST(final_reply(fd) == NBD_REP_ACK);
}

static void
takes_options_in_pieces(void **state)
{
	(void)state;
	play(sends_options_in_pieces);
}

static void
waits_for_the_end(int fd)
{
	enter(fd, false);
	loop_quit();
	MUST(at_end(fd));
}

static void
deletes(void *arg)
{
	int64_t begin = clock_ns();
	struct error *err = NULL;

	assert_true(export_del("e", false, &err) < 0);
	assert_string_equal(error_text(err), "export 'e' still in use");
	error_free(err);
	assert_int_equal(export_del("e", true, NULL), 0);
	assert_true(clock_ns() - begin < INT64_C(20000000000));
	assert_null(export_find("e"));
	*(bool *)arg = true;
}

static void
hard_delete_throws_clients_out(void **state)
{
	struct session s = { .play = waits_for_the_end };
	bool done = false;

	(void)state;
	nbd_test_deleted = 0;
	run(nbd_test_start, NULL);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s.fds), 0);
	run(accept_one, &s);
	assert_int_equal(pthread_create(&s.thread, NULL, client, &s), 0);
	loop_run();
	run(deletes, &done);
	assert_true(done);
	loop_run();
	assert_int_equal(pthread_join(s.thread, NULL), 0);
	assert_int_equal(nbd_test_deleted, 1);
	run(nbd_test_stop, NULL);
}

static void
refusals(void *arg)
{
	static const char *const bad[] = { "", "1a", "a b", "a/b", "-a", "\xc3\xa4" };
	struct error *err = NULL;

	(void)arg;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_true(nbd_test_add(bad[i], "x", false, &err) < 0);
		assert_string_equal(error_text(err), "Invalid block export id");
		error_free(err);
		err = NULL;
	}
	assert_true(nbd_test_add("e", "x", false, &err) < 0);
	assert_string_equal(error_text(err), "Block export id 'e' is already in use");
	error_free(err);
	err = NULL;
	assert_true(nbd_test_add("e2", "disk", false, &err) < 0);
	assert_string_equal(error_text(err), "NBD server already has export named 'disk'");
	error_free(err);
	err = NULL;
	assert_true(export_del("e2", true, &err) < 0);
	assert_string_equal(error_text(err), "Export 'e2' is not found");
	error_free(err);
	assert_int_equal(nbd_test_add("e2.b-c_1", "other", false, NULL), 0);
}

static void
exports_that_cannot_be_are_refused(void **state)
{
	(void)state;
	run(nbd_test_start, NULL);
	run(refusals, NULL);
	run(nbd_test_stop, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(serves_reads_and_writes),
		CO_TEST_NO_URING(serves_reads_and_writes),
		CO_TEST(answers_each_of_a_flood_once),
		CO_TEST(survives_a_peer_that_hangs_up_in_a_flood),
		CO_TEST(tells_status_by_all_contexts_chosen),
		CO_TEST(takes_options_in_pieces),
		CO_TEST(hard_delete_throws_clients_out),
		CO_TEST(exports_that_cannot_be_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
