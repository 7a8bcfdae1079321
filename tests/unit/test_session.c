/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions: several clients on socket pairs, and a small table of commands. */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "qmp/command.h"
#include "qmp/event.h"
#include "qmp/server.h"
#include "schema/commands.h"

/* ---- commands ------------------------------------------------------------ */

static struct {
	unsigned ran;		/* commands "count" */
	struct co *waiter;	/* in "wait" */
	bool release, cancelled;
	unsigned notices;
} seen;

static int
run_capabilities(const void *args, void *ret, struct error **errp)
{
	return qmp_qmp_capabilities(args, errp);
}

static int
run_commands(const void *args, void *ret, struct error **errp)
{
	return qmp_query_commands(ret, errp);
}

static int
run_version(const void *args, void *ret, struct error **errp)
{
	return qmp_query_version(ret, errp);
}

static int
run_count(const void *args, void *ret, struct error **errp)
{
	seen.ran++;
	return 0;
}

static int
run_wait(const void *args, void *ret, struct error **errp)
{
	seen.waiter = co_self();
	while (!seen.release && !co_cancelled())
		co_park();
	seen.waiter = NULL;
	seen.cancelled = co_cancelled();
	return co_cancelled() ? error_set(errp, "cancelled") : 0;
}

/* A reply of 100 kB. */
static int
run_big(const void *args, void *ret, struct error **errp)
{
	char **text = ret;

	seen.ran++;
	*text = malloc(100001);
	memset(*text, '1', 100000);
	(*text)[100000] = '\0';
	return 0;
}

static int
run_fail(const void *args, void *ret, struct error **errp)
{
	const struct job_pause_args *a = args;

	return error_set_class(errp, ERROR_DEVICE_NOT_ACTIVE, "no '%s'", a->id);
}

static const struct qmp_command commands[] = {
	{ "qmp_capabilities", QMP_READ_ONLY, &qmp_capabilities_args_meta, NULL,
	  run_capabilities },
	{ "query-commands", QMP_READ_ONLY, NULL, &CommandInfoList_meta, run_commands },
	{ "query-version", QMP_READ_ONLY, NULL, &VersionInfo_meta, run_version },
	{ "count", 0, NULL, NULL, run_count },
	{ "count-oob", QMP_OOB, NULL, NULL, run_count },
	{ "wait", 0, NULL, NULL, run_wait },
	{ "big", 0, NULL, &meta_any, run_big },
	{ "fail", 0, &job_pause_args_meta, NULL, run_fail },
	{ .name = NULL },
};

static void
notice(const char *text)
{
	seen.notices++;
}

static const struct qmp_server_config config = {
	.commands = commands, .package = "Quoin test", .notice = notice,
};

/* ---- a client ------------------------------------------------------------ */

struct client {
	struct sock *k;
	struct buf in;
	char line[2048];	/* the last one, its start at least */
};

static const char *
receive(struct client *c)
{
	char chunk[4096], *end;
	size_t len;

	while (!c->in.data || !(end = memchr(c->in.data, '\n', c->in.len))) {
		ssize_t n = sock_recv(c->k, chunk, sizeof(chunk));

		if (n <= 0)
			return n == 0 ? "end" : strerror((int)-n);
		buf_add(&c->in, chunk, (size_t)n);
	}
	len = (size_t)(end - c->in.data);
	assert_true(len > 0 && end[-1] == '\r');
	snprintf(c->line, sizeof(c->line), "%.*s", (int)len - 1, c->in.data);
	buf_consume(&c->in, len + 1);
	return c->line;
}

static void
transmit(struct client *c, const char *text)
{
	assert_int_equal(sock_send(c->k, text, strlen(text)), 0);
}

static void
ask(struct client *c, const char *text, const char *expected)
{
	transmit(c, text);
	assert_string_equal(receive(c), expected);
}

#define OK "{\"return\": {}}"
#define NOT_FOUND(text)                                                        \
	"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"" text "\"}}"
#define GENERIC(text)                                                          \
	"{\"error\": {\"class\": \"GenericError\", \"desc\": \"" text "\"}}"

