/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/systemd.h - at home under a service manager.
 *
 * The notifications of sd_notify(3), the watchdog of sd_watchdog_enabled(3) and
 * the sockets of sd_listen_fds(3).  Without systemd, at build time or at run
 * time, every call does nothing and there are no sockets.
 *
 * Context    loop 0.
 */
#ifndef DAEMON_SYSTEMD_H
#define DAEMON_SYSTEMD_H

#include <stdbool.h>

struct error;

/* Read what the manager passed, and hide it from children.  Before threads. */
void systemd_start(void);

/* The next listening socket that was passed under this name and that nobody took
 * yet; -1 is none.  The caller owns it. */
int systemd_take_socket(const char *name);
bool systemd_has_socket(const char *name);
/* A passed socket that nobody took: its name, or NULL. */
const char *systemd_untaken(void);

/* READY=1, and from now on WATCHDOG=1 as often as the manager wants it. */
void systemd_ready(void);
void systemd_stopping(void);
/* STATUS=, the line that `systemctl status` shows. */
void systemd_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* No callback comes any more; before the loops stop. */
void systemd_stop(void);

#endif
