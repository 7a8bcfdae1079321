# SPDX-License-Identifier: Apache-2.0
"""What the schema defines, checked and with all names resolved."""

from .parse import SchemaError, parse_files

# name: (C type, JSON type of the introspection, kind of schema/meta.h)
BUILTINS = {
    'str': ('char *', 'string', 'STR'),
    'bool': ('bool', 'boolean', 'BOOL'),
    'number': ('double', 'number', 'NUMBER'),
    'int': ('int64_t', 'int', 'INT'),
    'int8': ('int8_t', 'int', 'INT'),
    'int16': ('int16_t', 'int', 'INT'),
    'int32': ('int32_t', 'int', 'INT'),
    'int64': ('int64_t', 'int', 'INT'),
    'uint8': ('uint8_t', 'int', 'UINT'),
    'uint16': ('uint16_t', 'int', 'UINT'),
    'uint32': ('uint32_t', 'int', 'UINT'),
    'uint64': ('uint64_t', 'int', 'UINT'),
    'size': ('uint64_t', 'int', 'SIZE'),
    'any': ('char *', 'value', 'ANY'),
    'null': (None, 'null', 'NULL'),
}

KEYS = {
    'enum': {'data', 'prefix', 'if', 'features'},
    'struct': {'data', 'base', 'if', 'features'},
    'union': {'data', 'base', 'discriminator', 'if', 'features'},
    'alternate': {'data', 'if', 'features'},
    'command': {'data', 'returns', 'boxed', 'gen', 'success-response',
                'allow-oob', 'allow-preconfig', 'coroutine', 'if', 'features'},
    'event': {'data', 'boxed', 'if', 'features'},
}


def names_of(features):
    return [f['name'] if isinstance(f, dict) else f for f in features or []]


class Builtin:
    kind = 'builtin'

    def __init__(self, name):
        self.name = name
        self.ctype, self.json, self.meta = BUILTINS[name]


class Enum:
    kind = 'enum'

    def __init__(self, name, expr):
        self.name = name
        self.prefix = expr.get('prefix')
        self.features = names_of(expr.get('features'))
        self.values = []        # (name, features)
        for v in expr['data']:
            if isinstance(v, str):
                v = {'name': v}
            self.values.append((v['name'], names_of(v.get('features'))))

    def value_names(self):
        return [v for v, _ in self.values]


class Array:
    kind = 'array'

    def __init__(self, element):
        self.element = element
        self.name = element.name + 'List'


class Member:
    def __init__(self, name, type_, optional, features):
        self.name = name
        self.type = type_
        self.optional = optional
        self.features = features


class Object:
    """A struct, or a flat union if it has a tag."""
    kind = 'object'

    def __init__(self, name, implicit=False):
        self.name = name
        self.implicit = implicit    # made for a command's or event's data
        self.features = []
        self.members = []           # those of the base first
        self.tag = None             # Member
        self.branches = {}          # tag's value: Object


class Alternate:
    kind = 'alternate'

    def __init__(self, name, features):
        self.name = name
        self.features = features
        self.branches = {}          # branch's name: type


class Command:
    def __init__(self, name, expr):
        self.name = name
        self.args = None            # Object
        self.ret = None             # any type
        self.handler_ret = None     # the same, or JSON text if gen is false
        self.oob = expr.get('allow-oob', False)
        self.gen = expr.get('gen', True)
        self.features = names_of(expr.get('features'))


class Event:
    def __init__(self, name, expr):
        self.name = name
        self.data = None            # Object
        self.boxed = expr.get('boxed', False)
        self.features = names_of(expr.get('features'))


