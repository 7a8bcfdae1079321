/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/conn.h - one client's connection, from accept to close.
 *
 * A connection is born on loop 0, where it shakes hands (handshake.c), and
 * then moves to one I/O loop, where it stays (serve.c, request.c, reply.c).
 * One coroutine, the reader, receives in bulk and starts each request as a
 * coroutine of its own, which as a rule ends before it returns: what the page
 * cache holds is read in the same breath.  Replies are queued, and sent with
 * one call when the reader has nothing more to start, or at the end of the
 * loop's turn.  So a batch of n requests costs one receive, n reads of the
 * node, one send.
 *
 *	loop 0:	accept -> handshake --GO--> move -- - - - - - -> ended, freed
 *	I/O loop:			     |			  ^
 *	      reader: receive, start ... the peer hangs up, or  |
 *			someone shuts the socket down: the last --'
 *			requests end, their replies leave, close
 *
 * What bounds a client: requests and bytes in flight, each counted from its
 * receipt until the last byte of its reply was handed to the kernel.  One
 * that does not read its replies so stops being read from, and blocks nobody
 * but itself.  In the steady state no memory is allocated: requests, with
 * room for 4 KiB, and larger buffers are kept and used again, last in first
 * out, while they are in the CPU's caches.
 *
 * Shutting the socket down is what cancels: it ends the handshake, the reader
 * and the sender wherever they wait, at any byte.
 *
 * Context    what is marked [0] belongs to loop 0, the rest to the loop that
 *            the connection is on; `lock` guards what other threads touch.
 */
#ifndef EXPORT_NBD_CONN_H
#define EXPORT_NBD_CONN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "aio/loop.h"
#include "base/list.h"
#include "export/nbd/proto.h"

struct SocketAddress;
struct co;
struct nbd_command;
struct nbd_export;
struct nbd_server;
struct root;
struct sock;
struct sock_filter;

enum {
	NBD_HEADROOM = 64,	/* before any data: the reply's header */
	NBD_SMALL = 4096,	/* data that a request has room for by itself */
	NBD_INBUF_SIZE = 256 << 10,
	NBD_IN_PLACE_MAX = 64 << 10,	/* larger payloads are received in their place */

	NBD_REQUESTS_MAX = 128,	/* in flight on a connection */
	NBD_BYTES_MAX = 32 << 20,	/* in flight, but one request always may */
	NBD_KEEP_MAX = 16 << 20,	/* of buffers that are kept for use again */
	NBD_BUFFER_CLASSES = 13,	/* 8 KiB, 16 KiB ... 32 MiB */

	NBD_STATUS_PAYLOAD_MAX = 1024,	/* of contexts that block status is limited to */

	NBD_FLUSH_BYTES = 256 << 10,	/* replies that are worth a send at once */
};

/* What options negotiate, and STARTTLS makes forgotten as a whole. */
struct nbd_session {
	enum nbd_mode mode;
	uint64_t meta_export;	/* serial of the export that contexts are for; 0: none */
	uint64_t contexts;	/* bits by enum nbd_context, see status.h */
};

/* For people who ask; written by one loop, read by any. */
struct nbd_counts {
	_Atomic uint64_t requests, answered, read, written;
};

static inline uint64_t
nbd_count_get(const _Atomic uint64_t *c)
{
	return atomic_load_explicit(c, memory_order_relaxed);
}

/* One writer needs no locked instruction. */
static inline void
nbd_count_add(_Atomic uint64_t *c, uint64_t n)
{
	atomic_store_explicit(c, nbd_count_get(c) + n, memory_order_relaxed);
}

/* What was received.  Payloads of writes may stay here while they are written. */
struct nbd_inbuf {
	struct nbd_inbuf *next;
	unsigned refs;		/* the connection, and each request with its payload here */
	uint8_t data[NBD_INBUF_SIZE];
};

/* A buffer of one of the classes; headroom and data follow. */
struct nbd_buffer {
	struct nbd_buffer *next;
	unsigned class;
};

struct nbd_request {
	struct nbd_request *next;	/* in the list of free ones, or of replies */
	struct nbd_conn *conn;
	const struct nbd_command *command;
	uint16_t type, flags;
	uint64_t offset, len, cookie;
	const uint8_t *payload;		/* in an inbuf, or at data; NULL: it was not kept */
	uint32_t payload_len;
	uint64_t contexts;		/* that block status asks, as nbd_session.contexts */
	struct nbd_inbuf *inbuf;
	struct nbd_buffer *buffer;	/* where data is larger than NBD_SMALL */
	uint8_t *data;			/* NBD_HEADROOM bytes before it are free */
	uint32_t charge;		/* bytes in flight */

	struct iovec *reply;		/* what is to be sent */
	unsigned reply_count;
	struct iovec one;		/* as a rule all of it */

	uint8_t headroom[NBD_HEADROOM];
	_Alignas(512) uint8_t small[NBD_SMALL];
};

/* q->small, for those who also use the headroom before it. */
static inline uint8_t *
nbd_request_small(struct nbd_request *q)
{
	return (uint8_t *)q + offsetof(struct nbd_request, small);
}

