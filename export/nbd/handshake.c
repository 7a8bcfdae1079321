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
 * Where the server wants TLS, a client may do nothing before it has it (PLAIN);
 * where it only offers it, exports that need TLS are not there before.  What was
 * agreed on before STARTTLS is forgotten, and nothing that was sent behind it is
 * read as anything but TLS, because nothing is read ahead.
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
#include <stdlib.h>
#include <string.h>

#include "aio/sock.h"
#include "aio/timer.h"
#include "aio/tls.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/option.h"
#include "export/nbd/proto.h"
#include "export/nbd/server.h"

enum {
	DATA_MAX = 256 << 10,	/* of an option's data that is looked at */
	BLOCK_MIN = 1,
	BLOCK_PREFERRED = 4096,
};

/* ---- options ---- */

static uint16_t
transmission_flags(const struct nbd_handshake *h, const struct nbd_export *e)
{
	const struct nbd_session *session = &h->conn->session;
	unsigned flags = e->flags;

	/* All connections see one node, and a flush covers them all. */
	if (h->conn->server->max_conns != 1)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	if (session->mode >= NBD_MODE_STRUCTURED)
		flags |= NBD_FLAG_SEND_DF;
	if (session->mode >= NBD_MODE_EXTENDED && session->contexts &&
	    session->meta_export == e->base.serial)
		flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
	return (uint16_t)flags;
}

/* The client has chosen. */
static enum nbd_step
choose(struct nbd_handshake *h, struct nbd_export *e, uint64_t size)
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
	return NBD_STEP_TRANSMIT;
}

static enum nbd_step
on_export_name(struct nbd_handshake *h)
{
	static const uint8_t zeroes[NBD_EXPORT_NAME_ZEROES];
	char name[NBD_STRING_MAX + 1];
	struct nbd_export *e;
	uint64_t size;

	/* This option knows no error reply, of a length either, and no extended headers. */
	if (h->conn->session.mode == NBD_MODE_EXTENDED || h->left > NBD_STRING_MAX ||
	    memchr(h->data, 0, h->left))
		return NBD_STEP_END;
	memcpy(name, h->data, h->left);
	name[h->left] = '\0';
	e = nbd_option_find_export(h, name);
	if (!e)
		return NBD_STEP_END;
	size = nbd_export_size(e);
	nbd_option_put_u64(h, size);
	nbd_option_put_u16(h, transmission_flags(h, e));
	if (!h->no_zeroes)
		nbd_option_put(h, zeroes, sizeof(zeroes));
	return choose(h, e, size);
}

static enum nbd_step
on_abort(struct nbd_handshake *h)
{
	nbd_option_ack(h);
	return NBD_STEP_END;
}

static enum nbd_step
on_list(struct nbd_handshake *h)
{
	struct nbd_shown *shown;

	if (!nbd_option_get_end(h))
		return NBD_STEP_NEXT;
	LIST_FOREACH(shown, &h->conn->server->exports, link) {
		const struct nbd_export *e = shown->export;
		const char *text = e->description ? e->description : "";

		if (e->needs_tls && !h->conn->tls)
			continue;

		nbd_option_head(h, NBD_REP_SERVER, 4 + strlen(e->name) + strlen(text));
		nbd_option_put_u32(h, (uint32_t)strlen(e->name));
		nbd_option_put(h, e->name, strlen(e->name));
		nbd_option_put(h, text, strlen(text));
	}
	return nbd_option_ack(h);
}

static enum nbd_step
on_starttls(struct nbd_handshake *h)
{
	if (!nbd_option_get_end(h))
		return h->state == NBD_HS_PLAIN ? NBD_STEP_END : NBD_STEP_NEXT;
	if (!h->conn->server->creds)
		return nbd_option_error(h, NBD_REP_ERR_POLICY, "TLS not configured");
	if (h->conn->tls)
		return nbd_option_error(h, NBD_REP_ERR_INVALID, "TLS already enabled");
	nbd_option_ack(h);
	return NBD_STEP_TLS;
}

static enum nbd_step
on_structured_reply(struct nbd_handshake *h)
{
	if (!nbd_option_get_end(h))
		return NBD_STEP_NEXT;
	if (h->conn->session.mode == NBD_MODE_EXTENDED)
		return nbd_option_error(h, NBD_REP_ERR_EXT_HEADER_REQD,
					"extended headers already negotiated");
	if (h->conn->session.mode == NBD_MODE_STRUCTURED)
		return nbd_option_error(h, NBD_REP_ERR_INVALID,
					"structured reply already negotiated");
	h->conn->session.mode = NBD_MODE_STRUCTURED;
	return nbd_option_ack(h);
}

