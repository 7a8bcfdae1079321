/* SPDX-License-Identifier: Apache-2.0 */
/* aio/sock.c - one fd, its two directions, and who waits for them.
 *
 * Reading is watched for as long as the sock lives, edge-triggered: the kernel
 * is told once, and tells us when something came.  A direction is ready until
 * a call on it said EAGAIN, and again from the next edge on.  Writing is
 * watched only while a writer waits, since a peer that takes our replies would
 * otherwise wake us for nothing each time.
 *
 * A short read does not count as "dry", although it would save a call: the end
 * or an error of the stream may have come with the same edge as the data, and
 * there would be no second one.
 */
#include "aio/sock.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/loop_int.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/iov.h"

/* While no fds are left a listener looks again this often. */
enum { ACCEPT_RETRY_NS = 50 * 1000 * 1000 };

enum { SEND_PIECES_MAX = 64 };

/* What a call that did not wait is charged for (co_charge()): 1, and 1 each. */
enum { BYTES_PER_CHARGE = 8192 };

struct direction {
	struct event *event;	/* NULL: cannot be watched, is always ready */
	struct co *waiter;
	bool ready;
};

struct sock {
	int fd;
	bool is_socket;
	bool was_blocking;	/* and is again when we are through with it */
	struct loop *loop;
	struct sock_filter *filter;	/* NULL: none */
	struct direction dir[2];
};

/* ---- life ---- */

static void
became_ready(struct sock *s, enum sock_dir which)
{
	struct direction *d = &s->dir[which];

	d->ready = true;
	if (d->waiter)
		co_wake(d->waiter);
}

static void
on_readable(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	became_ready(arg, SOCK_READ);
}

static void
on_writable(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	became_ready(arg, SOCK_WRITE);
}

static void
events_free(struct sock *s)
{
	for (int i = 0; i < 2; i++)
		if (s->dir[i].event)
			event_free(s->dir[i].event);
	s->dir[0].event = s->dir[1].event = NULL;
}

static int
events_make(struct sock *s)
{
	struct event_base *base = s->loop->base;
	struct direction *rd = &s->dir[SOCK_READ], *wr = &s->dir[SOCK_WRITE];

	rd->event = event_new(base, s->fd, EV_READ | EV_PERSIST | EV_ET, on_readable, s);
	wr->event = event_new(base, s->fd, EV_WRITE | EV_ET, on_writable, s);
	if (!rd->event || !wr->event) {
		events_free(s);
		return -ENOMEM;
	}
	errno = ENOMEM;
	if (event_add(rd->event, NULL) == 0)
		return 0;
	/* Regular files and /dev/null cannot be watched, and never block. */
	if (errno != EPERM) {
		events_free(s);
		return -errno;
	}
	events_free(s);
	return 0;
}

static bool
fd_is_socket(int fd)
{
	int type;
	socklen_t len = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0;
}

