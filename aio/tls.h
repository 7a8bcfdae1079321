/* SPDX-License-Identifier: Apache-2.0 */
/* aio/tls.h - TLS on a sock.
 *
 * A session stands as a filter (aio/sock.h) between a sock and whoever uses
 * it, who goes on as before.  It never reads or writes by itself: GnuTLS works
 * on two buffers, which the sock's own calls fill and empty, many records at a
 * time.  What costs CPU in the handshake is done by a worker thread, so that
 * strangers who knock hold up no loop.
 *
 * Units      bytes.
 * Context    coroutine on the sock's loop.
 * Ownership  the session belongs to the sock, and goes with it.
 */
#ifndef AIO_TLS_H
#define AIO_TLS_H

#include "aio/tls_creds.h"

struct sock;

/* Shake hands.  hostname: the name that a server's certificate must have, for
 * clients with TLS_X509; else NULL.  On failure, -errno with *errp, s is to be
 * closed; nothing that arrived on it was accepted.  Cancellable; ended by
 * sock_shutdown(). */
int tls_start(struct sock *s, struct tls_creds *creds, const char *hostname,
	      struct error **errp);

/* Who the peer proved to be: the distinguished name of its certificate, if that was
 * verified, or the name of its key; NULL: that is not known, or there is no TLS. */
const char *tls_peer(const struct sock *s);

#endif
