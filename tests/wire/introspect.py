# SPDX-License-Identifier: Apache-2.0
"""Check replies and events against what query-qmp-schema says of them."""

BUILTIN = {
    'string': lambda v: isinstance(v, str),
    'number': lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    'int': lambda v: isinstance(v, int) and not isinstance(v, bool),
    'boolean': lambda v: isinstance(v, bool),
    'null': lambda v: v is None,
    'object': lambda v: isinstance(v, dict),
    'array': lambda v: isinstance(v, list),
    'value': lambda v: True,
}


class Schema:
    """The interface that one program describes."""

    def __init__(self, entries):
        self.entries = {e['name']: e for e in entries}

    def reply(self, command, value):
        """What is wrong with a command's return value, as a list of lines."""
        entry = self.entries.get(command)
        if entry is None or entry['meta-type'] != 'command':
            return ['%s is not in the schema, but was carried out' % command]
        return list(self._value(entry['ret-type'], value, command))

    def event(self, msg):
        entry = self.entries.get(msg['event'])
        if entry is None or entry['meta-type'] != 'event':
            return ['event %s is not in the schema' % msg['event']]
        bad = list(self._value(entry['arg-type'], msg.get('data', {}), msg['event']))
        stamp = msg.get('timestamp', {})
        if sorted(stamp) != ['microseconds', 'seconds']:
            bad.append('%s: timestamp %r' % (msg['event'], stamp))
        bad += ['%s: unknown member %s' % (msg['event'], k)
                for k in msg if k not in ('event', 'data', 'timestamp')]
        return bad

    def _value(self, type_name, value, where):
        entry = self.entries[type_name]
        yield from getattr(self, '_' + entry['meta-type'])(entry, value, where)

    def _builtin(self, entry, value, where):
        if not BUILTIN[entry['json-type']](value):
            yield '%s: %r is not of type %s' % (where, value, entry['json-type'])

    def _enum(self, entry, value, where):
        if value not in (entry.get('values') or [m['name'] for m in entry['members']]):
            yield '%s: %r is not in the enumeration' % (where, value)

    def _array(self, entry, value, where):
        if not isinstance(value, list):
            yield '%s: %r is no array' % (where, value)
            return
        for i, item in enumerate(value):
            yield from self._value(entry['element-type'], item, '%s[%d]' % (where, i))

    def _object(self, entry, value, where):
        if not isinstance(value, dict):
            yield '%s: %r is no object' % (where, value)
            return
        members = list(entry['members'])
        for v in entry.get('variants', []):
            if v['case'] == value.get(entry['tag']):
                members += self.entries[v['type']]['members']
        names = {m['name'] for m in members}
        for m in members:
            if m['name'] in value:
                yield from self._value(m['type'], value[m['name']], where + '.' + m['name'])
            elif 'default' not in m:
                yield '%s: member %s is missing' % (where, m['name'])
        for k in value:
            if k not in names:
                yield '%s: member %s is not in the schema' % (where, k)

    def _alternate(self, entry, value, where):
        if all(any(True for _ in self._value(m['type'], value, where))
               for m in entry['members']):
            yield '%s: %r fits no alternative' % (where, value)
