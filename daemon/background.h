/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/background.h - --daemonize: leave the terminal once everything works.
 *
 * background_start() forks before any thread exists.  The parent waits for the
 * child's word and exits with it: 0 when the start succeeded, 1 when it failed,
 * whose reason the child has written to the stderr that both still share.
 */
#ifndef DAEMON_BACKGROUND_H
#define DAEMON_BACKGROUND_H

struct error;

/* Returns in the child only.  -1 with *errp: no child was made. */
int background_start(struct error **errp);
/* The start succeeded: let go of terminal and folder, and of the parent. */
int background_ready(struct error **errp);

#endif
