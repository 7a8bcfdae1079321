# SPDX-License-Identifier: Apache-2.0
"""What query-qmp-schema says here and in qemu-storage-daemon 10.0.

Both schemas are walked from every command and event that quoind offers: members,
their optionality and types, values of enumerations, branches of unions.  Names
of types mean nothing.  Differences must be listed below, with the reason.
"""
import fnmatch
import re

import pytest

import peers

# Pattern of a difference: reason.
KNOWN = {
    'x-quoin-* only here': 'commands of our own',
    'X_QUOIN_* only here': 'events of our own',
    '* member x-quoin-* only here': 'what the peer does not tell',
    '* driver value * only in the peer': 'drivers that are not served yet',
    '* driver branch * only in the peer': 'drivers that are not served yet',
    '* format-specific type value * only in the peer': 'drivers that are not served yet',
    '* format-specific type branch * only in the peer': 'drivers that are not served yet',
    'object-add argument qom-type value * only in the peer': 'kinds of objects not served',
    'object-add argument qom-type branch * only in the peer': 'kinds of objects not served',
    'block-export-add argument type value * only in the peer': 'exports not served yet',
    'block-export-add argument type branch * only in the peer': 'exports not served yet',
}


class Walker:
    def __init__(self, ours, theirs):
        self.ours = {e['name']: e for e in ours}
        self.theirs = {e['name']: e for e in theirs}
        self.seen = set()
        self.found = []

    def differ(self, where, text):
        self.found.append('%s %s' % (where, text))

    def top(self):
        for name, entry in self.ours.items():
            kind = entry['meta-type']
            if kind not in ('command', 'event'):
                continue
            other = self.theirs.get(name)
            if other is None or other['meta-type'] != kind:
                self.differ(name, 'only here')
                continue
            self.features(name, entry, other)
            self.type('%s argument' % name, entry['arg-type'], other['arg-type'])
            if kind == 'command':
                if entry.get('allow-oob') != other.get('allow-oob'):
                    self.differ(name, 'allow-oob differs')
                self.type('%s return' % name, entry['ret-type'], other['ret-type'])
        return self.found

    def features(self, where, a, b):
        if sorted(a.get('features', [])) != sorted(b.get('features', [])):
            self.differ(where, 'features %r, in the peer %r'
                        % (a.get('features'), b.get('features')))

    def type(self, where, a, b):
        if (a, b) in self.seen:
            return
        self.seen.add((a, b))
        mine, other = self.ours[a], self.theirs[b]
        if mine['meta-type'] != other['meta-type']:
            self.differ(where, 'is %s, in the peer %s'
                        % (mine['meta-type'], other['meta-type']))
            return
        getattr(self, mine['meta-type'])(where, mine, other)

    def builtin(self, where, a, b):
        if a['json-type'] != b['json-type']:
            self.differ(where, 'is %s, in the peer %s' % (a['json-type'], b['json-type']))

    def array(self, where, a, b):
        self.type(where + ' item', a['element-type'], b['element-type'])

    def enum(self, where, a, b):
        mine = {m['name']: m for m in a['members']}
        other = {m['name']: m for m in b.get('members', [])}
        self.names(where, 'value', mine, other)
        assert sorted(a['values']) == sorted(mine)

    def alternate(self, where, a, b):
        def by_kind(schema, members):
            return {schema[m['type']].get('json-type', schema[m['type']]['meta-type']):
                    m['type'] for m in members}
        mine, other = by_kind(self.ours, a['members']), by_kind(self.theirs, b['members'])
        self.names(where, 'kind', mine, other)
        for k in sorted(mine.keys() & other.keys()):
            self.type(where, mine[k], other[k])

    def names(self, where, what, mine, other):
        for n in sorted(mine.keys() - other.keys()):
            self.differ(where, '%s %s only here' % (what, n))
        for n in sorted(other.keys() - mine.keys()):
            self.differ(where, '%s %s only in the peer' % (what, n))

    def object(self, where, a, b):
        self.features(where, a, b)
        mine = {m['name']: m for m in a['members']}
        other = {m['name']: m for m in b['members']}
        self.names(where, 'member', mine, other)
        for n in sorted(mine.keys() & other.keys()):
            here = '%s %s' % (where, n)
            if ('default' in mine[n]) != ('default' in other[n]):
                self.differ(here, 'is optional on one side only')
            self.features(here, mine[n], other[n])
            self.type(here, mine[n]['type'], other[n]['type'])
        if a.get('tag') != b.get('tag'):
            self.differ(where, 'tag %r, in the peer %r' % (a.get('tag'), b.get('tag')))
        elif 'tag' in a:
            mine = {v['case']: v['type'] for v in a['variants']}
            other = {v['case']: v['type'] for v in b['variants']}
            here = '%s %s' % (where, a['tag'])
            self.names(here, 'branch', mine, other)
            for n in sorted(mine.keys() & other.keys()):
                self.type('%s=%s' % (here, n), mine[n], other[n])


def reason(line):
    for pattern, why in KNOWN.items():
        if fnmatch.fnmatchcase(line, pattern):
            return why
    return None


@pytest.fixture
def differences(start, start_peer):
    if peers.version(peers.QSD) < (10, 0):
        pytest.skip('the peer is not version 10.0: its schema differs')
    ours = start().cmd('query-qmp-schema')
    theirs = start_peer().cmd('query-qmp-schema')
    return Walker(ours, theirs).top()


def test_schema_equals_the_peers(differences):
    unknown = [line for line in differences if not reason(line)]
    assert not unknown, '\n'.join(unknown)


def test_every_known_difference_is_there(differences):
    stale = [p for p in KNOWN
             if not any(fnmatch.fnmatchcase(line, p) for line in differences)]
    assert not stale, stale


def test_every_command_is_in_the_schema_and_the_other_way_round(start):
    d = start()
    schema = d.cmd('query-qmp-schema')
    listed = {c['name'] for c in d.cmd('query-commands')}
    assert listed == {e['name'] for e in schema if e['meta-type'] == 'command'}


def test_names_of_types_tell_nothing(start):
    for e in start().cmd('query-qmp-schema'):
        if e['meta-type'] in ('object', 'enum', 'alternate'):
            assert re.fullmatch(r'\d+', e['name'])
