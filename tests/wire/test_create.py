# SPDX-License-Identifier: Apache-2.0
"""blockdev-create with every option: what it makes holds what is written, to us and to
QEMU's tools in turn; and what cannot be made leaves nothing."""
import os
import random

import pytest

import images
import nbdraw
from test_images import SEED, SIZE, Disk

END = 512 * 333     # the last cluster is not whole

OPTIONS = {
    'default': {},
    'v2': {'version': 'v2'},
    'lazy refcounts': {'lazy-refcounts': True},
    'zstd': {'compression-type': 'zstd'},
    'subclusters': {'extended-l2': True},
    'refcounts of 1 bit': {'refcount-bits': 1},
    'refcounts of 64 bits': {'refcount-bits': 64, 'cluster-size': 4096},
    'clusters of 512': {'cluster-size': 512},
    'clusters of 2M': {'cluster-size': 2 << 20},
    'backing': {'backing-file': 'base', 'backing-fmt': 'raw'},
    'backing, subclusters': {'backing-file': 'base', 'backing-fmt': 'raw', 'extended-l2': True,
                             'preallocation': 'metadata'},
    'data file': {'data-file': 'd'},
    'raw data file': {'data-file': 'd', 'data-file-raw': True},
    'raw data file, subclusters': {'data-file': 'd', 'data-file-raw': True, 'extended-l2': True},
    **{'%s %s' % (p, name): dict(more, preallocation=p) for p in ('metadata', 'falloc', 'full')
       for name, more in (('alone', {}), ('small', {'cluster-size': 1024}),
                          ('subclusters', {'extended-l2': True}), ('data', {'data-file': 'd'}))},
}


def job(d, options):
    """blockdev-create to its end; the job's error, or None."""
    d.cmd('blockdev-create', {'job-id': 'j', 'options': options})
    d.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded')
    error = d.cmd('query-jobs')[0].get('error')
    d.cmd('job-dismiss', id='j')
    return error


def add_files(d, tmp):
    for name in ('f', 'd'):
        if not (tmp / name).exists():
            assert job(d, {'driver': 'file', 'filename': str(tmp / name), 'size': 0}) is None
        d.cmd('blockdev-add', driver='file', node_name=name, filename=str(tmp / name),
              discard='unmap')


def open_image(d, tmp, options):
    more = {'data-file': 'd'} if 'data-file' in options else {}
    d.cmd('blockdev-add', dict({'driver': 'qcow2', 'node-name': 'n', 'file': 'f',
                                'discard': 'unmap'}, **more))
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(tmp / 's')}})
    d.cmd('block-export-add', type='nbd', id='e', node_name='n', writable=True)