static void
connect_client(struct client *c, unsigned flags)
{
	int fds[2];

	*c = (struct client){ 0 };
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(sock_new(fds[0], &c->k), 0);
	assert_int_equal(qmp_server_add_stream(fds[1], fds[1], flags, NULL), 0);
	assert_string_equal(receive(c),
			    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, "
			    "\"minor\": 0, \"major\": 10}, \"package\": "
			    "\"Quoin test\"}, \"capabilities\": [\"oob\"]}}");
}

static void
negotiated_client(struct client *c)
{
	connect_client(c, 0);
	ask(c, "{'execute':'qmp_capabilities'}", OK);
}

static void
close_client(struct client *c)
{
	sock_close(c->k);
	buf_done(&c->in);
}

/* Let the server do what it can do now. */
static void
settle(void)
{
	for (int i = 0; i < 20; i++)
		co_defer();
}

/* ---- tests --------------------------------------------------------------- */

static void
negotiation_main(void *arg)
{
	struct client c;

	connect_client(&c, 0);
	ask(&c, "{'execute':'count'}",
	    NOT_FOUND("Expecting capabilities negotiation with 'qmp_capabilities'"));
	ask(&c, "{'execute':'foo'}",
	    NOT_FOUND("Expecting capabilities negotiation with 'qmp_capabilities'"));
	qmp_event_raise("EARLY", NULL, NULL);
	ask(&c, "{'execute':'qmp_capabilities'}", OK);
	ask(&c, "{'execute':'qmp_capabilities'}",
	    NOT_FOUND("Capabilities negotiation is already complete, command ignored"));
	ask(&c, "{'execute':'foo'}", NOT_FOUND("The command foo has not been found"));
	ask(&c, "{'execute':'count', 'arguments':{}, 'id':[1]}",
	    "{\"return\": {}, \"id\": [1]}");
	close_client(&c);
}

static void
negotiation_comes_first(void **state)
{
	loop_run_co(negotiation_main, NULL);
}

static void
requests_main(void *arg)
{
	struct client c;

	negotiated_client(&c);
	ask(&c, "[]", GENERIC("QMP input must be a JSON object"));
	ask(&c, "{}", GENERIC("QMP input lacks member 'execute'"));
	ask(&c, "{'execute':1}", GENERIC("QMP input member 'execute' must be a string"));
	ask(&c, "{'execute':'count','foo':1}",
	    GENERIC("QMP input member 'foo' is unexpected"));
	ask(&c, "{'execute':'count','arguments':null}",
	    GENERIC("QMP input member 'arguments' must be an object"));
	ask(&c, "{'execute':'count','arguments':{'a':1}}",
	    GENERIC("Parameter 'a' is unexpected"));
	ask(&c, "{'exec-oob':'count'}",
	    GENERIC("QMP input member 'exec-oob' is unexpected"));
	ask(&c, "{'execute' 'count'}",
	    GENERIC("JSON parse error, missing : in object pair"));
	ask(&c, "{'execute':'fail','arguments':{'id':'x\\u00e4'},'id':null}",
	    "{\"error\": {\"class\": \"DeviceNotActive\", \"desc\": "
	    "\"no 'x\\u00E4'\"}, \"id\": null}");
	ask(&c, "{'execute':'query-version'}",
	    "{\"return\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 0}, "
	    "\"package\": \"Quoin test\"}}");
	close_client(&c);
}

static void
bad_requests_get_qemus_texts(void **state)
{
	loop_run_co(requests_main, NULL);
}

static void
order_main(void *arg)
{
	struct client c;
	char expected[64];

	negotiated_client(&c);
	transmit(&c, "{'execute':'wait','id':0}");
	for (int i = 1; i <= 20; i++) {
		snprintf(expected, sizeof(expected), "{'execute':'count',\n'id':%d}", i);
		transmit(&c, expected);
	}
	settle();
	assert_int_equal(seen.ran, 0);
	seen.release = true;
	co_wake(seen.waiter);
	for (int i = 0; i <= 20; i++) {
		snprintf(expected, sizeof(expected), "{\"return\": {}, \"id\": %d}", i);
		assert_string_equal(receive(&c), expected);
	}
	close_client(&c);
}

static void
replies_come_in_order(void **state)
{
	loop_run_co(order_main, NULL);
}

