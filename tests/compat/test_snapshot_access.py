# SPDX-License-Identifier: Apache-2.0
"""snapshot-access: what a copy-before-write filter keeps, to be read.

The peer lists the bitmaps that its filter keeps for itself as the filter's; quoind's
filter has none to show."""
import random
import struct

import pytest

import images
import nbdraw as nbd

SIZE = 4 << 20
ACCESS = {'driver': 'snapshot-access', 'node-name': 'old', 'file': 'cbw'}
CBW = {'driver': 'copy-before-write', 'node-name': 'cbw', 'file': 'disk', 'target': 'target'}


def make_disks(folder):
    images.raw(folder / 'disk.raw', random.Random(1).randbytes(SIZE - (1 << 20))
               + bytes(1 << 20))
    images.qcow2(folder / 'target.qcow2', SIZE)


@pytest.fixture
def disks(pair):
    pair.prepare(make_disks)
    for driver, name, file in (('raw', 'disk', 'disk.raw'), ('qcow2', 'target', 'target.qcow2')):
        pair.ask('blockdev-add', {
            'driver': driver, 'node-name': name, 'discard': 'unmap',
            'file': {'driver': 'file', 'filename': 'DIR/' + file, 'discard': 'unmap'}})
    pair.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/nbd'}}})
    return pair


@pytest.fixture
def fleece(disks):
    """disk below cbw; new is the guest's export, old shows the instant."""
    add(disks)
    return disks


def add(disks, access=ACCESS, **options):
    disks.ask('blockdev-add', dict(CBW, **options))
    disks.ask('blockdev-add', dict(access, discard='unmap'))
    for name, node in (('new', 'cbw'), ('old', 'old')):
        disks.ask('block-export-add', {'type': 'nbd', 'id': name, 'name': name,
                                       'node-name': node, 'writable': True})


def on(disks, export, kind, off, length, flags=0):
    """The error and the data of a request, alike on both sides."""
    def talk(side):
        with nbd.connect(side.folder / 'nbd', export) as c:
            c.request(kind, off, length, flags, data=b'x' * length if kind == nbd.WRITE else b'')
            error, _, data = c.simple(length if kind == nbd.READ else 0)
            return error, data
    return disks.each(talk)


def status(disks, off, length):
    """What block status says of the range: neighbours that are alike are one."""
    def talk(side):
        with nbd.connect(side.folder / 'nbd', 'old', structured=True,
                         meta=['base:allocation']) as c:
            runs, at = [], off
            while at < off + length:
                c.request(nbd.BLOCK_STATUS, at, off + length - at)
                (kind, payload), = c.chunks()
                if kind != nbd.CHUNK_STATUS:
                    return struct.unpack('>I', payload[:4])
                for size, flags in struct.iter_unpack('>II', payload[4:]):
                    at += size
                    if runs and runs[-1][1] == flags:
                        runs[-1][0] += size
                    else:
                        runs.append([size, flags])
            return runs
    return disks.each(talk)


def test_adding(disks):
    disks.ask('blockdev-add', CBW)
    for wrong in ({'file': 'none'}, {'node-name': 'cbw'}, {'node-name': '1x'}, {'file': 1},
                  {'target': 'target'}, {'backing': None}, {'read-only': 1}):
        assert 'error' in disks.ask('blockdev-add', dict(ACCESS, **wrong))
    for missing in ('file', 'node-name'):
        assert 'error' in disks.ask('blockdev-add', {k: v for k, v in ACCESS.items()
                                                     if k != missing})
    for more in ({}, {'read-only': True}, {'read-only': False, 'discard': 'unmap'},
                 {'auto-read-only': True}, {'detect-zeroes': 'on'},
                 {'file': dict(CBW, **{'node-name': 'inner'})}):
        disks.ask('blockdev-add', dict(ACCESS, **more))
        disks.ask('blockdev-del', {'node-name': 'old'})


def test_listing(disks):
    disks.ask('blockdev-add', CBW)
    disks.ask('blockdev-add', ACCESS)
    disks.ask('blockdev-add', dict(ACCESS, file='old', **{'node-name': 'older'}))

    def listed(side):
        nodes = {n['node-name']: n for n in side.ask('query-named-block-nodes')['return']}
        # On the host it occupies what the disk does, without what is kept.
        sizes = {nodes[n]['image'].pop('actual-size') for n in ('disk', 'cbw', 'old', 'older')}
        assert len(sizes) == 1
        return nodes['old'], nodes['older'], nodes['cbw']['file']
    disks.each(listed)


def test_what_is_below_is_in_use(fleece):
    for name in ('old', 'cbw', 'target', 'disk'):
        assert 'error' in fleece.ask('blockdev-del', {'node-name': name})
    for name in ('new', 'old'):
        fleece.ask('block-export-del', {'id': name, 'mode': 'hard'})
        for s in fleece.sides:
            s.daemon.wait_event('BLOCK_EXPORT_DELETED', id=name)
    assert 'error' in fleece.ask('blockdev-del', {'node-name': 'cbw'})
    for name in ('old', 'cbw', 'target', 'disk'):
        fleece.ask('blockdev-del', {'node-name': name})


