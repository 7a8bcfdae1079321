/* SPDX-License-Identifier: Apache-2.0 */
/* TLS between libnbd and the wire.
 *
 *	libnbd <--> far == near <--up, down--> wire <==TLS==> server
 *
 * libnbd could speak TLS, but would not do here what it promises elsewhere: on a socket
 * that it is given, and did not connect itself, it compares no name with the server's
 * certificate.  It also knows no anonymous credentials, and reads those that it has
 * from files anew.  So the server is asked for TLS before libnbd comes in, and libnbd
 * then talks in plain text to one end of a pair of sockets; two coroutines carry the
 * bytes between the other end and the wire.
 *
 * The server greets, and is answered, once, before TLS.  libnbd is shown the same
 * greeting, and its answer to that, the first bytes that it sends, ends here.
 *
 * While a handshake is just over and no command was given, nothing is under way in
 * either direction; so that is when a tunnel can be moved to another loop. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/nbd/nbd.h"
#include "block/open.h"

/* As the NBD protocol names them. */
#define NBDMAGIC UINT64_C(0x4e42444d41474943)
#define IHAVEOPT UINT64_C(0x49484156454f5054)
#define OLD_MAGIC UINT64_C(0x00420281861253)
#define REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define REP_ERR (UINT32_C(1) << 31)

enum {
	GREETING = 18,
	FLAG_FIXED_NEWSTYLE = 1,
	FLAGS_KNOWN = 3,
	OPT_STARTTLS = 5,
	OPTION = 16,
	REPLY = 20,
	REP_ACK = 1,
	CARRIED = 64 << 10,	/* at once */
};

struct nbd_tunnel {
	/* At rest these two are NULL, and below stands what they were made of. */
	struct sock *wire, *near;
	int wire_fd, near_fd;
	struct sock_filter *tls;

	uint8_t greeting[GREETING];
	size_t swallow;			/* of libnbd's bytes, as many yet */
	struct co *up, *down;		/* while they run */
	struct co *waiter;		/* for their end */
	uint8_t up_buf[CARRIED], down_buf[CARRIED];
};

/* ---- asking for TLS ---- */

static int
receive(struct nbd_tunnel *t, void *buf, size_t len, const char *what, struct error **errp)
{
	int r = sock_recv_full(t->wire, buf, len);

	if (r == -ENODATA || r == -ECONNRESET)
		error_set(errp, "Failed to read %s: Unexpected end-of-file before all data were read",
			  what);
	else if (r < 0)
		error_set_errno(errp, r, "Failed to read %s", what);
	return r;
}

/* The server's greeting, and the answer that libnbd will give too. */
static int
greet(struct nbd_tunnel *t, struct error **errp)
{
	uint64_t first, second;
	uint16_t flags = 0;
	uint8_t answer[4];
	int r;

	r = receive(t, t->greeting, 8, "initial magic", errp);
	if (r < 0)
		return r;
	first = get_be64(t->greeting);
	if (first != NBDMAGIC) {
		error_set(errp, "Bad initial magic received: 0x%016" PRIx64, first);
		return -EPROTO;
	}
	r = receive(t, t->greeting + 8, 8, "server magic", errp);
	if (r < 0)
		return r;
	second = get_be64(t->greeting + 8);
	if (second != IHAVEOPT && second != OLD_MAGIC) {
		error_set(errp, "Bad server magic received: 0x%016" PRIx64, second);
		return -EPROTO;
	}
	r = second == IHAVEOPT ? receive(t, t->greeting + 16, 2, "server flags", errp) : 0;
	if (r < 0)
		return r;
	flags = get_be16(t->greeting + 16);
	if (!(flags & FLAG_FIXED_NEWSTYLE)) {
		error_set(errp, "Server does not support STARTTLS");
		return -EPROTO;
	}
	put_be32(answer, flags & FLAGS_KNOWN);
	t->swallow = sizeof(answer);
	r = sock_send(t->wire, answer, sizeof(answer));
	return r < 0 ? error_set_errno(errp, r, "Failed to send clientflags field") : 0;
}

