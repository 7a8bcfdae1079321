/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/session.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "base/error.h"
#include "base/iov.h"
#include "qmp/dispatch.h"
#include "qmp/json.h"
#include "qmp/server.h"
#include "qmp/server_int.h"
#include "schema/encode.h"

struct qmp_session *
qmp_session_current(void)
{
	struct co *self = co_self();
	struct qmp_session *s;

	LIST_FOREACH(s, server_sessions(), link)
		if (self && (s->runner == self || s->reader == self))
			return s;
	return NULL;
}

static void
request_done(struct qmp_request *rq)
{
	json_free(rq->tree);
	error_free(rq->err);
	*rq = (struct qmp_request){ 0 };
}

static void
drop_queue(struct qmp_session *s)
{
	for (; s->count > 0; s->count--) {
		request_done(&s->queue[s->first]);
		s->first = (s->first + 1) % QMP_QUEUE_MAX;
	}
}

static void
close_sock(struct qmp_session *s, struct sock *k)
{
	if (s->keep_fds)
		sock_detach(k);
	else
		sock_close(k);
}

/* One coroutine less; the last one frees. */
static void
leave(struct qmp_session *s)
{
	if (--s->users > 0)
		return;
	list_remove(&s->link);
	drop_queue(s);
	if (s->out != s->in)
		close_sock(s, s->out);
	close_sock(s, s->in);
	json_parser_free(s->parser);
	buf_done(&s->pending);
	free(s);
	server_session_gone();
}

static void
wake(struct co *co)
{
	if (co)
		co_wake(co);
}

/* ---- output -------------------------------------------------------------- */

static size_t
output_left(const struct qmp_session *s)
{
	return s->pending.len - s->sent;
}

/* Nothing can be sent any more: end as soon as what runs has ended. */
static void
set_dead(struct qmp_session *s)
{
	s->dead = s->ended = true;
	drop_queue(s);
	buf_reset(&s->pending);
	s->sent = s->events = 0;
	if (s->reader)
		co_cancel(s->reader);
	if (s->writer)
		co_cancel(s->writer);
	wake(s->runner);
}

/* Send what goes without waiting.  0: all is gone, -EAGAIN, or dead. */
static int
flush_now(struct qmp_session *s)
{
	while (!s->dead && output_left(s) > 0) {
		struct iov v = IOV_BUF(s->pending.data, s->pending.len);
		ssize_t n = sock_send_now(s->out, &v, s->sent);

		if (n == -EAGAIN)
			return -EAGAIN;
		if (n < 0)
			set_dead(s);
		else
			s->sent += (size_t)n;
	}
	if (s->pending.cap > 256 << 10)
		buf_done(&s->pending);
	buf_reset(&s->pending);
	s->sent = s->events = 0;
	return 0;
}

static void
writer_main(void *arg)
{
	struct qmp_session *s = arg;

	s->writer = co_self();
	while (flush_now(s) == -EAGAIN) {
		if (s->sent > s->pending.len / 2) {
			buf_consume(&s->pending, s->sent);
			s->sent = 0;
		}
		if (output_left(s) <= QMP_OUTPUT_LOW)
			wake(s->runner);
		if (sock_wait(s->out, SOCK_WRITE, INT64_MAX) < 0)
			set_dead(s);
	}
	s->writer = NULL;
	wake(s->runner);
	wake(s->reader);
	leave(s);
}

static void
start_writer(struct qmp_session *s)
{
	if (s->writer)
		return;
	s->users++;
	if (co_start(writer_main, s) < 0) {
		s->users--;
		set_dead(s);
	}
}

static void
too_slow(struct qmp_session *s)
{
	server_notice("a QMP client that does not read its events is disconnected");
	qmp_session_kill(s);
}

void
qmp_session_send(struct qmp_session *s, const char *line, size_t len, bool event)
{
	size_t before = s->pending.len;

	if (s->dead)
		return;
	if (s->flags & QMP_STREAM_PRETTY)
		json_pretty(&s->pending, line);
	else
		buf_add(&s->pending, line, len);
	buf_adds(&s->pending, "\r\n");
	if (s->pending.failed) {
		/* A reply that is lost would leave the client out of step. */
		set_dead(s);
		return;
	}
	if (event)
		s->events += s->pending.len - before;
	if (s->writer || flush_now(s) == -EAGAIN) {
		if (s->events > QMP_EVENTS_MAX)
			too_slow(s);
		else
			start_writer(s);
	}
}

