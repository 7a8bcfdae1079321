/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/handshake.c - options: a table of what is legal when, one reader.
 *
 * The server greets, the client answers with its flags, and then sends options,
 * one at a time, until one of them leads into transmission or ends it all:
 *
 *	FLAGS -> FIXED -----GO, EXPORT_NAME-----> transmission
 *	   \--> OLD ---------EXPORT_NAME--------/
 *	   \--> PLAIN --STARTTLS--> FIXED
 *		  any state: ABORT, an error on the wire, the time limit -> end
 *
 * A client that does not claim "fixed newstyle" (OLD) may only choose an export.
 * Where the server has credentials, a client may do nothing before it has TLS
 * (PLAIN); what it says before is forgotten, and nothing that it sent behind
 * STARTTLS is read as anything but TLS, because nothing is read ahead.
 *
 * Each option's data is received whole, at most DATA_MAX of it, before anything
 * is done, and then parsed by one reader that cannot leave it.  Replies are
 * gathered in memory and sent when the option is done, so nothing that may
 * change while we wait for a slow client is looked at across a wait; an export
 * that was chosen is referenced before.
 *
 * All that options agree on stands in struct nbd_session.
 */
#include "export/nbd/handshake.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/sock.h"
#include "aio/timer.h"
#include "aio/tls.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/proto.h"
#include "export/nbd/server.h"
#include "export/nbd/status.h"

enum {
	DATA_MAX = 256 << 10,	/* of an option's data that is looked at */
	NAME_ECHOED = 80,	/* of an unknown name, in a text */
	BLOCK_MIN = 1,
	BLOCK_PREFERRED = 4096,
};

enum state { FLAGS, PLAIN, FIXED, OLD, DONE, STATES };

/* What an option's handler wants next. */
enum step { STEP_NEXT, STEP_TLS, STEP_TRANSMIT, STEP_END };

struct handshake {
	struct nbd_conn *conn;
	struct timer limit;
	enum state state;
	bool no_zeroes;
	uint32_t option;	/* the one at hand */

	/* its data, as the reader goes through it */
	const uint8_t *data;
	size_t left;

	/* replies that wait to be sent */
	uint8_t *out;
	size_t out_len, out_size;
	bool out_failed;	/* no memory for one */
};

/* ---- replies ---- */

static void
put(struct handshake *h, const void *from, size_t len)
{
	if (h->out_len + len > h->out_size && !h->out_failed) {
		size_t size = (h->out_len + len) * 2 + 512;
		uint8_t *p = realloc(h->out, size);

		h->out_failed = !p;
		if (p) {
			h->out = p;
			h->out_size = size;
		}
	}
	if (h->out_failed)
		return;
	if (len)
		memcpy(h->out + h->out_len, from, len);
	h->out_len += len;
}

static void
put_u16(struct handshake *h, uint16_t v)
{
	uint8_t be[2];

	put_be16(be, v);
	put(h, be, sizeof(be));
}

static void
put_u32(struct handshake *h, uint32_t v)
{
	uint8_t be[4];

	put_be32(be, v);
	put(h, be, sizeof(be));
}

static void
put_u64(struct handshake *h, uint64_t v)
{
	uint8_t be[8];

	put_be64(be, v);
	put(h, be, sizeof(be));
}

static void
reply_head(struct handshake *h, uint32_t type, size_t len)
{
	put_u64(h, NBD_REPLY_MAGIC);
	put_u32(h, h->option);
	put_u32(h, type);
	put_u32(h, (uint32_t)len);
}

static enum step
reply_ack(struct handshake *h)
{
	reply_head(h, NBD_REP_ACK, 0);
	return STEP_NEXT;
}

static enum step __attribute__((format(printf, 3, 4)))
reply_error(struct handshake *h, uint32_t type, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	reply_head(h, type, strlen(text));
	put(h, text, strlen(text));
	return STEP_NEXT;
}

static enum step
reply_unknown_export(struct handshake *h, const char *name)
{
	const char *dots = strlen(name) >= NAME_ECHOED ? "..." : "";

	return reply_error(h, NBD_REP_ERR_UNKNOWN, "export '%.*s%s' not present",
			   NAME_ECHOED, name, dots);
}

