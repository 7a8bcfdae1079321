/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/session.h - one client: inside qmp/ only.
 *
 * Up to three coroutines serve a session: the reader, which lives as long as
 * the session and parses; the runner, which is there while requests wait and
 * carries them out; the writer, which is there while the client is slower than
 * we are.  The last one out frees the session.
 *
 * Context    loop 0.
 */
#ifndef QMP_SESSION_H
#define QMP_SESSION_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/list.h"

struct co;
struct error;
struct json_object;
struct json_parser;
struct sock;

enum {
	/* Requests that may wait; QEMU's number. */
	QMP_QUEUE_MAX = 8,
	/* Bytes of output that may wait before a command is run. */
	QMP_OUTPUT_LOW = 16 << 10,
	/* Bytes of events that may wait for a client that does not read. */
	QMP_EVENTS_MAX = 1 << 20,
};

/* A request as it came: a tree, or the error that it is instead. */
struct qmp_request {
	struct json_object *tree;
	struct error *err;
};

struct qmp_session {
	struct list link;		/* on the server's list */
	unsigned flags;			/* QMP_STREAM_* */
	unsigned users;			/* coroutines that are at it */
	bool negotiated, oob;
	bool dead;			/* nothing can be sent any more */
	bool ended;			/* nothing will be read any more */
	struct sock *in, *out;		/* the same for a socket */
	bool keep_fds;			/* do not close 0 and 1 */
	struct json_parser *parser;
	struct co *reader, *runner, *writer;
	struct qmp_request queue[QMP_QUEUE_MAX];
	unsigned first, count;
	struct buf pending;		/* output */
	size_t sent;			/* bytes of it that are sent */
	size_t events;			/* bytes of events among it */
};

/* The session whose command the calling coroutine runs; NULL outside. */
struct qmp_session *qmp_session_current(void);

/* Greet and serve; takes the socks over, and frees them if it fails. */
int qmp_session_start(struct sock *in, struct sock *out, unsigned flags,
		      bool keep_fds);

/* Queue a line, and send what can be sent without waiting. */
void qmp_session_send(struct qmp_session *s, const char *line, size_t len,
		      bool event);

/* Drop the client: what runs is cancelled, what waits is forgotten. */
void qmp_session_kill(struct qmp_session *s);

#endif