void
qmp_session_kill(struct qmp_session *s)
{
	s->users++;		/* what we wake must not free it under us */
	set_dead(s);
	if (s->runner)
		co_cancel(s->runner);
	leave(s);
}

/* ---- requests ------------------------------------------------------------ */

static void
reply_to(struct qmp_session *s, struct qmp_request *rq)
{
	CLEANUP(buf_done) struct buf reply = { 0 };

	if (rq->err)
		dispatch_error(rq->err, false, NULL, &reply);
	else
		dispatch(s, rq->tree, &reply);
	/* A client that gets no reply at all must not wait for it. */
	if (reply.failed)
		set_dead(s);
	else
		qmp_session_send(s, reply.data, reply.len, false);
	request_done(rq);
}

/* Carry out what is queued, then end. */
static void
runner_main(void *arg)
{
	struct qmp_session *s = arg;

	s->runner = co_self();
	while (s->count > 0) {
		struct qmp_request rq;

		if (output_left(s) > QMP_OUTPUT_LOW) {
			co_park();
			continue;
		}
		rq = s->queue[s->first];
		s->queue[s->first] = (struct qmp_request){ 0 };
		s->first = (s->first + 1) % QMP_QUEUE_MAX;
		s->count--;
		wake(s->reader);
		reply_to(s, &rq);
	}
	s->runner = NULL;
	wake(s->reader);
	leave(s);
}

static void
enqueue(struct qmp_session *s, struct qmp_request rq)
{
	s->queue[(s->first + s->count++) % QMP_QUEUE_MAX] = rq;
	if (s->runner)
		return;
	s->users++;
	if (co_start(runner_main, s) < 0) {
		s->users--;
		set_dead(s);
	}
}

static void
take_request(struct qmp_session *s, struct qmp_request rq)
{
	if (!rq.err && dispatch_is_oob(s, rq.tree)) {
		reply_to(s, &rq);
		return;
	}
	while (s->count == QMP_QUEUE_MAX && !s->ended)
		co_park();
	if (s->ended)
		request_done(&rq);
	else
		enqueue(s, rq);
}

static void
take_bytes(struct qmp_session *s, const char *at, const char *end)
{
	while (at < end && !s->ended) {
		struct qmp_request rq = { 0 };

		if (json_parser_next(s->parser, &at, end, &rq.tree, &rq.err) != 0)
			take_request(s, rq);
	}
}

static void
greet(struct qmp_session *s)
{
	CLEANUP(buf_done) struct buf b = { 0 };

	buf_adds(&b, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, "
		     "\"minor\": 0, \"major\": 10}, \"package\": ");
	encode_string(&b, server_config()->package);
	buf_adds(&b, "}, \"capabilities\": [\"oob\"]}}");
	if (b.failed)
		set_dead(s);
	else
		qmp_session_send(s, b.data, b.len, false);
}

static void
reader_main(void *arg)
{
	struct qmp_session *s = arg;
	char chunk[4096];
	ssize_t n;

	s->reader = co_self();
	greet(s);
	while (!s->ended && (n = sock_recv(s->in, chunk, sizeof(chunk))) > 0) {
		take_bytes(s, chunk, chunk + n);
		if (n == sizeof(chunk))
			co_yield();
	}
	/* Nothing more comes, but what was asked is still answered. */
	while (!s->dead && (s->runner || s->writer))
		co_park();
	s->ended = true;
	s->reader = NULL;
	leave(s);
}

int
qmp_session_start(struct sock *in, struct sock *out, unsigned flags, bool keep_fds)
{
	struct qmp_session *s = calloc(1, sizeof(*s));
	int r;

	if (s)
		s->parser = json_parser_new();
	if (!s || !s->parser) {
		free(s);
		return -ENOMEM;
	}
	s->in = in;
	s->out = out;
	s->flags = flags;
	s->keep_fds = keep_fds;
	s->users = 1;
	list_append(server_sessions(), &s->link);
	r = co_start(reader_main, s);
	if (r == 0)
		return 0;
	list_remove(&s->link);
	json_parser_free(s->parser);
	free(s);
	return r;
}