static enum nbd_step
on_extended_headers(struct nbd_handshake *h)
{
	if (!nbd_option_get_end(h))
		return NBD_STEP_NEXT;
	if (h->conn->session.mode == NBD_MODE_EXTENDED)
		return nbd_option_error(h, NBD_REP_ERR_INVALID,
					"extended headers already negotiated");
	h->conn->session.mode = NBD_MODE_EXTENDED;
	return nbd_option_ack(h);
}

static void
put_info(struct nbd_handshake *h, uint16_t info, const void *data, size_t len)
{
	nbd_option_head(h, NBD_REP_INFO, 2 + len);
	nbd_option_put_u16(h, info);
	nbd_option_put(h, data, len);
}

static void
put_infos(struct nbd_handshake *h, const struct nbd_export *e, uint64_t size, bool send_name)
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
static enum nbd_step
on_info(struct nbd_handshake *h)
{
	char name[NBD_STRING_MAX + 1];
	struct nbd_export *e;
	bool send_name = false;
	uint16_t count, info;
	uint64_t size;

	if (!nbd_option_get_name(h, name) || !nbd_option_get_u16(h, &count))
		return NBD_STEP_NEXT;
	while (count--) {
		if (!nbd_option_get_u16(h, &info))
			return NBD_STEP_NEXT;
		send_name = send_name || info == NBD_INFO_NAME;
	}
	if (!nbd_option_get_end(h))
		return NBD_STEP_NEXT;
	e = nbd_option_find_export(h, name);
	if (!e)
		return nbd_option_unknown_export(h, name);
	size = nbd_export_size(e);
	put_infos(h, e, size, send_name);
	nbd_option_ack(h);
	return h->option == NBD_OPT_GO ? choose(h, e, size) : NBD_STEP_NEXT;
}

/* ---- the table ---- */

static const struct option {
	unsigned states;	/* bits: where it is legal */
	enum nbd_step (*handle)(struct nbd_handshake *h);
	bool ignores_data;	/* of whatever length */
} options[] = {
	[NBD_OPT_EXPORT_NAME] = { 1 << NBD_HS_FIXED | 1 << NBD_HS_OLD, on_export_name },
	[NBD_OPT_ABORT] = { 1 << NBD_HS_FIXED | 1 << NBD_HS_PLAIN, on_abort, true },
	[NBD_OPT_LIST] = { 1 << NBD_HS_FIXED, on_list },
	[NBD_OPT_STARTTLS] = { 1 << NBD_HS_FIXED | 1 << NBD_HS_PLAIN, on_starttls },
	[NBD_OPT_INFO] = { 1 << NBD_HS_FIXED, on_info },
	[NBD_OPT_GO] = { 1 << NBD_HS_FIXED, on_info },
	[NBD_OPT_STRUCTURED_REPLY] = { 1 << NBD_HS_FIXED, on_structured_reply },
	[NBD_OPT_LIST_META_CONTEXT] = { 1 << NBD_HS_FIXED, nbd_meta_option },
	[NBD_OPT_SET_META_CONTEXT] = { 1 << NBD_HS_FIXED, nbd_meta_option },
	[NBD_OPT_EXTENDED_HEADERS] = { 1 << NBD_HS_FIXED, on_extended_headers },
};

static const struct option *
find_option(uint32_t n)
{
	return n < ARRAY_SIZE(options) && options[n].handle ? &options[n] : NULL;
}

static const bool moves[NBD_HS_STATES][NBD_HS_STATES] = {
	[NBD_HS_FLAGS] = { [NBD_HS_FIXED] = true, [NBD_HS_OLD] = true, [NBD_HS_PLAIN] = true },
	[NBD_HS_PLAIN] = { [NBD_HS_FIXED] = true },
	[NBD_HS_FIXED] = { [NBD_HS_DONE] = true },
	[NBD_HS_OLD] = { [NBD_HS_DONE] = true },
};

static void
move(struct nbd_handshake *h, enum nbd_state to)
{
	assert(moves[h->state][to]);
	h->state = to;
}

/* ---- the wire ---- */

