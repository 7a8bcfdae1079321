# SPDX-License-Identifier: Apache-2.0
"""Persistent dirty bitmaps: stored and loaded by either program and by qemu-img,
refused with the same words.

On purpose different, beside what tests below say: the peer flags bitmaps as in use when an image is opened for
writing, quoind before its first write; the peer makes an entry for a new bitmap
when the image is closed, quoind at once, so that a crash leaves a trace of it."""
import json

import pytest

import images

SIZE = 10 << 20
IMAGE = 'disk.qcow2'


def make_disk(folder):
    images.qcow2(folder / IMAGE, SIZE)


def node(side, read_only=False, name='q', filename=IMAGE):
    reply = side.ask('blockdev-add', {
        'driver': 'qcow2', 'node-name': name, 'read-only': read_only, 'discard': 'unmap',
        'file': {'driver': 'file', 'filename': 'DIR/' + filename}})
    assert 'return' in reply, reply


def both(pair, **more):
    for s in pair.sides:
        node(s, **more)


@pytest.fixture
def disk(pair):
    pair.prepare(make_disk)
    both(pair)
    return pair


def act(pair, verb, **args):
    return pair.ask('block-dirty-bitmap-' + verb, args)


def shown(side, name='q'):
    nodes = side.ask('query-named-block-nodes', {'flat': True})['return']
    found = [n.get('dirty-bitmaps') for n in nodes if n['node-name'] == name][0]
    for b in found or ():
        b.pop('x-quoin-inconsistent-reason', None)
    return found


def bitmaps(pair):
    return pair.each(shown)


def write(pair, *commands):
    for s in pair.sides:
        sock = '%s/nbd' % s.folder
        s.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': sock}}})
        s.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'q', 'writable': True})
        images.io('nbd+unix:///q?socket=%s' % sock, *commands)
        s.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
        s.ask('nbd-server-stop')


def close(pair):
    pair.ask('blockdev-del', {'node-name': 'q'})


def stored(side):
    """What qemu-img sees, and that it finds no fault."""
    images.check(side.folder / IMAGE)
    info = json.loads(images.img('info', '--output=json', side.folder / IMAGE))
    return info['format-specific']['data'].get('bitmaps')


def test_life(disk):
    act(disk, 'add', node='q', name='a', persistent=True)
    act(disk, 'add', node='q', name='b', persistent=True, granularity=512, disabled=True)
    act(disk, 'add', node='q', name='brief')
    write(disk, 'write 100k 1', 'write 9M 1M')
    bitmaps(disk)
    close(disk)
    assert disk.each(stored) == [
        {'name': 'b', 'granularity': 512, 'flags': []},
        {'name': 'a', 'granularity': 65536, 'flags': ['auto']}]
    both(disk)
    bitmaps(disk)
    act(disk, 'enable', node='q', name='b')
    act(disk, 'disable', node='q', name='a')
    write(disk, 'write 5M 1', 'discard 6M 64k')
    close(disk)
    disk.each(stored)
    both(disk, read_only=True)
    bitmaps(disk)
    close(disk)
    both(disk)
    act(disk, 'remove', node='q', name='a')
    act(disk, 'remove', node='q', name='none')
    bitmaps(disk)
    close(disk)
    disk.each(stored)
    both(disk)
    bitmaps(disk)
    act(disk, 'remove', node='q', name='b')
    close(disk)
    assert disk.each(stored) is None


def test_what_one_stores_the_other_loads(disk):
    act(disk, 'add', node='q', name='a', persistent=True, granularity=4096)
    act(disk, 'add', node='q', name='b', persistent=True, granularity=1 << 20)
    write(disk, 'write 100k 1', 'write 9M 1M', 'write -z 3M 8k')
    close(disk)
    for round in range(3):
        ours, theirs = (s.folder / IMAGE for s in disk.sides)
        ours.rename('%s.swap' % ours)
        theirs.rename(ours)
        ours.with_name(ours.name + '.swap').rename(theirs)
        both(disk)
        bitmaps(disk)
        write(disk, 'write %dM 1' % (5 + round))
        act(disk, 'merge', node='q', target='b', bitmaps=['a'])
        bitmaps(disk)
        close(disk)
        disk.each(stored)


@pytest.mark.parametrize('args', [
    {}, {'granularity': 1 << 31}, {'granularity': 256}, {'name': ''}, {'name': 'x' * 1023},
    {'name': 'x' * 1024}, {'granularity': 100}], ids=lambda a: str(a)[:30])
def test_add(disk, args):
    act(disk, 'add', **dict({'node': 'q', 'name': 'b', 'persistent': True}, **args))
    act(disk, 'add', **dict({'node': 'q', 'name': 'b', 'persistent': True}, **args))
    bitmaps(disk)


