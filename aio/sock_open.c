/* SPDX-License-Identifier: Apache-2.0 */
/* aio/sock_open.c - listening and connecting. */
#include <errno.h>
#include <netdb.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "aio/work.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { CONNECT_RETRY_NS = 5 * 1000 * 1000 };

/* ---- Unix ---- */

static int
unix_address(const char *path, struct sockaddr_un *ret, socklen_t *ret_len,
	     struct error **errp)
{
	size_t len = strlen(path);

	/* An abstract name is as long as the address says; a path ends in 0. */
	if (len >= sizeof(ret->sun_path)) {
		error_set(errp, "UNIX socket path '%s' is too long, it must be less than %zu bytes",
			  path, sizeof(ret->sun_path));
		return -ENAMETOOLONG;
	}
	if (len == 0) {
		error_set(errp, "UNIX socket path is empty");
		return -EINVAL;
	}
	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	memcpy(ret->sun_path, path, len + 1);
	*ret_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
	if (path[0] == '@') {
		ret->sun_path[0] = '\0';
		*ret_len -= 1;
	}
	return 0;
}

static int
unix_socket(struct error **errp)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 ? error_set_errno(errp, errno, "Failed to create Unix socket") : fd;
}

/* Is the socket at this address one that nobody listens on? */
static bool
is_stale(const struct sockaddr_un *addr, socklen_t len)
{
	CLEANUP(cleanup_close) int fd = unix_socket(NULL);
	struct stat st;

	if (fd < 0 || lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return false;
	return connect(fd, (const struct sockaddr *)addr, len) < 0 && errno == ECONNREFUSED;
}

/* The mode of the fd before it is bound is the most that the path will allow,
 * so it is never open wider than asked for; chmod() then puts back what the
 * umask took. */
static int
unix_bind(int fd, const struct sockaddr_un *addr, socklen_t len, unsigned mode)
{
	bool abstract = !addr->sun_path[0];
	int r;

	if (!abstract && fchmod(fd, mode) < 0)
		return -errno;
	r = bind(fd, (const struct sockaddr *)addr, len);
	if (r < 0 && errno == EADDRINUSE && !abstract) {
		if (!is_stale(addr, len) || unlink(addr->sun_path) < 0)
			return -EADDRINUSE;
		r = bind(fd, (const struct sockaddr *)addr, len);
	}
	if (r < 0)
		return -errno;
	if (!abstract && chmod(addr->sun_path, mode) < 0) {
		r = -errno;
		unlink(addr->sun_path);
		return r;
	}
	return 0;
}

int
sock_listen_unix(const char *path, unsigned mode, int backlog, int *ret_fd,
		 struct error **errp)
{
	CLEANUP(cleanup_close) int fd = -1;
	struct sockaddr_un addr;
	socklen_t len;
	int r;

	r = unix_address(path, &addr, &len, errp);
	if (r < 0)
		return r;
	fd = unix_socket(errp);
	if (fd < 0)
		return fd;
	r = unix_bind(fd, &addr, len, mode);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to bind socket to %s", path);
	if (listen(fd, backlog) < 0) {
		r = error_set_errno(errp, errno, "Failed to listen on socket");
		if (addr.sun_path[0])
			unlink(addr.sun_path);
		return r;
	}
	*ret_fd = fd;
	fd = -1;
	return 0;
}

int
sock_connect_unix(const char *path, int *ret_fd, struct error **errp)
{
	CLEANUP(cleanup_close) int fd = -1;
	struct sockaddr_un addr;
	socklen_t len;
	int r;

	r = unix_address(path, &addr, &len, errp);
	if (r < 0)
		return r;
	fd = unix_socket(errp);
	if (fd < 0)
		return fd;
	/* EAGAIN is a full backlog, which no poll would tell about. */
	while (connect(fd, (struct sockaddr *)&addr, len) < 0) {
		r = errno == EAGAIN ? co_sleep(CONNECT_RETRY_NS) : -errno;
		if (r < 0 && r != -EINTR)
			return error_set_errno(errp, r, "Failed to connect to '%s'", path);
	}
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* ---- TCP ---- */

struct lookup {
	const char *host, *port;
	struct addrinfo hints, *list;
};

static int
lookup_work(void *arg)
{
	struct lookup *l = arg;

	return getaddrinfo(l->host, l->port, &l->hints, &l->list);
}

static void
lookup_free(struct addrinfo **list)
{
	if (*list)
		freeaddrinfo(*list);
}

static int
lookup(const char *host, const char *port, int flags, struct addrinfo **ret, struct error **errp)
{
	struct lookup l = {
		.host = host && *host ? host : NULL,
		.port = port,
		.hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM },
	};
	int r;

	/* Numeric ones need no look at any file, nor the network. */
	l.hints.ai_flags = flags | AI_NUMERICHOST | AI_NUMERICSERV;
	r = lookup_work(&l);
	if (r == EAI_NONAME) {
		l.hints.ai_flags = flags;
		r = work_run(lookup_work, &l);
	}
	if (r) {
		error_set(errp, "address resolution failed for %s:%s: %s", host ? host : "", port,
			  gai_strerror(r));
		return r == EAI_MEMORY ? -ENOMEM : -ENOENT;
	}
	*ret = l.list;
	return 0;
}

static void
set_port(struct sockaddr *to, const struct sockaddr *from)
{
	/* The port is at the same place for both families. */
	((struct sockaddr_in *)to)->sin_port = ((const struct sockaddr_in *)from)->sin_port;
}

/* Bind to ai and listen.  Returns the fd. */
static int
listen_at(const struct addrinfo *ai, int backlog)
{
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int one = 1, r;

	if (fd < 0)
		return -errno;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (ai->ai_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, backlog) == 0)
		return fd;
	r = -errno;
	close(fd);
	return r;
}

