/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "aio/sock.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/ownfile.h"
#include "export/export.h"
#include "schema/types.h"

enum {
	BACKLOG = 128,
	SOCKET_MODE = 0600,
};

static int
listen_unix(const struct UnixSocketAddress *a, struct ownfile *ret_file, int *ret_fd,
	    struct error **errp)
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

/* All sockets that the service manager passed under this name: the count. */
static int
listen_passed(const char *name, int *ret_fds)
{
	int n = 0, fd;

	while (n < NBD_LISTEN_MAX && (fd = export_hooks()->take_socket(name)) >= 0) {
		(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
		ret_fds[n++] = fd;
	}
	return n;
}

/* Sockets that whoever started us listens on already, by number or name. */
static int
listen_fd(const char *str, int *ret_fds, struct error **errp)
{
	int listens = 0, r;
	socklen_t len = sizeof(listens);
	char *end;
	long n;

	r = listen_passed(str, ret_fds);
	if (r > 0)
		return r;
	errno = 0;
	n = strtol(str, &end, 10);
	if (errno || end == str || *end || n < 0 || n > INT32_MAX)
		return error_set(errp, "File descriptor '%s' is not known", str);
	if (getsockopt((int)n, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
		return error_set(errp, "File descriptor '%s' is not a listening socket", str);
	r = fcntl((int)n, F_DUPFD_CLOEXEC, 3);
	if (r < 0) {
		error_set_errno(errp, errno, "Cannot use file descriptor '%s'", str);
		return -1;
	}
	*ret_fds = r;
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

static int
listen_vsock(const struct VsockSocketAddress *a, int *ret_fd, struct error **errp)
{
	return sock_listen_vsock(a->cid, a->port, BACKLOG, ret_fd, errp) < 0 ? -1 : 1;
}

/* ---- all ---- */

int
nbd_listen_at(const struct SocketAddress *addr, struct ownfile *ret_file, int *ret_fds,
	      struct error **errp)
{
	switch (addr->type) {
	case SOCKET_ADDRESS_TYPE_UNIX:
		return listen_unix(&addr->u.q_unix, ret_file, ret_fds, errp);
	case SOCKET_ADDRESS_TYPE_INET:
		return listen_inet(&addr->u.inet, ret_fds, errp);
	case SOCKET_ADDRESS_TYPE_VSOCK:
		return listen_vsock(&addr->u.vsock, ret_fds, errp);
	case SOCKET_ADDRESS_TYPE_FD:
		return listen_fd(addr->u.fd.str, ret_fds, errp);
	default:
		return error_set(errp, "NBD servers do not support this type of socket address");
	}
}

/* ---- looking ---- */

static void
describe_inet(const struct sockaddr_storage *ss, socklen_t len, struct InetSocketAddress *a)
{
	char host[INET6_ADDRSTRLEN + 16], port[8];

	if (getnameinfo((const struct sockaddr *)ss, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV))
		return;
	a->host = strdup(host);
	a->port = strdup(port);
	a->has_ipv4 = ss->ss_family == AF_INET;
	a->ipv4 = true;
	a->has_ipv6 = ss->ss_family == AF_INET6;
	a->ipv6 = true;
}

static void
describe_unix(const struct sockaddr_storage *ss, socklen_t len, struct UnixSocketAddress *a)
{
	const char *path = ((const struct sockaddr_un *)ss)->sun_path;
	size_t n = len - offsetof(struct sockaddr_un, sun_path);

	if (len <= offsetof(struct sockaddr_un, sun_path))
		a->path = strdup("");
	else if (*path)
		a->path = strndup(path, n);
	else
		a->path = strndup(path + 1, n - 1);
	a->has_abstract = a->abstract = n && !*path && *a->path;
}

static void
describe_vsock(const struct sockaddr_storage *ss, struct VsockSocketAddress *a)
{
	const struct sockaddr_vm *vm = (const struct sockaddr_vm *)ss;

	if (asprintf(&a->cid, "%u", vm->svm_cid) < 0)
		a->cid = NULL;
	if (asprintf(&a->port, "%u", vm->svm_port) < 0)
		a->port = NULL;
}

struct SocketAddress *
nbd_listen_address(int fd, bool peer)
{
	struct SocketAddress *a = calloc(1, sizeof(*a));
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof(ss);
	bool whole;

	if (!a)
		return NULL;
	if ((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&ss, &len) < 0)
		len = 0;
	switch (len ? ss.ss_family : AF_UNIX) {
	case AF_INET:
	case AF_INET6:
		a->type = SOCKET_ADDRESS_TYPE_INET;
		describe_inet(&ss, len, &a->u.inet);
		whole = a->u.inet.host && a->u.inet.port;
		break;
	case AF_VSOCK:
		a->type = SOCKET_ADDRESS_TYPE_VSOCK;
		describe_vsock(&ss, &a->u.vsock);
		whole = a->u.vsock.cid && a->u.vsock.port;
		break;
	default:
		a->type = SOCKET_ADDRESS_TYPE_UNIX;
		describe_unix(&ss, len, &a->u.q_unix);
		whole = a->u.q_unix.path;
		break;
	}
	if (whole)
		return a;
	SocketAddress_free(a);
	return NULL;
}
