# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps of a whole daemon."""
import random

import pytest

import images
import peers

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


@pytest.mark.io
def test_a_chain_of_incremental_backups_restores_the_disk(daemon, tmp):
    """The full one, then overlays, each with what was written since the last; at
    every step the chain shows the disk as it is."""
    rng = random.Random(20261127)
    below = None
    act(daemon, 'add', node='disk', name='b', granularity=4096)
    for step in range(6):
        for _ in range(10):
            off, length = rng.randrange(SIZE - 70000), rng.randrange(1, 70000)
            verb = rng.choice(['write -P %d' % rng.randrange(256), 'write -z', 'discard'])
            write(daemon, '%s %d %d' % (verb, off, length))
        name, path = 'inc%d' % step, tmp / ('inc%d.qcow2' % step)
        images.qcow2(path, SIZE, below and (below, 'qcow2'))
        daemon.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': name, 'backing': None,
                                    'file': {'driver': 'file', 'filename': str(path)}})
        daemon.cmd('blockdev-backup', {
            'job-id': name, 'device': 'disk', 'target': name, 'bitmap': 'b',
            'bitmap-mode': 'on-success', 'sync': 'bitmap' if below else 'full'})
        daemon.wait_event('JOB_STATUS_CHANGE', id=name, status='null')
        daemon.cmd('blockdev-del', node_name=name)
        images.check(path)
        images.tool(peers.QEMU_IMG, 'compare', '-U', '-f', 'raw', '-F', 'qcow2',
                    tmp / 'disk.raw', path)
        below = path
    assert bitmaps(daemon)['b']['count'] == 0
