/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/event.h"

#include <stddef.h>
#include <time.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "qmp/server_int.h"
#include "qmp/session.h"
#include "schema/encode.h"

void
qmp_event_raise(const char *name, const struct meta *type, const void *data)
{
	CLEANUP(buf_done) struct buf b = { 0 };
	struct qmp_session *s, *next;
	struct timespec now;

	if (list_empty(server_sessions()))
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	buf_addf(&b, "{\"timestamp\": {\"seconds\": %lld, \"microseconds\": %ld}, "
		     "\"event\": \"%s\"",
		 (long long)now.tv_sec, now.tv_nsec / 1000, name);
	if (type) {
		buf_adds(&b, ", \"data\": ");
		encode_value(&b, type, data);
	}
	buf_adds(&b, "}");
	if (b.failed)
		return;
	LIST_FOREACH_SAFE(s, next, server_sessions(), link)
		if (s->negotiated)
			qmp_session_send(s, b.data, b.len, true);
}