static int
greet(struct nbd_handshake *h)
{
	const unsigned known = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;
	const struct nbd_server *server = h->conn->server;
	bool forced_tls = server->creds && !server->tls_optional;
	uint8_t flags[4];
	int r;

	nbd_option_put_u64(h, NBD_MAGIC);
	nbd_option_put_u64(h, NBD_OPTION_MAGIC);
	nbd_option_put_u16(h, (uint16_t)known);
	r = nbd_option_send(h);
	if (r >= 0)
		r = sock_recv_full(h->conn->sock, flags, sizeof(flags));
	if (r < 0)
		return r;
	if (get_be32(flags) & ~known)
		return -EPROTO;
	h->no_zeroes = get_be32(flags) & NBD_FLAG_NO_ZEROES;
	if (get_be32(flags) & NBD_FLAG_FIXED_NEWSTYLE)
		move(h, forced_tls ? NBD_HS_PLAIN : NBD_HS_FIXED);
	else if (!forced_tls)
		move(h, NBD_HS_OLD);
	else	/* such a client cannot ask for TLS */
		return -EPROTO;
	return 0;
}

/* The client's first byte of TLS is the next one. */
static int
start_tls(struct nbd_handshake *h)
{
	struct nbd_conn *c = h->conn;
	int r = tls_start(c->sock, c->server->creds, NULL, NULL);

	if (r < 0)
		return r;
	if (tls_peer(c->sock) && !(c->identity = strdup(tls_peer(c->sock))))
		return -ENOMEM;
	if (c->server->authz && !export_hooks()->is_authorized(c->server->authz, c->identity))
		return -EACCES;
	c->tls = true;
	c->session = (struct nbd_session){ 0 };
	if (h->state == NBD_HS_PLAIN)
		move(h, NBD_HS_FIXED);
	return 0;
}

/* Throw away len bytes of data that we will not look at. */
static int
skip_data(struct nbd_handshake *h, uint32_t len)
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
refuse_plain(struct nbd_handshake *h, uint32_t len)
{
	int r = h->option == NBD_OPT_EXPORT_NAME ? -EPROTO : skip_data(h, len);

	return r < 0 ? r : (int)nbd_option_error(h, NBD_REP_ERR_TLS_REQD,
						 "Option 0x%" PRIx32 " not permitted before TLS",
						 h->option);
}

/* Handle the option at hand, with len bytes of data to come: a step, or -errno. */
static int
handle_option(struct nbd_handshake *h, uint32_t len)
{
	const struct option *o = find_option(h->option);
	CLEANUP(cleanup_free) uint8_t *data = NULL;
	int r;

	if (h->state == NBD_HS_OLD && !(o && o->states & 1 << NBD_HS_OLD))
		return -EPROTO;
	if (h->state == NBD_HS_PLAIN && !(o && o->states & 1 << NBD_HS_PLAIN))
		return refuse_plain(h, len);
	if (!o || !(o->states & 1u << h->state)) {
		r = skip_data(h, len);
		return r < 0 ? r : (int)nbd_option_error(h, NBD_REP_ERR_UNSUP,
							 "Unsupported option %" PRIu32 " (%s)",
							 h->option, nbd_proto_option_name(h->option));
	}
	if (o->ignores_data) {
		r = skip_data(h, len);
		return r < 0 ? r : (int)o->handle(h);
	}
	if (len > DATA_MAX) {
		r = h->option == NBD_OPT_EXPORT_NAME ? -EPROTO : skip_data(h, len);
		return r < 0 ? r : (int)nbd_option_error(h, NBD_REP_ERR_TOO_BIG,
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
haggle(struct nbd_handshake *h)
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
		r = step < 0 ? step : nbd_option_send(h);
		if (r >= 0 && step == NBD_STEP_TLS)
			r = start_tls(h);
		if (r < 0)
			return r;
	} while (step == NBD_STEP_NEXT || step == NBD_STEP_TLS);
	if (step == NBD_STEP_END)
		return -ECONNABORTED;
	move(h, NBD_HS_DONE);
	return 0;
}

static void
too_slow(struct timer *t)
{
	nbd_conn_shutdown(CONTAINER_OF(t, struct nbd_handshake, limit)->conn);
}

int
nbd_handshake_run(struct nbd_conn *c)
{
	struct nbd_handshake h = { .conn = c, .state = NBD_HS_FLAGS, .limit.fn = too_slow };
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
