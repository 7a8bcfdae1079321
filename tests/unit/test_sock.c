/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"

enum { MS = 1000 * 1000 };

struct pair {
	struct sock *a, *b;
	struct co_group group;
	size_t total;
	int result;
	bool ended;
};

static void
pair_open(struct pair *p)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(sock_new(fds[0], &p->a), 0);
	assert_int_equal(sock_new(fds[1], &p->b), 0);
	co_group_init(&p->group);
}

static void
pair_close(struct pair *p)
{
	sock_close(p->a);
	sock_close(p->b);
}

/* ---- moving bytes ---- */

static void
sends_total(void *arg)
{
	struct pair *p = arg;
	unsigned char buf[60000];
	uint64_t sent = 0;

	while (sent < p->total) {
		size_t n = p->total - sent < sizeof(buf) ? p->total - sent : sizeof(buf);
		struct iovec vec[3] = { { buf, n / 3 }, { buf + n / 3, 0 },
					{ buf + n / 3, n - n / 3 } };
		struct iov v = { .vec = vec, .count = 3, .len = n };

		for (size_t i = 0; i < n; i++)
			buf[i] = (unsigned char)((sent + i) % 251);
		assert_int_equal(sock_send_iov(p->a, &v), 0);
		sent += n;
	}
	sock_shutdown(p->a, SHUT_WR);
}

