/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/listen.h - from an address to listening sockets. */
#ifndef EXPORT_NBD_LISTEN_H
#define EXPORT_NBD_LISTEN_H

struct SocketAddress;
struct error;

enum { NBD_LISTEN_MAX = 16 };	/* addresses that one host name may have */

/* Listen at addr.  Returns the count of fds, or -1 with *errp.  *ret_path is the
 * socket file that was made, for the caller to free and in the end to unlink;
 * it is left alone if there is none.  Coroutine, loop 0; may look up names. */
int nbd_listen_at(const struct SocketAddress *addr, char **ret_path, int *ret_fds,
		  struct error **errp);

#endif
