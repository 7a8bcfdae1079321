/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/export.h - an NBD export: a name under which a server shows a node.
 *
 * Context    loop 0.
 */
#ifndef EXPORT_NBD_EXPORT_H
#define EXPORT_NBD_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "export/export.h"

struct dirty_bitmap;
struct nbd_server;

struct nbd_export {
	struct export base;		/* first */
	struct list link;		/* server->exports, the oldest first; or none */
	struct nbd_server *server;
	char *name, *description;	/* description NULL: none */
	bool allocation_depth;		/* offer this context */
	struct dirty_bitmap **bitmaps;	/* and these; busy, and their nodes are held */
	unsigned n_bitmaps;
	uint16_t flags;			/* transmission flags, without DF */
};

extern const struct export_kind nbd_export_kind;

/* By name, among those that are alive; NULL. */
struct nbd_export *nbd_export_find(struct nbd_server *server, const char *name);

/* What a new connection is told. */
uint64_t nbd_export_size(const struct nbd_export *e);

#endif
