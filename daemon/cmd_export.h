/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_export.h - what exports need of the daemon. */
#ifndef DAEMON_CMD_EXPORT_H
#define DAEMON_CMD_EXPORT_H

/* Events and iothreads for exports.  Before the first export. */
void cmd_export_init(void);

/* Throw out all clients and remove all exports and the NBD server; what hangs
 * is given up after some seconds.  Coroutine. */
void cmd_export_done(void);

#endif
