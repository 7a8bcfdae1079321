/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/monitor.h - where QMP clients come in: --chardev, --monitor, --qmp and
 * the sockets that systemd passed.
 *
 * Sockets are made when their option is carried out, so that a path that cannot
 * be had fails the start; nobody is greeted before monitor_open_all(), which
 * comes when every option has worked.
 *
 * Context    coroutine on loop 0.
 * Errors     0, or -1 with *errp and nothing left behind.
 */
#ifndef DAEMON_MONITOR_H
#define DAEMON_MONITOR_H

struct ChardevOptions;
struct MonitorOptions;
struct QmpSocketOptions;
struct error;

int monitor_add_chardev(const struct ChardevOptions *opts, struct error **errp);
int monitor_add(const struct MonitorOptions *opts, struct error **errp);
int monitor_add_qmp(const struct QmpSocketOptions *opts, struct error **errp);
/* Sockets named "qmp" and "qmp-ro"; the latter are read-only. */
int monitor_add_systemd(struct error **errp);

/* Let the clients in. */
int monitor_open_all(struct error **errp);
/* Close what was not opened, and remove socket files that are still ours. */
void monitor_close_all(void);

#endif
