# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps of a whole daemon."""
import pytest

import images

SIZE = 8 << 20


@pytest.fixture
def daemon(start, tmp):
    images.raw(tmp / 'disk.raw', bytes(SIZE))
    d = start('--blockdev', f'file,node-name=file,filename={tmp}/disk.raw',
              '--blockdev', 'raw,node-name=disk,file=file')
    d.sock = tmp / 'nbd'
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(d.sock)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'writable': True})
    return d


def act(daemon, verb, **args):
    daemon.cmd('block-dirty-bitmap-' + verb, args)


def write(daemon, *commands):
    images.io('nbd+unix:///disk?socket=%s' % daemon.sock, *commands)


def bitmaps(daemon, node='disk'):
    nodes = daemon.cmd('query-named-block-nodes', flat=True)
    return {b['name']: b for n in nodes if n['node-name'] == node
            for b in n.get('dirty-bitmaps', [])}


@pytest.mark.io
def test_a_node_below_marks_what_comes_from_above(daemon):
    act(daemon, 'add', node='disk', name='a', granularity=4096)
    act(daemon, 'add', node='file', name='a', granularity=512)
    write(daemon, 'write 1000 1', 'write -z 1M 4k')
    assert bitmaps(daemon)['a']['count'] == 8192
    assert bitmaps(daemon, 'file')['a']['count'] == 512 + 4096


def test_merging_nothing_does_nothing(daemon):
    """The peer does not outlive this one."""
    act(daemon, 'add', node='disk', name='a')
    act(daemon, 'merge', node='disk', target='a', bitmaps=[])
    assert bitmaps(daemon)['a']['count'] == 0


def test_merging_is_all_or_nothing(daemon):
    act(daemon, 'add', node='disk', name='a')
    write(daemon, 'write 0 1')
    act(daemon, 'add', node='disk', name='b')
    reply = daemon.ask('block-dirty-bitmap-merge', {'node': 'disk', 'target': 'b',
                                                    'bitmaps': ['a', 'none']})
    assert reply['error']['desc'] == "Dirty bitmap 'none' not found"
    assert bitmaps(daemon)['b']['count'] == 0
