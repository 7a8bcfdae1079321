/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/conn.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "base/cleanup.h"
#include "export/nbd/export.h"
#include "export/nbd/handshake.h"
#include "export/nbd/server.h"
#include "schema/types.h"

/* What a connection's socket may hold of replies; the kernel may give less. */
enum { SEND_BUFFER = 1 << 20 };

void
nbd_conn_set_sock(struct nbd_conn *c, struct sock *s)
{
	pthread_mutex_lock(&c->lock);
	c->sock = s;
	if (s && c->shut)
		sock_shutdown(s, SHUT_RDWR);
	pthread_mutex_unlock(&c->lock);
}

void
nbd_conn_shutdown(struct nbd_conn *c)
{
	pthread_mutex_lock(&c->lock);
	c->shut = true;
	if (c->sock)
		sock_shutdown(c->sock, SHUT_RDWR);
	pthread_mutex_unlock(&c->lock);
}

/* Loop 0: the connection has been closed. */
static void
conn_ended(struct loop_task *t)
{
	struct nbd_conn *c = CONTAINER_OF(t, struct nbd_conn, ended);

	nbd_server_remove_conn(c->server, c);
	if (c->export)
		export_unref(&c->export->base);
	pthread_mutex_destroy(&c->lock);
	SocketAddress_free(c->peer);
	free(c->identity);
	free(c);
}

static void
close_sock(struct nbd_conn *c)
{
	struct sock *s = c->sock;

	nbd_conn_set_sock(c, NULL);
	sock_close(s);
}

/* Who was on the way between loops does not arrive. */
static void
close_moving(struct nbd_conn *c)
{
	if (c->filter)
		c->filter->close(c->filter, NULL);
	close(c->fd);
}

/* On the connection's own loop, after the handshake. */
static void
transmission(void *arg)
{
	struct nbd_conn *c = arg;
	struct sock *s;

	if (sock_new(c->fd, &s) < 0) {
		close_moving(c);
	} else {
		if (c->filter)
			sock_set_filter(s, c->filter);
		nbd_conn_set_sock(c, s);
		nbd_serve(c);
		close_sock(c);
	}
	loop_post(loop_main(), &c->ended);
}

/* Loop 0: shake hands, then move to where the work is done. */
static void
handshake(void *arg)
{
	struct nbd_conn *c = arg;
	struct sock *s = c->sock;
	struct loop *loop;

	if (nbd_handshake_run(c) < 0) {
		close_sock(c);
		conn_ended(&c->ended);
		return;
	}
	loop = nbd_server_pick_loop(c->server, c->export);
	nbd_conn_set_sock(c, NULL);
	c->filter = sock_filter(s);
	c->fd = sock_detach(s);
	if (co_spawn(loop, transmission, c) < 0) {
		close_moving(c);
		conn_ended(&c->ended);
	}
}

/* Let a batch of replies leave in one piece, at once. */
static void
tune(struct sock *s)
{
	int domain = 0, size = SEND_BUFFER;
	socklen_t len = sizeof(domain);

	sock_nodelay(s);
	/* TCP sizes its buffers by itself. */
	if (!getsockopt(sock_fd(s), SOL_SOCKET, SO_DOMAIN, &domain, &len) && domain == AF_UNIX)
		(void)setsockopt(sock_fd(s), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

void
nbd_conn_start(struct nbd_server *server, int fd)
{
	struct nbd_conn *c = calloc(1, sizeof(*c));

	if (!c || sock_new(fd, &c->sock) < 0) {
		close(fd);
		free(c);
		return;
	}
	tune(c->sock);
	nbd_clients_note_peer(c, fd);
	pthread_mutex_init(&c->lock, NULL);
	c->server = server;
	c->ended.fn = conn_ended;
	nbd_server_add_conn(server, c);
	if (co_start(handshake, c) < 0) {
		close_sock(c);
		conn_ended(&c->ended);
	}
}
