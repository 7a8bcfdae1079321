/* SPDX-License-Identifier: Apache-2.0 */
/* aio/sock.h - sockets and pipes for coroutines.
 *
 * A struct sock is a non-blocking fd and its events, on one loop.  Every call
 * first tries, and parks only if it would block.  One coroutine may read while
 * another writes; two must not do the same at one time.
 *
 * Units      bytes; deadlines are clock_ns(), INT64_MAX is never.
 * Context    coroutine on the sock's loop, unless a call says otherwise.
 * Ownership  buffers are borrowed until a call returns.
 * Errors     a negative errno; -ECANCELED: all waits are cancellable.
 */
#ifndef AIO_SOCK_H
#define AIO_SOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct error;
struct iov;
struct sock;

enum sock_dir { SOCK_READ, SOCK_WRITE };

/* Take fd over (socket, pipe, terminal; what cannot be polled, as a file, is
 * always ready), make it non-blocking for as long as it is ours, on this loop.
 * On failure fd remains the caller's.  On a loop.  A program that writes to
 * pipes ignores SIGPIPE. */
int sock_new(int fd, struct sock **ret);

/* Forget the fd without closing it, and give it back: to move a connection to
 * another loop.  Nobody waits on s.  On its loop. */
int sock_detach(struct sock *s);

/* Close the fd, free s.  Nobody waits on s.  On its loop.  Takes NULL. */
void sock_close(struct sock *s);

int sock_fd(const struct sock *s);

/* One recv() of up to len bytes, as soon as there are any.  0 is the end. */
ssize_t sock_recv(struct sock *s, void *buf, size_t len);

/* All of len.  -ECONNRESET if the peer ended within, -ENODATA if it ended
 * before the first byte. */
int sock_recv_full(struct sock *s, void *buf, size_t len);

/* Without waiting: the count, 0 at the end, -EAGAIN.  Not only coroutines. */
ssize_t sock_recv_now(struct sock *s, void *buf, size_t len);
ssize_t sock_send_now(struct sock *s, const struct iov *src, size_t skip);

/* All of src.  After a failure an unknown part was sent.  -EPIPE without a
 * signal if the peer is gone. */
int sock_send(struct sock *s, const void *buf, size_t len);
int sock_send_iov(struct sock *s, const struct iov *src);

/* Until dir would not block, or deadline (-ETIMEDOUT).  May return early. */
int sock_wait(struct sock *s, enum sock_dir dir, int64_t deadline_ns);

/* What may stand between a sock and whoever uses it, as TLS does (aio/tls.h).  recv
 * and send are what sock_recv_now() and sock_send_now() then do, over the wire's own
 * calls below; after -EAGAIN the next send begins with the same bytes. */
struct sock_filter {
	ssize_t (*recv)(struct sock_filter *f, struct sock *s, void *buf, size_t len);
	ssize_t (*send)(struct sock_filter *f, struct sock *s, const struct iov *src, size_t skip);
	/* Free f; with s not NULL, which is about to be closed, say good-bye first. */
	void (*close)(struct sock_filter *f, struct sock *s);
};

/* s owns f from now on.  sock_detach() leaves it to the caller, who has asked for it
 * before: it may stand on the next sock of the same fd.  sock_wait() for reading is
 * then for after -EAGAIN only: what f holds, the kernel does not see. */
void sock_set_filter(struct sock *s, struct sock_filter *f);
struct sock_filter *sock_filter(const struct sock *s);	/* NULL: none */

ssize_t sock_recv_wire(struct sock *s, void *buf, size_t len);
ssize_t sock_send_wire(struct sock *s, const struct iov *src, size_t skip);

/* shutdown(2) with its SHUT_*; makes those who wait return.  Any thread, while
 * s is not closed. */
void sock_shutdown(struct sock *s, int how);

/* Send small replies at once.  No-op on anything but TCP. */
void sock_nodelay(struct sock *s);

/* ---- listening and connecting; these may block in name look-ups only, which
 *      a worker does; they hand out fds, for sock_new() on whatever loop ---- */

/* A Unix socket at path, created with mode.  A stale socket, on which nobody
 * answers, is replaced.  A path that is too long is an error that says the
 * limit.  A leading '@' makes it abstract. */
int sock_listen_unix(const char *path, unsigned mode, int backlog, int *ret_fd,
		     struct error **errp);

/* All addresses of host (NULL or "": any) at port, at most max of them; v4 and
 * v6 are separate fds.  Port "0" picks one. */
int sock_listen_tcp(const char *host, const char *port, int backlog, int *ret_fds,
		    int max, struct error **errp);	/* the count */

/* The guest or host cid, at port: both numbers. */
int sock_listen_vsock(const char *cid, const char *port, int backlog, int *ret_fd,
		      struct error **errp);

int sock_connect_unix(const char *path, int *ret_fd, struct error **errp);
/* Tries the addresses in turn, until the deadline. */
int sock_connect_tcp(const char *host, const char *port, int64_t deadline_ns,
		     int *ret_fd, struct error **errp);
int sock_connect_vsock(const char *cid, const char *port, int64_t deadline_ns,
		       int *ret_fd, struct error **errp);

/* The next connection.  Errors that concern only the one that was coming are
 * skipped; while there are no fds left it waits.  The new fd is non-blocking
 * and closed on exec. */
int sock_accept(struct sock *listener, int *ret_fd);

#endif
