/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/server_int.h - what the files of qmp/ know of the server. */
#ifndef QMP_SERVER_INT_H
#define QMP_SERVER_INT_H

struct list;
struct qmp_server_config;

const struct qmp_server_config *server_config(void);

struct list *server_sessions(void);	/* of struct qmp_session's link */

void server_notice(const char *text);

/* A session ended: qmp_server_stop() may wait for that. */
void server_session_gone(void);

#endif
