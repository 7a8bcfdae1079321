/* SPDX-License-Identifier: Apache-2.0 */
/* block/nbd/nbd.h - a node whose bytes lie with an NBD server.
 *
 * libnbd speaks the protocol.  What is here: connecting, one connection for each
 * loop where the server can, waiting, giving up, and connecting anew.
 *
 * A link is one connection.  It lives on one loop, where alone its libnbd handle
 * is used: libnbd says which way it wants to move bytes, is told when the socket
 * is ready, and calls back when a command has ended.  A node has one link; where
 * the server promises that a flush on one connection covers what was written on
 * the others (NBD_FLAG_CAN_MULTI_CONN), it has one for each I/O loop.
 *
 *	any loop:	request.c makes a command, posts it to a link, waits
 *	link's loop:	link.c hands it to libnbd, or keeps it until there is a
 *			connection; its end wakes who waits
 *
 * Who waits, waits until the command has ended; so the caller's own memory is read
 * and filled.  What a silent server holds up is ended by nbd_link_give_up(), which
 * hangs up.
 *
 * When a connection is lost, commands that had no answer are kept, and asked again
 * on the next one: all of them may be carried out twice.  They fail with -EIO when
 * reconnect-delay is over.  What the server had acknowledged and not flushed when
 * it went away may be lost if it died, and nothing in the protocol tells; it is as
 * with a disk whose cache lost power, and the same in QEMU.
 *
 * Units      bytes; times are nanoseconds of clock_ns().
 */
#ifndef BLOCK_NBD_NBD_H
#define BLOCK_NBD_NBD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/loop.h"
#include "base/list.h"

struct bitmap;
struct co;
struct error;
struct nbd_handle;
struct node;
struct sock;
struct SocketAddress;
struct tls_creds;

/* What the server said of the export. */
struct nbd_client_export {
	uint64_t size;
	uint32_t min_block, preferred_block, max_block;	/* 0: not said */
	bool read_only, flush, fua, trim, zero, fast_zero, multi, status;
};

/* A node's state. */
struct nbd_client {
	struct node *node;
	const struct SocketAddress *address;	/* within the node's options */
	const char *export_name;
	const char *context;			/* that block status is asked in */
	struct tls_creds *creds;		/* NULL: no TLS */
	const char *hostname;			/* that a certificate must have; or NULL */
	int64_t reconnect_ns;			/* how long requests wait for a lost server */
	struct nbd_client_export export;	/* constant once open */
	unsigned n_links;
	atomic_bool single;			/* the server takes no second connection */
	struct nbd_link *links;
};

/* ---- dial.c ---- */

/* For one attempt: what a server that answers needs at most. */
#define NBD_DIAL_NS INT64_C(10000000000)

/* A connection: libnbd's handle, and an fd of our own for the same socket.  libnbd
 * closes its own as soon as the connection is dead, and one that is closed wakes
 * nobody. */
struct nbd_line {
	struct nbd_handle *handle;	/* NULL: none */
	int fd;
	struct nbd_tunnel *tunnel;	/* that the socket leads into; NULL: no TLS */
};

/* Connect and shake hands; gives a line that is ready and watched by nobody, with its
 * tunnel at rest, and what the server says.  Coroutine, cancellable.  0 or -errno with
 * *errp: QEMU's text where the situation is the same. */
int nbd_dial(const struct nbd_client *c, int64_t deadline_ns, struct nbd_line *ret_line,
	     struct nbd_client_export *ret_export, struct error **errp);

/* Close what nbd_dial() gave.  On the loop where its tunnel runs, if it does. */
void nbd_dial_undo(struct nbd_line *line);

/* ---- tunnel.c: TLS between libnbd and the wire ---- */

/* Ask for TLS on fd, which is connected, and become its owner, whatever comes.  On
 * success *ret_fd, the caller's, is where a server without TLS seems to begin; the
 * tunnel runs on this loop.  Coroutine, cancellable.  0 or -errno with *errp. */
int nbd_tunnel_open(const struct nbd_client *c, int fd, int64_t deadline_ns, int *ret_fd,
		    struct nbd_tunnel **ret_tunnel, struct error **errp);

/* To move a tunnel to another loop: stop it while nothing is under way, and run it
 * there; 0 or -errno.  Both on its loop; rest: coroutine. */
void nbd_tunnel_rest(struct nbd_tunnel *t);
int nbd_tunnel_run(struct nbd_tunnel *t);

/* Send what can be sent without waiting, say good-bye, hang up.  Coroutine, on its
 * loop or at rest.  Takes NULL. */
void nbd_tunnel_close(struct nbd_tunnel *t);

/* ---- request.c: driver functions ---- */

struct extent;
struct iov;

int nbd_client_read(struct node *n, uint64_t off, const struct iov *dst);
int nbd_client_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags);
int nbd_client_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int nbd_client_discard(struct node *n, uint64_t off, uint64_t len);
int nbd_client_flush(struct node *n);
int nbd_client_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		      struct extent *ret_extent);

/* ---- commands: request.c makes them, link.c carries them out ---- */

enum nbd_client_op {
	NBD_CLIENT_READ,
	NBD_CLIENT_WRITE,
	NBD_CLIENT_ZERO,
	NBD_CLIENT_TRIM,
	NBD_CLIENT_FLUSH,
	NBD_CLIENT_STATUS,
};

/* Lives in the frame of who waits for it. */
struct nbd_client_command {
	enum nbd_client_op op;
	uint32_t flags;			/* LIBNBD_CMD_FLAG_* */
	uint64_t off, len;
	void *buf;			/* of a read or write: len bytes */

	struct nbd_link *link;
	struct loop_task task;		/* to the link's loop */
	struct list in_link;		/* link->waiting or ->asked */
	struct co *waiter;

	uint64_t covered;		/* of a read: bytes that came, */
	struct bitmap *came;		/* and which, once they are not the first ones */
	/* Valid once done. */
	int result;			/* 0 or -errno */
	uint64_t extent_len;		/* of a status: the first extent; 0: none came */
	uint32_t extent_flags;		/* LIBNBD_STATE_* */
	atomic_bool done;
};

/* ---- link.c ---- */

struct nbd_link {
	struct nbd_client *client;
	struct loop *loop;

	/* All below belongs to the loop. */
	struct nbd_line line;
	struct sock *sock;		/* of line.fd, while it is watched */
	bool up;			/* takes commands */
	bool closing;
	bool giving_up;			/* the runner ends, and with it all commands */
	bool writing;			/* a coroutine waits until the socket takes more */
	struct list waiting, asked;	/* commands without a connection; with libnbd */
	int64_t lost_at, give_up_at;
	int64_t heard_at;		/* since then it owes us an answer, if any */
	struct co *runner;		/* connects, and reads; NULL: there is none */
	struct co *closer;		/* waits for the runner's end */
};

void nbd_link_init(struct nbd_link *l, struct nbd_client *c, struct loop *loop);

/* Take over a connection that nbd_dial() made.  Coroutine on any loop. */
int nbd_link_adopt(struct nbd_link *l, const struct nbd_line *line);

/* Have k carried out; it will be done some time.  Any loop. */
void nbd_link_post(struct nbd_link *l, struct nbd_client_command *k);

/* If the server owes an answer and has been silent for so long, fail all commands
 * soon and hang up.  The next command connects anew.  Coroutine on any loop. */
void nbd_link_give_up(struct nbd_link *l, int64_t silent_ns);

/* Hang up for good; there are no commands.  Coroutine on any loop. */
void nbd_link_close(struct nbd_link *l);

#endif
