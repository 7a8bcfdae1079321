/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/pidfile.h - a file that holds the process ID while the daemon runs.
 *
 * The file is locked, so a second daemon cannot take it, and one that a crashed
 * daemon left is taken over.
 *
 * Context    any thread; one pidfile a process.
 */
#ifndef DAEMON_PIDFILE_H
#define DAEMON_PIDFILE_H

struct error;

/* 0, or -1 with *errp. */
int pidfile_write(const char *path, struct error **errp);
/* Remove it, if it was written. */
void pidfile_remove(void);

#endif
