/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/server.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/loop.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "schema/types.h"

enum {
	MAX_CONNECTIONS = 100,
	HANDSHAKE_SECONDS = 10,
	STOP_SECONDS = 5,
	BACKLOG = 128,
	FDS_MAX = 16,		/* addresses that one host name may have */
	SOCKET_MODE = 0600,
};

struct listener {
	struct list link;	/* server->listeners */
	struct nbd_server *server;
	struct sock *sock;
	struct co *co;		/* referenced; accepts */
};

static struct nbd_server *the_server;

struct nbd_server *
nbd_server_default(void)
{
	return the_server;
}

/* ---- connections ---- */

static bool
is_full(const struct nbd_server *s)
{
	return s->max_conns && s->n_conns >= s->max_conns;
}

void
nbd_server_add_conn(struct nbd_server *s, struct nbd_conn *c)
{
	list_append(&s->conns, &c->link);
	s->n_conns++;
}

static void
free_if_done(struct nbd_server *s)
{
	if (!s->stopped || !list_empty(&s->conns) || !list_empty(&s->listeners) ||
	    !co_queue_empty(&s->quiet))
		return;
	free(s->path);
	free(s);
}

void
nbd_server_remove_conn(struct nbd_server *s, struct nbd_conn *c)
{
	list_remove(&c->link);
	s->n_conns--;
	co_queue_wake_all(&s->room);
	co_queue_wake_all(&s->quiet);
	free_if_done(s);
}

struct loop *
nbd_server_pick_loop(struct nbd_server *s, const struct nbd_export *e)
{
	if (e->base.loop)
		return e->base.loop;
	if (!loop_io_count())
		return loop_main();
	return loop_io(s->next_loop++ % loop_io_count());
}

/* ---- listening ---- */

static void
listener_free(struct listener *l)
{
	sock_close(l->sock);
	co_unref(l->co);
	list_remove(&l->link);
	free(l);
}

/* Accept until cancelled. */
static void
accept_all(void *arg)
{
	struct listener *l = arg;
	struct nbd_server *s = l->server;
	int fd, r = 0;

	l->co = co_ref(co_self());
	while (r >= 0) {
		/* Who comes while all places are taken waits in the backlog. */
		while (r >= 0 && is_full(s))
			r = co_queue_wait_cancellable(&s->room, NULL);
		if (r >= 0)
			r = sock_accept(l->sock, &fd);
		if (r >= 0)
			nbd_conn_start(s, fd);
	}
	listener_free(l);
	co_queue_wake_all(&s->quiet);
	free_if_done(s);
}

/* Takes fd over in any case. */
static int
listener_new(struct nbd_server *s, int fd)
{
	struct listener *l = calloc(1, sizeof(*l));
	int r;

	if (!l) {
		close(fd);
		return -ENOMEM;
	}
	l->server = s;
	list_init(&l->link);
	r = sock_new(fd, &l->sock);
	if (r < 0) {
		close(fd);
		free(l);
		return r;
	}
	list_append(&s->listeners, &l->link);
	r = co_start(accept_all, l);
	if (r < 0)
		listener_free(l);
	return r;
}

static int
listen_unix(const struct UnixSocketAddress *a, char **ret_path, int *ret_fd, struct error **errp)
{
	CLEANUP(cleanup_free) char *path = NULL;

	if (asprintf(&path, "%s%s", a->abstract ? "@" : "", a->path) < 0) {
		path = NULL;
		return error_set(errp, "Out of memory");
	}
	if (sock_listen_unix(path, SOCKET_MODE, BACKLOG, ret_fd, errp) < 0)
		return -1;
	if (!a->abstract)
		*ret_path = STEAL(path);
	return 1;
}

