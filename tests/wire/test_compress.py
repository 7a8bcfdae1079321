# SPDX-License-Identifier: Apache-2.0
"""Compressed clusters: written through the compress filter and by backups, held against
a model and against what qemu-img reads, and as compact as qemu-img packs them."""
import json
import os
import random
import signal
import threading

import pytest

import images
import nbdraw
import quoin
from test_images import SEED, SIZE, Disk

CLUSTER = 65536
KINDS = ['zlib', pytest.param('zstd', marks=pytest.mark.skipif(
    b'libzstd' not in images.content(quoin.QUOIND), reason='built without zstd'))]


def zeroes_and_text(rng, n):
    """Something that gets smaller, by how much varies, or now and then nothing does."""
    if not rng.randrange(6):
        return rng.randbytes(n)
    word = rng.randbytes(rng.choice([1, 20, 200, 2000]))
    return (word * (n // len(word) + 1))[:n]


def serve(start, tmp, path):
    d = start('--nbd-server', 'addr.type=unix,addr.path=%s' % (tmp / 'nbd.sock'))
    d.cmd('blockdev-add', driver='compress', node_name='n', file={
        'driver': 'qcow2', 'node-name': 'q', 'discard': 'unmap',
        'file': {'driver': 'file', 'filename': str(path)}})
    d.cmd('block-export-add', type='nbd', id='e', node_name='n', writable=True)
    return d, tmp / 'nbd.sock'


def write(conn, off, data):
    conn.request(nbdraw.WRITE, off, len(data), data=data)
    return conn.simple()[0]


def judge(tmp, path, model):
    images.check(path)
    images.img('convert', '-O', 'raw', path, tmp / 'out.raw')
    assert images.content(tmp / 'out.raw') == bytes(model)


def checked(path):
    return json.loads(images.img('check', '--output=json', path))


def extents(path):
    return json.loads(images.img('map', '--output=json', path))


@pytest.mark.io
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('cluster', [512, 4096, CLUSTER, 2 << 20])
def test_each_cluster_once_by_several_writers(start, tmp, kind, cluster):
    rng = random.Random('%d %s %d' % (SEED, kind, cluster))
    print('QUOIN_SEED=%d' % SEED)
    size = min(SIZE, 2000 * cluster)
    path = tmp / 'disk.qcow2'
    images.qcow2(path, size, None, 'cluster_size=%d' % cluster, 'compression_type=%s' % kind)
    model = bytearray(b''.join(zeroes_and_text(rng, cluster)
                               for _ in range(0, size, cluster))[:size])
    d, sock = serve(start, tmp, path)
    todo = list(range(0, size, cluster))
    rng.shuffle(todo)
    errors = []

    def work():
        try:
            conn = nbdraw.connect(sock, 'n')
            while todo:
                off = todo.pop()
                assert write(conn, off, bytes(model[off:off + cluster])) == 0
        except Exception as e:  # noqa: BLE001 - told to the test
            errors.append(e)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    d.stop()
    judge(tmp, path, model)
    assert any(e['compressed'] for e in extents(path))


@pytest.mark.io
@pytest.mark.parametrize('kind', KINDS)
def test_as_compact_as_qemu_packs(start, tmp, kind):
    """One writer with long requests; the file is about as long as qemu-img convert -c's."""
    rng = random.Random(SEED)
    # No cluster of zeroes: convert leaves those out.
    content = b''.join((rng.randbytes(rng.randrange(100, 20000)) * 100 + bytes(CLUSTER))[:CLUSTER]
                       for _ in range(SIZE // CLUSTER))
    images.raw(tmp / 'in.raw', content)
    options = 'compression_type=%s' % kind
    images.img('convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', options, tmp / 'in.raw',
               tmp / 'theirs.qcow2')
    images.qcow2(tmp / 'ours.qcow2', SIZE, None, options)
    d, sock = serve(start, tmp, tmp / 'ours.qcow2')
    conn = nbdraw.connect(sock, 'n')
    for off in range(0, SIZE, 1 << 20):
        assert write(conn, off, content[off:off + (1 << 20)]) == 0
    d.stop()
    judge(tmp, tmp / 'ours.qcow2', content)
    ours, theirs = checked(tmp / 'ours.qcow2'), checked(tmp / 'theirs.qcow2')
    assert ours['compressed-clusters'] == theirs['compressed-clusters']
    assert ours['image-end-offset'] <= theirs['image-end-offset'] + 2 * CLUSTER


@pytest.mark.io
@pytest.mark.parametrize('bits', [1, 2, 64])
def test_refcount_widths(start, tmp, bits):
    """Where a count cannot go up, the next cluster goes elsewhere."""
    rng = random.Random(SEED)
    path = tmp / 'disk.qcow2'
    images.qcow2(path, '1M', None, 'refcount_bits=%d' % bits, 'cluster_size=4096')
    content = zeroes_and_text(rng, 1 << 20)
    d, sock = serve(start, tmp, path)
    assert write(nbdraw.connect(sock, 'n'), 0, content) == 0
    d.stop()
    judge(tmp, path, content)


@pytest.mark.io
@pytest.mark.parametrize('kind', KINDS)
def test_random_requests_over_compressed_clusters(start, tmp, kind):
    """Plain writes, zeroes and trims into an image that qemu-img compressed."""
    rng = random.Random(SEED)
    print('QUOIN_SEED=%d' % SEED)
    content = b''.join(zeroes_and_text(rng, CLUSTER) for _ in range(SIZE // CLUSTER))
    images.raw(tmp / 'in.raw', content)
    path = tmp / 'disk.qcow2'
    images.img('convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', 'compression_type=%s' % kind,
               tmp / 'in.raw', path)
    d = start('--blockdev', 'driver=qcow2,node-name=n,discard=unmap,file.driver=file,'
              'file.filename=%s' % path,
              '--nbd-server', 'addr.type=unix,addr.path=%s' % (tmp / 'nbd.sock'),
              '--export', 'nbd,id=e,node-name=n,writable=on')
    disk = Disk(tmp / 'nbd.sock', content, rng)
    for _ in range(100):
        disk.step()
    d.stop()
    judge(tmp, path, disk.now)


@pytest.mark.io
def test_what_has_a_place_is_not_written_compressed(start, tmp):
    path = tmp / 'disk.qcow2'
    images.qcow2(path, '1M')
    images.io(path, 'write -P 1 0 64k', 'write -c -P 2 64k 64k', 'write -z 128k 64k',
              'write -P 3 192k 64k', 'write -z 192k 64k', fmt='qcow2')
    d, sock = serve(start, tmp, path)
    conn = nbdraw.connect(sock, 'n')
    assert [write(conn, i * CLUSTER, b'x' * CLUSTER) for i in range(5)] == [5, 5, 0, 5, 0]
    # Smaller ones as well: they are whole clusters below.
    assert write(conn, 100, b'y') == 5
    assert write(conn, 6 * CLUSTER + 1000, b'z' * 10) == 0
    d.stop()
    model = bytearray(1 << 20)
    for i, value in enumerate([b'\1', b'\2', b'x', b'\0', b'x']):
        model[i * CLUSTER:(i + 1) * CLUSTER] = value * CLUSTER
    model[6 * CLUSTER + 1000:6 * CLUSTER + 1010] = b'z' * 10
    judge(tmp, path, model)


@pytest.mark.io
@pytest.mark.parametrize('kind', KINDS)
def test_a_host_cluster_that_was_freed_is_not_packed_on(start, tmp, kind):
    """What went into it first is unmapped, it is given to plain data, and the next one is
    compressed.  QEMU packs it into the plain data."""
    path = tmp / 'disk.qcow2'
    images.qcow2(path, 16 * CLUSTER, None, 'compression_type=%s' % kind)
    d, sock = serve(start, tmp, path)
    d.cmd('block-export-add', type='nbd', id='plain', node_name='q', writable=True)
    conn, plain = nbdraw.connect(sock, 'n'), nbdraw.connect(sock, 'q')
    data = random.Random(SEED).randbytes(8 * CLUSTER)
    for k in 0, 4 * CLUSTER:
        assert write(conn, 0, b'\1' * CLUSTER) == 0
        # What is freed is taken again once that is on disk.
        for request in (nbdraw.TRIM, 0, CLUSTER), (nbdraw.FLUSH, 0, 0):
            plain.request(*request)
            assert plain.simple()[0] == 0
        assert write(plain, 4 * CLUSTER + k, data[k:k + 4 * CLUSTER]) == 0
    assert write(conn, 0, b'\2' * CLUSTER) == 0
    d.stop()
    model = bytearray(16 * CLUSTER)
    model[:CLUSTER] = b'\2' * CLUSTER
    model[4 * CLUSTER:12 * CLUSTER] = data
    judge(tmp, path, model)


@pytest.mark.io
@pytest.mark.parametrize('round_', range(3))
def test_kill_leaves_no_corruption(start, tmp, round_):
    rng = random.Random(SEED + round_)
    print('QUOIN_SEED=%d' % SEED)
    path = tmp / 'disk.qcow2'
    images.qcow2(path, SIZE, None, 'cluster_size=4096')
    d, sock = serve(start, tmp, path)
    conn = nbdraw.connect(sock, 'n')
    model, flushed = bytearray(SIZE), bytes(SIZE)
    touched = set()
    offs = list(range(0, SIZE, 4096))
    rng.shuffle(offs)
    for off in offs[:rng.randrange(50, 400)]:
        data = zeroes_and_text(rng, 4096)
        assert write(conn, off, data) == 0
        model[off:off + 4096] = data
        touched.add(off)
        if not rng.randrange(30):
            conn.request(nbdraw.FLUSH, 0, 0)
            assert conn.simple()[0] == 0
            flushed, touched = bytes(model), set()
    last = offs[-1]
    conn.request(nbdraw.WRITE, last, 4096, data=b'l' * 4096)
    d.kill(signal.SIGKILL)
    out = images.img('check', path, check=False)
    assert 'corrupt' not in out and 'ERROR' not in out, out
    images.img('convert', '-O', 'raw', path, tmp / 'out.raw')
    got = images.content(tmp / 'out.raw')
    for off in range(0, SIZE, 4096):
        piece = got[off:off + 4096]
        if off != last:
            assert piece == flushed[off:off + 4096] or (
                off in touched and piece == model[off:off + 4096]), off


# ---- backup ----

@pytest.mark.io
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('cluster', [4096, CLUSTER])
def test_backup(start, tmp, kind, cluster):
    """A compressed target, while the guest goes on; its last cluster is not whole."""
    rng = random.Random(SEED)
    size = SIZE + 512 * 77
    content = b''.join(bytes(CLUSTER) if not rng.randrange(4) else zeroes_and_text(rng, CLUSTER)
                       for _ in range(SIZE // CLUSTER + 1))[:size]
    images.raw(tmp / 'source.raw', content)
    images.qcow2(tmp / 'target.qcow2', size, None, 'compression_type=%s' % kind,
                 'cluster_size=%d' % cluster)
    d = start('--nbd-server', 'addr.type=unix,addr.path=%s' % (tmp / 'nbd.sock'))
    d.cmd('blockdev-add', driver='file', node_name='s', filename=str(tmp / 'source.raw'))
    d.cmd('blockdev-add', driver='qcow2', node_name='t',
          file={'driver': 'file', 'filename': str(tmp / 'target.qcow2')})
    d.cmd('block-export-add', type='nbd', id='e', node_name='s', writable=True)
    conn = nbdraw.connect(tmp / 'nbd.sock', 's')
    d.cmd('blockdev-backup', job_id='j', device='s', target='t', sync='full', compress=True,
          speed=8 << 20)
    for _ in range(40):
        off = rng.randrange(size - 3000)
        assert write(conn, off, rng.randbytes(3000)) == 0
    # Under a sanitizer the writes may take longer than the job.
    reply = d.ask('block-job-set-speed', device='j', speed=0)
    assert 'return' in reply or 'not found' in reply['error']['desc']
    d.wait_event('BLOCK_JOB_COMPLETED', device='j')
    d.stop()
    judge(tmp, tmp / 'target.qcow2', content)
    data = [e for e in extents(tmp / 'target.qcow2') if e['data']]
    assert sum(e['length'] for e in data if e['compressed']) > SIZE // 2
    assert os.stat(tmp / 'target.qcow2').st_size < size


@pytest.mark.io
def test_backup_needs_a_target_that_can(start, tmp):
    for name in ('s', 't'):
        images.raw(tmp / name, bytes(1 << 20))
    d = start()
    for name in ('s', 't'):
        d.cmd('blockdev-add', driver='file', node_name=name, filename=str(tmp / name))
    with pytest.raises(quoin.QmpError) as e:
        d.cmd('blockdev-backup', job_id='j', device='s', target='t', sync='full', compress=True)
    assert e.value.desc == 'Compression is not supported for this drive '
