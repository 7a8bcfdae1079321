/* SPDX-License-Identifier: Apache-2.0 */
/* Connecting, and the handshake.  The socket is ours until it is connected, so that
 * name look-ups and waiting are done the way of the house; libnbd has it from then
 * on, and tells which way it wants to move bytes. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/nbd/lib.h"
#include "block/nbd/nbd.h"
#include "schema/types.h"

static void
handle_close(struct nbd_handle **h)
{
	if (*h)
		lib.nbd_close(*h);
}

static int
connect_unix(const struct UnixSocketAddress *a, int *ret_fd, struct error **errp)
{
	CLEANUP(cleanup_free) char *name = NULL;

	if (!a->has_abstract || !a->abstract)
		return sock_connect_unix(a->path, ret_fd, errp);
	name = malloc(strlen(a->path) + 2);
	if (!name)
		return error_set(errp, "Cannot allocate memory"), -ENOMEM;
	name[0] = '@';
	strcpy(name + 1, a->path);
	return sock_connect_unix(name, ret_fd, errp);
}

/* A connection that whoever started us has made: used once, since it is hung up then. */
static int
use_given(const char *str, int *ret_fd, struct error **errp)
{
	int type = 0, fd;
	socklen_t len = sizeof(type);
	char *end;
	long n;

	errno = 0;
	n = strtol(str, &end, 10);
	if (errno || end == str || *end || n < 0 || n > INT32_MAX) {
		error_set(errp, "File descriptor '%s' is not known", str);
		return -EINVAL;
	}
	if (getsockopt((int)n, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM) {
		error_set(errp, "File descriptor '%s' is not a socket", str);
		return -ENOTSOCK;
	}
	/* Ours is a copy, so that the number does not come to stand for something else. */
	fd = fcntl((int)n, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return error_set_errno(errp, errno, "Cannot use file descriptor '%s'", str);
	*ret_fd = fd;
	return 0;
}

static int
connect_to(const struct SocketAddress *a, int64_t deadline_ns, int *ret_fd, struct error **errp)
{
	switch (a->type) {
	case SOCKET_ADDRESS_TYPE_UNIX:
		return connect_unix(&a->u.q_unix, ret_fd, errp);
	case SOCKET_ADDRESS_TYPE_INET:
		return sock_connect_tcp(a->u.inet.host, a->u.inet.port, deadline_ns, ret_fd, errp);
	case SOCKET_ADDRESS_TYPE_VSOCK:
		return sock_connect_vsock(a->u.vsock.cid, a->u.vsock.port, deadline_ns, ret_fd, errp);
	case SOCKET_ADDRESS_TYPE_FD:
		return use_given(a->u.fd.str, ret_fd, errp);
	default:
		abort();
	}
}

/* libnbd's own words, without the name of the function that they begin with. */
static const char *
libnbd_text(void)
{
	const char *text = lib.nbd_get_error(), *colon = text ? strstr(text, ": ") : NULL;

	return colon ? colon + 2 : text ? text : "unknown error";
}

static int
fail(struct error **errp)
{
	int err = lib.nbd_get_errno();

	/* What QEMU says where it can be told from what libnbd says. */
	if (err == ENOENT)
		error_set(errp, "Requested export not available");
	else if (strstr(libnbd_text(), "requires TLS"))
		error_set(errp, "TLS negotiation required before option 7 (go)");
	else
		error_set(errp, "Failed to negotiate with the NBD server: %s", libnbd_text());
	return err ? -err : -EIO;
}

/* Let libnbd move bytes until the handshake is over. */
static int
shake_hands(struct nbd_handle *h, struct sock *s, int64_t deadline_ns, struct error **errp)
{
	while (lib.nbd_aio_is_connecting(h)) {
		bool reads = lib.nbd_aio_get_direction(h) & LIBNBD_AIO_DIRECTION_READ;
		int r = sock_wait(s, reads ? SOCK_READ : SOCK_WRITE, deadline_ns);

		/* One that talks without end would have us wait for nothing. */
		if (r == 0 && clock_ns() > deadline_ns)
			r = -ETIMEDOUT;
		if (r < 0)
			return error_set_errno(errp, r, "The NBD server did not answer");
		co_yield();
		if ((reads ? lib.nbd_aio_notify_read(h) : lib.nbd_aio_notify_write(h)) < 0)
			return fail(errp);
	}
	if (lib.nbd_aio_is_ready(h))
		return 0;
	error_set(errp, "The NBD server ended the connection");
	return -ECONNRESET;
}

static int
prepare(struct nbd_handle *h, const struct nbd_client *c)
{
	if (lib.nbd_set_export_name(h, c->export_name) < 0)
		return -1;
	/* Buffers of reads are zeroed by libnbd first, so that a server that leaves
	 * parts of its answer out shows nobody our memory. */
	return lib.nbd_add_meta_context(h, c->context);
}

static int
learn(struct nbd_handle *h, const struct nbd_client *c, struct nbd_client_export *x,
      struct error **errp)
{
	int64_t size = lib.nbd_get_size(h), v;

	if (size < 0) {
		error_set(errp, "The NBD server tells no size that a disk can have");
		return -EPROTO;
	}
	x->size = (uint64_t)size;
	v = lib.nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
	x->min_block = v > 0 ? (uint32_t)v : 0;
	v = lib.nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED);
	x->preferred_block = v > 0 ? (uint32_t)v : 0;
	v = lib.nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
	x->max_block = v > 0 ? (uint32_t)v : 0;
	x->read_only = lib.nbd_is_read_only(h) > 0;
	x->flush = lib.nbd_can_flush(h) > 0;
	x->fua = lib.nbd_can_fua(h) > 0;
	x->trim = lib.nbd_can_trim(h) > 0;
	x->zero = lib.nbd_can_zero(h) > 0;
	x->fast_zero = lib.nbd_can_fast_zero(h) > 0;
	x->multi = lib.nbd_can_multi_conn(h) > 0;
	x->status = lib.nbd_can_meta_context(h, c->context) > 0;
	return 0;
}

/* Shake hands over fd, which stays ours. */
static int
speak(struct nbd_handle *h, int fd, int64_t deadline_ns, struct error **errp)
{
	int theirs = fcntl(fd, F_DUPFD_CLOEXEC, 3), r;
	struct sock *s;

	if (theirs < 0)
		return error_set_errno(errp, errno, "Cannot watch the connection");
	r = sock_new(fd, &s);
	if (r < 0) {
		close(theirs);
		return error_set_errno(errp, r, "Cannot watch the connection");
	}
	sock_nodelay(s);
	/* From here on this one is libnbd's, whatever comes. */
	if (lib.nbd_aio_connect_socket(h, theirs) < 0)
		r = fail(errp);
	else
		r = shake_hands(h, s, deadline_ns, errp);
	sock_detach(s);
	return r;
}

int
nbd_dial(const struct nbd_client *c, int64_t deadline_ns, struct nbd_line *ret_line,
	 struct nbd_client_export *ret_export, struct error **errp)
{
	CLEANUP(handle_close) struct nbd_handle *h = lib.nbd_create();
	struct nbd_tunnel *tunnel = NULL;
	int fd, r;

	if (!h || prepare(h, c) < 0)
		return fail(errp);
	r = connect_to(c->address, deadline_ns, &fd, errp);
	if (r >= 0 && c->creds)
		r = nbd_tunnel_open(c, fd, deadline_ns, &fd, &tunnel, errp);
	if (r < 0)
		return r;
	r = speak(h, fd, deadline_ns, errp);
	if (r >= 0)
		r = learn(h, c, ret_export, errp);
	if (r < 0) {
		(void)shutdown(fd, SHUT_RDWR);
		close(fd);
		nbd_tunnel_close(tunnel);
		return r;
	}
	if (tunnel)
		nbd_tunnel_rest(tunnel);
	*ret_line = (struct nbd_line){ .handle = STEAL(h), .fd = fd, .tunnel = tunnel };
	return 0;
}

void
nbd_dial_undo(struct nbd_line *line)
{
	lib.nbd_close(STEAL(line->handle));
	close(line->fd);
	nbd_tunnel_close(STEAL(line->tunnel));
}