struct nbd_conn {
	struct list link;		/* [0] in server->conns */
	struct nbd_server *server;	/* [0] */
	struct nbd_export *export;	/* referenced from GO on */
	struct root *root;		/* the export's */
	struct nbd_session session;	/* unchanging in transmission */
	uint64_t size;			/* of the export, as told at GO */
	uint16_t transmission_flags;
	bool writethrough;
	struct SocketAddress *peer;	/* [0] where it is; NULL: on this machine, */
	pid_t pid;			/* [0] where it is a process (0: not known) */
	uid_t uid;			/* [0] of this user */
	bool tls;			/* [0] it talks TLS, */
	char *identity;			/* [0] as whom; NULL: that is not known */
	struct nbd_counts counts;
	int fd;				/* on its way between loops, */
	struct sock_filter *filter;	/* with its TLS, where it has it */
	struct loop_task ended;		/* the last word, posted to loop 0 */

	pthread_mutex_t lock;
	struct sock *sock;		/* NULL where there is none, under lock */
	bool shut;			/* shut down before there was one, under lock */

	/* receiving */
	struct co *reader;
	bool reader_waits;		/* for room, or for the end of all requests */
	struct nbd_inbuf *in, *in_free;
	size_t in_start, in_end;
	uint64_t skip;			/* of a payload that nobody wants */

	/* requests */
	struct nbd_request *free;
	unsigned in_flight;
	uint64_t bytes;
	struct nbd_buffer *buffers[NBD_BUFFER_CLASSES];
	uint64_t kept;

	/* sending */
	struct nbd_request *out, **out_end;
	size_t out_bytes, out_skip;	/* queued; already sent of the first */
	struct loop_task flush;
	bool sending;			/* a coroutine waits for the socket */
	bool broken;			/* nothing can be sent any more */
};

/* Take over an accepted socket.  [0]; the fd is closed whatever happens. */
void nbd_conn_start(struct nbd_server *server, int fd);

/* End it soon, wherever it stands. [0] */
void nbd_conn_shutdown(struct nbd_conn *c);

/* Set or clear what others may shut down. */
void nbd_conn_set_sock(struct nbd_conn *c, struct sock *s);

/* ---- clients.c ---- */

/* Remember who is at the other end of a new connection's fd. [0] */
void nbd_clients_note_peer(struct nbd_conn *c, int fd);

/* ---- serve.c ---- */

/* Serve requests until the end of the connection.  Coroutine on its loop. */
void nbd_serve(struct nbd_conn *c);

/* ---- request.c ---- */

const struct nbd_command *nbd_request_command(uint16_t type);

/* What a request carries behind its header, and what becomes of that. */
struct nbd_payload {
	uint64_t len;
	bool kept;		/* else it is thrown away */
	bool fatal;		/* nobody can tell where the next request begins: the
				 * connection ends after the reply */
};
struct nbd_payload nbd_request_payload(const struct nbd_command *cmd, enum nbd_mode mode,
				       uint16_t flags, uint64_t len);

/* The bytes of data that it moves, either way. */
uint32_t nbd_request_data(const struct nbd_command *cmd, uint64_t len);

/* How much memory it needs at most. */
uint32_t nbd_request_memory(const struct nbd_command *cmd, const struct nbd_session *session,
			    uint16_t flags, uint64_t len);

/* Check and carry out; queues the reply.  The body of a coroutine. */
void nbd_request_run(void *request);

/* ---- pool.c ---- */

/* The next free request, made if there is none; NULL on no memory. */
struct nbd_request *nbd_pool_get(struct nbd_conn *c);
/* Give it back with all that it holds, and wake a reader that waits for it. */
void nbd_pool_put(struct nbd_request *q);
/* Let q->data have room for len bytes: 0 or -ENOMEM. */
int nbd_pool_room(struct nbd_request *q, size_t len);

/* Let there be unused space in the connection's inbuf: 0 or -ENOMEM. */
int nbd_pool_inbuf(struct nbd_conn *c);
/* Let q keep its payload in the current inbuf. */
void nbd_pool_hold(struct nbd_request *q);

void nbd_pool_free(struct nbd_conn *c);	/* nothing is in flight */

/* ---- reply.c: each queues the whole answer to q ---- */

void nbd_reply_done(struct nbd_request *q);
void nbd_reply_error(struct nbd_request *q, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The q->len bytes at q->data. */
void nbd_reply_data(struct nbd_request *q);
/* As built by the caller: in q->reply, or in one piece of memory. */
void nbd_reply_queue(struct nbd_request *q);
void nbd_reply_queue_one(struct nbd_request *q, uint8_t *start, size_t len);

/* Write the header of a chunk of len bytes so that it ends before data, and return
 * where it begins. */
uint8_t *nbd_reply_chunk(uint8_t *data, const struct nbd_request *q, unsigned flags,
			 unsigned type, uint32_t len);

/* Send what is queued, as far as it goes without waiting; the rest follows by
 * itself. */
void nbd_reply_flush(struct nbd_conn *c);

#endif
