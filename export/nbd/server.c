/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/loop.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "aio/tls_creds.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/id.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/listen.h"
#include "schema/types.h"

enum {
	MAX_CONNECTIONS = 100,
	HANDSHAKE_SECONDS = 10,
	STOP_SECONDS = 3,
};

struct listener {
	struct list link;	/* server->listeners */
	struct nbd_server *server;
	struct sock *sock;
	struct co *co;		/* referenced; accepts */
};

static struct list servers = LIST_INIT(servers);
static bool held;

struct nbd_server *
nbd_server_find(const char *id)
{
	struct nbd_server *s;

	LIST_FOREACH(s, &servers, link)
		if (!strcmp(s->id, id))
			return s;
	return NULL;
}

struct nbd_server *
nbd_server_default(void)
{
	return nbd_server_find(NBD_SERVER_DEFAULT);
}

/* ---- connections ---- */

static bool
is_full(const struct nbd_server *s)
{
	return held || (s->max_conns && s->n_conns >= s->max_conns);
}

void
nbd_server_hold(bool hold)
{
	struct nbd_server *s;

	held = hold;
	LIST_FOREACH(s, &servers, link)
		co_queue_wake_all(&s->room);
}

void
nbd_server_add_conn(struct nbd_server *s, struct nbd_conn *c)
{
	list_append(&s->conns, &c->link);
	s->n_conns++;
}

static void
server_free(struct nbd_server *s)
{
	tls_creds_unref(s->creds);
	free(s->authz);
	free(s->id);
	free(s);
}

