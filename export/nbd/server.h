/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/server.h - NBD servers: where clients connect.
 *
 * A server is a set of listening sockets, the exports that it shows and the
 * connections it has.  QEMU's commands speak of one, whose id is "default".
 *
 * Context    loop 0; calls with an errp: coroutine.
 * Errors     0 or -1 with *errp; on failure nothing is left, no socket file
 *            either.
 */
#ifndef EXPORT_NBD_SERVER_H
#define EXPORT_NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "aio/colock.h"
#include "base/list.h"
#include "base/ownfile.h"

struct NbdServerInfoList;
struct NbdServerOptions;
struct error;
struct loop;
struct nbd_conn;
struct nbd_export;
struct tls_creds;

#define NBD_SERVER_DEFAULT "default"

/* That a server shows an export. */
struct nbd_shown {
	struct list link;		/* server->exports, the oldest first; or none */
	struct nbd_server *server;	/* NULL: it has been stopped */
	struct nbd_export *export;
};

struct nbd_server {
	struct list link;		/* all that run */
	char *id;
	struct list listeners, exports, conns;
	unsigned n_conns, max_conns;	/* 0: any number */
	int64_t handshake_ns;		/* INT64_MAX: for ever */
	struct co_queue room;		/* listeners wait for a connection to end */
	struct co_queue quiet;		/* stop waits for all to end */
	struct ownfile file;		/* of the socket, where it has one */
	unsigned next_loop;		/* for the next connection */
	struct tls_creds *creds;	/* NULL: no TLS */
	bool tls_optional;		/* else, with credentials, nothing without it */
	char *authz;			/* object that says who may connect; NULL: all may */
	bool stopped;			/* vanishes with the last connection */
};

/* Start a server; the default one if id is NULL.  An address of type fd names an fd
 * number that listens already. */
int nbd_server_start(const char *id, const struct NbdServerOptions *opts, bool tls_optional,
		     struct error **errp);

/* Throw out all clients, delete the exports that no other server shows, close the
 * sockets.  Returns in bounded time: what hangs is left to end by itself.  id as
 * above. */
int nbd_server_stop(const char *id, struct error **errp);
void nbd_server_stop_all(void);

int nbd_server_query(struct NbdServerInfoList **ret_list, struct error **errp);

/* While held, clients of any server wait in the backlog: at the start of the
 * program, until everything that they may ask for is there. */
void nbd_server_hold(bool hold);

struct nbd_server *nbd_server_find(const char *id);	/* NULL: it is not running */
struct nbd_server *nbd_server_default(void);

/* ---- for connections ---- */

void nbd_server_add_conn(struct nbd_server *s, struct nbd_conn *c);
void nbd_server_remove_conn(struct nbd_server *s, struct nbd_conn *c);

/* The loop where a connection to e is to live. */
struct loop *nbd_server_pick_loop(struct nbd_server *s, const struct nbd_export *e);

#endif