static int
refused(uint32_t type, struct error **errp)
{
	static const char *const texts[] = {
		[1] = "Server don't support STARTTLS option",
		[2] = "Denied by server for option 5 (starttls)",
		[3] = "Invalid parameters for option 5 (starttls)",
		[4] = "Server lacks support for option 5 (starttls)",
		[5] = "TLS negotiation required before option 5 (starttls)",
		[6] = "Requested export not available",
		[7] = "Server shutting down before option 5 (starttls)",
		[8] = "Server requires INFO_BLOCK_SIZE for option 5 (starttls)",
	};
	uint32_t n = type & ~REP_ERR;
	const char *text = n < ARRAY_SIZE(texts) ? texts[n] : NULL;

	error_set(errp, "%s", text ? text
				   : "Unknown error code when asking for option 5 (starttls)");
	return -EACCES;
}

static int
check_reply(const uint8_t *reply, struct error **errp)
{
	uint32_t option = get_be32(reply + 8), type = get_be32(reply + 12), len = get_be32(reply + 16);

	if (get_be64(reply) != REPLY_MAGIC)
		error_set(errp, "Unexpected option reply magic");
	else if (option != OPT_STARTTLS)
		error_set(errp, "Unexpected option type %" PRIu32 ", expected 5 (starttls)", option);
	else if (type & REP_ERR)
		return refused(type, errp);
	else if (type != REP_ACK)
		error_set(errp, "Server answered option 5 (starttls) with unexpected reply %" PRIu32,
			  type);
	else if (len)
		error_set(errp, "Option 5 ('starttls') response length is %" PRIu32
			  " (it should be zero)", len);
	else
		return 0;
	return -EPROTO;
}

static int
ask_for_tls(struct nbd_tunnel *t, struct error **errp)
{
	uint8_t option[OPTION] = { 0 }, reply[REPLY];
	int r;

	put_be64(option, IHAVEOPT);
	put_be32(option + 8, OPT_STARTTLS);
	r = sock_send(t->wire, option, sizeof(option));
	if (r < 0)
		return error_set_errno(errp, r, "Failed to send option request header");
	r = receive(t, reply, sizeof(reply), "option reply", errp);
	return r < 0 ? r : check_reply(reply, errp);
}

struct patience {
	struct timer timer;
	struct sock *wire;
	bool over;
};

static void
too_late(struct timer *timer)
{
	struct patience *p = CONTAINER_OF(timer, struct patience, timer);

	p->over = true;
	sock_shutdown(p->wire, SHUT_RDWR);
}

static int
start_tls(struct nbd_tunnel *t, const struct nbd_client *c, int64_t deadline_ns,
	  struct error **errp)
{
	struct patience p = { .timer.fn = too_late, .wire = t->wire };
	struct error *err = NULL;
	int r;

	timer_set(&p.timer, deadline_ns);
	r = greet(t, &err);
	if (r >= 0)
		r = ask_for_tls(t, &err);
	if (r >= 0)
		r = open_tls_client()->start(t->wire, c->creds, c->hostname, &err);
	timer_cancel(&p.timer);
	if (r < 0 && p.over) {
		error_free(err);
		return error_set_errno(errp, -ETIMEDOUT, "The NBD server did not answer");
	}
	error_propagate(errp, err);
	return r;
}

/* ---- carrying ---- */

/* Until one side ends, or this coroutine is to. */
static void
carry(struct sock *from, struct sock *to, uint8_t *buf)
{
	for (;;) {
		ssize_t n = sock_recv(from, buf, CARRIED), more;

		if (n <= 0)
			return;
		/* A record of TLS is short. */
		while (n < CARRIED && (more = sock_recv_now(from, buf + n, (size_t)(CARRIED - n))) > 0)
			n += more;
		if (sock_send(to, buf, (size_t)n) < 0)
			return;
	}
}

/* A direction has ended, and so the other one does. */
static void
ended(struct nbd_tunnel *t, struct co **which)
{
	if (!co_cancelled()) {
		sock_shutdown(t->near, SHUT_RDWR);
		sock_shutdown(t->wire, SHUT_RDWR);
	}
	*which = NULL;
	if (t->waiter)
		co_wake(t->waiter);
}

