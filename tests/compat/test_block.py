# SPDX-License-Identifier: Apache-2.0
"""The same commands on nodes to quoind and to qemu-storage-daemon.

Every script is a list of (command, arguments) that both carry out in a folder of
its own; '@' in front of a string is that folder.  Replies must be equal, but for
what DIFFERENT says, with the reason.
"""
import json
import os
import re
import subprocess

import pytest

import peers

# (script, number of the command): why the answer differs.
DIFFERENT = {
    ('create', 29): 'a new qcow2 begins in an emptied file, with nothing old behind its end',
}


def F(name, **more):
    return dict(driver='file', filename='@' + name, **more)


def add(**kw):
    return 'blockdev-add', {k.replace('__', '.').replace('_', '-'): v for k, v in kw.items()}


def dele(name):
    return 'blockdev-del', {'node-name': name}


def resize(name, size):
    return 'block_resize', {'node-name': name, 'size': size}


def export(name, node, writable=True):
    return 'block-export-add', {'type': 'nbd', 'id': name, 'node-name': node,
                                'writable': writable}


def unexport(name):
    return 'block-export-del', {'id': name, 'mode': 'hard'}


def create(job, **options):
    return 'blockdev-create', {'job-id': job, 'options': options}


def wait(job):
    return 'wait', {'id': job}


SERVE = 'nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': '@nbd'}}}
QUERY = 'query-named-block-nodes', {}
FLAT = 'query-named-block-nodes', {'flat': True}