def base_of(tmp, size, rng):
    """A backing file; what its overlay shows at first."""
    content = rng.randbytes(4096) * (size // 4096 - 100)
    images.raw(tmp / 'base', content)
    return content + bytes(size - len(content))


def guest_view(tmp):
    images.img('convert', '-O', 'raw', tmp / 'f', tmp / 'out.raw')
    return images.content(tmp / 'out.raw')


@pytest.mark.io
@pytest.mark.parametrize('kind', OPTIONS)
def test_made_written_and_read_in_turn(start, tmp, kind):
    rng = random.Random('%d %s' % (SEED, kind))
    print('QUOIN_SEED=%d' % SEED)
    size, options = SIZE + END, OPTIONS[kind]
    view = base_of(tmp, size, rng) if 'backing-file' in options else bytes(size)
    d = start()
    add_files(d, tmp)
    error = job(d, dict({'driver': 'qcow2', 'file': 'f', 'size': size}, **options))
    if error and 'zstd' in error:
        pytest.skip('built without zstd')
    assert error is None
    open_image(d, tmp, options)
    disk = Disk(tmp / 's', view, rng)
    assert disk.read(0, size) == view
    for _ in range(60):
        disk.step()
    disk.call(nbdraw.WRITE, size - 700, 700, data=b'e' * 700)
    disk.now[size - 700:] = b'e' * 700
    d.stop()
    images.check(tmp / 'f')
    assert guest_view(tmp) == bytes(disk.now)
    # QEMU goes on, and then we do again.
    images.io(tmp / 'f', 'write -P 5 100k 300k', 'write -z 3M 200k', 'discard 1M 128k',
              'write -P 6 %d 512' % (size - 512), fmt='qcow2')
    images.check(tmp / 'f')
    view = guest_view(tmp)
    d = start()
    add_files(d, tmp)
    open_image(d, tmp, options)
    disk = Disk(tmp / 's', view, rng)
    assert disk.read(0, size) == view
    for _ in range(20):
        disk.step()
    d.stop()
    images.check(tmp / 'f')
    assert guest_view(tmp) == bytes(disk.now)


BY_QEMU = [
    'cluster_size=512', 'cluster_size=4k', 'cluster_size=2M', 'refcount_bits=1',
    'refcount_bits=8', 'refcount_bits=64', 'compat=0.10', 'lazy_refcounts=on',
    'compression_type=zlib', 'compression_type=zstd', 'extended_l2=on',
    'preallocation=metadata', 'preallocation=falloc', 'preallocation=full',
    'extended_l2=on,preallocation=metadata', 'data_file=DIR/d',
    'data_file=DIR/d,data_file_raw=on', 'data_file=DIR/d,extended_l2=on',
    'backing_file=DIR/base,backing_fmt=raw',
    'backing_file=DIR/base,backing_fmt=raw,extended_l2=on',
]


@pytest.mark.parametrize('options', BY_QEMU)
def test_what_qemu_wrote_is_read_and_written_on(start, tmp, options):
    """qemu-img makes the image and fills it, compressed where that is the option; we read
    it, write to it, and qemu-img finds it sound and reads the same."""
    rng = random.Random('%d %s' % (SEED, options))
    print('QUOIN_SEED=%d' % SEED)
    size = SIZE + END
    view = bytearray(base_of(tmp, size, rng))
    for off in range(0, size - (1 << 19), 1 << 20):
        view[off:off + 300000] = rng.randbytes(300) * 1000
    images.raw(tmp / 'd', b'')
    images.raw(tmp / 'r', view)
    images.img('convert', '-f', 'raw', '-O', 'qcow2',
               *(['-c'] if 'compression' in options else []), '-o',
               options.replace('DIR', str(tmp)), tmp / 'r', tmp / 'f')
    images.check(tmp / 'f')
    d = start()
    add_files(d, tmp)
    open_image(d, tmp, {'data-file': 'd'} if 'data_file' in options else {})
    disk = Disk(tmp / 's', view, rng)
    assert disk.read(0, size) == view
    for _ in range(40):
        disk.step()
    d.stop()
    images.check(tmp / 'f')
    images.raw(tmp / 'r', disk.now)
    images.compare(tmp / 'r', 'raw', tmp / 'f', 'qcow2')


@pytest.mark.parametrize('mode', ['falloc', 'full'])
def test_preallocated_space_is_all_there_is(start, tmp, mode):
    """Filling the disk takes no more space than the image had from the start."""
    d = start()
    add_files(d, tmp)
    assert job(d, {'driver': 'qcow2', 'file': 'f', 'size': SIZE, 'preallocation': mode}) is None
    before = os.stat(tmp / 'f')
    assert before.st_blocks * 512 >= SIZE
    open_image(d, tmp, {})
    disk = Disk(tmp / 's', bytes(SIZE), random.Random(1))
    for off in range(0, SIZE, 1 << 20):
        disk.call(nbdraw.WRITE, off, 1 << 20, data=b'x' * (1 << 20))
    d.stop()
    after = os.stat(tmp / 'f')
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)


CASES = [{}, {'preallocation': 'metadata'}, {'preallocation': 'full'},
         {'cluster-size': 4096, 'preallocation': 'full'},
         {'data-file': 'd', 'preallocation': 'full'}, {'data-file': 'd', 'data-file-raw': True}]


@pytest.mark.parametrize('more', CASES, ids=str)
def test_what_cannot_be_made_leaves_nothing(start, tmp, run, more):
    """The files may not get longer than so: the error comes at each step in turn."""
    options = dict({'driver': 'qcow2', 'file': 'f', 'size': 2 << 20}, **more)
    limit = 'ulimit -S -f 0; trap "" XFSZ; exec "$@"'
    for name in ('f', 'd'):
        images.raw(tmp / name, b'was here before')
    d = start(wrap=('sh', '-c', limit, 'sh'))
    add_files(d, tmp)
    sizes = [0, 4096, 8192, 20480, 65536, 131072, 196608, 262144, 300000, 327680, 1 << 20,
             (2 << 20) - 512, 2 << 20, (2 << 20) + 400000]
    errors = 0
    for size in sizes:
        run('prlimit', '--pid', d.pid, '--fsize=%d:' % size, check=True)
        if job(d, options) is None:
            break
        errors += 1
        assert os.stat(tmp / 'f').st_size == 0
        assert images.content(tmp / 'd') == b'was here before'
    run('prlimit', '--pid', d.pid, '--fsize=unlimited:', check=True)
    assert errors and job(d, options) is None
    d.stop()
    images.check(tmp / 'f')


def test_a_wrong_option_touches_nothing(start, tmp):
    images.qcow2(tmp / 'f', '1M')
    images.raw(tmp / 'd', b'data')
    before = images.content(tmp / 'f')
    d = start()
    add_files(d, tmp)
    for more in ({'size': 1}, {'cluster-size': 3}, {'data-file': 'none'}, {'data-file': 'f'},
                 {'data-file-raw': True}, {'size': 1 << 63}, {'size': 1 << 60},
                 {'backing-file': 'x' * 1024, 'backing-fmt': 'raw'}):
        assert job(d, dict({'driver': 'qcow2', 'file': 'f', 'size': 1 << 20}, **more))
    d.stop()
    assert images.content(tmp / 'f') == before and images.content(tmp / 'd') == b'data'
