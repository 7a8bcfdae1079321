/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/dispatch.h - from a request to its reply: inside qmp/ only. */
#ifndef QMP_DISPATCH_H
#define QMP_DISPATCH_H

#include <stdbool.h>

struct buf;
struct error;
struct json_object;
struct qmp_session;

/* Carry the request out and write the reply.  Coroutine; may wait. */
void dispatch(struct qmp_session *s, struct json_object *request, struct buf *reply);

/* The reply to what is no request; id may be NULL, has_id says if there is one. */
void dispatch_error(const struct error *err, bool has_id, struct json_object *id,
		    struct buf *reply);

/* Does this request ask to be executed out of band, in this session? */
bool dispatch_is_oob(const struct qmp_session *s, struct json_object *request);

#endif
