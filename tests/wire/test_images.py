# SPDX-License-Identifier: Apache-2.0
"""Images that quoind writes, against a model of what was written.

Random writes, zeroes, trims and flushes go in over NBD; then what qemu-img reads
must be the model, and qemu-img check must find nothing.  After a kill at a random
moment there may be leaks, but no corruption, and nothing may be lost that a flush
covered.
"""
import os
import random
import shutil
import signal
import threading

import pytest

import images
import nbdraw
import quoin

SIZE = 6 << 20
SEED = int(os.environ.get('QUOIN_SEED', '0')) or random.randrange(1 << 30)


class Disk:
    """An NBD connection, and what the disk holds if every reply was true."""

    def __init__(self, path, content, rng):
        self.conn = nbdraw.connect(path, 'n')
        self.now = bytearray(content)
        self.rng = rng

    def span(self, most):
        """A range, often aligned, sometimes not."""
        unit = self.rng.choice([1, 512, 4096, 65536])
        off = self.rng.randrange(SIZE) // unit * unit
        length = max(unit, self.rng.randrange(1, most) // unit * unit)
        return off, min(length, SIZE - off)

    def call(self, kind, off=0, length=0, data=b'', flags=0):
        self.conn.request(kind, off, length, flags, data=data)
        error, _, _ = self.conn.simple()
        assert error == 0, (kind, off, length, error)

    def step(self):
        """One random request; what it did is in self.now."""
        kind = self.rng.choices(
            [nbdraw.WRITE, nbdraw.WRITE_ZEROES, nbdraw.TRIM, nbdraw.FLUSH], [10, 3, 2, 1])[0]
        if kind == nbdraw.FLUSH:
            self.call(kind)
        elif kind == nbdraw.WRITE:
            off, n = self.span(200000)
            data = self.rng.randbytes(min(n, 512)) * (n // 512 + 1)
            self.now[off:off + n] = data[:n]
            self.call(kind, off, n, data[:n], self.rng.choice([0, 0, 0, nbdraw.FUA]))
        elif kind == nbdraw.WRITE_ZEROES:
            off, n = self.span(1 << 20)
            self.now[off:off + n] = bytes(n)
            self.call(kind, off, n, flags=self.rng.choice([0, nbdraw.NO_HOLE]))
        else:
            # What a trimmed range holds is up to the disk: read it back.
            off, n = self.span(1 << 20)
            self.call(kind, off, n)
            self.now[off:off + n] = self.read(off, n)
        return kind

    def read(self, off, n):
        self.conn.request(nbdraw.READ, off, n)
        error, _, data = self.conn.simple(n)
        assert error == 0
        return data


def serve(start, tmp, path, *options):
    d = start('--blockdev', ','.join([
        'driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.discard=unmap',
        'file.filename=%s' % path, *options]),
        '--nbd-server', 'addr.type=unix,addr.path=%s' % (tmp / 'nbd.sock'),
        '--export', 'nbd,id=e,node-name=n,writable=on')
    return d, tmp / 'nbd.sock'


def make(tmp, rng, *options, backing):
    """An empty image over a base of random bytes, or over nothing."""
    path, content = tmp / 'disk.qcow2', bytes(SIZE)
    if backing:
        # Shorter than its overlay: what lies beyond reads as zeroes.
        base = rng.randbytes(4096) * (SIZE // 4096 - 100)
        images.raw(tmp / 'base.raw', base)
        content = base + bytes(SIZE - len(base))
    images.qcow2(path, SIZE, (tmp / 'base.raw', 'raw') if backing else None, *options)
    return path, content


def judge(tmp, path, model):
    images.check(path)
    images.img('convert', '-O', 'raw', path, tmp / 'out.raw')
    assert images.content(tmp / 'out.raw') == bytes(model)


SHAPES = [('cluster_size=%d' % c, 'compat=1.1') for c in (
    512, 1024, 2048, 4096, 16384, 65536, 131072, 524288, 1 << 20, 2 << 20)] + [
    ('refcount_bits=%d' % b, 'compat=1.1', 'cluster_size=4096') for b in (1, 2, 4, 8, 32, 64)] + [
    ('extended_l2=on', 'cluster_size=%d' % c) for c in (16384, 65536, 524288, 2 << 20)] + [
    ('compat=0.10',), ('compat=0.10', 'cluster_size=4096')]


@pytest.mark.io
@pytest.mark.parametrize('backing', [False, True], ids=['alone', 'overlay'])
@pytest.mark.parametrize('shape', SHAPES, ids=','.join)
def test_random_requests_against_a_model(start, tmp, shape, backing):
    rng = random.Random('%d %s %s' % (SEED, shape, backing))
    print('QUOIN_SEED=%d' % SEED)
    path, content = make(tmp, rng, *shape, backing=backing)
    d, sock = serve(start, tmp, path)
    disk = Disk(sock, content, rng)
    for _ in range(150):
        disk.step()
    d.stop()
    judge(tmp, path, disk.now)


def qemu_writes(rng, path, cluster, n):
    """Random requests by qemu-io, some compressed, which fail where a cluster has its
    place already.

    Those that are compressed have a qemu-io of their own: QEMU packs the next one into
    the host cluster of the last one even where that was freed, and given to other data,
    in between (test_compress.py has the sequence).
    """
    def compressed():
        off = rng.randrange(SIZE) // cluster * cluster
        return ['write -c -P %d %d %d' % (rng.randrange(1, 256), k, min(cluster, SIZE - k))
                for k in (off, (off + cluster) % SIZE // cluster * cluster)]

    def plain():
        unit = rng.choice([512, 4096, cluster // 32 or 512, cluster])
        off = rng.randrange(SIZE) // unit * unit
        length = min(unit * rng.choice([1, 1, 2, 5]), SIZE - off)
        return rng.choice(['write -P %d' % rng.randrange(1, 256)] * 2
                          + ['write -z', 'write -z -u', 'discard']) + ' %d %d' % (off, length)
    while n > 0:
        commands = compressed() if rng.randrange(4) == 0 else [
            plain() for _ in range(rng.randrange(1, 10))]
        n -= len(commands)
        images.io(path, *commands, fmt='qcow2', check=False)


def converted(tmp, path, *options):
    images.img('convert', '-O', 'raw', *options, path, tmp / 'out.raw')
    return images.content(tmp / 'out.raw')


@pytest.mark.io
@pytest.mark.parametrize('backing', [False, True], ids=['alone', 'overlay'])
@pytest.mark.parametrize('cluster', [16384, 1 << 20])
@pytest.mark.parametrize('extended', [False, True], ids=['clusters', 'subclusters'])
def test_an_image_that_qemu_wrote_is_read_and_written_on(start, tmp, extended, cluster, backing):
    """With a snapshot in it, which stays as it is; its clusters are shared."""
    rng = random.Random('%d %s %s %s' % (SEED, extended, cluster, backing))
    print('QUOIN_SEED=%d' % SEED)
    options = ('cluster_size=%d' % cluster,) + (('extended_l2=on',) if extended else ())
    path, _ = make(tmp, rng, *options, backing=backing)
    qemu_writes(rng, path, cluster, 40)
    images.img('snapshot', '-c', 's', path)
    qemu_writes(rng, path, cluster, 15)
    before, content = converted(tmp, path, '-l', 's'), converted(tmp, path)
    d, sock = serve(start, tmp, path)
    disk = Disk(sock, content, rng)
    for off in range(0, SIZE, 1 << 20):
        assert disk.read(off, 1 << 20) == content[off:off + (1 << 20)]
    for _ in range(100):
        disk.step()
    d.stop()
    judge(tmp, path, disk.now)
    assert converted(tmp, path, '-l', 's') == before


@pytest.mark.io
def test_several_writers_at_once(start, tmp):
    """Four clients, each in its own stripes of the same clusters."""
    rng = random.Random(SEED)
    path, content = make(tmp, rng, 'cluster_size=65536', backing=True)
    d, sock = serve(start, tmp, path)
    stripes = 4
    model = bytearray(content)
    errors = []

    def write(k):
        try:
            own = random.Random(SEED + k)
            conn = nbdraw.connect(sock, 'n')
            for _ in range(200):
                off = (own.randrange(SIZE // 4096) // stripes * stripes + k) * 4096
                if off + 4096 > SIZE:
                    continue
                data = own.randbytes(4096)
                conn.request(nbdraw.WRITE, off, 4096, data=data)
                assert conn.simple()[0] == 0
                model[off:off + 4096] = data
        except Exception as e:  # noqa: BLE001 - told to the test
            errors.append(e)
    threads = [threading.Thread(target=write, args=(k,)) for k in range(stripes)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    d.stop()
    judge(tmp, path, model)


@pytest.mark.io
@pytest.mark.parametrize('round_', range(8))
def test_kill_leaves_no_corruption(start, tmp, round_):
    """Killed in the middle of things: checked clean of corruption by qemu-img, and
    each sector is as flushed or as written since."""
    rng = random.Random(SEED * 100 + round_)
    print('QUOIN_SEED=%d' % SEED)
    shape = rng.choice([s for s in SHAPES if 'cluster_size=2097152' not in s])
    path, content = make(tmp, rng, *shape, backing=round_ % 2 == 1)
    d, sock = serve(start, tmp, path)
    disk = Disk(sock, content, rng)
    allowed = {}        # sector: what else than the flushed content it may hold
    flushed = bytes(disk.now)
    for _ in range(rng.randrange(20, 120)):
        before = bytes(disk.now)
        kind = disk.step()
        if kind == nbdraw.FLUSH:
            flushed, allowed = bytes(disk.now), {}
            continue
        for s in range(0, SIZE, 512):
            if disk.now[s:s + 512] != before[s:s + 512]:
                allowed.setdefault(s, [flushed[s:s + 512]]).append(bytes(disk.now[s:s + 512]))
    # One more write is under way, unanswered, when it happens.
    off, n = disk.span(200000)
    data = rng.randbytes(512) * (n // 512 + 1)
    disk.conn.request(nbdraw.WRITE, off, n, data=data[:n])
    d.kill(signal.SIGKILL)
    under_way = range(off // 512 * 512, off + n, 512)
    out = images.img('check', '-f', 'qcow2', path, check=False)
    assert 'corrupt' not in out and 'ERROR' not in out, out
    images.img('convert', '-O', 'raw', path, tmp / 'out.raw')
    got = images.content(tmp / 'out.raw')
    for s in range(0, SIZE, 512):
        sector = got[s:s + 512]
        if s in under_way or sector == flushed[s:s + 512]:
            continue
        assert any(sector == a for a in allowed.get(s, [])), 'sector at %d' % s
    # And it goes on: the daemon opens it again, and what it writes is sound.
    d, sock = serve(start, tmp, path)
    disk = Disk(sock, got, rng)
    for _ in range(20):
        disk.step()
    d.stop()
    images.img('check', '-f', 'qcow2', '-r', 'leaks', path, check=False)
    judge(tmp, path, disk.now)


def resident_kib(pid):
    with open('/proc/%d/status' % pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith('VmRSS:'))


@pytest.mark.parametrize('shape', [(), ('extended_l2=on',)], ids=['clusters', 'subclusters'])
def test_100_idle_images_of_a_terabyte_cost_less_than_20_mb(start, tmp, shape):
    if quoin.SLOW > 1:
        pytest.skip('a sanitizer takes memory of its own')
    images.qcow2(tmp / '0', 1 << 40, None, *shape)
    for i in range(1, 100):
        shutil.copyfile(tmp / '0', tmp / str(i))
    d = start()
    before = resident_kib(d.pid)
    for i in range(100):
        d.cmd('blockdev-add', {
            'driver': 'qcow2', 'node-name': 'n%d' % i,
            'file': {'driver': 'file', 'filename': str(tmp / str(i))}})
    cost = resident_kib(d.pid) - before
    print('cost: %d KiB' % cost)
    assert cost * 1024 < 20 * 1000 * 1000, cost
