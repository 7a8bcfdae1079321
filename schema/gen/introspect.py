# SPDX-License-Identifier: Apache-2.0
"""schema/introspect.c: the reply of query-qmp-schema.

Names of types are numbers, so that nobody relies on them; bases are folded
into their users, and all integers are "int", as QEMU has it.
"""

import json

from .ctypes import HEAD, c_string

TOP = '''\
#include "schema/introspect.h"

const char schema_introspection[] =
'''


class Writer:
    def __init__(self):
        self.entries = []
        self.used = []          # types, in the order of their numbers

    def number(self, t):
        for i, other in enumerate(self.used):
            if other is t:
                return str(i)
        self.used.append(t)
        return str(len(self.used) - 1)

    def type(self, t):
        if t is None:
            return self.number('empty')
        if t.kind == 'builtin':
            name = {'int': 'int', 'string': 'str', 'boolean': 'bool',
                    'value': 'any'}.get(t.json, t.json)
            self.builtins[name] = t.json
            return name
        if t.kind == 'array':
            name = '[' + self.type(t.element) + ']'
            self.arrays[name] = self.type(t.element)
            return name
        return self.number(t)

    def add(self, name, meta, features, **rest):
        entry = {'name': name, 'meta-type': meta}
        entry.update({k.replace('_', '-'): v for k, v in rest.items()})
        if features:
            entry['features'] = features
        self.entries.append(entry)

    def member(self, m):
        out = {'name': m.name, 'type': self.type(m.type)}
        if m.optional:
            out['default'] = None
        if m.features:
            out['features'] = m.features
        return out

    def object(self, name, t):
        rest = {'members': [self.member(m) for m in t.members]}
        if t.tag:
            rest['tag'] = t.tag.name
            rest['variants'] = [
                {'case': v, 'type': self.type(t.branches.get(v))}
                for v in t.tag.type.value_names()]
        self.add(name, 'object', t.features, **rest)

    def used_type(self, name, t):
        if t == 'empty':
            self.add(name, 'object', None, members=[])
        elif t.kind == 'object':
            self.object(name, t)
        elif t.kind == 'enum':
            members = [{'name': v, **({'features': f} if f else {})}
                       for v, f in t.values]
            self.add(name, 'enum', t.features, members=members,
                     values=t.value_names())
        else:
            self.add(name, 'alternate', t.features,
                     members=[{'type': self.type(b)}
                              for b in t.branches.values()])

    def write(self, schema):
        self.builtins, self.arrays = {}, {}
        for c in schema.commands.values():
            rest = {'allow_oob': True} if c.oob else {}
            self.add(c.name, 'command', c.features, arg_type=self.type(c.args),
                     ret_type=self.type(c.ret), **rest)
        for e in schema.events.values():
            self.add(e.name, 'event', e.features, arg_type=self.type(e.data))
        done = 0
        while done < len(self.used):
            self.used_type(str(done), self.used[done])
            done += 1
        for name, element in self.arrays.items():
            self.add(name, 'array', None, element_type=element)
        for name, kind in self.builtins.items():
            self.add(name, 'builtin', None, json_type=kind)
        return self.entries


def source(schema):
    entries = Writer().write(schema)
    rows = [json.dumps(e) for e in entries]
    rows = [r + (', ' if r is not rows[-1] else '') for r in rows]
    text = '\n'.join('\t' + c_string(r) for r in ['[', *rows, ']'])
    return HEAD + TOP + text + ';\n'
