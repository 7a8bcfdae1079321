/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "aio/sock.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/ownfile.h"
#include "schema/types.h"

enum {
	BACKLOG = 128,
	SOCKET_MODE = 0600,
};

static int
listen_unix(const struct UnixSocketAddress *a, struct ownfile *ret_file, int *ret_fd, struct error **errp)
{
	CLEANUP(cleanup_free) char *path = NULL;
	int r;

	if (asprintf(&path, "%s%s", a->abstract ? "@" : "", a->path) < 0) {
		path = NULL;
		return error_set(errp, "Out of memory");
	}
	if (sock_listen_unix(path, SOCKET_MODE, BACKLOG, ret_fd, errp) < 0)
		return -1;
	r = a->abstract ? 0 : ownfile_note(ret_file, path);
	if (r < 0) {
		close(*ret_fd);
		*ret_fd = -1;
		return error_set_errno(errp, r, "Cannot find socket %s again", path);
	}
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

/* Keep those whose family the client wants. */
static int
choose_families(const struct InetSocketAddress *a, int *fds, int n)
{
	/* Asking for one only means not the other. */
	bool v4 = a->has_ipv4 ? a->ipv4 : !(a->has_ipv6 && a->ipv6);
	bool v6 = a->has_ipv6 ? a->ipv6 : !(a->has_ipv4 && a->ipv4);
	int kept = 0, on = 1;

	for (int i = 0; i < n; i++) {
		int domain = AF_INET;
		socklen_t len = sizeof(domain);

		(void)getsockopt(fds[i], SOL_SOCKET, SO_DOMAIN, &domain, &len);
		if (!(domain == AF_INET6 ? v6 : v4)) {
			close(fds[i]);
			continue;
		}
		/* Those that are accepted have it too. */
		if (a->keep_alive)
			(void)setsockopt(fds[i], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
		fds[kept++] = fds[i];
	}
	return kept;
}

static int
listen_inet(const struct InetSocketAddress *a, int *ret_fds, struct error **errp)
{
	long port = strtol(a->port, NULL, 10), last = a->has_to ? a->to : port;
	struct error *err = NULL;
	char text[24];
	int n;

	if (a->mptcp)
		return error_set(errp, "MPTCP is not supported");
	n = sock_listen_tcp(a->host, a->port, BACKLOG, ret_fds, NBD_LISTEN_MAX, &err);
	/* The first port of the range that nobody has. */
	while (n == -EADDRINUSE && port < last) {
		error_free(err);
		err = NULL;
		snprintf(text, sizeof(text), "%ld", ++port);
		n = sock_listen_tcp(a->host, text, BACKLOG, ret_fds, NBD_LISTEN_MAX, &err);
	}
	if (n < 0) {
		error_propagate(errp, err);
		return -1;
	}
	n = choose_families(a, ret_fds, n);
	return n ? n : error_set(errp, "%s has no address of a family that is allowed", a->host);
}

int
nbd_listen_at(const struct SocketAddress *addr, struct ownfile *ret_file, int *ret_fds,
	      struct error **errp)
{
	switch (addr->type) {
	case SOCKET_ADDRESS_TYPE_UNIX:
		return listen_unix(&addr->u.q_unix, ret_file, ret_fds, errp);
	case SOCKET_ADDRESS_TYPE_INET:
		return listen_inet(&addr->u.inet, ret_fds, errp);
	case SOCKET_ADDRESS_TYPE_FD:
		return listen_fd(addr->u.fd.str, ret_fds, errp);
	default:
		return error_set(errp, "NBD servers do not support this type of socket address");
	}
}
