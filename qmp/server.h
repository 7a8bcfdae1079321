/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/server.h - sessions: any number of clients on sockets and streams.
 *
 * There is one server in a program.  A session greets, negotiates, and then
 * runs its commands one after the other, each in a coroutine on loop 0: one
 * that waits holds up its own session alone.  Replies come in the order of the
 * requests; events go to every session that has negotiated.
 *
 * A client that does not read is no danger: while its replies wait, its next
 * command does, then its socket is not read any more; and once a megabyte of
 * events waits for it, it is disconnected, which the notice tells.  A client
 * that only closes its sending side still gets the replies to all it sent.
 *
 * Context    loop 0, unless a call says otherwise.
 */
#ifndef QMP_SERVER_H
#define QMP_SERVER_H

struct error;
struct qmp_command;

struct qmp_server_config {
	const struct qmp_command *commands;	/* up to one without a name */
	const char *package;			/* "Quoin 0.1.0": name and version */
	void (*notice)(const char *text);	/* a line for the operator; or NULL */
};

enum qmp_stream_flag {
	QMP_STREAM_READ_ONLY = 1 << 0,	/* only commands that change nothing */
	QMP_STREAM_PRETTY = 1 << 1,	/* replies over several lines */
};

/* Once, before all else.  config and what it points at are borrowed. */
void qmp_server_start(const struct qmp_server_config *config);

/* Accept clients on fd, a listening socket, from the next turn of the loop on.
 * Takes fd over if it returns 0. */
int qmp_server_add_listener(int fd, unsigned flags, struct error **errp);

/* One session on a pair of pipes, terminals or sockets (both may be the same
 * fd, and stay open at the session's end if they are 0 or 1).  Takes both over
 * if it returns 0. */
int qmp_server_add_stream(int in, int out, unsigned flags, struct error **errp);

/* Close the listeners, cancel what commands still wait, end all sessions, and
 * wait until they have.  Coroutine. */
void qmp_server_stop(void);

#endif
