# SPDX-License-Identifier: Apache-2.0
"""The schema's generator: what it refuses, what it makes, and the docs."""
import os
import subprocess
import sys

import pytest

import house

sys.path.insert(0, os.path.join(house.TOP, 'schema'))
sys.dont_write_bytecode = True

from gen import introspect, names            # noqa: E402
from gen.model import Enum, Object, Schema   # noqa: E402

SCHEMA = os.path.join(house.TOP, 'schema', 'schema.json')


def load(tmp_path, text):
    path = tmp_path / 's.json'
    path.write_text(text)
    return Schema(str(path))


BASE = "{ 'enum': 'E', 'data': [ 'a', 'b' ] } { 'struct': 'S', 'data': { 'x': 'int' } }\n"

BROKEN = {
    "{ 'struct': 'T', 'data': { 'x': 'Nope' } }": "no type 'Nope'",
    "{ 'struct': 'S', 'data': {} }": "'S' is defined twice",
    "{ 'struct': 'T', 'base': 'S', 'data': { '*x': 'str' } }": "member 'x' comes twice",
    "{ 'struct': 'T', 'base': 'E', 'data': {} }": "'E' cannot be a base",
    "{ 'struct': 'T', 'data': { 'x': ['int', 'str'] } }": 'one element type',
    "{ 'enum': 'F', 'data': [ 'a', 'a' ] }": 'a value comes twice',
    "{ 'union': 'U', 'base': { 't': 'str' }, 'discriminator': 't', 'data': {} }":
        'must be a mandatory enumeration',
    "{ 'union': 'U', 'base': { '*t': 'E' }, 'discriminator': 't', 'data': {} }":
        'must be a mandatory enumeration',
    "{ 'union': 'U', 'base': { 't': 'E' }, 'discriminator': 't', 'data': { 'c': 'S' } }":
        "'c' is no value of 'E'",
    "{ 'union': 'U', 'base': { 't': 'E', 'x': 'int' }, 'discriminator': 't',"
    " 'data': { 'a': 'S' } }": "is in the base, too",
    "{ 'union': 'U', 'base': { 't': 'E' }, 'discriminator': 't', 'data': { 'a': 'E' } }":
        'is no object',
    "{ 'alternate': 'A', 'data': { 'x': 'str', 'y': 'E' } }": 'two branches are a JSON string',
    "{ 'command': 'c', 'data': 'E' }": "'E' is no object",
    "{ 'command': 'c', 'nonsense': true }": "unknown key 'nonsense'",
    "{ 'thing': 'c' }": 'what is defined here?',
    "{ 'struct': 'T', 'data': { 'x': 'int' }": 'ends within a definition',
    "{ 'struct': 'T' 'data': {} }": "expected ','",
    "{ 'struct': \"T\" }": 'unexpected',
    "['x']": 'must be an object',
    "##\n# @T:\n{ 'struct': 'T', 'data': {} }": "must end with '##'",
    "##\n# T\n##\n": 'must begin with @name:',
}


@pytest.mark.parametrize('text', BROKEN)
def test_a_broken_schema_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / 's.json'
    path.write_text(BASE + text + '\n')
    p = subprocess.run([sys.executable, os.path.join(house.TOP, 'schema', 'generate.py'),
                        str(path), str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert p.returncode == 1
    assert BROKEN[text] in p.stderr and '%s:' % path in p.stderr, p.stderr
    assert not (tmp_path / 'types.h').exists()


@pytest.mark.parametrize('name, upper', [
    ('BlockdevOnError', 'BLOCKDEV_ON_ERROR'), ('QCryptoBlockFormat', 'QCRYPTO_BLOCK_FORMAT'),
    ('Qcow2OverlapChecks', 'QCOW2_OVERLAP_CHECKS'), ('NFSTransport', 'NFS_TRANSPORT'),
    ('null-co', 'NULL_CO'), ('QMPCapability', 'QMP_CAPABILITY')])
def test_constants_are_named_as_people_expect(name, upper):
    assert names.upper(name) == upper


def test_words_that_c_reserves_get_a_prefix():
    assert [names.member(n) for n in ('unix', 'register', '3des', 'node-name')] == \
        ['q_unix', 'q_register', 'q_3des', 'node_name']


def test_bases_are_folded_into_their_users(tmp_path):
    s = load(tmp_path, BASE + "{ 'struct': 'T', 'base': 'S', 'data': { '*y': ['S'] } }"
                              "{ 'command': 'c', 'data': 'T', 'returns': ['E'] }")
    entries = {e['name']: e for e in introspect.Writer().write(s)}
    args = entries[entries['c']['arg-type']]
    assert [m['name'] for m in args['members']] == ['x', 'y']
    assert args['members'][1]['default'] is None
    assert entries[entries['c']['ret-type']]['meta-type'] == 'array'


def documented(entity):
    if isinstance(entity, Enum) or not hasattr(entity, 'members'):
        return []
    return [m.name for m in entity.members]


def test_every_definition_is_documented_and_no_doc_names_what_is_not_there():
    s = Schema(SCHEMA)
    wrong = []
    for file, entity in s.order:
        doc = s.docs.get(entity.name)
        if doc is None:
            wrong.append('%s: no doc' % entity.name)
            continue
        args = getattr(entity, 'args', None) or getattr(entity, 'data', None)
        known = set(documented(args or entity))
        if isinstance(entity, Enum):
            known = set(entity.value_names())
        elif not known and hasattr(entity, 'branches'):
            known = set(entity.branches)
        known |= set(getattr(entity, 'features', []))
        wrong += ['%s: doc of %s, which is not there' % (entity.name, m)
                  for m in doc.members if m not in known]
    assert not wrong, '\n'.join(wrong)


def test_every_member_of_a_struct_is_documented_somewhere():
    s = Schema(SCHEMA)
    texts = {(t.name, m) for t in s.types.values() if t.name in s.docs
             for m in s.docs[t.name].members}
    wrong = []
    for t in s.types.values():
        if not isinstance(t, Object) or t.implicit or t.name not in s.docs:
            continue
        for m in t.members:
            owners = [o for o in s.types.values()
                      if isinstance(o, Object) and m in o.members and (o.name, m.name) in texts]
            if not owners:
                wrong.append('%s.%s' % (t.name, m.name))
    assert not wrong, '\n'.join(wrong)
