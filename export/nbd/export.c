/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/export.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/list.h"
#include "block/dirty.h"
#include "block/io.h"
#include "block/node.h"
#include "block/root.h"
#include "export/nbd/conn.h"
#include "export/nbd/proto.h"
#include "export/nbd/server.h"
#include "export/nbd/status.h"
#include "schema/types.h"

enum { SECTOR = 512 };

struct nbd_export *
nbd_export_find(const struct nbd_server *server, const char *name)
{
	struct nbd_shown *s;

	LIST_FOREACH(s, &server->exports, link)
		if (!strcmp(s->export->name, name))
			return s->export;
	return NULL;
}

bool
nbd_export_is_nowhere(const struct export *base)
{
	const struct nbd_export *e = (const struct nbd_export *)base;

	if (base->kind != &nbd_export_kind)
		return false;
	for (unsigned i = 0; i < e->n_shown; i++)
		if (e->shown[i].server)
			return false;
	return true;
}

uint64_t
nbd_export_size(const struct nbd_export *e)
{
	return round_down(io_size(e->base.root), SECTOR);
}

/* ---- bitmaps ---- */

/* By its name alone, in the chain of what is exported. */
static struct dirty_bitmap *
find_local(const struct export *base, const char *name, struct error **errp)
{
	struct dirty_bitmap *b = NULL;
	struct node *n = root_node(base->root), *next;

	for (; n && !b; n = next) {
		b = dirty_find(n, name);
		next = node_below(n);
	}
	if (!b)
		error_set(errp, "Bitmap '%s' is not found", name);
	/* A reader of what goes on changing has nothing to rely on. */
	else if (!base->writable && dirty_is_enabled(b) && !node_is_read_only(dirty_node(b)))
		error_set(errp, "Enabled bitmap '%s' incompatible with readonly export", name);
	else
		return b;
	return NULL;
}

static int
take_bitmap(struct nbd_export *e, const struct BlockDirtyBitmapOrStr *name, struct error **errp)
{
	struct dirty_bitmap *b;

	if (name->type == BLOCK_DIRTY_BITMAP_OR_STR_LOCAL)
		b = find_local(&e->base, name->u.local, errp);
	else
		b = dirty_lookup(name->u.external.node, name->u.external.name, errp);
	if (!b || dirty_check(b, DIRTY_TO_READ, errp) < 0)
		return -1;
	dirty_set_busy(b, true);
	node_ref(dirty_node(b));
	e->bitmaps[e->n_bitmaps++] = b;
	return 0;
}

/* Coroutine. */
static void
release_bitmaps(struct nbd_export *e)
{
	for (unsigned i = 0; i < e->n_bitmaps; i++) {
		struct node *n = dirty_node(e->bitmaps[i]);

		dirty_set_busy(e->bitmaps[i], false);
		node_unref(n);
	}
	free(e->bitmaps);
}

static int
take_bitmaps(struct nbd_export *e, const struct BlockDirtyBitmapOrStrList *list,
	     struct error **errp)
{
	size_t n = list ? list->count : 0;

	if (n > NBD_BITMAPS_MAX)
		return error_set(errp, "At most %d bitmaps can be exported together",
				 NBD_BITMAPS_MAX);
	e->bitmaps = n ? calloc(n, sizeof(struct dirty_bitmap *)) : NULL;
	if (n && !e->bitmaps)
		return error_set(errp, "Out of memory");
	for (size_t i = 0; i < n; i++)
		if (take_bitmap(e, list->items[i], errp) < 0)
			return -1;
	return 0;
}

/* ---- servers ---- */

static int
show_on(struct nbd_export *e, const char *id, struct error **errp)
{
	struct nbd_server *server = nbd_server_find(id);
	struct nbd_shown *s = &e->shown[e->n_shown];

	if (!server && !strcmp(id, NBD_SERVER_DEFAULT))
		return error_set(errp, "NBD server not running");
	if (!server)
		return error_set(errp, "NBD server '%s' is not found", id);
	if (nbd_export_find(server, e->name))
		return error_set(errp, "NBD server already has export named '%s'", e->name);
	if (e->needs_tls && !server->creds)
		return error_set(errp, "Export '%s' needs TLS, which NBD server '%s' does not have",
				 e->name, id);
	s->server = server;
	s->export = e;
	list_append(&server->exports, &s->link);
	e->n_shown++;
	return 0;
}