/* A socket that whoever started us listens on already. */
static int
listen_fd(const char *str, int *ret_fd, struct error **errp)
{
	int listens = 0, fd;
	socklen_t len = sizeof(listens);
	char *end;
	long n;

	errno = 0;
	n = strtol(str, &end, 10);
	if (errno || end == str || *end || n < 0 || n > INT32_MAX)
		return error_set(errp, "File descriptor '%s' is not known", str);
	if (getsockopt((int)n, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
		return error_set(errp, "File descriptor '%s' is not a listening socket", str);
	fd = fcntl((int)n, F_DUPFD_CLOEXEC, 3);
	if (fd < 0) {
		error_set_errno(errp, errno, "Cannot use file descriptor '%s'", str);
		return -1;
	}
	*ret_fd = fd;
	return 1;
}

/* Listen at addr.  Returns the count of fds, or -1. */
static int
listen_at(const struct SocketAddress *addr, char **ret_path, int *ret_fds, struct error **errp)
{
	int n;

	switch (addr->type) {
	case SOCKET_ADDRESS_TYPE_UNIX:
		return listen_unix(&addr->u.q_unix, ret_path, ret_fds, errp);
	case SOCKET_ADDRESS_TYPE_INET:
		n = sock_listen_tcp(addr->u.inet.host, addr->u.inet.port, BACKLOG, ret_fds,
				    FDS_MAX, errp);
		return n < 0 ? -1 : n;
	case SOCKET_ADDRESS_TYPE_FD:
		return listen_fd(addr->u.fd.str, ret_fds, errp);
	default:
		return error_set(errp, "NBD servers do not support this type of socket address");
	}
}

static void
cancel_listeners(struct nbd_server *s)
{
	struct listener *l, *next;

	LIST_FOREACH_SAFE(l, next, &s->listeners, link)
		co_cancel(l->co);
}

static void
apply_limits(struct nbd_server *s, const struct NbdServerOptions *opts)
{
	uint32_t seconds = opts->has_handshake_max_seconds ? opts->handshake_max_seconds
							   : HANDSHAKE_SECONDS;

	s->max_conns = opts->has_max_connections ? opts->max_connections : MAX_CONNECTIONS;
	s->handshake_ns = seconds ? (int64_t)seconds * 1000000000 : INT64_MAX;
}

int
nbd_server_start(const struct NbdServerOptions *opts, struct error **errp)
{
	int fds[FDS_MAX] = { -1 }, n, r = 0;
	struct nbd_server *s;

	if (the_server)
		return error_set(errp, "NBD server already running");
	if (opts->tls_creds)
		return error_set(errp, "No TLS credentials with id '%s'", opts->tls_creds);
	s = calloc(1, sizeof(*s));
	if (!s)
		return error_set(errp, "Out of memory");
	list_init(&s->listeners);
	list_init(&s->exports);
	list_init(&s->conns);
	apply_limits(s, opts);
	n = listen_at(opts->addr, &s->path, fds, errp);
	if (n >= 0 && the_server) {
		/* Names were looked up meanwhile, and somebody was faster. */
		error_set(errp, "NBD server already running");
		for (int i = 0; i < n; i++)
			close(fds[i]);
		n = -1;
	}
	if (n < 0) {
		free(s->path);
		free(s);
		return -1;
	}
	for (int i = 0; i < n; i++) {
		int bad = r < 0 ? (close(fds[i]), r) : listener_new(s, fds[i]);

		r = bad;
	}
	if (r < 0) {
		error_set_errno(errp, r, "Cannot listen");
		if (s->path)
			unlink(s->path);
		s->stopped = true;
		cancel_listeners(s);
		free_if_done(s);
		return -1;
	}
	the_server = s;
	return 0;
}

int
nbd_server_stop(struct error **errp)
{
	int64_t deadline = clock_ns() + STOP_SECONDS * INT64_C(1000000000);
	struct nbd_server *s = the_server;
	struct nbd_conn *c;
	int r = 0;

	if (!s)
		return error_set(errp, "NBD server not running");
	the_server = NULL;
	if (s->path)
		unlink(s->path);
	cancel_listeners(s);
	/* Also those that have not chosen an export yet. */
	LIST_FOREACH(c, &s->conns, link)
		nbd_conn_shutdown(c);
	export_close_all(BLOCK_EXPORT_TYPE_NBD);
	while (r >= 0 && (!list_empty(&s->conns) || !list_empty(&s->listeners)))
		r = co_queue_timedwait(&s->quiet, NULL, deadline);
	s->stopped = true;
	free_if_done(s);
	return 0;
}