int
sock_listen_tcp(const char *host, const char *port, int backlog, int *ret_fds, int max,
		struct error **errp)
{
	CLEANUP(lookup_free) struct addrinfo *list = NULL;
	struct sockaddr_storage first = { 0 };
	socklen_t len = sizeof(first);
	int n = 0, r;

	r = lookup(host, port, AI_PASSIVE, &list, errp);
	if (r < 0)
		return r;
	for (struct addrinfo *ai = list; ai && n < max; ai = ai->ai_next) {
		if (n > 0)
			set_port(ai->ai_addr, (struct sockaddr *)&first);
		r = listen_at(ai, backlog);
		/* A family that this host does without is no failure. */
		if (r == -EAFNOSUPPORT || (r == -EADDRNOTAVAIL && ai->ai_family == AF_INET6))
			continue;
		if (r < 0)
			goto fail;
		ret_fds[n++] = r;
		if (n == 1 && getsockname(r, (struct sockaddr *)&first, &len) < 0) {
			r = -errno;
			goto fail;
		}
	}
	if (n > 0)
		return n;
fail:
	while (n > 0)
		close(ret_fds[--n]);
	return error_set_errno(errp, r, r == -EADDRINUSE ? "Failed to find an available port"
							 : "Failed to bind socket");
}

/* Connect to the address; returns the fd. */
static int
connect_to(const struct sockaddr *addr, socklen_t addr_len, int64_t deadline_ns)
{
	int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sock *s = NULL;
	int err = 0, r;
	socklen_t len = sizeof(err);

	if (fd < 0)
		return -errno;
	r = connect(fd, addr, addr_len) < 0 ? -errno : 0;
	if (r == -EINPROGRESS) {
		r = sock_new(fd, &s);
		if (r == 0) {
			r = sock_wait(s, SOCK_WRITE, deadline_ns);
			sock_detach(s);
		}
		if (r == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
			r = -errno;
		if (r == 0)
			r = -err;
	}
	if (r == 0)
		return fd;
	close(fd);
	return r;
}

int
sock_connect_tcp(const char *host, const char *port, int64_t deadline_ns, int *ret_fd,
		 struct error **errp)
{
	CLEANUP(lookup_free) struct addrinfo *list = NULL;
	int r;

	r = lookup(host, port, 0, &list, errp);
	if (r < 0)
		return r;
	r = -ENOENT;
	for (struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		r = connect_to(ai->ai_addr, ai->ai_addrlen, deadline_ns);
		if (r >= 0) {
			*ret_fd = r;
			return 0;
		}
		if (r == -ECANCELED || r == -ETIMEDOUT)
			break;
	}
	return error_set_errno(errp, r, "Failed to connect to '%s:%s'", host ? host : "", port);
}

/* ---- vsock ---- */

static int
parse_u32(const char *what, const char *text, uint32_t *ret, struct error **errp)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || n > UINT32_MAX)
		return error_set(errp, "Failed to parse %s '%s'", what, text);
	*ret = (uint32_t)n;
	return 0;
}

static int
vsock_address(const char *cid, const char *port, struct sockaddr_vm *ret, struct error **errp)
{
	*ret = (struct sockaddr_vm){ .svm_family = AF_VSOCK };
	return parse_u32("cid", cid, &ret->svm_cid, errp) < 0 ||
	       parse_u32("port", port, &ret->svm_port, errp) < 0 ? -EINVAL : 0;
}

int
sock_listen_vsock(const char *cid, const char *port, int backlog, int *ret_fd,
		  struct error **errp)
{
	CLEANUP(cleanup_close) int fd = -1;
	struct sockaddr_vm addr;
	int r = vsock_address(cid, port, &addr, errp);

	if (r < 0)
		return r;
	fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set_errno(errp, errno, "Failed to create socket family AF_VSOCK");
	if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
		return error_set_errno(errp, errno, "Failed to bind socket");
	if (listen(fd, backlog) < 0)
		return error_set_errno(errp, errno, "Failed to listen on socket");
	*ret_fd = fd;
	fd = -1;
	return 0;
}

int
sock_connect_vsock(const char *cid, const char *port, int64_t deadline_ns, int *ret_fd,
		   struct error **errp)
{
	struct sockaddr_vm addr;
	int r = vsock_address(cid, port, &addr, errp);

	if (r < 0)
		return r;
	r = connect_to((const struct sockaddr *)&addr, sizeof(addr), deadline_ns);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to connect to '%s:%s'", cid, port);
	*ret_fd = r;
	return 0;
}
