/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/handshake.h - from the greeting to transmission. */
#ifndef EXPORT_NBD_HANDSHAKE_H
#define EXPORT_NBD_HANDSHAKE_H

struct nbd_conn;

/* Negotiate with a new client.  0: c->export is chosen and referenced, and what
 * was agreed on stands in c.  -errno: the connection is to be closed.  Bounded
 * by the server's time limit; ended by nbd_conn_shutdown().  Coroutine, loop 0. */
int nbd_handshake_run(struct nbd_conn *c);

#endif
