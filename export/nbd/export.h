/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/export.h - an NBD export: a name under which servers show a node.
 *
 * Context    loop 0.
 */
#ifndef EXPORT_NBD_EXPORT_H
#define EXPORT_NBD_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "export/export.h"

struct BlockExportInfo;
struct dirty_bitmap;
struct nbd_conn;
struct nbd_server;
struct nbd_shown;

struct nbd_export {
	struct export base;		/* first */
	struct nbd_shown *shown;	/* by these servers (server.h) */
	unsigned n_shown;
	char *name, *description;	/* description NULL: none */
	bool needs_tls;			/* who has none is told of no such export */
	bool allocation_depth;		/* offer this context */
	struct dirty_bitmap **bitmaps;	/* and these; busy, and their nodes are held */
	unsigned n_bitmaps;
	uint16_t flags;			/* transmission flags that depend on nothing else */
};

extern const struct export_kind nbd_export_kind;

/* By name, among those that a server shows; NULL. */
struct nbd_export *nbd_export_find(const struct nbd_server *server, const char *name);

/* Is it an NBD export that no server shows any more? */
bool nbd_export_is_nowhere(const struct export *e);

/* What a new connection is told. */
uint64_t nbd_export_size(const struct nbd_export *e);

/* ---- clients.c ---- */

/* Tell of its clients: 0 or -ENOMEM. */
int nbd_clients_query(const struct nbd_export *e, struct BlockExportInfo *info);

#endif
