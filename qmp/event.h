/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/event.h - raise an event by name; schema/events.h has the typed calls. */
#ifndef QMP_EVENT_H
#define QMP_EVENT_H

struct meta;

/* Send the event to every session that has ended its negotiation.  data is a
 * value of this type, borrowed; both NULL: there is none.  Loop 0. */
void qmp_event_raise(const char *name, const struct meta *type, const void *data);

#endif
