# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps: commands on them, right and wrong, and how they are shown."""
import pytest

import images

SIZE = 10 << 20


def make_disks(folder):
    images.raw(folder / 'disk.raw', bytes(SIZE))
    images.qcow2(folder / 'disk.qcow2', SIZE)
    images.qcow2(folder / 'big.qcow2', 2 * SIZE)


def add_node(pair, name, driver, filename, **more):
    pair.ask('blockdev-add', dict({
        'driver': driver, 'node-name': name,
        'file': {'driver': 'file', 'node-name': name + '-file', 'filename': 'DIR/' + filename}},
        **more))


@pytest.fixture
def disks(pair):
    pair.prepare(make_disks)
    add_node(pair, 'q', 'qcow2', 'disk.qcow2', discard='unmap')
    add_node(pair, 'r', 'raw', 'disk.raw')
    add_node(pair, 'big', 'qcow2', 'big.qcow2')
    return pair


def act(pair, verb, **args):
    return pair.ask('block-dirty-bitmap-' + verb, args)


def bitmaps(pair):
    """All nodes' bitmaps, which are equal on both sides."""
    def look(side):
        nodes = side.ask('query-named-block-nodes', {'flat': True})['return']
        return {n['node-name']: n.get('dirty-bitmaps') for n in nodes}
    return pair.each(look)


def write(pair, node, *commands):
    """Have qemu-io carry them out through an export."""
    def go(side):
        sock = '%s/nbd' % side.folder
        side.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': sock}}})
        side.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': node,
                                      'writable': True})
        images.io('nbd+unix:///%s?socket=%s' % (node, sock), *commands)
        side.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
        return side.ask('nbd-server-stop')
    pair.each(go)


ADD = [
    {}, {'name': 'b'}, {'node': 'q'}, {'node': 'none', 'name': 'b'}, {'node': 'q', 'name': ''},
    {'node': 'q', 'name': 'b'}, {'node': 'q-file', 'name': 'b'}, {'node': 'r', 'name': 'b'},
    {'node': 'q', 'name': 'x' * 1023}, {'node': 'q', 'name': 'x' * 1024},
    {'node': 'q', 'name': 'b', 'disabled': True}, {'node': 'q', 'name': 'b', 'disabled': 1},
    {'node': 'r', 'name': 'b', 'persistent': True},
    {'node': 'q-file', 'name': 'b', 'persistent': True},
] + [{'node': 'q', 'name': 'b', 'granularity': g}
     for g in (-1, 0, 1, 256, 511, 512, 1536, 4096, 65536, 1 << 31, 1 << 32, 1 << 63)]


@pytest.mark.parametrize('args', ADD, ids=lambda a: ','.join('%s' % v for v in a.values())[:40])
def test_add(disks, args):
    disks.ask('block-dirty-bitmap-add', args)
    bitmaps(disks)


def test_names_are_a_nodes_own(disks):
    for node in ('q', 'r', 'q', 'q-file'):
        act(disks, 'add', node=node, name='b')
    bitmaps(disks)


@pytest.mark.parametrize('verb', ['remove', 'clear', 'enable', 'disable'])
def test_what_is_not_there(disks, verb):
    act(disks, 'add', node='r', name='b')
    act(disks, verb, node='q', name='b')
    act(disks, verb, node='none', name='b')
    act(disks, verb, node='r')
    act(disks, verb, node='r', name='b', more=1)


def test_life(disks):
    act(disks, 'add', node='q', name='a', granularity=4096)
    act(disks, 'add', node='q', name='b', disabled=True)
    write(disks, 'q', 'write 4095 2', 'write -z 1M 1M', 'discard 3M 100k')
    bitmaps(disks)
    for verb, name in (('enable', 'b'), ('enable', 'b'), ('disable', 'a'), ('disable', 'a')):
        act(disks, verb, node='q', name=name)
    write(disks, 'q', 'write 5M 1')
    bitmaps(disks)
    act(disks, 'clear', node='q', name='a')
    bitmaps(disks)
    act(disks, 'remove', node='q', name='a')
    act(disks, 'remove', node='q', name='a')
    bitmaps(disks)


MERGE = [
    ['a'], ['a', 'b'], ['t'], ['none'], ['a', 'none'], [{'node': 'r', 'name': 'c'}],
    ['a', {'node': 'r', 'name': 'c'}, 't'], [{'node': 'r', 'name': 'none'}],
    [{'node': 'none', 'name': 'a'}], [{'node': 'big', 'name': 'd'}],
    ['a', {'node': 'big', 'name': 'd'}], [5], ['a', {'node': 'r'}],
]


@pytest.mark.parametrize('sources', MERGE, ids=str)
def test_merge(disks, sources):
    act(disks, 'add', node='q', name='a', granularity=512)
    act(disks, 'add', node='q', name='b', granularity=1 << 20)
    act(disks, 'add', node='r', name='c')
    act(disks, 'add', node='big', name='d')
    write(disks, 'q', 'write 700 1', 'write 5M 64k')
    write(disks, 'r', 'write 9M 1M')
    act(disks, 'add', node='q', name='t', granularity=4096)
    write(disks, 'q', 'write 0 1')
    act(disks, 'merge', node='q', target='t', bitmaps=sources)
    bitmaps(disks)
    act(disks, 'merge', node='q', target='none', bitmaps=sources)
    act(disks, 'merge', node='none', target='none', bitmaps=sources)


def test_a_node_is_deleted_with_its_bitmaps(disks):
    act(disks, 'add', node='q', name='a')
    disks.ask('blockdev-del', {'node-name': 'q'})
    act(disks, 'remove', node='q', name='a')


def test_resize(disks):
    """What a bitmap says of space that went and came back differs on purpose: the
    peer forgets that its content has changed."""
    act(disks, 'add', node='q', name='a', granularity=65536)
    write(disks, 'q', 'write 0 1M', 'write 8M 1M')
    for size in (12 << 20, 12 << 20, 6 << 20):
        disks.ask('block_resize', {'node-name': 'q', 'size': size})
        looks = bitmaps(disks)
    assert looks['q'][0]['count'] == 1 << 20
    counts = []
    for s in disks.sides:
        s.ask('block_resize', {'node-name': 'q', 'size': 12 << 20})
        nodes = s.ask('query-named-block-nodes', {'flat': True})['return']
        counts += [n['dirty-bitmaps'][0]['count'] for n in nodes if n['node-name'] == 'q']
    assert counts == [7 << 20, 1 << 20]