static int
send_replies(struct handshake *h)
{
	int r = h->out_failed ? -ENOMEM : sock_send(h->conn->sock, h->out, h->out_len);

	h->out_len = 0;
	return r;
}

/* ---- the reader: each call replies by itself if it fails ---- */

static bool
get_bytes(struct handshake *h, size_t len, const uint8_t **ret)
{
	if (len > h->left) {
		reply_error(h, NBD_REP_ERR_INVALID, "Inconsistent lengths in option %s",
			    nbd_proto_option_name(h->option));
		return false;
	}
	*ret = h->data;
	h->data += len;
	h->left -= len;
	return true;
}

static bool
get_u16(struct handshake *h, uint16_t *ret)
{
	const uint8_t *p;

	if (!get_bytes(h, 2, &p))
		return false;
	*ret = get_be16(p);
	return true;
}

static bool
get_u32(struct handshake *h, uint32_t *ret)
{
	const uint8_t *p;

	if (!get_bytes(h, 4, &p))
		return false;
	*ret = get_be32(p);
	return true;
}

/* len bytes as a string; to has room for NBD_STRING_MAX + 1. */
static bool
get_chars(struct handshake *h, uint32_t len, char *to)
{
	const uint8_t *p;

	assert(len <= NBD_STRING_MAX);
	if (!get_bytes(h, len, &p))
		return false;
	if (memchr(p, 0, len)) {
		reply_error(h, NBD_REP_ERR_INVALID, "Unexpected embedded NUL in option %s",
			    nbd_proto_option_name(h->option));
		return false;
	}
	memcpy(to, p, len);
	to[len] = '\0';
	return true;
}

static bool
get_name(struct handshake *h, char *to)
{
	uint32_t len;

	if (!get_u32(h, &len))
		return false;
	if (len > NBD_STRING_MAX) {
		reply_error(h, NBD_REP_ERR_INVALID, "Invalid name length: %" PRIu32, len);
		return false;
	}
	return get_chars(h, len, to);
}

static bool
get_end(struct handshake *h)
{
	if (!h->left)
		return true;
	reply_error(h, NBD_REP_ERR_INVALID, "option '%s' has unexpected length",
		    nbd_proto_option_name(h->option));
	return false;
}

/* ---- options ---- */

static uint16_t
transmission_flags(const struct handshake *h, const struct nbd_export *e)
{
	const struct nbd_session *session = &h->conn->session;
	unsigned flags = e->flags;

	if (session->mode >= NBD_MODE_STRUCTURED)
		flags |= NBD_FLAG_SEND_DF;
	if (session->mode >= NBD_MODE_EXTENDED && session->contexts &&
	    session->meta_export == e->base.serial)
		flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
	return (uint16_t)flags;
}

/* The client has chosen. */
static enum step
choose(struct handshake *h, struct nbd_export *e, uint64_t size)
{
	struct nbd_conn *c = h->conn;

	export_ref(&e->base);
	c->export = e;
	c->root = e->base.root;
	c->size = size;
	c->transmission_flags = transmission_flags(h, e);
	c->writethrough = e->base.writethrough;
	/* Contexts of another export are none of this one's. */
	if (c->session.meta_export != e->base.serial)
		c->session.contexts = 0;
	return STEP_TRANSMIT;
}

static enum step
on_export_name(struct handshake *h)
{
	static const uint8_t zeroes[NBD_EXPORT_NAME_ZEROES];
	char name[NBD_STRING_MAX + 1];
	struct nbd_export *e;
	uint64_t size;

	/* This option knows no error reply, and no extended headers. */
	if (h->conn->session.mode == NBD_MODE_EXTENDED || h->left > NBD_STRING_MAX ||
	    memchr(h->data, 0, h->left))
		return STEP_END;
	memcpy(name, h->data, h->left);
	name[h->left] = '\0';
	e = nbd_export_find(h->conn->server, name);
	if (!e)
		return STEP_END;
	size = nbd_export_size(e);
	put_u64(h, size);
	put_u16(h, transmission_flags(h, e));
	if (!h->no_zeroes)
		put(h, zeroes, sizeof(zeroes));
	return choose(h, e, size);
}

static enum step
on_abort(struct handshake *h)
{
	reply_ack(h);
	return STEP_END;
}

