/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/export.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/io.h"
#include "export/nbd/conn.h"
#include "export/nbd/proto.h"
#include "export/nbd/server.h"
#include "schema/types.h"

enum { SECTOR = 512 };

struct nbd_export *
nbd_export_find(struct nbd_server *server, const char *name)
{
	struct nbd_export *e;

	LIST_FOREACH(e, &server->exports, link)
		if (!strcmp(e->name, name))
			return e;
	return NULL;
}

uint64_t
nbd_export_size(const struct nbd_export *e)
{
	return round_down(io_size(e->base.root), SECTOR);
}

/* Bitmaps are not managed yet, so none is ever found. */
static int
refuse_bitmaps(const struct BlockDirtyBitmapOrStrList *bitmaps, struct error **errp)
{
	const struct BlockDirtyBitmapOrStr *first;

	if (!bitmaps || !bitmaps->count)
		return 0;
	first = bitmaps->items[0];
	if (first->type == BLOCK_DIRTY_BITMAP_OR_STR_LOCAL)
		return error_set(errp, "Bitmap '%s' is not found", first->u.local);
	return error_set(errp, "Dirty bitmap '%s' not found", first->u.external.name);
}

static int
check(const struct nbd_server *server, const char *name,
      const struct BlockExportOptionsNbd *opts, struct error **errp)
{
	if (!server)
		return error_set(errp, "NBD server not running");
	if (strlen(name) > NBD_STRING_MAX)
		return error_set(errp, "export name '%s' too long", name);
	if (opts->description && strlen(opts->description) > NBD_STRING_MAX)
		return error_set(errp, "description '%s' too long", opts->description);
	return refuse_bitmaps(opts->bitmaps, errp);
}

static int
create(struct export *base, const struct BlockExportOptions *all, struct error **errp)
{
	const struct BlockExportOptionsNbd *opts = &all->u.nbd;
	struct nbd_export *e = (struct nbd_export *)base;
	struct nbd_server *server = nbd_server_default();
	const char *name = opts->name ? opts->name : all->node_name;

	if (check(server, name, opts, errp) < 0)
		return -1;
	if (nbd_export_find(server, name))
		return error_set(errp, "NBD server already has export named '%s'", name);
	e->name = strdup(name);
	e->description = opts->description ? strdup(opts->description) : NULL;
	if (!e->name || (opts->description && !e->description)) {
		free(e->name);
		free(e->description);
		return error_set(errp, "Out of memory");
	}
	e->flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
		   NBD_FLAG_SEND_CACHE;
	/* All connections see one node, and a flush covers them all. */
	if (server->max_conns != 1)
		e->flags |= NBD_FLAG_CAN_MULTI_CONN;
	if (base->writable)
		e->flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
			    NBD_FLAG_SEND_FAST_ZERO;
	else
		e->flags |= NBD_FLAG_READ_ONLY;
	e->allocation_depth = opts->allocation_depth;
	e->server = server;
	list_append(&server->exports, &e->link);
	return 0;
}

static void
shut_down(struct export *base)
{
	struct nbd_export *e = (struct nbd_export *)base;
	struct nbd_conn *c;

	/* Found by nobody any more, while its last clients go. */
	list_remove(&e->link);
	LIST_FOREACH(c, &e->server->conns, link)
		if (c->export == e)
			nbd_conn_shutdown(c);
}

static void
destroy(struct export *base)
{
	struct nbd_export *e = (struct nbd_export *)base;

	free(e->name);
	free(e->description);
}

const struct export_kind nbd_export_kind = {
	.type = BLOCK_EXPORT_TYPE_NBD,
	.size = sizeof(struct nbd_export),
	.create = create,
	.shutdown = shut_down,
	.destroy = destroy,
};
