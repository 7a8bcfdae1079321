# SPDX-License-Identifier: Apache-2.0
"""The same writes, zeroes and discards to a qcow2 image on both sides: afterwards
`qemu-img map` says the same of each stretch, the images hold the same, nothing
leaks, and as many clusters are in use."""
import json
import os
import random

import images
import nbdraw
import pytest

SIZE = 4 << 20
SEED = int(os.environ.get('QUOIN_SEED', '0')) or random.randrange(1 << 30)


def make(folder, *options, backing=False, base=b''):
    """disk.qcow2, over a raw file of data and holes or over nothing."""
    more = ()
    if backing:
        images.raw(folder / 'base.raw', base)
        more = ('-b', 'base.raw', '-F', 'raw')
    images.img('create', '-q', '-f', 'qcow2', *(x for o in options for x in ('-o', o)), *more,
               folder / 'disk.qcow2', SIZE + 512)


def base_of(rng):
    """Half of it holes, shorter than its overlay, with an odd end."""
    return b''.join(rng.randbytes(4096) if rng.random() < .5 else bytes(4096)
                    for _ in range(SIZE // 8192)) + b'x' * 512


def add(pair, *, below='unmap', **options):
    pair.ask('blockdev-add', {
        'driver': 'qcow2', 'node-name': 'disk', **options,
        'file': {'driver': 'file', 'filename': 'DIR/disk.qcow2', 'discard': below}})


def serve(pair, **options):
    add(pair, **options)
    pair.ask('nbd-server-start',
             {'addr': {'type': 'unix', 'data': {'path': 'DIR/nbd.sock'}}})
    pair.ask('block-export-add',
             {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'writable': True})


def play(pair, script):
    def talk(side):
        with nbdraw.connect(side.folder / 'nbd.sock', 'disk') as conn:
            errors = []
            for kind, off, length, flags, byte in script:
                data = bytes([byte]) * length if kind == nbdraw.WRITE else b''
                conn.request(kind, off, length, flags, data=data)
                errors.append(conn.simple()[0])
            return errors
    errors = pair.each(talk)
    assert not any(errors), errors
    for side in pair.sides:
        side.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
        side.daemon.wait_event('BLOCK_EXPORT_DELETED', id='e')
    pair.ask('nbd-server-stop')
    pair.ask('blockdev-del', {'node-name': 'disk'})


def look(side):
    """What each stretch of the image is: without where it lies, and whether the file
    has holes in a data cluster, which is between the writer and the file system."""
    path = side.folder / 'disk.qcow2'
    stretches = []
    for m in json.loads(images.img('map', '--output=json', path)):
        mapped = 'offset' in m
        start, length = m.pop('start'), m.pop('length')
        m.pop('offset', None)
        m['mapped'] = mapped
        m['zero'] = m['zero'] and not m['data']
        if stretches and stretches[-1][2] == m:
            stretches[-1][1] = start + length
        else:
            stretches.append([start, start + length, m])
    return stretches


def in_use(side):
    """check finds nothing; the clusters of data, and compressed ones."""
    found = json.loads(images.img('check', '--output=json', side.folder / 'disk.qcow2'))
    assert not found.get('leaks') and not found.get('corruptions'), found
    return found.get('allocated-clusters', 0), found.get('compressed-clusters', 0)


def content(side):
    images.img('convert', '-O', 'raw', side.folder / 'disk.qcow2', side.folder / 'out.raw')
    return images.content(side.folder / 'out.raw')


def compare(pair, script, options):
    serve(pair, **options)
    play(pair, script)
    ours, theirs = (look(s) for s in pair.sides)
    assert [m for m in ours if m not in theirs] == [m for m in theirs if m not in ours]
    pair.each(in_use)
    ours, theirs = (content(s) for s in pair.sides)
    assert ours == theirs


def script_of(rng, n=60):
    """Requests of all kinds, of sectors, of subclusters and of clusters."""
    script = []
    for _ in range(n):
        unit = rng.choice([512, 2048, 4096, 16384, 65536, 65536])
        off = rng.randrange(SIZE) // unit * unit
        length = unit * rng.choice([1, 1, 2, 3, 8])
        if rng.random() < .1:
            length = SIZE + 512 - off           # to the end, in the middle of a cluster
        length = min(length, SIZE + 512 - off, 1 << 20)
        kind = rng.choices([nbdraw.WRITE, nbdraw.WRITE_ZEROES, nbdraw.TRIM], [5, 5, 3])[0]
        flags = rng.choice([0, nbdraw.NO_HOLE]) if kind == nbdraw.WRITE_ZEROES else 0
        script.append((kind, off, length, flags, rng.choice([0, 1, 2])))
    return script


SHAPES = {
    'version 2': ('compat=0.10',),
    'version 3': (),
    'small clusters': ('cluster_size=4096',),
    'subclusters': ('extended_l2=on',),
    'small subclusters': ('extended_l2=on,cluster_size=16384',),
    'large subclusters': ('extended_l2=on,cluster_size=1M',),
}
OPTIONS = {
    'discard ignored': {},
    'discard': {'discard': 'unmap'},
    'references kept': {'discard': 'unmap', 'discard-no-unref': True},
    'zeroes detected': {'detect-zeroes': 'on'},
    'zeroes detected and unmapped': {'discard': 'unmap', 'detect-zeroes': 'unmap'},
}


@pytest.mark.parametrize('backing', [False, True], ids=['alone', 'overlay'])
@pytest.mark.parametrize('shape', SHAPES)
def test_random_requests_leave_the_same(pair, shape, backing):
    rng = random.Random('%d %s %s' % (SEED, shape, backing))
    base = base_of(rng)
    for name, options in OPTIONS.items():
        if shape == 'version 2' and name == 'references kept':
            continue
        print('QUOIN_SEED=%d' % SEED, name)
        pair.prepare(lambda folder: make(folder, *SHAPES[shape], backing=backing, base=base))
        compare(pair, script_of(rng), options)


PASSING = [
    {}, {'discard': 'unmap'}, {'discard': 'unmap', 'pass-discard-request': False},
    {'pass-discard-request': True}, {'discard': 'unmap', 'below': 'ignore'},
    {'discard': 'unmap', 'discard-no-unref': True},
    {'discard': 'unmap', 'discard-no-unref': True, 'pass-discard-request': False},
    {'discard': 'unmap', 'pass-discard-other': True},
]


@pytest.mark.parametrize('kind', [nbdraw.TRIM, nbdraw.WRITE_ZEROES], ids=['trim', 'zero'])
@pytest.mark.parametrize('version', ['compat=0.10', 'compat=1.1', 'extended_l2=on'])
def test_what_the_file_hears_of_a_discard(pair, version, kind):
    """Does it still occupy what was discarded?"""
    def occupied(side):
        return os.stat(side.folder / 'disk.qcow2').st_blocks * 512 > SIZE // 2
    seen = set()
    for options in PASSING:
        if version == 'compat=0.10' and options.get('discard-no-unref'):
            continue
        pair.prepare(lambda folder: make(folder, version))
        script = [(nbdraw.WRITE, off, 1 << 20, 0, 1) for off in range(0, SIZE, 1 << 20)]
        script += [(nbdraw.FLUSH, 0, 0, 0, 0), (kind, 0, SIZE, 0, 0)]
        compare(pair, script, options)
        seen.add(pair.each(occupied))
    assert seen == {True, False}


def test_references_are_kept_from_version_3_on(pair):
    pair.prepare(lambda folder: make(folder, 'compat=0.10'))
    assert 'error' in pair.ask('blockdev-add', {
        'driver': 'qcow2', 'node-name': 'disk', 'discard-no-unref': True,
        'file': {'driver': 'file', 'filename': 'DIR/disk.qcow2'}})


@pytest.mark.parametrize('shape', SHAPES)
def test_the_image_is_described_alike(pair, shape):
    pair.prepare(lambda folder: make(folder, *SHAPES[shape]))
    serve(pair)

    def described(side):
        nodes = side.ask('query-named-block-nodes')['return']
        image = next(n for n in nodes if n['node-name'] == 'disk')['image']
        return image['format-specific'], image['cluster-size'], image['virtual-size']
    specific, *_ = pair.each(described)
    assert specific['data'].get('extended-l2', False) == ('subclusters' in shape)


# ---- what becomes of clusters that no request has freed ----

def blocks(side):
    return os.stat(side.folder / 'disk.qcow2').st_blocks * 512


@pytest.mark.parametrize('options', [
    {}, {'pass-discard-snapshot': True}, {'pass-discard-snapshot': False},
    {'discard': 'unmap', 'pass-discard-snapshot': False}, {'below': 'ignore'}], ids=str)
def test_what_the_file_hears_of_a_snapshot_that_goes(pair, options):
    """All of the disk is overwritten behind the snapshot, so it has clusters of its own."""
    pair.prepare(make)
    add(pair, **options)
    pair.ask('nbd-server-start',
             {'addr': {'type': 'unix', 'data': {'path': 'DIR/nbd.sock'}}})

    def fill(byte):
        pair.ask('block-export-add',
                 {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'writable': True})
        for side in pair.sides:
            images.io('nbd+unix:///disk?socket=%s/nbd.sock' % side.folder,
                      'write -P %d 0 4M' % byte, 'flush')
            side.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
            side.daemon.wait_event('BLOCK_EXPORT_DELETED', id='e')
    fill(1)
    pair.ask('blockdev-snapshot-internal-sync', {'device': 'disk', 'name': 's'})
    fill(2)
    assert min(blocks(s) for s in pair.sides) >= 2 * SIZE
    pair.each(lambda s: s.ask('blockdev-snapshot-delete-internal-sync',
                              {'device': 'disk', 'name': 's'}).keys())
    pair.ask('blockdev-del', {'node-name': 'disk'})
    pair.each(in_use)
    gone = pair.each(lambda s: blocks(s) < 2 * SIZE)
    assert gone == (options.get('pass-discard-snapshot', True) and 'below' not in options)


@pytest.mark.parametrize('options', [
    {}, {'pass-discard-request': False, 'pass-discard-other': False}, {'below': 'ignore'}], ids=str)
def test_what_the_file_hears_of_a_disk_made_smaller(pair, options):
    """The end of the disk lies in the middle of the file."""
    pair.prepare(make)
    serve(pair, **options)
    for side in pair.sides:
        images.io('nbd+unix:///disk?socket=%s/nbd.sock' % side.folder,
                  'write -P 1 2M 2M', 'flush', 'write -P 2 0 2M', 'flush')
        side.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
        side.daemon.wait_event('BLOCK_EXPORT_DELETED', id='e')
    pair.ask('block_resize', {'node-name': 'disk', 'size': 2 << 20})
    pair.ask('blockdev-del', {'node-name': 'disk'})
    pair.each(in_use)
    gone = pair.each(lambda s: blocks(s) < SIZE)
    assert gone == ('below' not in options)


@pytest.mark.parametrize('options', [
    {}, {'pass-discard-other': True}, {'pass-discard-other': False},
    {'pass-discard-other': True, 'below': 'ignore'}], ids=str)
def test_what_the_file_hears_of_a_bitmap_that_goes(pair, options):
    """4 MiB of it, for a disk of 16 GiB."""
    big = 16 << 30

    def make_big(folder):
        images.img('create', '-q', '-f', 'qcow2', folder / 'disk.qcow2', big)
        images.img('bitmap', '--add', '-g', '512', folder / 'disk.qcow2', 'b')
    pair.prepare(make_big)
    serve(pair, **options)
    play(pair, [(nbdraw.WRITE_ZEROES, off, 1 << 30, 0, 0) for off in range(0, big, 1 << 30)])
    before = [blocks(s) for s in pair.sides]
    assert min(before) > SIZE
    add(pair, **options)
    pair.ask('block-dirty-bitmap-remove', {'node': 'disk', 'name': 'b'})
    pair.ask('blockdev-del', {'node-name': 'disk'})
    pair.each(in_use)
    gone = pair.each(lambda s: blocks(s) < before[pair.sides.index(s)] - SIZE // 2)
    assert gone == ('below' not in options)


@pytest.mark.parametrize('options', [{}, {'pass-discard-other': True}], ids=str)
def test_what_the_file_hears_of_other_clusters(pair, options):
    """An L1 table of 2 MiB gives way to one of 4 MiB."""
    pair.prepare(lambda folder: images.img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512',
                                           folder / 'disk.qcow2', 4 << 30))
    add(pair, **options)
    pair.ask('block_resize', {'node-name': 'disk', 'size': 8 << 30})
    before = {s.name: blocks(s) for s in pair.sides}
    assert min(before.values()) >= 2 << 20
    pair.ask('block_resize', {'node-name': 'disk', 'size': 16 << 30})
    pair.ask('blockdev-del', {'node-name': 'disk'})
    pair.each(in_use)
    gone = pair.each(lambda s: blocks(s) - before[s.name] < 3 << 20)
    assert gone == options.get('pass-discard-other', False)