int
sock_new(int fd, struct sock **ret)
{
	struct sock *s;
	int flags, r;

	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
		return -errno;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->fd = fd;
	s->loop = loop_tls;
	s->is_socket = fd_is_socket(fd);
	s->was_blocking = !(flags & O_NONBLOCK);
	s->dir[SOCK_READ].ready = s->dir[SOCK_WRITE].ready = true;
	r = events_make(s);
	if (r < 0) {
		if (s->was_blocking)
			(void)fcntl(fd, F_SETFL, flags);
		free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int
sock_detach(struct sock *s)
{
	int fd = s->fd;

	assert(s->loop == loop_tls);
	assert(!s->dir[SOCK_READ].waiter && !s->dir[SOCK_WRITE].waiter);
	events_free(s);
	/* A terminal is shared with the shell that we return to. */
	if (s->was_blocking)
		(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	free(s);
	return fd;
}

void
sock_close(struct sock *s)
{
	if (!s)
		return;
	if (s->filter)
		s->filter->close(s->filter, s);
	close(sock_detach(s));
}

void
sock_set_filter(struct sock *s, struct sock_filter *f)
{
	assert(!s->filter);
	s->filter = f;
}

struct sock_filter *
sock_filter(const struct sock *s)
{
	return s->filter;
}

int
sock_fd(const struct sock *s)
{
	return s->fd;
}

void
sock_shutdown(struct sock *s, int how)
{
	/* One that is not connected any more is as good as shut down. */
	(void)shutdown(s->fd, how);
}

void
sock_nodelay(struct sock *s)
{
	int one = 1;

	(void)setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* ---- waiting ---- */

/* Until the event after the last EAGAIN. */
static int
wait_ready(struct sock *s, enum sock_dir which, int64_t deadline_ns)
{
	struct co_limit limit = { 0 };
	struct direction *d = &s->dir[which];

	assert(s->loop == loop_tls && co_self() && !d->waiter);
	if (!d->event)
		return co_cancelled() ? -ECANCELED : 0;
	if (which == SOCK_WRITE && !d->ready && event_add(d->event, NULL) < 0)
		return -ENOMEM;
	co_limit_set(&limit, deadline_ns);
	d->waiter = limit.co;
	while (!d->ready && !limit.over && !co_cancelled())
		co_park();
	d->waiter = NULL;
	co_limit_clear(&limit);
	if (co_cancelled())
		return -ECANCELED;
	return d->ready ? 0 : -ETIMEDOUT;
}

int
sock_wait(struct sock *s, enum sock_dir dir, int64_t deadline_ns)
{
	struct pollfd now = { .fd = s->fd, .events = dir == SOCK_READ ? POLLIN : POLLOUT };

	if (co_cancelled())
		return -ECANCELED;
	/* Not ready is certain: there was EAGAIN and no edge since.  Ready only
	 * says that nobody has tried, so the kernel is asked. */
	if (s->dir[dir].ready)
		s->dir[dir].ready = poll(&now, 1, 0) != 0;
	return wait_ready(s, dir, deadline_ns);
}

/* ---- reading ---- */

ssize_t
sock_recv_wire(struct sock *s, void *buf, size_t len)
{
	ssize_t n;

	if (!s->dir[SOCK_READ].ready)
		return -EAGAIN;
	do {
		n = s->is_socket ? recv(s->fd, buf, len, MSG_DONTWAIT) : read(s->fd, buf, len);
	} while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	if (errno != EAGAIN)
		return -errno;
	s->dir[SOCK_READ].ready = false;
	return -EAGAIN;
}

ssize_t
sock_recv_now(struct sock *s, void *buf, size_t len)
{
	return s->filter ? s->filter->recv(s->filter, s, buf, len) : sock_recv_wire(s, buf, len);
}

ssize_t
sock_recv(struct sock *s, void *buf, size_t len)
{
	ssize_t n = co_cancelled() ? -ECANCELED : 0;

	while (n == 0) {
		n = sock_recv_now(s, buf, len);
		if (n >= 0)
			co_charge(1 + (unsigned)(n / BYTES_PER_CHARGE));
		if (n != -EAGAIN)
			return n;
		n = wait_ready(s, SOCK_READ, INT64_MAX);
	}
	return n;
}

int
sock_recv_full(struct sock *s, void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = sock_recv(s, (char *)buf + done, len - done);

		if (n < 0)
			return (int)n;
		if (n == 0)
			return done ? -ECONNRESET : -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

/* ---- writing ---- */

static ssize_t
send_vec(struct sock *s, struct iovec *vec, int count)
{
	struct msghdr msg = { .msg_iov = vec, .msg_iovlen = (size_t)count };
	int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
	ssize_t n;

	do {
		if (!s->is_socket)
			n = writev(s->fd, vec, count);
		else if (count == 1)	/* 5 % less work for the kernel */
			n = send(s->fd, vec->iov_base, vec->iov_len, flags);
		else
			n = sendmsg(s->fd, &msg, flags);
	} while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	if (errno != EAGAIN)
		return -errno;
	s->dir[SOCK_WRITE].ready = false;
	return -EAGAIN;
}

ssize_t
sock_send_wire(struct sock *s, const struct iov *src, size_t skip)
{
	struct iovec some[SEND_PIECES_MAX];
	int i = 0, n = 0;

	if (skip == 0)
		return send_vec(s, src->vec, src->count < IOV_MAX ? src->count : IOV_MAX);
	while (i < src->count && skip >= src->vec[i].iov_len)
		skip -= src->vec[i++].iov_len;
	for (; i < src->count && n < SEND_PIECES_MAX; i++, n++) {
		some[n].iov_base = (char *)src->vec[i].iov_base + skip;
		some[n].iov_len = src->vec[i].iov_len - skip;
		skip = 0;
	}
	return send_vec(s, some, n);
}

ssize_t
sock_send_now(struct sock *s, const struct iov *src, size_t skip)
{
	return s->filter ? s->filter->send(s->filter, s, src, skip) : sock_send_wire(s, src, skip);
}

int
sock_send_iov(struct sock *s, const struct iov *src)
{
	size_t done = 0;
	int r = co_cancelled() ? -ECANCELED : 0;

	while (r == 0 && done < src->len) {
		ssize_t n = sock_send_now(s, src, done);

		if (n >= 0) {
			done += (size_t)n;
			co_charge(1 + (unsigned)(n / BYTES_PER_CHARGE));
		} else if (n == -EAGAIN) {
			r = wait_ready(s, SOCK_WRITE, INT64_MAX);
		} else {
			r = (int)n;
		}
	}
	return r;
}

int
sock_send(struct sock *s, const void *buf, size_t len)
{
	struct iov v = IOV_BUF(buf, len);

	return sock_send_iov(s, &v);
}

/* ---- accepting ---- */

static int
accept_now(struct sock *l)
{
	int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int
sock_accept(struct sock *listener, int *ret_fd)
{
	int r = co_cancelled() ? -ECANCELED : 0;

	while (r == 0) {
		int fd = accept_now(listener);

		if (fd >= 0) {
			*ret_fd = fd;
			return 0;
		}
		switch (fd) {
		case -EAGAIN:
			listener->dir[SOCK_READ].ready = false;
			r = wait_ready(listener, SOCK_READ, INT64_MAX);
			break;
		case -EMFILE:
		case -ENFILE:
		case -ENOBUFS:
		case -ENOMEM:
			r = co_sleep(ACCEPT_RETRY_NS);
			break;
		case -EBADF:
		case -EINVAL:	/* shut down */
		case -ENOTSOCK:
		case -EOPNOTSUPP:
		case -EFAULT:
			return fd;
		default:	/* that connection's own trouble */
			break;
		}
	}
	return r;
}