static void
carry_up(void *tunnel)
{
	struct nbd_tunnel *t = tunnel;
	int r = 0;

	t->up = co_self();
	if (t->swallow)
		r = sock_recv_full(t->near, t->up_buf, t->swallow);
	if (r >= 0) {
		t->swallow = 0;
		carry(t->near, t->wire, t->up_buf);
	}
	ended(t, &t->up);
}

static void
carry_down(void *tunnel)
{
	struct nbd_tunnel *t = tunnel;

	t->down = co_self();
	carry(t->wire, t->near, t->down_buf);
	ended(t, &t->down);
}

static int
start_carrying(struct nbd_tunnel *t)
{
	return co_start(carry_up, t) < 0 || co_start(carry_down, t) < 0 ? -ENOMEM : 0;
}

static void
stop_carrying(struct nbd_tunnel *t)
{
	t->waiter = co_self();
	if (t->up)
		co_cancel(t->up);
	if (t->down)
		co_cancel(t->down);
	while (t->up || t->down)
		co_park();
	t->waiter = NULL;
}

/* ---- life ---- */

/* libnbd's side is *ret_fd, and finds the greeting there. */
static int
make_pair(struct nbd_tunnel *t, int *ret_fd, struct error **errp)
{
	int fds[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return error_set_errno(errp, errno, "Cannot make a pair of sockets");
	r = sock_new(fds[0], &t->near);
	if (r < 0) {
		close(fds[0]);
	} else {
		r = sock_send(t->near, t->greeting, GREETING);
		if (r >= 0)
			r = start_carrying(t);
	}
	if (r < 0) {
		close(fds[1]);
		return error_set_errno(errp, r, "Cannot watch the connection");
	}
	*ret_fd = fds[1];
	return 0;
}

int
nbd_tunnel_open(const struct nbd_client *c, int fd, int64_t deadline_ns, int *ret_fd,
		struct nbd_tunnel **ret_tunnel, struct error **errp)
{
	struct nbd_tunnel *t = calloc(1, sizeof(*t));
	int r = t ? sock_new(fd, &t->wire) : -ENOMEM;

	if (r < 0) {
		close(fd);
		free(t);
		return error_set_errno(errp, r, "Cannot watch the connection");
	}
	sock_nodelay(t->wire);
	r = start_tls(t, c, deadline_ns, errp);
	if (r >= 0)
		r = make_pair(t, ret_fd, errp);
	if (r < 0) {
		nbd_tunnel_close(t);
		return r;
	}
	*ret_tunnel = t;
	return 0;
}

void
nbd_tunnel_rest(struct nbd_tunnel *t)
{
	stop_carrying(t);
	t->tls = sock_filter(t->wire);
	t->wire_fd = sock_detach(STEAL(t->wire));
	t->near_fd = sock_detach(STEAL(t->near));
}

int
nbd_tunnel_run(struct nbd_tunnel *t)
{
	int r = sock_new(t->wire_fd, &t->wire);

	if (r < 0)
		return r;
	r = sock_new(t->near_fd, &t->near);
	if (r < 0) {
		sock_detach(STEAL(t->wire));
		return r;
	}
	sock_set_filter(t->wire, STEAL(t->tls));
	return start_carrying(t);
}

/* What libnbd said last, as that it disconnects.  Its event may still be to come. */
static void
send_rest(struct nbd_tunnel *t)
{
	ssize_t n = recv(sock_fd(t->near), t->up_buf, CARRIED, MSG_DONTWAIT);
	struct iov v = IOV_BUF(t->up_buf, (size_t)n);

	if (n > 0)
		(void)sock_send_now(t->wire, &v, 0);
}

/* A copy of the wire's fd may be another's, so that to close ours would end nothing. */
static void
hang_up(struct sock *wire)
{
	struct sock_filter *tls = sock_filter(wire);

	if (tls)
		tls->close(tls, wire);
	sock_shutdown(wire, SHUT_RDWR);
	close(sock_detach(wire));
}

void
nbd_tunnel_close(struct nbd_tunnel *t)
{
	if (!t)
		return;
	stop_carrying(t);
	if (t->wire) {
		if (t->near)
			send_rest(t);
		hang_up(t->wire);
		sock_close(t->near);
	} else {
		t->tls->close(t->tls, NULL);
		close(t->wire_fd);
		close(t->near_fd);
	}
	free(t);
}
