/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_tls.c - who stands between two ends that speak TLS.
 *
 * The input says what he does with the bytes that pass, six of its own at a time: which
 * direction, after how many bytes, what, and with which value.  Whatever he does, an end
 * hears what the other one said, as far as it hears anything, or an error.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/loop.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "aio/tls.h"
#include "base/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TOTAL = 40000, OP_SIZE = 6, PATIENCE_NS = 50 * 1000 * 1000 };
enum op { OP_FLIP, OP_DROP, OP_TWICE, OP_INSERT, OP_END, OPS };

struct end {
	struct sock *s;
	struct tls_creds *creds;
	struct co_group *group;
	bool heard_all;
};

/* One direction of what passes. */
struct way {
	struct sock *from, *to;
	unsigned number;
	const uint8_t *ops;
	size_t size, passed;
};

static struct tls_creds *creds[2];
static uint8_t words[TOTAL];

/* ---- the ends ---- */

static void
speak(void *arg)
{
	struct end *e = arg;
	size_t at = 0, len = 1;

	for (; at < TOTAL; at += len, len = min_u64(TOTAL - at, len * 3))
		if (sock_send(e->s, words + at, len) < 0)
			return;
}

static void
run_end(void *arg)
{
	struct end *e = arg;
	struct co_group group;
	uint8_t buf[5000];
	size_t at = 0;
	ssize_t n;

	if (tls_start(e->s, e->creds, NULL, NULL) >= 0) {
		co_group_init(&group);
		if (co_group_start(&group, speak, e) < 0)
			abort();
		while (at < TOTAL && (n = sock_recv(e->s, buf, sizeof(buf))) > 0) {
			if ((size_t)n > TOTAL - at || memcmp(buf, words + at, (size_t)n))
				abort();
			at += (size_t)n;
		}
		e->heard_all = at == TOTAL;
		if (!e->heard_all)
			sock_shutdown(e->s, SHUT_RDWR);
		co_group_wait(&group);
	}
	sock_close(e->s);
}

/* ---- between them ---- */

/* How far bytes pass untouched from here on; SIZE_MAX: to the end. */
static size_t
until_next(const struct way *w)
{
	for (size_t i = 0; i + OP_SIZE <= w->size; i += OP_SIZE) {
		const uint8_t *op = w->ops + i;
		size_t at = get_be16(op + 1);

		if ((op[0] & 1u) == w->number && at >= w->passed)
			return at - w->passed;
	}
	return SIZE_MAX;
}

/* What befalls the byte that comes next; -1: the end. */
static int
meddle(struct way *w, const uint8_t *op, uint8_t byte)
{
	uint8_t junk[256];

	switch ((enum op)(op[3] % OPS)) {
	case OP_FLIP:
		byte ^= op[4];
		return sock_send(w->to, &byte, 1);
	case OP_DROP:
		return 0;
	case OP_TWICE:
		return sock_send(w->to, (uint8_t[]){ byte, byte }, 2);
	case OP_INSERT:
		memset(junk, op[4], sizeof(junk));
		return sock_send(w->to, junk, op[5]);
	default:
		return -ECONNABORTED;
	}
}

static const uint8_t *
op_here(const struct way *w)
{
	for (size_t i = 0; i + OP_SIZE <= w->size; i += OP_SIZE)
		if ((w->ops[i] & 1u) == w->number && get_be16(w->ops + i + 1) == w->passed)
			return w->ops + i;
	return NULL;
}

static void
pass(void *arg)
{
	struct way *w = arg;
	uint8_t buf[4096];
	ssize_t n;
	int r = 0;

	while (r >= 0) {
		size_t free = until_next(w);
		const uint8_t *op = free ? NULL : op_here(w);

		/* Who waits for what was dropped would do so for ever. */
		if (w->size >= OP_SIZE &&
		    sock_wait(w->from, SOCK_READ, clock_ns() + PATIENCE_NS) < 0)
			break;
		n = sock_recv(w->from, buf, op ? 1 : min_u64(free, sizeof(buf)));
		if (n <= 0)
			break;
		r = op ? meddle(w, op, buf[0]) : sock_send(w->to, buf, (size_t)n);
		w->passed += (size_t)n;
	}
	sock_shutdown(w->to, SHUT_WR);
	sock_shutdown(w->from, SHUT_RD);
}

static struct sock *
make_pair(struct end *e)
{
	struct sock *other;
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
	    sock_new(fds[0], &e->s) < 0 || sock_new(fds[1], &other) < 0)
		abort();
	return other;
}

struct input {
	const uint8_t *data;
	size_t size;
};

static void
one_session(void *arg)
{
	const struct input *in = arg;
	struct end server = { .creds = creds[1] }, client = { .creds = creds[0] };
	struct sock *a = make_pair(&server), *b = make_pair(&client);
	struct way down = { .from = a, .to = b, .number = 0, .ops = in->data, .size = in->size };
	struct way up = { .from = b, .to = a, .number = 1, .ops = in->data, .size = in->size };
	struct co_group group;

	co_group_init(&group);
	if (co_group_start(&group, run_end, &server) < 0 ||
	    co_group_start(&group, run_end, &client) < 0 ||
	    co_group_start(&group, pass, &down) < 0 || co_group_start(&group, pass, &up) < 0)
		abort();
	co_group_wait(&group);
	sock_close(a);
	sock_close(b);
	/* Whom nobody disturbs hears everything. */
	if (in->size < OP_SIZE && !(server.heard_all && client.heard_all))
		abort();
}

static void
set_up(void)
{
	for (int server = 0; server < 2; server++) {
		const struct tls_config config = { .kind = TLS_ANON, .server = server };

		if (tls_creds_load(&config, &creds[server], NULL) < 0)
			abort();
	}
	for (size_t i = 0; i < TOTAL; i++)
		words[i] = (uint8_t)(i * 7 + i / 251);
	if (loops_start(0, LOOPS_NO_URING, NULL) < 0)
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool started;
	struct input in = { data, size };

	if (!started)
		set_up();
	started = true;
	if (loop_run_co(one_session, &in) < 0)
		abort();
	return 0;
}