SCRIPTS = {
    'names': [
        add(driver='null-co', node_name='n'),
        add(driver='null-co', node_name='n'),
        add(driver='null-co', node_name='1n'),
        add(driver='null-co', node_name='n x'),
        add(driver='null-co', node_name=''),
        add(driver='null-co', node_name='a' * 31),
        add(driver='null-co', node_name='a' * 32),
        add(driver='null-co'),
        add(driver='nonsense', node_name='x'),
        add(node_name='x'),
        add(driver='raw', node_name='x'),
        add(driver='raw', node_name='x', file='nope'),
        add(driver='raw', node_name='x', file=7),
        add(driver='raw', node_name='x', file={'driver': 'null-co', 'node-name': 'x'}),
        add(driver='raw', node_name='r', file={'driver': 'null-co', 'node-name': 'inner'}),
        dele('inner'), dele('r'), dele('inner'), dele('nope'), dele('n'), dele('n'),
    ],
    'files': [
        add(driver='file', node_name='f', filename='@none.raw'),
        add(driver='file', node_name='f', filename='@.'),
        add(driver='file', node_name='f', filename='/dev/null'),
        add(driver='file', node_name='f'),
        add(driver='file', node_name='f', filename='@a.raw', aio='native'),
        add(driver='file', node_name='f', filename='@a.raw', aio='nonsense'),
        add(driver='file', node_name='f', filename='@a.raw', locking='maybe'),
        add(driver='host_device', node_name='h', filename='@a.raw'),
        add(driver='file', node_name='f', filename='@a.raw'),
        add(driver='file', node_name='g', filename='@a.raw', read_only=True),
        add(driver='file', node_name='h', filename='@a.raw', cache={'direct': True}),
        add(driver='file', node_name='i', filename='@a.raw', force_share=True),
        add(driver='file', node_name='i', filename='@a.raw', detect_zeroes='unmap'),
        add(driver='file', node_name='j', filename='@a.raw', detect_zeroes='unmap',
            discard='unmap'),
        add(driver='file', node_name='odd', filename='@odd.raw'),
        QUERY, FLAT, dele('f'), dele('g'), dele('h'), dele('j'), dele('odd'), QUERY,
    ],
    'raw': [
        add(driver='raw', node_name='r', file=F('a.raw')),
        add(driver='raw', node_name='part', file=F('a.raw'), offset=512, size=1024),
        add(driver='raw', node_name='x', file=F('a.raw'), offset=5120000),
        add(driver='raw', node_name='x', file=F('a.raw'), offset=512, size=1048576),
        add(driver='raw', node_name='x', file=F('a.raw'), offset=100, size=1000),
        add(driver='raw', node_name='x', file=F('a.raw'), offset=-1),
        add(driver='raw', node_name='ro', file=F('a.raw'), read_only=True),
        add(driver='raw', node_name='twice', file={'driver': 'raw', 'file': F('a.raw')}),
        QUERY, dele('part'), dele('twice'), dele('ro'),
        resize('r', 2 << 20), resize('r', 1 << 20), resize('r', -1), resize('nope', 1),
        ('block_resize', {'size': 1}),
        ('block_resize', {'device': 'r', 'size': 1}),
        QUERY, dele('r'),
    ],
    'null': [
        add(driver='null-co', node_name='n', size=1 << 20, **{'read-zeroes': True}),
        add(driver='null-co', node_name='m'),
        QUERY, resize('n', 2 << 20),
    ],
    'qcow2': [
        add(driver='qcow2', node_name='x', file=F('a.raw')),
        add(driver='qcow2', node_name='top', file=F('top.qcow2')),
        QUERY, FLAT, dele('top'),
        add(driver='qcow2', node_name='x', file=F('lost.qcow2')),
        add(driver='qcow2', node_name='x', file=F('top.qcow2'), backing='nope'),
        add(driver='qcow2', node_name='top', file=F('top.qcow2'), backing=None),
        FLAT, dele('top'),
        add(driver='raw', node_name='other', file=F('b.raw'), read_only=True),
        add(driver='qcow2', node_name='top', file=F('top.qcow2'), backing='other'),
        QUERY, dele('other'), resize('other', 1 << 21), resize('top', 1 << 21),
        dele('top'), dele('other'),
    ],
    'users': [
        SERVE,
        add(driver='raw', node_name='base', file=F('a.raw')),
        add(driver='qcow2', node_name='top', file=F('top.qcow2'), backing='base'),
        export('e', 'base'),
        export('e', 'base', False),
        dele('base'), resize('base', 1 << 21),
        unexport('e'),
        export('t', 'top'),
        export('u', 'top'),
        dele('top'), resize('top', 1 << 21),
        add(driver='qcow2', node_name='second', file=F('mid.qcow2'), backing='top'),
        unexport('u'), unexport('t'),
        add(driver='qcow2', node_name='second', file=F('mid.qcow2'), backing='top'),
        export('t', 'top'),
        dele('top'), dele('second'), dele('top'), dele('base'),
        add(driver='raw', node_name='ro', file=F('b.raw'), read_only=True),
        export('r', 'ro'), export('r', 'ro', False), resize('ro', 1 << 21),
        dele('ro'),
    ],
    'create': [
        create('f', driver='file', filename='@new', size=1 << 20), wait('f'),
        create('f', driver='file', filename='@new', size=1 << 20), wait('f'),
        create('f', driver='file', filename='@no/such', size=1 << 20), wait('f'),
        create('f', driver='file', filename='@meta', size=1 << 20,
               preallocation='metadata'), wait('f'),
        create('f', driver='file', filename='@falloc', size=1 << 20,
               preallocation='falloc'), wait('f'),
        create('1', driver='file', filename='@x', size=0),
        create('n', driver='null-co'),
        create('n', driver='raw'),
        add(driver='file', node_name='new', filename='@new'),
        create('f', driver='file', filename='@new', size=1 << 20), wait('f'),
        create('q', driver='qcow2', file='new', size=1 << 20), wait('q'),
        create('q', driver='qcow2', file='nope', size=1 << 20), wait('q'),
        create('q', driver='qcow2', file='new', size=1000), wait('q'),
        create('q', driver='qcow2', file='new', size=1 << 20,
               **{'cluster-size': 1000}), wait('q'),
        create('q', driver='qcow2', file='new', size=1 << 20, version='v2',
               **{'refcount-bits': 1}), wait('q'),
        add(driver='qcow2', node_name='image', file='new'),
        create('q', driver='qcow2', file='new', size=1 << 20), wait('q'),
        FLAT,
    ],
    'create with subclusters': [
        create('f', driver='file', filename='@new', size=0), wait('f'),
        add(driver='file', node_name='new', filename='@new'),
        create('q', driver='qcow2', file='new', size=1 << 20, version='v2',
               **{'extended-l2': True, 'cluster-size': 1000}), wait('q'),
        create('q', driver='qcow2', file='new', size=1 << 20,
               **{'extended-l2': True, 'cluster-size': 1000}), wait('q'),
        create('q', driver='qcow2', file='new', size=1 << 20,
               **{'extended-l2': True, 'cluster-size': 8192}), wait('q'),
        create('q', driver='qcow2', file='new', size=1 << 20,
               **{'extended-l2': True, 'cluster-size': 16384}), wait('q'),
        add(driver='qcow2', node_name='image', file='new'),
    ],
    'conflicts': [
        add(driver='file', node_name='f', filename='@base.qcow2'),
        add(driver='qcow2', node_name='a', file='f'),
        add(driver='qcow2', node_name='b', file='f'),
        add(driver='qcow2', node_name='b', file=F('base.qcow2')),
        add(driver='qcow2', node_name='b', file=F('base.qcow2'), read_only=True),
        add(driver='qcow2', node_name='b', file=F('base.qcow2'), read_only=True,
            force_share=True),
        dele('f'), dele('b'), dele('a'), dele('f'),
        add(driver='file', node_name='ro', filename='@base.qcow2', read_only=True),
        add(driver='qcow2', node_name='a', file='ro'),
        add(driver='qcow2', node_name='a', file='ro', read_only=True),
        dele('a'), dele('ro'),
        add(driver='file', node_name='auto', filename='@base.qcow2', read_only=True,
            auto_read_only=True),
        add(driver='qcow2', node_name='a', file='auto'),
    ],
}