static void
receives_total(void *arg)
{
	struct pair p = { .total = 5000000 };
	unsigned char buf[7000];
	size_t got = 0;
	ssize_t n;

	pair_open(&p);
	assert_int_equal(co_group_start(&p.group, sends_total, &p), 0);
	while ((n = sock_recv(p.b, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < n; i++, got++)
			assert_int_equal(buf[i], got % 251);
	assert_int_equal(n, 0);
	assert_int_equal(got, p.total);
	co_group_wait(&p.group);
	pair_close(&p);
}

static void
test_a_stream_arrives_whole_through_full_buffers(void **state)
{
	run(receives_total, NULL);
}

static void
recv_full_and_end(void *arg)
{
	struct pair p = { 0 };
	char buf[10];

	pair_open(&p);
	assert_int_equal(sock_send(p.a, "0123456789abc", 13), 0);
	assert_int_equal(sock_recv_full(p.b, buf, 10), 0);
	assert_memory_equal(buf, "0123456789", 10);
	sock_shutdown(p.a, SHUT_WR);
	assert_int_equal(sock_recv_full(p.b, buf, 10), -ECONNRESET);
	assert_int_equal(sock_recv_full(p.b, buf, 10), -ENODATA);
	pair_close(&p);
}

static void
test_recv_full_tells_an_end_within_from_one_before(void **state)
{
	run(recv_full_and_end, NULL);
}

static void
send_to_nobody(void *arg)
{
	struct pair p = { 0 };

	pair_open(&p);
	sock_close(p.b);
	assert_int_equal(sock_send(p.a, "x", 1), -EPIPE);
	sock_close(p.a);
}

static void
test_send_to_a_closed_peer_is_epipe_without_signal(void **state)
{
	run(send_to_nobody, NULL);
}

/* The peer sends a few bytes, leaves ours unread, and closes: data, the end
 * and an error come with one edge. */
static void
reads_to_the_end(void *arg)
{
	struct pair *p = arg;
	char buf[100];
	ssize_t n;

	while ((n = sock_recv(p->b, buf, sizeof(buf))) > 0)
		p->total += (size_t)n;
	p->result = (int)n;
}

static void
data_and_reset_in_one_edge(void *arg)
{
	struct pair p = { 0 };

	pair_open(&p);
	assert_int_equal(co_group_start(&p.group, reads_to_the_end, &p), 0);
	assert_int_equal(sock_send(p.b, "unread", 6), 0);
	assert_int_equal(sock_send(p.a, "data", 4), 0);
	sock_close(p.a);
	co_group_wait(&p.group);
	assert_int_equal(p.total, 4);
	assert_true(p.result == 0 || p.result == -ECONNRESET);
	sock_close(p.b);
}

static void
test_data_and_end_that_come_together_are_both_seen(void **state)
{
	run(data_and_reset_in_one_edge, NULL);
}

static void
pipes(void *arg)
{
	struct pair p = { 0 };
	char buf[8];
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(sock_new(fds[0], &p.b), 0);
	assert_int_equal(sock_new(fds[1], &p.a), 0);
	co_group_init(&p.group);
	assert_int_equal(co_group_start(&p.group, reads_to_the_end, &p), 0);
	assert_int_equal(sock_send(p.a, "pipe", 4), 0);
	co_yield();
	sock_close(p.a);
	co_group_wait(&p.group);
	assert_int_equal(p.total, 4);
	assert_int_equal(p.result, 0);
	assert_int_equal(sock_recv(p.b, buf, sizeof(buf)), 0);
	sock_close(p.b);
}

static void
test_pipes_work_too(void **state)
{
	run(pipes, NULL);
}

static void
files(void *arg)
{
	struct sock *s;
	char buf[8];
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	assert_int_equal(sock_new(fd, &s), 0);
	assert_int_equal(sock_recv(s, buf, sizeof(buf)), 0);
	assert_int_equal(sock_send(s, "x", 1), 0);
	assert_int_equal(sock_wait(s, SOCK_READ, INT64_MAX), 0);
	sock_close(s);
}

static void
test_what_cannot_be_watched_is_always_ready(void **state)
{
	run(files, NULL);
}

/* ---- cancelling and time limits ---- */

static void
waits_for_data(void *arg)
{
	struct pair *p = arg;
	char c;

	p->result = (int)sock_recv(p->b, &c, 1);
	p->ended = true;
}

static struct co *child;

static void
waits_for_data_known(void *arg)
{
	child = co_ref(co_self());
	waits_for_data(arg);
}

static void
fills_the_pipe(void *arg)
{
	struct pair *p = arg;
	static char big[1 << 20];

	child = co_ref(co_self());
	while ((p->result = sock_send(p->a, big, sizeof(big))) == 0)
		;
	p->ended = true;
}

static void
cancels(void *arg)
{
	struct pair p = { 0 };

	pair_open(&p);
	assert_int_equal(co_group_start(&p.group, waits_for_data_known, &p), 0);
	assert_false(p.ended);
	co_cancel(child);
	co_group_wait(&p.group);
	assert_int_equal(p.result, -ECANCELED);
	co_unref(child);

	p.ended = false;
	assert_int_equal(co_group_start(&p.group, fills_the_pipe, &p), 0);
	assert_false(p.ended);
	co_cancel(child);
	co_group_wait(&p.group);
	assert_int_equal(p.result, -ECANCELED);
	co_unref(child);
	pair_close(&p);
}

static void
test_cancel_ends_reads_and_writes(void **state)
{
	run(cancels, NULL);
}

static void
shuts_down(void *arg)
{
	struct pair p = { 0 };

	pair_open(&p);
	assert_int_equal(co_group_start(&p.group, waits_for_data, &p), 0);
	sock_shutdown(p.b, SHUT_RDWR);
	co_group_wait(&p.group);
	assert_int_equal(p.result, 0);
	pair_close(&p);
}

static void
test_shutdown_ends_a_read(void **state)
{
	run(shuts_down, NULL);
}

static void
time_limits(void *arg)
{
	struct pair p = { 0 };
	int64_t start = clock_ns();
	char c;

	pair_open(&p);
	assert_int_equal(sock_wait(p.b, SOCK_READ, start + 20 * MS), -ETIMEDOUT);
	assert_true(clock_ns() - start >= 20 * MS);
	assert_int_equal(sock_wait(p.b, SOCK_WRITE, INT64_MAX), 0);
	assert_int_equal(sock_send(p.a, "x", 1), 0);
	assert_int_equal(sock_wait(p.b, SOCK_READ, INT64_MAX), 0);
	assert_int_equal(sock_wait(p.b, SOCK_READ, INT64_MAX), 0);
	assert_int_equal(sock_recv(p.b, &c, 1), 1);
	assert_int_equal(sock_wait(p.b, SOCK_READ, clock_ns() + MS), -ETIMEDOUT);
	assert_int_equal(sock_recv_now(p.b, &c, 1), -EAGAIN);
	pair_close(&p);
}

static void
test_wait_ends_at_its_deadline(void **state)
{
	run(time_limits, NULL);
}

/* ---- listening on Unix paths ---- */

static char dir_path[64];

static int
dir_setup(void **state)
{
	strcpy(dir_path, "/tmp/test_sock.XXXXXX");
	return mkdtemp(dir_path) ? loops_setup(state) : -1;
}

static int
dir_teardown(void **state)
{
	loops_teardown(state);
	return rmdir(dir_path);
}

static void
unix_path(char *path, size_t size)
{
	snprintf(path, size, "%s/s", dir_path);
}

static void
connect_and_leave(void *arg)
{
	CLEANUP(error_freep) struct error *err = NULL;
	int fd;

	if (sock_connect_unix(arg, &fd, &err) < 0)
		fail_msg("%s", error_text(err));
	close(fd);
}

static void
listen_unix(void *arg)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct co_group group;
	struct sock *l;
	struct stat st;
	char path[80], c;
	int fd, fd2;

	unix_path(path, sizeof(path));
	co_group_init(&group);
	assert_int_equal(sock_listen_unix(path, 0600, 8, &fd, NULL), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(sock_listen_unix(path, 0600, 8, &fd2, &err), -EADDRINUSE);
	assert_non_null(strstr(error_text(err), path));

	assert_int_equal(sock_new(fd, &l), 0);
	for (int i = 0; i < 20; i++) {
		struct sock *s;

		assert_int_equal(co_group_start(&group, connect_and_leave, path), 0);
		assert_int_equal(sock_accept(l, &fd2), 0);
		assert_int_equal(sock_new(fd2, &s), 0);
		assert_int_equal(sock_recv(s, &c, 1), 0);
		sock_close(s);
	}
	co_group_wait(&group);
	sock_close(l);

	/* Now it is stale: nobody answers, so it is replaced. */
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(sock_listen_unix(path, 0660, 8, &fd, NULL), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0660);
	close(fd);
	unlink(path);
}

static void
test_unix_listener_and_stale_socket(void **state)
{
	run(listen_unix, NULL);
}

static void
listen_odd_paths(void *arg)
{
	CLEANUP(error_freep) struct error *err = NULL, *err2 = NULL;
	char path[200], other[80];
	int fd, plain;

	memset(path, 'x', sizeof(path));
	path[0] = '/';
	path[108] = '\0';
	assert_int_equal(sock_listen_unix(path, 0600, 8, &fd, &err), -ENAMETOOLONG);
	assert_non_null(strstr(error_text(err), "is too long"));
	assert_non_null(strstr(error_text(err), "108"));

	/* What is no socket is left alone. */
	unix_path(other, sizeof(other));
	plain = open(other, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	assert_true(plain >= 0);
	close(plain);
	assert_int_equal(sock_listen_unix(other, 0600, 8, &fd, &err2), -EADDRINUSE);
	assert_int_equal(unlink(other), 0);

	snprintf(path, sizeof(path), "@test_sock.%d", (int)getpid());
	assert_int_equal(sock_listen_unix(path, 0600, 8, &fd, NULL), 0);
	connect_and_leave(path);
	close(fd);
	assert_int_equal(sock_connect_unix(path, &fd, NULL), -ECONNREFUSED);
}

static void
test_unix_paths_too_long_taken_and_abstract(void **state)
{
	run(listen_odd_paths, NULL);
}

/* ---- TCP ---- */

static void
listen_tcp(void *arg)
{
	CLEANUP(error_freep) struct error *err = NULL;
	/* The smallest systems have no /etc/hosts. */
	const char *host = gethostbyname("localhost") ? "localhost" : "127.0.0.1";
	struct sockaddr_in addr;
	socklen_t len = sizeof(addr);
	struct sock *l, *s;
	char port[8], c = 0;
	int fds[2], fd, n;

	n = sock_listen_tcp("127.0.0.1", "0", 8, fds, 2, NULL);
	assert_int_equal(n, 1);
	assert_int_equal(getsockname(fds[0], (struct sockaddr *)&addr, &len), 0);
	snprintf(port, sizeof(port), "%d", ntohs(addr.sin_port));
	assert_int_equal(sock_listen_tcp("127.0.0.1", port, 8, fds + 1, 1, &err), -EADDRINUSE);

	assert_int_equal(sock_connect_tcp(host, port, clock_ns() + 5000L * MS, &fd, NULL), 0);
	assert_int_equal(sock_new(fds[0], &l), 0);
	assert_int_equal(sock_accept(l, &fds[1]), 0);
	assert_int_equal(sock_new(fds[1], &s), 0);
	sock_nodelay(s);
	assert_int_equal(sock_send(s, "t", 1), 0);
	sock_close(s);
	assert_int_equal(sock_new(fd, &s), 0);
	assert_int_equal(sock_recv_full(s, &c, 1), 0);
	assert_int_equal(c, 't');
	assert_int_equal(sock_recv(s, &c, 1), 0);
	sock_close(s);
	sock_close(l);
	assert_int_equal(sock_connect_tcp("127.0.0.1", port, clock_ns() + 5000L * MS, &fd, NULL),
			 -ECONNREFUSED);
	assert_int_equal(sock_connect_tcp("no.such.host.invalid", "1", INT64_MAX, &fd, NULL), -ENOENT);
}

static void
test_tcp_listen_connect_accept(void **state)
{
	run(listen_tcp, NULL);
}

static void
accepts_one(void *arg)
{
	struct pair *p = arg;
	int fd;

	p->result = sock_accept(p->a, &fd);
	p->ended = true;
	if (p->result == 0)
		close(fd);
}

static void
accept_without_fds(void *arg)
{
	struct rlimit old, none;
	struct pair p = { 0 };
	char path[80];
	int fd, client;

	unix_path(path, sizeof(path));
	co_group_init(&p.group);
	assert_int_equal(sock_listen_unix(path, 0600, 8, &fd, NULL), 0);
	assert_int_equal(sock_new(fd, &p.a), 0);
	assert_int_equal(sock_connect_unix(path, &client, NULL), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	none.rlim_cur = 3;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(co_group_start(&p.group, accepts_one, &p), 0);
	assert_false(p.ended);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	co_group_wait(&p.group);
	assert_int_equal(p.result, 0);
	close(client);
	sock_close(p.a);
	unlink(path);
}

static void
test_accept_waits_while_there_are_no_fds(void **state)
{
	run(accept_without_fds, NULL);
}

/* ---- connections on all loops, some of which are cancelled ---- */

struct echo {
	atomic_uint echoed, cancelled;
	struct co_group group;
	unsigned seed;
};

struct echo_conn {
	struct echo *echo;
	int fd;
	unsigned number;
};

static void
echo_server(void *arg)
{
	struct echo_conn *c = arg;
	struct sock *s;
	char buf[512];
	ssize_t n;

	assert_int_equal(sock_new(c->fd, &s), 0);
	while ((n = sock_recv(s, buf, sizeof(buf))) > 0)
		if (sock_send(s, buf, (size_t)n) < 0)
			break;
	sock_close(s);
	free(c);
}

static void
echo_client(void *arg)
{
	struct echo_conn *c = arg;
	struct rng rng = { c->echo->seed * 1000 + c->number };
	bool cancels_itself = rng_below(&rng, 5) == 0;
	struct sock *s;
	char out[512], in[512];

	assert_int_equal(sock_new(c->fd, &s), 0);
	for (int i = 0; i < 40; i++) {
		size_t len = 1 + rng_below(&rng, sizeof(out));

		memset(out, i, len);
		if (cancels_itself && i == 20)
			co_cancel(co_self());
		if (sock_send(s, out, len) < 0 || sock_recv_full(s, in, len) < 0) {
			assert_true(cancels_itself);
			atomic_fetch_add(&c->echo->cancelled, 1);
			break;
		}
		assert_memory_equal(in, out, len);
		atomic_fetch_add(&c->echo->echoed, 1);
	}
	sock_close(s);
	free(c);
}

static struct echo_conn *
echo_conn_new(struct echo *e, int fd, unsigned number)
{
	struct echo_conn *c = calloc(1, sizeof(*c));

	assert_non_null(c);
	*c = (struct echo_conn){ e, fd, number };
	return c;
}

static struct loop *
any_loop(struct rng *rng)
{
	unsigned i = rng_below(rng, TEST_IO_LOOPS + 1);

	return i == TEST_IO_LOOPS ? loop_main() : loop_io(i);
}

static void
echo_main(void *arg)
{
	struct echo *e = arg;
	struct rng rng = { e->seed };

	co_group_init(&e->group);
	for (unsigned i = 0; i < 60; i++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		assert_int_equal(co_group_spawn(&e->group, any_loop(&rng), echo_server,
						echo_conn_new(e, fds[0], i)),
				 0);
		assert_int_equal(co_group_spawn(&e->group, any_loop(&rng), echo_client,
						echo_conn_new(e, fds[1], i)),
				 0);
	}
	co_group_wait(&e->group);
}

static void
test_echo_storm_across_loops(void **state)
{
	for (unsigned seed = 1; seed <= 3; seed++) {
		struct echo e = { .seed = seed };

		run(echo_main, &e);
		assert_int_equal(e.echoed + 20 * e.cancelled, 60 * 40);
		assert_true(e.cancelled > 0);
	}
}

#define DIR_TEST(name) cmocka_unit_test_setup_teardown(name, dir_setup, dir_teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(test_a_stream_arrives_whole_through_full_buffers),
		CO_TEST(test_recv_full_tells_an_end_within_from_one_before),
		CO_TEST(test_send_to_a_closed_peer_is_epipe_without_signal),
		CO_TEST(test_data_and_end_that_come_together_are_both_seen),
		CO_TEST(test_pipes_work_too),
		CO_TEST(test_what_cannot_be_watched_is_always_ready),
		CO_TEST(test_cancel_ends_reads_and_writes),
		CO_TEST(test_shutdown_ends_a_read),
		CO_TEST(test_wait_ends_at_its_deadline),
		DIR_TEST(test_unix_listener_and_stale_socket),
		DIR_TEST(test_unix_paths_too_long_taken_and_abstract),
		CO_TEST(test_tcp_listen_connect_accept),
		DIR_TEST(test_accept_waits_while_there_are_no_fds),
		CO_TEST(test_echo_storm_across_loops),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
