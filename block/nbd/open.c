/* SPDX-License-Identifier: Apache-2.0 */
/* The driver nbd: options, opening, limits. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "aio/timer.h"
#include "base/buf.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "block/nbd/lib.h"
#include "block/nbd/nbd.h"
#include "block/open.h"
#include "schema/types.h"

enum {
	NAME_MAX_BYTES = 4096,		/* NBD protocol, "Values": strings */
	SECTOR = 512,
	TRANSFER_MAX = 32 << 20,	/* NBD protocol, "Size constraints": what servers
					 * that say nothing take */
};

#define SECOND INT64_C(1000000000)
#define DIAL_PAUSE_NS (SECOND / 20)

/* ---- the name of it ---- */

static void
put_escaped(struct buf *b, const char *s)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				    "0123456789-._~/";

	for (; *s; s++) {
		if (strchr(plain, *s))
			buf_addc(b, *s);
		else
			buf_addf(b, "%%%02X", (unsigned char)*s);
	}
}

static void
put_export(struct buf *b, const char *name)
{
	if (!name || !*name)
		return;
	buf_addc(b, '/');
	put_escaped(b, name);
}

/* As the URI that names the same, and as QEMU writes it where it writes one; nothing
 * names a connection that was given. */
static char *
make_filename(const struct BlockdevOptionsNbd *o)
{
	const struct SocketAddress *a = o->server;
	struct buf b = { 0 };

	switch (a->type) {
	case SOCKET_ADDRESS_TYPE_UNIX:
		buf_adds(&b, "nbd+unix://");
		put_export(&b, o->export);
		buf_addf(&b, "?socket=%s", a->u.q_unix.path);
		break;
	case SOCKET_ADDRESS_TYPE_INET:
		buf_addf(&b, "nbd://%s:%s", a->u.inet.host, a->u.inet.port);
		put_export(&b, o->export);
		break;
	case SOCKET_ADDRESS_TYPE_VSOCK:
		buf_addf(&b, "nbd+vsock://%s:%s", a->u.vsock.cid, a->u.vsock.port);
		put_export(&b, o->export);
		break;
	default:
		buf_addf(&b, "nbd+fd://%s", a->u.fd.str);
		put_export(&b, o->export);
	}
	buf_addc(&b, '\0');
	if (b.failed)
		buf_done(&b);
	return b.data;
}

/* ---- opening ---- */

static int
check_options(const struct BlockdevOptionsNbd *o, struct error **errp)
{
	if (o->export && strlen(o->export) > NAME_MAX_BYTES)
		return error_set(errp, "export name too long to send to server");
	if (o->x_dirty_bitmap && strlen(o->x_dirty_bitmap) > NAME_MAX_BYTES)
		return error_set(errp, "x-dirty-bitmap query too long to send to server");
	return 0;
}

/* What the server's certificate must be for is said, or clear. */
static int
take_tls(struct nbd_client *c, const struct BlockdevOptionsNbd *o, struct error **errp)
{
	if (!o->tls_creds)
		return 0;
	c->creds = open_tls_client()->take(o->tls_creds, errp);
	if (!c->creds)
		return -1;
	c->hostname = o->tls_hostname;
	if (!c->hostname && o->server->type == SOCKET_ADDRESS_TYPE_INET)
		c->hostname = o->server->u.inet.host;
	return 0;
}

/* Tried again for open-timeout seconds, where that is set; no attempt takes longer. */
static int
dial(struct nbd_client *c, const struct BlockdevOptionsNbd *o, struct nbd_line *ret,
     struct error **errp)
{
	int64_t patience = o->has_open_timeout ? o->open_timeout * SECOND : 0;
	int64_t until = clock_ns() + patience;

	for (;;) {
		int64_t deadline = clock_ns() + NBD_DIAL_NS;
		struct error *err = NULL;
		int r;

		if (patience && deadline > until)
			deadline = until;
		r = nbd_dial(c, deadline, ret, &c->export, &err);
		if (!r)
			return 0;
		if (r == -ETIMEDOUT && deadline == until) {
			error_free(err);
			return error_set(errp, "Connection attempt cancelled by timeout");
		}
		if (r == -ECANCELED || clock_ns() + DIAL_PAUSE_NS > until ||
		    co_sleep(DIAL_PAUSE_NS) < 0) {
			error_propagate(errp, err);
			return -1;
		}
		error_free(err);
	}
}

static int
check_export(struct nbd_client *c, const struct BlockdevOptionsNbd *o, struct error **errp)
{
	const struct nbd_client_export *x = &c->export;
	struct node *n = c->node;

	if (o->x_dirty_bitmap && !x->status)
		return error_set(errp, "requested x-dirty-bitmap %s not found", o->x_dirty_bitmap);
	if (x->min_block && (!is_pow2(x->min_block) || x->min_block > 64 << 10))
		return error_set(errp, "The NBD server's minimum block size %" PRIu32 " is invalid",
				 x->min_block);
	if (x->min_block && !is_aligned(x->size, x->min_block))
		return error_set(errp, "The NBD server's export size %" PRIu64 " is not a multiple "
				 "of its minimum block size %" PRIu32, x->size, x->min_block);
	if (x->read_only && !n->read_only) {
		if (!n->auto_read_only)
			return error_set(errp, "Could not open image: Permission denied");
		n->read_only = true;
	}
	return 0;
}