def test_what_cannot_store(pair):
    def make(folder):
        images.qcow2(folder / 'v2.qcow2', SIZE, None, 'compat=0.10')
        images.qcow2(folder / 'huge.qcow2', '8T', None, 'cluster_size=2M')
        images.raw(folder / 'disk.raw', bytes(SIZE))
    pair.prepare(make)
    both(pair, filename='v2.qcow2')
    both(pair, filename='huge.qcow2', name='huge')
    pair.ask('blockdev-add', {'driver': 'raw', 'node-name': 'r', 'file': {
        'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'f'}})
    for name in ('q', 'r', 'f'):
        act(pair, 'add', node=name, name='b', persistent=True)
    act(pair, 'add', node='huge', name='b', persistent=True, granularity=512)


def test_a_read_only_image(disk):
    act(disk, 'add', node='q', name='a', persistent=True)
    close(disk)
    both(disk, read_only=True)
    for verb in ('remove', 'clear', 'enable', 'disable'):
        act(disk, verb, node='q', name='a')
    act(disk, 'add', node='q', name='brief')
    act(disk, 'merge', node='q', target='a', bitmaps=['brief'])
    act(disk, 'merge', node='q', target='brief', bitmaps=['a'])
    bitmaps(disk)
    # The peer takes one here, and says as it closes the image that it is lost.
    ours, theirs = (s.ask('block-dirty-bitmap-add', {'node': 'q', 'name': 'c',
                                                     'persistent': True}) for s in disk.sides)
    assert ours['error']['desc'] == "Can't make bitmap 'c' persistent in 'q': Image is read-only"
    assert theirs == {'return': {}}


def test_an_inconsistent_bitmap(pair):
    def make(folder):
        make_disk(folder)
        images.img('bitmap', '--add', folder / IMAGE, 'good')
        images.img('bitmap', '--add', folder / IMAGE, 'bad')
        with open(folder / IMAGE, 'r+b') as f:
            data = f.read()
            at = data.index(b'bad\0') - 24
            f.seek(at + 12)
            f.write(bytes([0, 0, 0, data[at + 15] | 1]))
    pair.prepare(make)
    both(pair)
    assert [b.get('inconsistent') for b in bitmaps(pair)] == [True, None]
    for verb in ('clear', 'enable', 'disable'):
        act(pair, verb, node='q', name='bad')
    act(pair, 'merge', node='q', target='bad', bitmaps=['good'])
    act(pair, 'merge', node='q', target='good', bitmaps=['bad'])
    write(pair, 'write 0 1M')
    bitmaps(pair)
    pair.ask('block_resize', {'node-name': 'q', 'size': 2 * SIZE})
    act(pair, 'remove', node='q', name='bad')
    bitmaps(pair)
    close(pair)
    pair.each(stored)


def test_growing_a_disk_whose_bitmap_was_loaded(disk):
    """The disk may have been larger once, and its content there another: quoind marks
    what grows; the peer trusts that it was not."""
    act(disk, 'add', node='q', name='a', persistent=True)
    close(disk)
    both(disk)
    disk.ask('block_resize', {'node-name': 'q', 'size': 2 * SIZE})
    assert [shown(s)[0]['count'] for s in disk.sides] == [SIZE, 0]
    close(disk)
    disk.each(stored)


def test_resize(disk):
    act(disk, 'add', node='q', name='a', persistent=True, granularity=512)
    write(disk, 'write 0 1', 'write 9M 1M')
    for size in (40 << 20, 9 << 20):
        disk.ask('block_resize', {'node-name': 'q', 'size': size})
        bitmaps(disk)
        close(disk)
        disk.each(stored)
        both(disk)
        bitmaps(disk)


def test_qemu_img_made_them(pair):
    def make(folder):
        make_disk(folder)
        for name, more in (('a', ['--disable']), ('b', ['-g', '4096']), ('c', ['-g', '1M'])):
            images.img('bitmap', '--add', *more, folder / IMAGE, name)
        images.io(folder / IMAGE, 'write 100k 1', 'write 9M 1M', fmt='qcow2')
    pair.prepare(make)
    both(pair)
    bitmaps(pair)
    write(pair, 'write 5M 1')
    bitmaps(pair)
    close(pair)
    pair.each(stored)

    def by_qemu_img(side):
        images.img('bitmap', '--merge', 'b', side.folder / IMAGE, 'c')
        images.img('bitmap', '--clear', side.folder / IMAGE, 'b')
        images.img('bitmap', '--enable', side.folder / IMAGE, 'a')
    pair.prepare(lambda folder: None)
    for s in pair.sides:
        by_qemu_img(s)
    both(pair)
    bitmaps(pair)


def test_incremental_backup_across_a_restart(disk):
    act(disk, 'add', node='q', name='a', persistent=True)
    write(disk, 'write -P 1 100k 200k')
    close(disk)
    both(disk)
    write(disk, 'write -P 2 5M 64k')
    for s in disk.sides:
        images.qcow2(s.folder / 'target.qcow2', SIZE)
        node(s, name='t', filename='target.qcow2')
    disk.ask('blockdev-backup', {'job-id': 'j', 'device': 'q', 'target': 't',
                                 'sync': 'incremental', 'bitmap': 'a'})
    for s in disk.sides:
        s.daemon.wait_event('JOB_STATUS_CHANGE', id='j', status='null')
    bitmaps(disk)
    close(disk)
    disk.ask('blockdev-del', {'node-name': 't'})
    disk.each(stored)
    for s in disk.sides:
        images.compare(s.folder / IMAGE, 'qcow2', s.folder / 'target.qcow2', 'qcow2')
    both(disk)
    assert bitmaps(disk)[0]['count'] == 0