static void
two_main(void *arg)
{
	struct client a, b;

	negotiated_client(&a);
	negotiated_client(&b);
	transmit(&a, "{'execute':'wait'}");
	ask(&b, "{'execute':'count'}", OK);
	qmp_event_raise("X", NULL, NULL);
	assert_non_null(strstr(receive(&a), "\"event\": \"X\"}"));
	assert_non_null(strstr(receive(&b), "{\"timestamp\": {\"seconds\": "));
	seen.release = true;
	co_wake(seen.waiter);
	assert_string_equal(receive(&a), OK);
	close_client(&a);
	close_client(&b);
}

static void
a_command_that_waits_stalls_its_own_session_only(void **state)
{
	loop_run_co(two_main, NULL);
}

static void
oob_main(void *arg)
{
	struct client c;

	connect_client(&c, 0);
	ask(&c, "{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}", OK);
	transmit(&c, "{'execute':'wait','id':1}");
	ask(&c, "{'exec-oob':'count-oob','id':2}", "{\"return\": {}, \"id\": 2}");
	ask(&c, "{'exec-oob':'count'}",
	    GENERIC("The command count does not support OOB"));
	ask(&c, "{'exec-oob':'count','execute':'count'}",
	    GENERIC("QMP input member 'execute' clashes with 'exec-oob'"));
	seen.release = true;
	co_wake(seen.waiter);
	assert_string_equal(receive(&c), "{\"return\": {}, \"id\": 1}");
	close_client(&c);
}

static void
a_command_out_of_band_overtakes(void **state)
{
	loop_run_co(oob_main, NULL);
}

static void
read_only_main(void *arg)
{
	struct client c;

	connect_client(&c, QMP_STREAM_READ_ONLY);
	ask(&c, "{'execute':'qmp_capabilities'}", OK);
	ask(&c, "{'execute':'count'}",
	    NOT_FOUND("The command count is not available on a read-only socket"));
	assert_int_equal(seen.ran, 0);
	ask(&c, "{'execute':'query-commands'}",
	    "{\"return\": [{\"name\": \"qmp_capabilities\"}, "
	    "{\"name\": \"query-commands\"}, {\"name\": \"query-version\"}]}");
	close_client(&c);
}

static void
a_read_only_session_changes_nothing(void **state)
{
	loop_run_co(read_only_main, NULL);
}

static void
half_closed_main(void *arg)
{
	struct client c;

	negotiated_client(&c);
	transmit(&c, "{'execute':'wait','id':1}{'execute':'count','id':2}");
	sock_shutdown(c.k, SHUT_WR);
	settle();
	seen.release = true;
	co_wake(seen.waiter);
	assert_string_equal(receive(&c), "{\"return\": {}, \"id\": 1}");
	assert_string_equal(receive(&c), "{\"return\": {}, \"id\": 2}");
	assert_string_equal(receive(&c), "end");
	close_client(&c);
}

static void
a_client_that_only_stops_sending_gets_its_replies(void **state)
{
	loop_run_co(half_closed_main, NULL);
}

static void
gone_main(void *arg)
{
	struct client c;

	negotiated_client(&c);
	transmit(&c, "{'execute':'wait'}{'execute':'big'}{'execute':'count'}");
	settle();
	close_client(&c);
	settle();
	assert_non_null(seen.waiter);
	seen.release = true;
	co_wake(seen.waiter);
	settle();
	assert_false(seen.cancelled);
}

static void
a_command_outlives_its_client(void **state)
{
	loop_run_co(gone_main, NULL);
}

static void
deaf_main(void *arg)
{
	struct client c;
	char text[40];

	negotiated_client(&c);
	for (int i = 0; i < 100; i++) {
		snprintf(text, sizeof(text), "{'execute':'big','id':%d}", i);
		transmit(&c, text);
		settle();
	}
	/* The kernel's buffer took some; the rest has not even been run. */
	assert_in_range(seen.ran, 1, 20);
	for (int i = 0; i < 100; i++) {
		receive(&c);
		assert_true(strlen(c.line) > 1000);
	}
	assert_int_equal(seen.ran, 100);
	close_client(&c);
}