/* A server that says nothing of blocks may be one that knows sectors only, unless
 * what else it says shows that it does not. */
static void
set_limits(struct nbd_client *c)
{
	const struct nbd_client_export *x = &c->export;
	struct limits *l = &c->node->limits;
	uint32_t min = x->min_block;

	if (!min)
		min = x->size % SECTOR || x->status ? 1 : SECTOR;
	l->align = l->zero_align = l->discard_align = min;
	l->mem_align = 1;
	l->max_transfer = TRANSFER_MAX;
	if (x->max_block >= min && x->max_block < l->max_transfer)
		l->max_transfer = round_down(x->max_block, min);
	l->opt_transfer = x->preferred_block > min ? x->preferred_block : 0;
	/* Lengths have 32 bits. */
	l->max_zero = l->max_discard = round_down(INT32_MAX, min);
	atomic_store(&c->node->size, round_down(x->size, min));
}

/* Is there but the one connection that somebody made for us? */
static bool
is_given(const struct nbd_client *c)
{
	return c->address->type == SOCKET_ADDRESS_TYPE_FD;
}

/* One link for each I/O loop where that is safe, else one. */
static int
make_links(struct nbd_client *c)
{
	unsigned loops = loop_io_count();

	c->n_links = c->export.multi && loops > 1 && !is_given(c) ? loops : 1;
	c->links = calloc(c->n_links, sizeof(*c->links));
	if (!c->links)
		return -ENOMEM;
	for (unsigned i = 0; i < c->n_links; i++)
		nbd_link_init(&c->links[i], c, loops ? loop_io(i) : loop_main());
	return 0;
}

static int
connect_first(struct nbd_client *c, const struct BlockdevOptionsNbd *o, struct error **errp)
{
	struct nbd_line line;
	int r;

	if (lib_load(errp) || dial(c, o, &line, errp))
		return -1;
	if (check_export(c, o, errp) || make_links(c) < 0) {
		nbd_dial_undo(&line);
		return errp && *errp ? -1 : error_set(errp, "Cannot allocate memory");
	}
	r = nbd_link_adopt(&c->links[0], &line);
	if (r < 0) {
		free(c->links);
		return error_set_errno(errp, r, "Cannot serve the connection"), -1;
	}
	set_limits(c);
	return 0;
}

static int
nbd_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsNbd *o = &n->options->u.nbd;
	struct nbd_client *c = n->state;
	int r;

	(void)op;
	*c = (struct nbd_client){
		.node = n,
		.address = o->server,
		.export_name = o->export ? o->export : "",
		.context = o->x_dirty_bitmap ? o->x_dirty_bitmap : "base:allocation",
		.reconnect_ns = o->has_reconnect_delay ? o->reconnect_delay * SECOND : 0,
	};
	if (check_options(o, errp) || take_tls(c, o, errp))
		return -1;
	n->filename = make_filename(o);
	r = n->filename ? connect_first(c, o, errp) : error_set(errp, "Cannot allocate memory");
	if (r < 0)
		open_tls_client()->drop(c->creds);
	return r;
}

static int
nbd_hang_up(struct node *n)
{
	struct nbd_client *c = n->state;

	for (unsigned i = 0; i < c->n_links; i++)
		nbd_link_close(&c->links[i]);
	free(c->links);
	open_tls_client()->drop(c->creds);
	return 0;
}

static void
nbd_give_up(struct node *n, int64_t silent_ns)
{
	struct nbd_client *c = n->state;

	for (unsigned i = 0; i < c->n_links; i++)
		nbd_link_give_up(&c->links[i], silent_ns);
}

/* ---- the rest ---- */

static int
nbd_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	     struct error **errp)
{
	(void)prealloc;
	if (exact && size != node_size(n))
		return error_set(errp, "Cannot resize NBD nodes");
	if (size > node_size(n))
		return error_set(errp, "Cannot grow NBD nodes");
	return 0;
}

static int
nbd_set_read_only(struct node *n, bool read_only, struct error **errp)
{
	const struct nbd_client *c = n->state;

	if (!read_only && c->export.read_only)
		return error_set(errp, "The NBD server's export is read-only");
	return 0;
}

const struct driver driver_nbd = {
	.name = "nbd",
	.caps = DRIVER_PROTOCOL | DRIVER_FUA | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST,
	.state_size = sizeof(struct nbd_client),
	.open = nbd_open,
	.close = nbd_hang_up,
	.set_read_only = nbd_set_read_only,
	.read = nbd_client_read,
	.write = nbd_client_write,
	.zero = nbd_client_zero,
	.discard = nbd_client_discard,
	.flush = nbd_client_flush,
	.status = nbd_client_status,
	.truncate = nbd_truncate,
	.give_up = nbd_give_up,
};