static enum step
on_list(struct handshake *h)
{
	struct nbd_export *e;

	if (!get_end(h))
		return STEP_NEXT;
	LIST_FOREACH(e, &h->conn->server->exports, link) {
		const char *text = e->description ? e->description : "";

		reply_head(h, NBD_REP_SERVER, 4 + strlen(e->name) + strlen(text));
		put_u32(h, (uint32_t)strlen(e->name));
		put(h, e->name, strlen(e->name));
		put(h, text, strlen(text));
	}
	return reply_ack(h);
}

static enum step
on_starttls(struct handshake *h)
{
	if (!get_end(h))
		return h->state == PLAIN ? STEP_END : STEP_NEXT;
	if (!h->conn->server->creds)
		return reply_error(h, NBD_REP_ERR_POLICY, "TLS not configured");
	if (h->state != PLAIN)
		return reply_error(h, NBD_REP_ERR_INVALID, "TLS already enabled");
	reply_ack(h);
	return STEP_TLS;
}

static enum step
on_structured_reply(struct handshake *h)
{
	if (!get_end(h))
		return STEP_NEXT;
	if (h->conn->session.mode == NBD_MODE_EXTENDED)
		return reply_error(h, NBD_REP_ERR_EXT_HEADER_REQD,
				   "extended headers already negotiated");
	if (h->conn->session.mode == NBD_MODE_STRUCTURED)
		return reply_error(h, NBD_REP_ERR_INVALID,
				   "structured reply already negotiated");
	h->conn->session.mode = NBD_MODE_STRUCTURED;
	return reply_ack(h);
}

static enum step
on_extended_headers(struct handshake *h)
{
	if (!get_end(h))
		return STEP_NEXT;
	if (h->conn->session.mode == NBD_MODE_EXTENDED)
		return reply_error(h, NBD_REP_ERR_INVALID,
				   "extended headers already negotiated");
	h->conn->session.mode = NBD_MODE_EXTENDED;
	return reply_ack(h);
}

static void
put_info(struct handshake *h, uint16_t info, const void *data, size_t len)
{
	reply_head(h, NBD_REP_INFO, 2 + len);
	put_u16(h, info);
	put(h, data, len);
}

static void
put_infos(struct handshake *h, const struct nbd_export *e, uint64_t size, bool send_name)
{
	uint8_t block[12], export[10];

	if (send_name)
		put_info(h, NBD_INFO_NAME, e->name, strlen(e->name));
	if (e->description)
		put_info(h, NBD_INFO_DESCRIPTION, e->description, strlen(e->description));
	/* Requests of any alignment are taken, whatever lies below. */
	put_be32(block, BLOCK_MIN);
	put_be32(block + 4, BLOCK_PREFERRED);
	put_be32(block + 8, NBD_PAYLOAD_MAX);
	put_info(h, NBD_INFO_BLOCK_SIZE, block, sizeof(block));
	put_be64(export, size);
	put_be16(export + 8, transmission_flags(h, e));
	put_info(h, NBD_INFO_EXPORT, export, sizeof(export));
}

/* INFO and GO: the same, but for where they lead to. */
static enum step
on_info(struct handshake *h)
{
	char name[NBD_STRING_MAX + 1];
	struct nbd_export *e;
	bool send_name = false;
	uint16_t count, info;
	uint64_t size;

	if (!get_name(h, name) || !get_u16(h, &count))
		return STEP_NEXT;
	while (count--) {
		if (!get_u16(h, &info))
			return STEP_NEXT;
		send_name = send_name || info == NBD_INFO_NAME;
	}
	if (!get_end(h))
		return STEP_NEXT;
	e = nbd_export_find(h->conn->server, name);
	if (!e)
		return reply_unknown_export(h, name);
	size = nbd_export_size(e);
	put_infos(h, e, size, send_name);
	reply_ack(h);
	return h->option == NBD_OPT_GO ? choose(h, e, size) : STEP_NEXT;
}

/* Which of the offered contexts the queries in the data name, or -1 after a
 * reply. */
static int
get_queries(struct handshake *h, bool listing, unsigned offered)
{
	char query[NBD_STRING_MAX + 1];
	unsigned found = 0;
	const uint8_t *p;
	uint32_t count, len;

	if (!get_u32(h, &count))
		return -1;
	if (!count && listing)
		found = ~0u;
	while (count--) {
		if (!get_u32(h, &len))
			return -1;
		/* Nothing of ours has so long a name. */
		if (len > NBD_STRING_MAX) {
			if (!get_bytes(h, len, &p))
				return -1;
			continue;
		}
		if (!get_chars(h, len, query))
			return -1;
		found |= nbd_status_query(query, listing);
	}
	return get_end(h) ? (int)(found & offered) : -1;
}

