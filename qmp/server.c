/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/server.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "base/error.h"
#include "base/list.h"
#include "qmp/server_int.h"
#include "qmp/session.h"

struct listener {
	struct list link;
	struct sock *sock;
	struct co *co;
	unsigned flags;
};

static struct {
	const struct qmp_server_config *config;
	struct list listeners, sessions;
	struct co *stopper;	/* waits until both lists are empty */
} server = {
	.listeners = LIST_INIT(server.listeners),
	.sessions = LIST_INIT(server.sessions),
};

const struct qmp_server_config *
server_config(void)
{
	return server.config;
}

struct list *
server_sessions(void)
{
	return &server.sessions;
}

void
server_notice(const char *text)
{
	if (server.config->notice)
		server.config->notice(text);
}

static void
wake_stopper(void)
{
	if (server.stopper)
		co_wake(server.stopper);
}

void
server_session_gone(void)
{
	wake_stopper();
}

void
qmp_server_start(const struct qmp_server_config *config)
{
	server.config = config;
}

static void
welcome(int fd, unsigned flags)
{
	struct sock *k;

	if (sock_new(fd, &k) < 0) {
		close(fd);
		server_notice("no memory for another QMP client");
		return;
	}
	if (qmp_session_start(k, k, flags, false) < 0) {
		sock_close(k);
		server_notice("no memory for another QMP client");
	}
}

static void
listener_main(void *arg)
{
	struct listener *l = arg;
	int fd;

	l->co = co_self();
	co_yield();
	while (sock_accept(l->sock, &fd) == 0)
		welcome(fd, l->flags);
	list_remove(&l->link);
	sock_close(l->sock);
	free(l);
	wake_stopper();
}

int
qmp_server_add_listener(int fd, unsigned flags, struct error **errp)
{
	struct listener *l = calloc(1, sizeof(*l));
	int r = l ? sock_new(fd, &l->sock) : -ENOMEM;

	if (r < 0) {
		free(l);
		return error_set_errno(errp, r, "Cannot listen for QMP clients");
	}
	l->flags = flags;
	list_append(&server.listeners, &l->link);
	r = co_start(listener_main, l);
	if (r < 0) {
		list_remove(&l->link);
		sock_detach(l->sock);
		free(l);
		return error_set_errno(errp, r, "Cannot listen for QMP clients");
	}
	return 0;
}

int
qmp_server_add_stream(int in, int out, unsigned flags, struct error **errp)
{
	struct sock *from = NULL, *to = NULL;
	int r = sock_new(in, &from);

	if (r == 0 && out == in)
		to = from;
	else if (r == 0)
		r = sock_new(out, &to);
	if (r == 0)
		r = qmp_session_start(from, to, flags, in <= 1 && out <= 1);
	if (r == 0)
		return 0;
	if (to && to != from)
		sock_detach(to);
	if (from)
		sock_detach(from);
	return error_set_errno(errp, r, "Cannot talk QMP on a stream");
}

void
qmp_server_stop(void)
{
	struct listener *l, *nl;
	struct qmp_session *s, *ns;

	server.stopper = co_self();
	LIST_FOREACH_SAFE(l, nl, &server.listeners, link)
		co_cancel(l->co);
	LIST_FOREACH_SAFE(s, ns, &server.sessions, link)
		qmp_session_kill(s);
	while (!list_empty(&server.listeners) || !list_empty(&server.sessions))
		co_park();
	server.stopper = NULL;
}