static void
a_client_that_does_not_read_holds_itself_up(void **state)
{
	loop_run_co(deaf_main, NULL);
}

static void
flood_main(void *arg)
{
	struct client deaf, other;
	unsigned n = 0;

	negotiated_client(&deaf);
	negotiated_client(&other);
	for (; seen.notices == 0 && n < 100000; n++) {
		qmp_event_raise("A_LONG_NAME_FOR_AN_EVENT", NULL, NULL);
		assert_non_null(strstr(receive(&other), "A_LONG_NAME"));
	}
	assert_in_range(n, 5000, 50000);
	ask(&other, "{'execute':'count'}", OK);
	while (receive(&deaf)[0] == '{')
		;
	close_client(&deaf);
	close_client(&other);
}

static void
a_client_that_ignores_events_is_disconnected(void **state)
{
	loop_run_co(flood_main, NULL);
	assert_int_equal(seen.notices, 1);
}

static void
pretty_main(void *arg)
{
	struct client c;
	int fds[2];

	c = (struct client){ 0 };
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(sock_new(fds[0], &c.k), 0);
	assert_int_equal(qmp_server_add_stream(fds[1], fds[1], QMP_STREAM_PRETTY, NULL), 0);
	settle();
	transmit(&c, "{'execute':'qmp_capabilities'}");
	while (!c.in.data || !strstr(c.in.data, "{\n    \"return\": {}\n}\r\n")) {
		char chunk[512];
		ssize_t n = sock_recv(c.k, chunk, sizeof(chunk));

		assert_true(n > 0);
		buf_add(&c.in, chunk, (size_t)n);
	}
	close_client(&c);
}

static void
a_pretty_session_lays_its_replies_out(void **state)
{
	loop_run_co(pretty_main, NULL);
}

static void
stop_main(void *arg)
{
	struct client c;

	negotiated_client(&c);
	transmit(&c, "{'execute':'wait'}{'execute':'count'}");
	settle();
	assert_non_null(seen.waiter);
	qmp_server_stop();
	assert_null(seen.waiter);
	assert_true(seen.cancelled);
	assert_int_equal(seen.ran, 0);
	assert_string_equal(receive(&c), "end");
	close_client(&c);
}

static void
stop_cancels_what_waits(void **state)
{
	loop_run_co(stop_main, NULL);
}

static void
listener_main(void *arg)
{
	struct client c = { 0 };
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "@quoin-test-%d", (int)getpid());
	assert_true(sock_listen_unix(path, 0600, 5, &fd, NULL) >= 0);
	assert_int_equal(qmp_server_add_listener(fd, 0, NULL), 0);
	assert_true(sock_connect_unix(path, &fd, NULL) >= 0);
	assert_int_equal(sock_new(fd, &c.k), 0);
	assert_non_null(strstr(receive(&c), "\"QMP\""));
	ask(&c, "{'execute':'qmp_capabilities'}", OK);
	close_client(&c);
	qmp_server_stop();
	assert_true(sock_connect_unix(path, &fd, NULL) < 0);
}

static void
a_listener_takes_clients_until_the_stop(void **state)
{
	loop_run_co(listener_main, NULL);
}

/* ---- */

static int
setup(void **state)
{
	memset(&seen, 0, sizeof(seen));
	qmp_server_start(&config);
	return loops_setup_flags(0);
}

static void
teardown_main(void *arg)
{
	qmp_server_stop();
}

static int
teardown(void **state)
{
	loop_run_co(teardown_main, NULL);
	loops_stop();
	return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(negotiation_comes_first),
		TEST(bad_requests_get_qemus_texts),
		TEST(replies_come_in_order),
		TEST(a_command_that_waits_stalls_its_own_session_only),
		TEST(a_command_out_of_band_overtakes),
		TEST(a_read_only_session_changes_nothing),
		TEST(a_client_that_only_stops_sending_gets_its_replies),
		TEST(a_command_outlives_its_client),
		TEST(a_client_that_does_not_read_holds_itself_up),
		TEST(a_client_that_ignores_events_is_disconnected),
		TEST(a_pretty_session_lays_its_replies_out),
		TEST(stop_cancels_what_waits),
		TEST(a_listener_takes_clients_until_the_stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
