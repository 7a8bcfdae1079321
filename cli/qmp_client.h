/* SPDX-License-Identifier: Apache-2.0 */
/* cli/qmp_client.h - a QMP client that waits: one request at a time.
 *
 * Errors     -1 with *errp; the connection is of no more use then.
 */
#ifndef CLI_QMP_CLIENT_H
#define CLI_QMP_CLIENT_H

#include <stdint.h>

struct error;
struct json_object;
struct qmp_client;

/* Connect to a Unix socket and negotiate.  deadline_ns as of clock_ns() holds
 * for all that follows; INT64_MAX is never. */
int qmp_client_open(const char *path, int64_t deadline_ns, struct qmp_client **ret,
		    struct error **errp);
void qmp_client_close(struct qmp_client *c);	/* takes NULL */

/* Send a request, a JSON text, and wait for its reply, which the caller frees
 * by json_free().  Events that come before it go to event, which may be NULL. */
int qmp_client_ask(struct qmp_client *c, const char *request,
		   void (*event)(struct json_object *), struct json_object **ret,
		   struct error **errp);

#endif
