# SPDX-License-Identifier: Apache-2.0
"""qcow2 images whose guest data lies in an external data file.

What random requests write is held against a model, against what qemu-img reads
and, where the data file is a raw image of its own, against the data file itself.
What only an image names is not opened, unless the operator said where that may be.
"""
import os
import random
import shutil
import signal

import pytest

import images
import nbdraw
import quoin
from test_images import SEED, SIZE, Disk

SHAPES = {
    'plain': [],
    'raw': ['data_file_raw=on'],
    'small clusters': ['cluster_size=4096'],
    'subclusters': ['extended_l2=on', 'cluster_size=65536'],
    'raw with subclusters': ['data_file_raw=on', 'extended_l2=on'],
    'large clusters': ['cluster_size=2M'],
}


def make(tmp, *options, size=SIZE, **kw):
    images.qcow2(tmp / 'disk.qcow2', size, kw.get('backing'),
                 'data_file=%s' % (tmp / 'disk.raw'), *options)
    return tmp / 'disk.qcow2', tmp / 'disk.raw'


def node(path, data, **more):
    return dict({'driver': 'qcow2', 'node-name': 'n', 'discard': 'unmap',
                 'file': {'driver': 'file', 'filename': str(path)},
                 'data-file': {'driver': 'file', 'filename': str(data)}}, **more)


def serve(start, tmp, path, data, **more):
    d = start('--nbd-server', 'addr.type=unix,addr.path=%s' % (tmp / 'nbd.sock'))
    d.cmd('blockdev-add', node(path, data, **more))
    d.cmd('block-export-add', type='nbd', id='e', node_name='n', writable=True)
    return d, tmp / 'nbd.sock'


def guest_view(tmp, path):
    images.img('convert', '-O', 'raw', path, tmp / 'out.raw')
    return images.content(tmp / 'out.raw')


def judge(tmp, path, data, model, raw):
    images.check(path)
    assert guest_view(tmp, path) == bytes(model)
    if raw:
        assert images.content(data) == bytes(model)


# ---- content ----

@pytest.mark.io
@pytest.mark.parametrize('more', [{}, {'discard-no-unref': True}, {'pass-discard-request': False}],
                         ids=['default', 'no-unref', 'no-pass'])
@pytest.mark.parametrize('shape', SHAPES)
def test_random_requests_against_a_model(start, tmp, shape, more):
    rng = random.Random('%d %s %s' % (SEED, shape, more))
    print('QUOIN_SEED=%d' % SEED)
    path, data = make(tmp, *SHAPES[shape])
    d, sock = serve(start, tmp, path, data, **more)
    disk = Disk(sock, bytes(SIZE), rng)
    for _ in range(100):
        disk.step()
    d.stop()
    judge(tmp, path, data, disk.now, 'raw' in shape)
    # The image file holds tables only.
    assert os.stat(path).st_blocks * 512 < 1 << 20 or 'large' in shape


@pytest.mark.io
@pytest.mark.parametrize('options', [[], ['extended_l2=on']], ids=['', 'subclusters'])
def test_over_a_backing_file(start, tmp, options):
    rng = random.Random(SEED)
    base = rng.randbytes(SIZE - 300 * 1024)
    images.raw(tmp / 'base.raw', base)
    path, data = make(tmp, *options, backing=(tmp / 'base.raw', 'raw'))
    d, sock = serve(start, tmp, path, data)
    disk = Disk(sock, base + bytes(SIZE - len(base)), rng)
    for _ in range(100):
        disk.step()
    d.stop()
    judge(tmp, path, data, disk.now, False)