static void
free_if_done(struct nbd_server *s)
{
	if (s->stopped && list_empty(&s->conns) && list_empty(&s->listeners) &&
	    co_queue_empty(&s->quiet))
		server_free(s);
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

/* Takes all the fds over, also where it fails. */
static int
start_listeners(struct nbd_server *s, const int *fds, int n)
{
	int r = 0;

	for (int i = 0; i < n; i++) {
		if (r < 0)
			close(fds[i]);
		else
			r = listener_new(s, fds[i]);
	}
	return r;
}

static int
apply_tls(struct nbd_server *s, const struct NbdServerOptions *opts, struct error **errp)
{
	if (opts->tls_authz && !opts->tls_creds)
		return error_set(errp, "Parameter 'tls-authz' needs 'tls-creds':"
				 " without TLS nobody knows who connects");
	if (!opts->tls_creds)
		return 0;
	s->creds = export_hooks()->take_tls_creds(opts->tls_creds, errp);
	if (!s->creds)
		return -1;
	if (!tls_creds_is_server(s->creds))
		return error_set(errp, "Expected TLS credentials for a server endpoint");
	if (!opts->tls_authz)
		return 0;
	s->authz = strdup(opts->tls_authz);
	return s->authz ? 0 : error_set(errp, "Out of memory");
}

static struct nbd_server *
server_new(const char *id, const struct NbdServerOptions *opts, struct error **errp)
{
	struct nbd_server *s = calloc(1, sizeof(*s));

	if (!s || !(s->id = strdup(id))) {
		free(s);
		error_set(errp, "Out of memory");
		return NULL;
	}
	list_init(&s->link);
	list_init(&s->listeners);
	list_init(&s->exports);
	list_init(&s->conns);
	apply_limits(s, opts);
	if (apply_tls(s, opts, errp) < 0) {
		server_free(s);
		return NULL;
	}
	return s;
}

static int
check_id(const char *id, struct error **errp)
{
	if (!id_is_well_formed(id))
		return error_set(errp, "Invalid NBD server id");
	if (!nbd_server_find(id))
		return 0;
	if (!strcmp(id, NBD_SERVER_DEFAULT))
		return error_set(errp, "NBD server already running");
	return error_set(errp, "NBD server id '%s' is already in use", id);
}

int
nbd_server_start(const char *id, const struct NbdServerOptions *opts, bool tls_optional,
		 struct error **errp)
{
	int fds[NBD_LISTEN_MAX] = { -1 }, n, r;
	struct nbd_server *s;

	id = id ? id : NBD_SERVER_DEFAULT;
	if (check_id(id, errp) < 0)
		return -1;
	s = server_new(id, opts, errp);
	if (!s)
		return -1;
	s->tls_optional = tls_optional;
	n = nbd_listen_at(opts->addr, &s->file, fds, errp);
	if (n < 0) {
		server_free(s);
		return -1;
	}
	r = start_listeners(s, fds, n);
	if (r < 0)
		error_set_errno(errp, r, "Cannot listen");
	else	/* somebody may have been faster while names were looked up */
		r = check_id(id, errp);
	if (r < 0) {
		ownfile_remove(&s->file);
		s->stopped = true;
		cancel_listeners(s);
		free_if_done(s);
		return -1;
	}
	list_append(&servers, &s->link);
	return 0;
}

/* ---- the end ---- */

static void
stop(struct nbd_server *s, int64_t deadline)
{
	struct nbd_shown *shown, *next;
	struct nbd_conn *c;
	int r = 0;

	list_remove(&s->link);
	ownfile_remove(&s->file);
	cancel_listeners(s);
	LIST_FOREACH_SAFE(shown, next, &s->exports, link) {
		list_remove(&shown->link);
		shown->server = NULL;
	}
	/* Also those that have not chosen an export yet. */
	LIST_FOREACH(c, &s->conns, link)
		nbd_conn_shutdown(c);
	export_close_all(nbd_export_is_nowhere, deadline);
	while (r >= 0 && (!list_empty(&s->conns) || !list_empty(&s->listeners)))
		r = co_queue_timedwait(&s->quiet, NULL, deadline);
	s->stopped = true;
	free_if_done(s);
}

static int64_t
stop_deadline(void)
{
	return clock_ns() + STOP_SECONDS * INT64_C(1000000000);
}

int
nbd_server_stop(const char *id, struct error **errp)
{
	struct nbd_server *s = nbd_server_find(id ? id : NBD_SERVER_DEFAULT);

	if (s)
		stop(s, stop_deadline());
	else if (!id)
		return error_set(errp, "NBD server not running");
	else
		return error_set(errp, "NBD server '%s' is not found", id);
	return 0;
}

void
nbd_server_stop_all(void)
{
	int64_t deadline = stop_deadline();
	struct nbd_server *s;

	while ((s = LIST_FIRST(&servers, struct nbd_server, link)))
		stop(s, deadline);
}

/* ---- looking ---- */

static int
add_address(int fd, struct SocketAddressList *list)
{
	struct SocketAddress *a = nbd_listen_address(fd, false);

	if (a && SocketAddressList_add(list, a) == 0)
		return 0;
	SocketAddress_free(a);
	return -ENOMEM;
}

static int
query_one(const struct nbd_server *s, struct NbdServerInfo *info)
{
	const struct listener *l;
	const struct nbd_shown *shown;

	info->id = strdup(s->id);
	info->addresses = calloc(1, sizeof(*info->addresses));
	info->exports = calloc(1, sizeof(*info->exports));
	if (!info->id || !info->addresses || !info->exports)
		return -ENOMEM;
	LIST_FOREACH(l, &s->listeners, link)
		if (add_address(sock_fd(l->sock), info->addresses) < 0)
			return -ENOMEM;
	LIST_FOREACH(shown, &s->exports, link) {
		char *id = strdup(shown->export->base.id);

		if (!id || strList_add(info->exports, id) < 0) {
			free(id);
			return -ENOMEM;
		}
	}
	info->has_tls = s->creds;
	info->tls = s->tls_optional ? NBD_TLS_USE_OPTIONAL : NBD_TLS_USE_REQUIRED;
	info->connections = s->n_conns;
	info->max_connections = s->max_conns;
	return 0;
}

int
nbd_server_query(struct NbdServerInfoList **ret_list, struct error **errp)
{
	CLEANUP(NbdServerInfoList_freep) struct NbdServerInfoList *list = calloc(1, sizeof(*list));
	const struct nbd_server *s;

	if (!list)
		return error_set(errp, "Out of memory");
	LIST_FOREACH(s, &servers, link) {
		struct NbdServerInfo *info = calloc(1, sizeof(*info));

		if (!info || query_one(s, info) < 0 || NbdServerInfoList_add(list, info) < 0) {
			NbdServerInfo_free(info);
			return error_set(errp, "Out of memory");
		}
	}
	*ret_list = STEAL(list);
	return 0;
}