def test_what_cannot_be_done_with_it(fleece):
    fleece.ask('block_resize', {'node-name': 'old', 'size': SIZE * 2})
    fleece.ask('blockdev-snapshot-internal-sync', {'device': 'old', 'name': 's'})
    fleece.ask('block_resize', {'node-name': 'disk', 'size': SIZE * 2})
    fleece.ask('block_resize', {'node-name': 'target', 'size': SIZE * 2})
    # It needs nothing of the filter, so the filter may be read and written by others.
    fleece.ask('block-export-add', {'type': 'nbd', 'id': 'x', 'node-name': 'cbw',
                                    'name': 'x', 'writable': True})


def test_reading_while_the_guest_writes(fleece):
    rng = random.Random(2)
    before = (fleece.sides[0].folder / 'disk.raw').read_bytes()
    for _ in range(30):
        kind = rng.choice([nbd.WRITE, nbd.WRITE, nbd.WRITE_ZEROES, nbd.TRIM])
        off, length = rng.randrange(SIZE - 100000), rng.randrange(1, 100000)
        assert on(fleece, 'new', kind, off, length)[0] == 0
        off = rng.randrange(SIZE - 300000)
        error, data = on(fleece, 'old', nbd.READ, off, 300000)
        assert (error, data == before[off:off + 300000]) == (0, True)
    status(fleece, 0, SIZE)
    error, data = on(fleece, 'old', nbd.READ, 0, SIZE)
    assert (error, data == before) == (0, True)


@pytest.mark.parametrize('access', [ACCESS, dict(ACCESS, file='disk')],
                         ids=['of the filter', 'of a node that keeps nothing'])
def test_requests(disks, access):
    add(disks, access)
    on(disks, 'new', nbd.WRITE, 100000, 100)
    for kind in (nbd.READ, nbd.WRITE, nbd.WRITE_ZEROES, nbd.TRIM):
        on(disks, 'old', kind, 65536, 131072)
        on(disks, 'old', kind, 1, 3)
    on(disks, 'old', nbd.FLUSH, 0, 0)
    status(disks, 0, SIZE)


def test_what_was_discarded_cannot_be_read(fleece):
    on(fleece, 'new', nbd.WRITE, 65536, 65536)
    on(fleece, 'old', nbd.TRIM, 65536 - 512, 131072 + 1024)
    for off in range(0, SIZE, 65536):
        on(fleece, 'old', nbd.READ, off, 65536)
    on(fleece, 'old', nbd.READ, 0, SIZE)
    status(fleece, 0, SIZE)
    status(fleece, 65536, 65536)
    status(fleece, 196608, SIZE - 196608)
    # Nor is it kept when the guest overwrites it.
    on(fleece, 'new', nbd.WRITE, 131072, 65536)
    on(fleece, 'old', nbd.READ, 131072, 65536)
    for name in ('new', 'old'):
        fleece.ask('block-export-del', {'id': name, 'mode': 'hard'})
        for s in fleece.sides:
            s.daemon.wait_event('BLOCK_EXPORT_DELETED', id=name)
    for name in ('old', 'cbw', 'target'):
        fleece.ask('blockdev-del', {'node-name': name})
    images.compare(*(x for s in fleece.sides for x in (s.folder / 'target.qcow2', 'qcow2')))


def test_what_a_bitmap_leaves_out_cannot_be_read(disks):
    disks.ask('block-dirty-bitmap-add', {'node': 'disk', 'name': 'b', 'granularity': 65536})
    disks.ask('block-export-add', {'type': 'nbd', 'id': 'd', 'node-name': 'disk',
                                   'name': 'disk', 'writable': True})
    on(disks, 'disk', nbd.WRITE, 200000, 5)
    on(disks, 'disk', nbd.WRITE, 1 << 20, 65536)
    disks.ask('block-export-del', {'id': 'd', 'mode': 'hard'})
    for s in disks.sides:
        s.daemon.wait_event('BLOCK_EXPORT_DELETED', id='d')
    add(disks, bitmap={'node': 'disk', 'name': 'b'})
    on(disks, 'new', nbd.WRITE, 1000000, 100000)
    for off in range(0, 2 << 20, 65536):
        on(disks, 'old', nbd.READ, off, 65536)
        on(disks, 'old', nbd.READ, off + 65536 - 512, 1024)
        status(disks, off, 65536)
    status(disks, 0, SIZE)


def test_a_backup_of_it(fleece):
    on(fleece, 'new', nbd.WRITE, 100000, 100)
    for s in fleece.sides:
        (s.folder / 'copy.raw').write_bytes(bytes(SIZE))
    fleece.ask('blockdev-add', {'driver': 'file', 'node-name': 'copy',
                                'filename': 'DIR/copy.raw'})
    fleece.ask('blockdev-backup', {'job-id': 'j', 'device': 'old', 'target': 'copy',
                                   'sync': 'full'})
    for s in fleece.sides:
        s.daemon.wait_event('JOB_STATUS_CHANGE', id='j', status='null')
    fleece.each(lambda s: hash((s.folder / 'copy.raw').read_bytes()))