@pytest.mark.io
def test_what_the_data_file_held_before_is_not_shown(start, tmp):
    path, data = make(tmp)
    images.raw(data, b'old' * (SIZE // 3))
    d, sock = serve(start, tmp, path, data)
    disk = Disk(sock, bytes(SIZE), random.Random(1))
    for off in (0, 65536 + 100, 3 * 65536 + 65000, SIZE - 10):
        disk.call(nbdraw.WRITE, off, 10, data=b'0123456789')
        disk.now[off:off + 10] = b'0123456789'
    d.stop()
    judge(tmp, path, data, disk.now, False)


@pytest.mark.io
@pytest.mark.parametrize('shape', ['plain', 'raw', 'subclusters'])
def test_qemu_reads_and_goes_on(start, tmp, shape):
    path, data = make(tmp, *SHAPES[shape])
    images.io(path, 'write -P 1 0 1M', 'write -z 1M 64k', 'discard 0 128k', 'write -P 2 5M 512',
              fmt='qcow2')
    before = guest_view(tmp, path)
    d, sock = serve(start, tmp, path, data)
    disk = Disk(sock, before, random.Random(SEED))
    assert disk.read(0, SIZE) == before
    for _ in range(30):
        disk.step()
    d.stop()
    judge(tmp, path, data, disk.now, False)
    images.io(path, 'write -P 3 100k 1M', fmt='qcow2')
    images.check(path)


@pytest.mark.io
@pytest.mark.parametrize('round_', range(4))
def test_kill_leaves_no_corruption(start, tmp, round_):
    """What was flushed is there, and the raw view is the guest's."""
    rng = random.Random(SEED * 10 + round_)
    print('QUOIN_SEED=%d' % SEED)
    shape = ['plain', 'raw', 'subclusters', 'small clusters'][round_]
    path, data = make(tmp, *SHAPES[shape])
    d, sock = serve(start, tmp, path, data)
    disk = Disk(sock, bytes(SIZE), rng)
    for _ in range(rng.randrange(20, 60)):
        disk.step()
    disk.call(nbdraw.FLUSH)
    flushed = bytes(disk.now)
    off = rng.randrange(SIZE - 300000)
    disk.conn.request(nbdraw.WRITE, off, 300000, data=bytes(300000))
    d.kill(signal.SIGKILL)
    out = images.img('check', '-f', 'qcow2', path, check=False)
    assert 'corrupt' not in out and 'ERROR' not in out, out
    got = guest_view(tmp, path)
    assert got[:off] == flushed[:off] and got[off + 300000:] == flushed[off + 300000:]
    if shape == 'raw':
        assert images.content(data) == got


@pytest.mark.io
@pytest.mark.parametrize('shape', ['plain', 'raw', 'subclusters', 'raw with subclusters'])
def test_resize(start, tmp, shape):
    path, data = make(tmp, *SHAPES[shape])
    d, sock = serve(start, tmp, path, data)
    d.cmd('block-export-del', id='e')
    d.wait_event('BLOCK_EXPORT_DELETED', id='e')
    rng = random.Random(SEED)
    model = bytearray(SIZE)

    def write(off, n):
        # An export does not let the size change.
        d.cmd('block-export-add', type='nbd', id='e', node_name='n', writable=True)
        conn = nbdraw.connect(sock, 'n')
        content = rng.randbytes(n)
        conn.request(nbdraw.WRITE, off, n, data=content)
        assert conn.simple()[0] == 0
        model[off:off + n] = content
        d.cmd('block-export-del', id='e', mode='hard')
        d.wait_event('BLOCK_EXPORT_DELETED', id='e')
    write(0, SIZE)
    for size in (SIZE - 512 * 777, SIZE + (1 << 20), 512 * 5, 3 << 20):
        d.cmd('block_resize', node_name='n', size=size)
        model = model[:size] + bytes(max(0, size - len(model)))
        assert os.stat(data).st_size == size
        write(size // 3, size // 3)
    d.stop()
    judge(tmp, path, data, model, 'raw' in shape)


# ---- opening ----

def fails(d, text, **options):
    with pytest.raises(quoin.QmpError) as e:
        d.cmd('blockdev-add', options)
    assert text in e.value.desc, e.value.desc


def test_a_data_file_is_needed(start, tmp):
    path, data = make(tmp)
    images.qcow2(tmp / 'plain.qcow2')
    d = start()
    options = node(path, data)
    del options['data-file']
    fails(d, "'data-file' is required for this image", **options)
    fails(d, "'data-file' can only be set for images with an external data file",
          **node(tmp / 'plain.qcow2', data))
    assert d.cmd('query-named-block-nodes') == []


@pytest.mark.parametrize('name', ['CANARY', 'file:CANARY', 'fd:0', 'nbd://localhost/x',
                                  'json:{"driver":"file","filename":"CANARY"}'])
def test_a_hostile_name_opens_nothing(start, tmp, name):
    """A file of the host that only the image names is not touched."""
    if not shutil.which('strace'):
        pytest.skip('no strace is installed')
    canary = tmp / 'canary'
    images.raw(canary, b'secret' * 10000)
    path, _ = make(tmp)
    put_name(path, name.replace('CANARY', str(canary)))
    d = start(wrap=('strace', '-f', '-o', str(tmp / 'trace'), '-e',
                    'trace=open,openat,connect,stat,lstat,newfstatat,readlink,access,statx'),
              env={'ASAN_OPTIONS': 'detect_leaks=0'})
    for mode in ({}, {'read-only': True}):
        options = dict({'driver': 'qcow2', 'node-name': 'n',
                        'file': {'driver': 'file', 'filename': str(path)}}, **mode)
        fails(d, "'data-file' is required for this image", **options)
    d.stop()
    trace = (tmp / 'trace').read_text()
    assert str(path) in trace
    assert str(canary) not in trace and 'localhost' not in trace


def put_name(path, name):
    """Let the image at path name this data file."""
    content = bytearray(images.content(path))
    at = 112
    assert content[at:at + 4] == b'DATA'
    old = int.from_bytes(content[at + 4:at + 8], 'big')
    rest = content[at + 8 + (old + 7) // 8 * 8:4096]
    padded = name.encode() + bytes(-len(name) % 8)
    piece = content[at:at + 4] + len(name).to_bytes(4, 'big') + padded + rest
    content[at:at + len(piece)] = piece
    images.raw(path, content)


def test_the_operators_folders(start, tmp):
    for folder in ('images', 'other'):
        (tmp / folder).mkdir()
    inside, _ = make(tmp / 'images')
    images.qcow2(tmp / 'images' / 'out.qcow2', '1M', None,
                 'data_file=%s' % (tmp / 'other' / 'out.raw'))
    os.symlink(tmp / 'other' / 'out.raw', tmp / 'images' / 'link.raw')
    shutil.copy(inside, tmp / 'images' / 'link.qcow2')
    put_name(tmp / 'images' / 'link.qcow2', str(tmp / 'images' / 'link.raw'))

    def without(path):
        options = node(path, 'x')
        del options['data-file']
        return options
    d = start('--image-dir', tmp / 'images')
    d.cmd('blockdev-add', without(inside))
    info = d.cmd('query-named-block-nodes', flat=True)
    specific = [i for i in info if i['node-name'] == 'n'][0]['image']['format-specific']['data']
    assert specific['data-file'] == str(tmp / 'images' / 'disk.raw')
    assert specific['data-file-raw'] is False
    d.cmd('blockdev-del', node_name='n')
    for name in ('out.qcow2', 'link.qcow2'):
        fails(d, 'lies outside of the folders for images', **without(tmp / 'images' / name))
    d.stop()
    d = start('--no-follow', '--image-dir', tmp / 'images')
    fails(d, 'following what images name is switched off', **without(inside))


def test_the_data_file_is_locked(start, tmp):
    path, data = make(tmp)
    d, _ = serve(start, tmp, path, data)
    assert 'lock' in images.img('resize', '-f', 'raw', data, SIZE * 2, check=False)
    d.cmd('block-export-del', id='e')
    d.wait_event('BLOCK_EXPORT_DELETED', id='e')
    d.cmd('blockdev-del', node_name='n')
    images.img('resize', '-q', '-f', 'raw', data, SIZE * 2)


def test_one_file_cannot_be_both(start, tmp):
    path, _ = make(tmp)
    d = start()
    d.cmd('blockdev-add', driver='file', node_name='f', filename=str(path))
    options = node(path, 'x', file='f')
    options['data-file'] = 'f'
    fails(d, 'Permission conflict', **options)
