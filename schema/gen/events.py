# SPDX-License-Identifier: Apache-2.0
"""schema/events.h and schema/events.c: one function for each event."""

from . import names
from .ctypes import HEAD, meta_ref

TOP = '''\
/* schema/events.h - raise events to all sessions that listen.
 *
 * Strings may be NULL where the schema says optional; other optional members
 * have a bool has_x before them.  Nothing is raised if memory runs out.
 *
 * Context    loop 0, coroutine or not.  Arguments are borrowed.
 */
#ifndef SCHEMA_EVENTS_H
#define SCHEMA_EVENTS_H

#include "schema/types.h"

'''


def param(m):
    name = names.member(m.name)
    text = names.declare(m.type, name)
    if text is None:
        return []
    out = [f'bool has_{name}'] if m.optional and not names.is_pointer(m.type) else []
    if names.is_pointer(m.type):
        text = 'const ' + text
    return out + [text]


def signature(event, end):
    name = f'qmp_event_send_{event.name.lower()}'
    if not event.data:
        return f'void{end}{name}(void)'
    if event.boxed:
        return f'void{end}{name}(const struct {event.data.name} *data)'
    params = [p for m in event.data.members for p in param(m)]
    return f'void{end}{name}({", ".join(params)})'


def header(schema):
    out = [signature(e, ' ') + ';' for e in schema.events.values()]
    return HEAD + TOP + '\n'.join(out) + '\n\n#endif\n'


def body(event):
    if not event.data:
        return [f'\tqmp_event_raise("{event.name}", NULL, NULL);']
    if event.boxed:
        return [f'\tqmp_event_raise("{event.name}", '
                f'{meta_ref(event.data)}, data);']
    out = [f'\tstruct {event.data.name} data = {{']
    for m in event.data.members:
        name = names.member(m.name)
        if m.optional and not names.is_pointer(m.type):
            out.append(f'\t\t.has_{name} = has_{name},')
        if names.is_pointer(m.type):
            ctype = names.declare(m.type, '').rstrip()
            out.append(f'\t\t.{name} = ({ctype}){name},')
        elif names.declare(m.type, name):
            out.append(f'\t\t.{name} = {name},')
    return out + ['\t};', '', f'\tqmp_event_raise("{event.name}", '
                  f'{meta_ref(event.data)}, &data);']


def source(schema):
    out = []
    for e in schema.events.values():
        out += [signature(e, '\n'), '{', *body(e), '}', '']
    return (HEAD + '#include "schema/events.h"\n\n#include "qmp/event.h"\n\n'
            + '\n'.join(out))