@pytest.fixture
def folder(tmp):
    """Two folders with equal images, one a program."""
    def make(name):
        d = tmp / name
        d.mkdir()

        def img(*argv):
            subprocess.run([peers.QEMU_IMG, 'create', '-q', *argv], cwd=d, check=True,
                           stdin=subprocess.DEVNULL, timeout=20)
        img('-f', 'raw', 'a.raw', '1M')
        img('-f', 'raw', 'b.raw', '1M')
        (d / 'odd.raw').write_bytes(b'x' * 1000)
        img('-f', 'qcow2', 'base.qcow2', '1M')
        img('-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'mid.qcow2')
        img('-f', 'qcow2', '-b', 'mid.qcow2', '-F', 'qcow2', 'top.qcow2')
        img('-u', '-f', 'qcow2', '-b', 'none.qcow2', '-F', 'qcow2', 'lost.qcow2', '1M')
        return d
    if not peers.QEMU_IMG:
        pytest.skip('there is no qemu-img')
    return make


def place(value, folder):
    """Put the folder in the place of '@'."""
    if isinstance(value, dict):
        return {k: place(v, folder) for k, v in value.items()}
    if isinstance(value, str) and value.startswith('@'):
        return '%s/%s' % (folder, value[1:])
    return value


def plain(value, folder):
    """A reply without what is different each time: names made up, the folder, the
    order of members in json: names, allocated bytes, the order of nodes."""
    if isinstance(value, dict):
        return {k: plain(v, folder) for k, v in value.items() if k != 'actual-size'}
    if isinstance(value, list):
        return sorted((plain(v, folder) for v in value),
                      key=lambda v: json.dumps(v, sort_keys=True))
    if isinstance(value, str):
        value = value.replace(str(folder), '@')
        if value.startswith('json:'):
            return ['json', plain(json.loads(value[5:]), folder)]
        return re.sub(r'#block\d+', '#block', value)
    return value


def differences(peer, own, where=''):
    """Where two replies differ, one line each."""
    if isinstance(peer, dict) and isinstance(own, dict):
        lines = []
        for k in sorted(set(peer) | set(own)):
            lines += differences(peer.get(k, 'nothing'), own.get(k, 'nothing'),
                                 where + '.' + k)
        return lines
    if isinstance(peer, list) and isinstance(own, list) and len(peer) == len(own):
        return [line for i, (a, b) in enumerate(zip(peer, own))
                for line in differences(a, b, '%s[%d]' % (where, i))]
    if peer == own:
        return []
    return ['  %s\n    peer: %s\n    own:  %s' % (where, json.dumps(peer), json.dumps(own))]


def outcome(daemon, folder, job):
    """The end of a job that may never have begun: its error, or None."""
    for j in daemon.cmd('query-jobs'):
        if j['id'] != job:
            continue
        daemon.wait_event('JOB_STATUS_CHANGE', id=job, status='concluded')
        j = [j for j in daemon.cmd('query-jobs') if j['id'] == job][0]
        daemon.cmd('job-dismiss', {'id': job})
        daemon.qmp.events = []
        return plain(j, folder)
    return 'no such job'


def carry_out(daemon, folder, script):
    replies = []
    for name, args in script:
        if name == 'wait':
            replies.append(outcome(daemon, folder, args['id']))
            continue
        reply = daemon.ask(name, place(args, folder))
        reply.pop('id', None)
        replies.append(plain(reply, folder))
    return replies


@pytest.mark.parametrize('name', SCRIPTS)
def test_same_answers(start, start_peer, folder, name):
    peer = start_peer()
    if peers.version(peers.QSD) < (10, 0) and any(c == 'query-named-block-nodes'
                                                  for c, _ in SCRIPTS[name]):
        pytest.skip('answers have changed since the QEMU that is here')
    theirs, ours = folder('peer'), folder('own')
    want = carry_out(peer, theirs, SCRIPTS[name])
    got = carry_out(start(), ours, SCRIPTS[name])
    wrong = []
    for i, (w, g) in enumerate(zip(want, got)):
        if w != g and (name, i) not in DIFFERENT:
            wrong.append('%d: %s' % (i, json.dumps(SCRIPTS[name][i])))
            wrong += differences(w, g)
        if (name, i) in DIFFERENT:
            assert w != g, 'command %d of %s no longer differs' % (i, name)
    assert not wrong, '\n'.join(wrong)
