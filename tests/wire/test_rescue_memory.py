# SPDX-License-Identifier: Apache-2.0
"""quoin rescue needs less than 64 MB of memory, whatever the image."""
import os
import random
import shutil
import sys

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, create, encrypt, image_opts, noise, qemu_img, standard,
                       write)

pytestmark = [
    pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed'),
    pytest.mark.skipif(quoin.SLOW > 1, reason='a sanitizer needs more')]

MOST = 64 * 1000 * 1000


def full(tmp):
    """No hole anywhere."""
    return encrypt(tmp, 'qcow2', noise(tmp / 'plain', 48 * MIB), tmp / 'image')


def large(tmp):
    """A disk of 8 TiB, with something to read every 256 GiB."""
    image = create(tmp, 'qcow2', tmp / 'image', '8T')
    write(tmp, image_opts('qcow2', image), *('write -P 65 %dG 64k' % at
                                             for at in range(0, 8192, 256)))
    return image


def widen(path, size):
    """Make the disk of an image with clusters of 512 bytes so large, with an L1 table behind all
    else; qemu-img would need seconds."""
    with open(path, 'r+b') as f:
        head = f.read(48)
        old_len, old_at = (int.from_bytes(head[a:b], 'big') for a, b in ((36, 40), (40, 48)))
        f.seek(old_at)
        table = f.read(8 * old_len)
        at = f.seek(0, os.SEEK_END) + 511 & ~511
        f.seek(at)
        f.write(table)
        f.truncate(at + size // 4096)       # 8 bytes for each 64 clusters
        f.seek(24)
        f.write(size.to_bytes(8, 'big'))
        f.seek(36)
        f.write((size // 32768).to_bytes(4, 'big') + at.to_bytes(8, 'big'))


def small_clusters(tmp):
    """Three layers, each with an L1 table of nearly 32 MiB, which is the largest."""
    below = None
    for name in ('bottom', 'middle', 'image'):
        more = ',backing_file=%s,backing_fmt=qcow2' % below if below else ''
        below = create(tmp, 'qcow2', tmp / name, '1G', more=',cluster_size=512' + more)
        if name == 'bottom':
            write(tmp, image_opts('qcow2', below), 'write -P 65 0 64k', 'write -P 66 900M 64k')
        widen(below, 127 << 30)
    return below


def compressed(kind):
    def make(tmp):
        """The largest clusters, compressed, over an encrypted base."""
        base = standard(tmp, 'qcow2')[1].rename(tmp / 'base')
        data = random.Random(1).randbytes(600 * 1024)
        with open(tmp / 'disk', 'wb') as f:
            for _ in range(40):
                f.write(data + b'text ' * (MIB // 5))
        qemu_img(tmp, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o',
                 'cluster_size=2M,compression_type=' + kind, tmp / 'disk', tmp / 'image')
        qemu_img(tmp, 'rebase', '-u', '-f', 'qcow2', '-b', base, '-F', 'qcow2', tmp / 'image')
        return tmp / 'image'
    return make


def long_chain(tmp):
    """Fifty layers of a terabyte each."""
    below = full(tmp).rename(tmp / 'base')
    for i in range(50):
        qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-u', '-b', below, '-F', 'qcow2',
                 tmp / str(i), '1T')
        below = tmp / str(i)
    return below


def many_tables(tmp):
    """Twenty layers, each with 2,048 tables, of which a disk is read that has something in all."""
    below = create(tmp, 'qcow2', tmp / '0', '64M', more=',cluster_size=512')
    write(tmp, image_opts('qcow2', below), 'write -P 65 0 64k', 'write -P 66 63M 1M')
    first = tmp / 'first'
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', first, '64M')
    commands = ''.join('write -P 67 %dk 512\n' % at for at in range(0, 65536, 32))
    quoin.run(peers.QEMU_IO, '-t', 'unsafe', '-f', 'qcow2', first, tmp=tmp, stdin=commands, check=True)
    for i in range(1, 20):
        shutil.copy(first, tmp / str(i))
        qemu_img(tmp, 'rebase', '-u', '-f', 'qcow2', '-b', below, '-F', 'qcow2', tmp / str(i))
        below = tmp / str(i)
    return below


IMAGES = {'full': full, 'large': large, 'small-clusters': small_clusters,
          'deflated': compressed('zlib'), 'zstd': compressed('zstd'), 'long-chain': long_chain, 'many-tables': many_tables}
OPTIONS = [['--verify'], ['--target-format', 'qcow2', '--verify'], ['--keep-chain', '--verify'],
           ['--salvage', '--resume', '--verify'], ['--json', '--no-digest']]


@pytest.mark.parametrize('name, options', [
    (name, OPTIONS[(i + n) % len(OPTIONS)]) for i, name in enumerate(IMAGES)
    for n in (0, 2)] + [("many-tables", OPTIONS[2])])
def test_memory_stays_below_64_mb(tmp, name, options):
    image = IMAGES[name](tmp)
    (tmp / 'key').write_text(PASSWORD)
    # A child's peak counts from its parent's memory on, so the parent is a small one.
    measure = ('import os, sys; pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ); '
               '_, status, usage = os.wait4(pid, 0); '
               'print(status, usage.ru_maxrss, file=sys.stderr)')
    r = quoin.run(sys.executable, '-ISc', measure, quoin.QUOIN, 'rescue', '-q',
                  '--accept-unverified-key', '--key-file', tmp / 'key', *options, image,
                  tmp / 'out', tmp=tmp, limit=60)
    status, kib = map(int, r.err.split()[-2:])
    assert status == 0, r.err
    assert kib * 1024 < MOST


def test_a_disk_with_nothing_in_it_takes_no_time(tmp):
    """60 TiB in clusters of 4 KiB, of which one has data."""
    image = create(tmp, 'qcow', tmp / 'image', '60T')
    write(tmp, image_opts('qcow', image), 'write -P 65 30T 4k')
    r = quoin.run(quoin.QUOIN, 'rescue', '--key-fd', 0, '--accept-unverified-key',
                  '--target-format', 'qcow2', image, tmp / 'out', tmp=tmp, stdin=PASSWORD)
    assert r.status == 0, r.err
    opts = 'driver=qcow2,file.filename=%s' % (tmp / 'out')
    shown = qemu_img(tmp, 'map', '--output=json', '--image-opts', opts).out
    assert shown.count('"data": true') == 1 and '"start": %d' % (30 << 40) in shown