static enum step
on_meta_context(struct handshake *h)
{
	struct nbd_session *session = &h->conn->session;
	bool listing = h->option == NBD_OPT_LIST_META_CONTEXT;
	char name[NBD_STRING_MAX + 1];
	struct nbd_export *e;
	int found;

	if (!listing && session->mode < NBD_MODE_STRUCTURED)
		return reply_error(h, NBD_REP_ERR_INVALID,
				   "request option '%s' when structured reply is not negotiated",
				   nbd_proto_option_name(h->option));
	/* Setting replaces what was set, also where it fails. */
	if (!listing) {
		session->meta_export = 0;
		session->contexts = 0;
	}
	if (!get_name(h, name))
		return STEP_NEXT;
	e = nbd_export_find(h->conn->server, name);
	if (!e)
		return reply_unknown_export(h, name);
	found = get_queries(h, listing, nbd_status_offered(e));
	if (found < 0)
		return STEP_NEXT;
	for (unsigned i = 0; i < NBD_CONTEXTS; i++) {
		const char *context = nbd_status_context_name(i);

		if (!((unsigned)found & (1u << i)))
			continue;
		reply_head(h, NBD_REP_META_CONTEXT, 4 + strlen(context));
		put_u32(h, listing ? 0 : i);
		put(h, context, strlen(context));
	}
	if (!listing) {
		session->meta_export = e->base.serial;
		session->contexts = (unsigned)found;
	}
	return reply_ack(h);
}

/* ---- the table ---- */

static const struct option {
	unsigned states;	/* bits: where it is legal */
	enum step (*handle)(struct handshake *h);
} options[] = {
	[NBD_OPT_EXPORT_NAME] = { 1 << FIXED | 1 << OLD, on_export_name },
	[NBD_OPT_ABORT] = { 1 << FIXED | 1 << PLAIN, on_abort },
	[NBD_OPT_LIST] = { 1 << FIXED, on_list },
	[NBD_OPT_STARTTLS] = { 1 << FIXED | 1 << PLAIN, on_starttls },
	[NBD_OPT_INFO] = { 1 << FIXED, on_info },
	[NBD_OPT_GO] = { 1 << FIXED, on_info },
	[NBD_OPT_STRUCTURED_REPLY] = { 1 << FIXED, on_structured_reply },
	[NBD_OPT_LIST_META_CONTEXT] = { 1 << FIXED, on_meta_context },
	[NBD_OPT_SET_META_CONTEXT] = { 1 << FIXED, on_meta_context },
	[NBD_OPT_EXTENDED_HEADERS] = { 1 << FIXED, on_extended_headers },
};

static const struct option *
find_option(uint32_t n)
{
	return n < ARRAY_SIZE(options) && options[n].handle ? &options[n] : NULL;
}

static const bool moves[STATES][STATES] = {
	[FLAGS] = { [FIXED] = true, [OLD] = true, [PLAIN] = true },
	[PLAIN] = { [FIXED] = true },
	[FIXED] = { [DONE] = true },
	[OLD] = { [DONE] = true },
};

static void
move(struct handshake *h, enum state to)
{
	assert(moves[h->state][to]);
	h->state = to;
}

/* ---- the wire ---- */

static int
greet(struct handshake *h)
{
	const unsigned known = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;
	uint8_t flags[4];
	int r;

	put_u64(h, NBD_MAGIC);
	put_u64(h, NBD_OPTION_MAGIC);
	put_u16(h, (uint16_t)known);
	r = send_replies(h);
	if (r >= 0)
		r = sock_recv_full(h->conn->sock, flags, sizeof(flags));
	if (r < 0)
		return r;
	if (get_be32(flags) & ~known)
		return -EPROTO;
	h->no_zeroes = get_be32(flags) & NBD_FLAG_NO_ZEROES;
	if (!(get_be32(flags) & NBD_FLAG_FIXED_NEWSTYLE)) {
		/* Such a client cannot ask for TLS. */
		if (h->conn->server->creds)
			return -EPROTO;
		move(h, OLD);
	} else {
		move(h, h->conn->server->creds ? PLAIN : FIXED);
	}
	return 0;
}