static void
hide(struct nbd_export *e)
{
	for (unsigned i = 0; i < e->n_shown; i++)
		list_remove(&e->shown[i].link);
}

static int
show(struct nbd_export *e, const struct strList *ids, struct error **errp)
{
	size_t n = ids ? ids->count : 1;

	e->shown = calloc(n ? n : 1, sizeof(*e->shown));
	if (!e->shown)
		return error_set(errp, "Out of memory");
	if (!ids)
		return show_on(e, NBD_SERVER_DEFAULT, errp);
	if (!n)
		return error_set(errp, "Parameter 'x-quoin-servers' names no NBD server");
	for (size_t i = 0; i < n; i++)
		if (show_on(e, ids->items[i], errp) < 0)
			return -1;
	return 0;
}

/* ---- life ---- */

/* All that the export owns, as far as it is there.  Coroutine. */
static void
destroy(struct export *base)
{
	struct nbd_export *e = (struct nbd_export *)base;

	hide(e);
	free(e->shown);
	e->n_shown = 0;		/* the export can be seen for a moment more */
	release_bitmaps(e);
	free(e->name);
	free(e->description);
}

static int
check(const char *name, const struct BlockExportOptionsNbd *opts, struct error **errp)
{
	if (!opts->x_quoin_servers && !nbd_server_default())
		return error_set(errp, "NBD server not running");
	if (strlen(name) > NBD_STRING_MAX)
		return error_set(errp, "export name '%s' too long", name);
	if (opts->description && strlen(opts->description) > NBD_STRING_MAX)
		return error_set(errp, "description '%s' too long", opts->description);
	return 0;
}

static uint16_t
flags_of(const struct export *base)
{
	unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
			 NBD_FLAG_SEND_CACHE;

	if (base->writable)
		flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
	else
		flags |= NBD_FLAG_READ_ONLY;
	return (uint16_t)flags;
}

static int
create(struct export *base, const struct BlockExportOptions *all, struct error **errp)
{
	const struct BlockExportOptionsNbd *opts = &all->u.nbd;
	struct nbd_export *e = (struct nbd_export *)base;
	const char *name = opts->name ? opts->name : all->node_name;

	if (check(name, opts, errp) < 0)
		return -1;
	e->flags = flags_of(base);
	e->needs_tls = opts->x_quoin_tls;
	e->allocation_depth = opts->allocation_depth;
	e->name = strdup(name);
	e->description = opts->description ? strdup(opts->description) : NULL;
	if (!e->name || (opts->description && !e->description)) {
		error_set(errp, "Out of memory");
		goto fail;
	}
	/* From the moment that it is shown clients may come, for which all is there;
	 * nothing waits from there to success. */
	if (take_bitmaps(e, opts->bitmaps, errp) < 0 || show(e, opts->x_quoin_servers, errp) < 0)
		goto fail;
	return 0;

fail:
	destroy(base);
	return -1;
}

static void
shut_down(struct export *base)
{
	struct nbd_export *e = (struct nbd_export *)base;
	struct nbd_conn *c;

	/* Found by nobody any more, while its last clients go. */
	hide(e);
	for (unsigned i = 0; i < e->n_shown; i++) {
		if (!e->shown[i].server)
			continue;
		LIST_FOREACH(c, &e->shown[i].server->conns, link)
			if (c->export == e)
				nbd_conn_shutdown(c);
	}
}

static int
query(const struct export *base, struct BlockExportInfo *info)
{
	return nbd_clients_query((const struct nbd_export *)base, info);
}

const struct export_kind nbd_export_kind = {
	.type = BLOCK_EXPORT_TYPE_NBD,
	.size = sizeof(struct nbd_export),
	.create = create,
	.shutdown = shut_down,
	.destroy = destroy,
	.query = query,
};
