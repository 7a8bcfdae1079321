/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/listen.h - from an address to listening sockets. */
#ifndef EXPORT_NBD_LISTEN_H
#define EXPORT_NBD_LISTEN_H

#include <stdbool.h>

struct SocketAddress;
struct error;
struct ownfile;

enum { NBD_LISTEN_MAX = 16 };	/* addresses that one host name may have */

/* Listen at addr.  Returns the count of fds, or -1 with *errp.  *ret_file is the
 * socket file that was made, for the caller to remove; left alone if there is
 * none.  Coroutine, loop 0; may look up names. */
int nbd_listen_at(const struct SocketAddress *addr, struct ownfile *ret_file, int *ret_fds,
		  struct error **errp);

/* Where fd listens, or, with peer, who is at its other end; the caller's.  A Unix
 * socket of the other side has no name, so its path is "".  NULL: no memory. */
struct SocketAddress *nbd_listen_address(int fd, bool peer);

#endif