/* The client's first byte of TLS is the next one. */
static int
start_tls(struct handshake *h)
{
	struct nbd_conn *c = h->conn;
	int r = tls_start(c->sock, c->server->creds, NULL, NULL);

	if (r < 0)
		return r;
	if (c->server->authz &&
	    !export_hooks()->is_authorized(c->server->authz, tls_peer(c->sock)))
		return -EACCES;
	c->session = (struct nbd_session){ 0 };
	move(h, FIXED);
	return 0;
}

/* Throw away len bytes of data that we will not look at. */
static int
skip_data(struct handshake *h, uint32_t len)
{
	uint8_t buf[4096];
	int r = 0;

	while (r >= 0 && len) {
		uint32_t n = (uint32_t)min_u64(len, sizeof(buf));

		r = sock_recv_full(h->conn->sock, buf, n);
		len -= n;
	}
	return r;
}

/* An option that is not for everybody to read.  EXPORT_NAME knows no error reply. */
static int
refuse_plain(struct handshake *h, uint32_t len)
{
	int r = h->option == NBD_OPT_EXPORT_NAME ? -EPROTO : skip_data(h, len);

	return r < 0 ? r : (int)reply_error(h, NBD_REP_ERR_TLS_REQD,
					    "Option 0x%" PRIx32 " not permitted before TLS",
					    h->option);
}

/* Handle the option at hand, with len bytes of data to come: a step, or -errno. */
static int
handle_option(struct handshake *h, uint32_t len)
{
	const struct option *o = find_option(h->option);
	CLEANUP(cleanup_free) uint8_t *data = NULL;
	int r;

	if (h->state == OLD && !(o && o->states & 1 << OLD))
		return -EPROTO;
	if (h->state == PLAIN && !(o && o->states & 1 << PLAIN))
		return refuse_plain(h, len);
	if (!o || !(o->states & 1u << h->state)) {
		r = skip_data(h, len);
		return r < 0 ? r : (int)reply_error(h, NBD_REP_ERR_UNSUP,
						    "Unsupported option %" PRIu32 " (%s)",
						    h->option, nbd_proto_option_name(h->option));
	}
	if (len > DATA_MAX) {
		r = skip_data(h, len);
		return r < 0 ? r : (int)reply_error(h, NBD_REP_ERR_TOO_BIG,
						    "option '%s' is too long",
						    nbd_proto_option_name(h->option));
	}
	data = malloc(len ? len : 1);
	if (!data)
		return -ENOMEM;
	r = len ? sock_recv_full(h->conn->sock, data, len) : 0;
	if (r < 0)
		return r;
	h->data = data;
	h->left = len;
	return (int)o->handle(h);
}

static int
haggle(struct handshake *h)
{
	uint8_t head[NBD_OPTION_SIZE];
	uint32_t len;
	int step, r;

	do {
		r = sock_recv_full(h->conn->sock, head, sizeof(head));
		if (r < 0)
			return r;
		len = get_be32(head + 12);
		if (get_be64(head) != NBD_OPTION_MAGIC || len > NBD_PAYLOAD_MAX)
			return -EPROTO;
		h->option = get_be32(head + 8);
		step = handle_option(h, len);
		r = step < 0 ? step : send_replies(h);
		if (r >= 0 && step == STEP_TLS)
			r = start_tls(h);
		if (r < 0)
			return r;
	} while (step == STEP_NEXT || step == STEP_TLS);
	if (step == STEP_END)
		return -ECONNABORTED;
	move(h, DONE);
	return 0;
}

static void
too_slow(struct timer *t)
{
	nbd_conn_shutdown(CONTAINER_OF(t, struct handshake, limit)->conn);
}

int
nbd_handshake_run(struct nbd_conn *c)
{
	struct handshake h = { .conn = c, .state = FLAGS, .limit.fn = too_slow };
	int r;

	if (c->server->handshake_ns != INT64_MAX)
		timer_set(&h.limit, clock_ns() + c->server->handshake_ns);
	r = greet(&h);
	if (r >= 0)
		r = haggle(&h);
	timer_cancel(&h.limit);
	free(h.out);
	return r;
}