class Schema:
    def __init__(self, path):
        self.types = {}             # in the order of the files
        self.arrays = {}
        self.commands = {}
        self.events = {}
        self.order = []             # (file, definition), for the manual
        self._exprs = {}
        self._done = set()
        exprs, self.docs = parse_files(path)
        for name in BUILTINS:
            self.types[name] = Builtin(name)
        self._declare(exprs)
        for name in list(self._exprs):
            self._resolve(name)

    def _declare(self, exprs):
        for expr, where, file in exprs:
            kind = next((k for k in KEYS if k in expr), None)
            if kind is None:
                raise SchemaError(f'{where}: what is defined here?')
            name = expr[kind]
            unknown = set(expr) - KEYS[kind] - {kind}
            if unknown:
                raise SchemaError(f"{where}: unknown key '{unknown.pop()}'")
            if name in self._exprs or name in self.types:
                raise SchemaError(f"{where}: '{name}' is defined twice")
            self._exprs[name] = (kind, expr, where)
            made = {'enum': lambda: Enum(name, expr),
                    'struct': lambda: Object(name),
                    'union': lambda: Object(name),
                    'alternate': lambda: Alternate(
                        name, names_of(expr.get('features'))),
                    'command': lambda: Command(name, expr),
                    'event': lambda: Event(name, expr)}[kind]()
            if kind == 'command':
                self.commands[name] = made
            elif kind == 'event':
                self.events[name] = made
            else:
                self.types[name] = made
            self.order.append((file, made))

    def _resolve(self, name):
        if name in self._done:
            return
        self._done.add(name)
        kind, expr, where = self._exprs[name]
        getattr(self, '_resolve_' + kind)(name, expr, where)

    def _type(self, ref, where):
        if isinstance(ref, list):
            if len(ref) != 1:
                raise SchemaError(f'{where}: an array has one element type')
            element = self._type(ref[0], where)
            return self.arrays.setdefault(element.name, Array(element))
        if ref not in self.types:
            raise SchemaError(f"{where}: no type '{ref}'")
        return self.types[ref]

    def _members(self, data, where):
        members = []
        for name, spec in data.items():
            if not isinstance(spec, dict):
                spec = {'type': spec}
            members.append(Member(name.lstrip('*'),
                                  self._type(spec['type'], where),
                                  name.startswith('*'),
                                  names_of(spec.get('features'))))
        return members

    def _base(self, obj, base, where):
        if isinstance(base, dict):
            obj.members += self._members(base, where)
        elif base:
            parent = self._type(base, where)
            if parent.kind != 'object' or parent.tag:
                raise SchemaError(f"{where}: '{base}' cannot be a base")
            self._resolve(base)
            obj.members += parent.members

    def _check_members(self, obj, where):
        seen = set()
        for m in obj.members:
            if m.name in seen:
                raise SchemaError(f"{where}: member '{m.name}' comes twice")
            seen.add(m.name)

    def _resolve_enum(self, name, expr, where):
        values = self.types[name].value_names()
        if len(set(values)) != len(values):
            raise SchemaError(f'{where}: a value comes twice')

    def _resolve_struct(self, name, expr, where):
        obj = self.types[name]
        obj.features = names_of(expr.get('features'))
        self._base(obj, expr.get('base'), where)
        obj.members += self._members(expr['data'], where)
        self._check_members(obj, where)

    def _resolve_union(self, name, expr, where):
        obj = self.types[name]
        obj.features = names_of(expr.get('features'))
        self._base(obj, expr.get('base'), where)
        self._check_members(obj, where)
        obj.tag = next((m for m in obj.members
                        if m.name == expr['discriminator']), None)
        if obj.tag is None or obj.tag.type.kind != 'enum' or obj.tag.optional:
            raise SchemaError(f'{where}: the discriminator must be a '
                              'mandatory enumeration of the base')
        for value, spec in expr['data'].items():
            if isinstance(spec, dict):
                if not spec:
                    continue
                spec = spec['type']
            if value not in obj.tag.type.value_names():
                raise SchemaError(f"{where}: '{value}' is no value of "
                                  f"'{obj.tag.type.name}'")
            branch = self._type(spec, where)
            if branch.kind != 'object':
                raise SchemaError(f"{where}: branch '{value}' is no object")
            self._resolve(spec)
            common = {m.name for m in obj.members}
            clash = common & {m.name for m in branch.members}
            if clash:
                raise SchemaError(f"{where}: '{clash.pop()}' of branch "
                                  f"'{value}' is in the base, too")
            obj.branches[value] = branch

    def _resolve_alternate(self, name, expr, where):
        alt = self.types[name]
        jsons = set()
        for branch, spec in expr['data'].items():
            if isinstance(spec, dict):
                spec = spec['type']
            alt.branches[branch] = self._type(spec, where)
            json = json_class(alt.branches[branch])
            if json in jsons:
                raise SchemaError(f'{where}: two branches are a JSON {json}')
            jsons.add(json)

    def _data(self, name, suffix, expr, where):
        data = expr.get('data')
        if data is None:
            return None
        if isinstance(data, str):
            obj = self._type(data, where)
            if obj.kind != 'object':
                raise SchemaError(f"{where}: '{data}' is no object")
            return obj
        obj = Object(name.replace('-', '_') + suffix, implicit=True)
        obj.members = self._members(data, where)
        self.types[obj.name] = obj
        return obj

    def _resolve_command(self, name, expr, where):
        cmd = self.commands[name]
        cmd.args = self._data(name, '_args', expr, where)
        if 'returns' in expr:
            cmd.ret = self._type(expr['returns'], where)
            cmd.handler_ret = cmd.ret if cmd.gen else self.types['any']

    def _resolve_event(self, name, expr, where):
        self.events[name].data = self._data(name.lower(), '_event', expr, where)


def json_class(type_):
    """How the JSON value of a type is told from others."""
    if type_.kind == 'builtin':
        return {'int': 'number'}.get(type_.json, type_.json)
    return {'enum': 'string', 'array': 'array',
            'object': 'object', 'alternate': 'any'}[type_.kind]
