# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: the commands, their texts, and each side's images read by
the other's tools."""
import pytest

import images

TAKE = 'blockdev-snapshot-internal-sync'
DROP = 'blockdev-snapshot-delete-internal-sync'


def make_disks(folder):
    images.qcow2(folder / 'disk.qcow2', '8M')
    images.io(folder / 'disk.qcow2', 'write -P 1 0 3M', 'write -P 2 5M 64k', fmt='qcow2')
    images.qcow2(folder / 'over.qcow2', '8M', (folder / 'disk.qcow2', 'qcow2'))
    images.qcow2(folder / 'one.qcow2', '1M', None, 'refcount_bits=1')
    images.io(folder / 'one.qcow2', 'write 0 64k', fmt='qcow2')
    images.raw(folder / 'disk.raw', bytes(1 << 20))


def add(pair, name, driver, filename, **more):
    pair.ask('blockdev-add', dict({
        'driver': driver, 'node-name': name,
        'file': {'driver': 'file', 'node-name': name + '-file', 'filename': 'DIR/' + filename}},
        **more))


@pytest.fixture
def disks(pair):
    pair.prepare(make_disks)
    add(pair, 'q', 'qcow2', 'disk.qcow2')
    return pair


def without_times(info):
    return {k: v for k, v in info.items() if not k.startswith(('date', 'vm-clock'))}


def take(pair, device, name):
    return pair.ask(TAKE, {'device': device, 'name': name})


def drop(pair, device, **which):
    """Equal but for the times of the snapshot."""
    def go(side):
        reply = side.ask(DROP, dict(which, device=device))
        if 'return' in reply:
            assert set(reply['return']) >= {'date-sec', 'date-nsec', 'vm-clock-sec',
                                            'vm-clock-nsec'}
            reply['return'] = without_times(reply['return'])
        return reply
    return pair.each(go)


def listed(pair, node):
    def look(side):
        for n in side.ask('query-named-block-nodes', {'flat': True})['return']:
            if n['node-name'] == node:
                return [without_times(s) for s in n['image'].get('snapshots', [])]
    return pair.each(look)


def test_taking_listing_and_dropping(disks):
    for name in ('first', 'second', '3', 'x' * 300):
        take(disks, 'q', name)
    assert [s['id'] for s in listed(disks, 'q')] == ['1', '2', '3', '4']
    drop(disks, 'q', name='second')
    drop(disks, 'q', id='3', name='3')
    drop(disks, 'q', id='4')
    take(disks, 'q', 'again')
    assert [s['name'] for s in listed(disks, 'q')] == ['first', 'again']
    drop(disks, 'q', name='first')
    drop(disks, 'q', name='again')
    assert listed(disks, 'q') == []
    take(disks, 'q', 'anew')


def test_what_cannot_be_taken(disks):
    take(disks, 'q', 'a')
    add(disks, 'one', 'qcow2', 'one.qcow2')
    add(disks, 'r', 'raw', 'disk.raw')
    for device, name in (('q', 'a'), ('q', ''), ('none', 'b'), ('q-file', 'b'), ('one', 'b'),
                         ('r', 'b'), ('r-file', 'b'), ('', 'b')):
        assert 'error' in take(disks, device, name)
    disks.ask(TAKE, {'device': 'q'})
    disks.ask(TAKE, {'name': 'q'})
    disks.ask(TAKE, {'device': 'q', 'name': 1})


def test_what_cannot_be_dropped(disks):
    take(disks, 'q', 'a')
    add(disks, 'r', 'raw', 'disk.raw')
    for device, which in (('q', {}), ('q', {'id': '2'}), ('q', {'name': 'b'}),
                          ('q', {'id': '1', 'name': 'b'}), ('q', {'id': '2', 'name': 'a'}),
                          ('q', {'id': '', 'name': ''}), ('none', {'id': '1'}),
                          ('q-file', {'id': '1'}), ('r', {'id': '1'}), ('r-file', {'id': '1'})):
        assert 'error' in drop(disks, device, **which)
    drop(disks, 'q', id='1', name='a')


def test_a_read_only_node(disks):
    take(disks, 'q', 'a')
    disks.ask('blockdev-del', {'node-name': 'q'})
    add(disks, 'q', 'qcow2', 'disk.qcow2', **{'read-only': True})
    take(disks, 'q', 'b')
    drop(disks, 'q', name='b')
    drop(disks, 'q', name='a')
    # The peer forgets in memory what it could not remove; here it is still listed.
    ours = disks.sides[0].ask('query-named-block-nodes', {'flat': True})['return']
    assert [s['name'] for n in ours if n['node-name'] == 'q'
            for s in n['image']['snapshots']] == ['a']


def test_through_what_stands_on_the_image(disks):
    disks.ask('blockdev-add', {'driver': 'raw', 'node-name': 'top', 'file': 'q'})
    take(disks, 'q', 'a')
    take(disks, 'top', 'a')
    drop(disks, 'q', name='a')
    drop(disks, 'top', name='a')
    disks.ask('blockdev-del', {'node-name': 'top'})
    add(disks, 'over', 'qcow2', 'over.qcow2', backing='q')
    take(disks, 'q', 'b')
    take(disks, 'over', 'b')
    drop(disks, 'over', id='1')


@pytest.mark.parametrize('options', [
    'cluster_size=512', 'cluster_size=2M', 'compat=0.10', 'refcount_bits=64', 'refcount_bits=4',
    'extended_l2=on', 'lazy_refcounts=on', 'preallocation=metadata'])
def test_images_with_snapshots_are_read_and_changed_by_either(pair, options):
    """Each side takes one over the other's tools' work; qemu-img judges and reads."""
    def make(folder):
        images.qcow2(folder / 'disk.qcow2', '3M', None, options)
        images.io(folder / 'disk.qcow2', 'write -P 1 0 1M', fmt='qcow2')
        images.img('snapshot', '-c', 'tool', folder / 'disk.qcow2')
        images.io(folder / 'disk.qcow2', 'write -P 2 0.5M 1M', fmt='qcow2')
    pair.prepare(make)
    add(pair, 'q', 'qcow2', 'disk.qcow2')
    take(pair, 'q', 'daemon')
    pair.ask('blockdev-del', {'node-name': 'q'})

    def look(side):
        path = side.folder / 'disk.qcow2'
        images.check(path)
        images.io(path, 'write -P 3 1M 1M', fmt='qcow2')
        for name, pieces in (('tool', [(1, 0, 1024)]), ('daemon', [(1, 0, 512), (2, 512, 1024)])):
            raw = side.folder / 'raw'
            images.img('convert', '-l', 'snapshot.name=' + name, '-O', 'raw', path, raw)
            data = raw.read_bytes()
            expect = bytearray(len(data))
            for value, start, n in pieces:
                expect[start << 10:(start + n) << 10] = bytes([value]) * (n << 10)
            assert data == expect
        images.img('snapshot', '-a', 'tool', path)
        images.check(path)
    pair.each(look)
    add(pair, 'q', 'qcow2', 'disk.qcow2')
    drop(pair, 'q', name='tool')
    drop(pair, 'q', name='daemon')
    pair.ask('blockdev-del', {'node-name': 'q'})

    def finish(side):
        images.check(side.folder / 'disk.qcow2')
        images.img('snapshot', '-c', 'last', side.folder / 'disk.qcow2')
        images.img('snapshot', '-d', 'last', side.folder / 'disk.qcow2')
        images.check(side.folder / 'disk.qcow2')
    pair.each(finish)
