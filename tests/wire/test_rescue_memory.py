# SPDX-License-Identifier: Apache-2.0
"""quoin rescue needs less than 64 MB of memory, whatever the image."""
import json
import os
import random
import shutil
import struct
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


FULL = 127 << 30
STEP = 16 * MIB         # what one page of the first table stands for
TEXT = b'text of a guest '


def full_table(path, below):
    """A layer with clusters of 512 bytes and something in each page of its first table, which
    has nearly 32 MiB."""
    entries, tables = FULL // 32768, FULL // STEP
    l1, refs = 1024, 1024 + entries * 8
    l2 = refs + 512
    data = l2 + tables * 512
    first = bytearray(entries * 8)
    second = bytearray(tables * 512)
    for i in range(tables):
        struct.pack_into('>Q', first, i * STEP // 32768 * 8, l2 + i * 512 | 1 << 63)
        struct.pack_into('>Q', second, i * 512, data + i * 512 | 1 << 63)
    with open(path, 'wb') as f:
        f.write(struct.pack('>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', 3, 256, len(str(below)), 9, FULL,
                            0, entries, l1, refs, 1, 0, 0, 0, 0, 0, 4, 104))
        f.write(struct.pack('>II8sII', 0xe2792aca, 5, b'qcow2', 0, 0))
        f.seek(256)
        f.write(str(below).encode())
        f.seek(l1)
        f.write(first + bytes(512) + second + TEXT * (32 * tables))
    return path


def full_tables(tmp):
    """Four of them."""
    below = create(tmp, 'qcow2', tmp / 'base', '1G', more=',cluster_size=512')
    write(tmp, image_opts('qcow2', below), 'write -P 65 512 64k')
    for name in ('1', '2', '3', 'image'):
        below = full_table(tmp / name, below)
    return below


def deep(kind):
    def make(tmp):
        """The longest chain there is, with something all over the disk in each layer."""
        more = ['-o', 'cluster_size=4k'] if kind == 'qcow2' else []
        create(tmp, kind, tmp / '000', '64G', more=',cluster_size=4k' if more else '')
        write(tmp, image_opts(kind, tmp / '000'), *('write -P 65 %dG 4k' % at for at in range(64)))
        qemu_img(tmp, 'create', '-q', '-f', kind, '-u', *more, '-b', '000', '-F', kind,
                 tmp / 'layer', '64G')
        quoin.run(peers.QEMU_IO, '-t', 'unsafe', '--image-opts',
                  'driver=%s,file.filename=%s,backing=' % (kind, tmp / 'layer'), tmp=tmp,
                  stdin=''.join('write -P 66 %dM 4k\n' % (at * 1024 + 4) for at in range(64)),
                  check=True)
        layer = bytearray((tmp / 'layer').read_bytes())
        at = layer.index(b'000')
        for i in range(1, 200):
            layer[at:at + 3] = b'%03d' % (i - 1)
            (tmp / ('%03d' % i)).write_bytes(layer)
        return tmp / '199'
    return make


def long_headers(tmp):
    """The longest chain; in each layer nearly 2 MiB of header extensions that nobody knows."""
    create(tmp, 'qcow2', tmp / '000', '1M')
    write(tmp, image_opts('qcow2', tmp / '000'), 'write -P 65 0 64k')
    size = 2 * MIB
    unknown = struct.pack('>II', 0x12345678, 65528) + bytes(8 * [255]) * 8191
    for i in range(1, 200):
        head = struct.pack('>4sIQIIQIIQQIIQQQQIIII8s', b'QFI\xfb', 3, size - 512, 3, 21, MIB, 0, 1,
                           size, 2 * size, 1, 0, 0, 0, 0, 0, 4, 104, 0xe2792aca, 5, b'qcow2')
        with open(tmp / ('%03d' % i), 'wb') as f:
            f.write(head + unknown * 31)
            f.seek(size - 512)
            f.write(b'%03d' % (i - 1))
            f.truncate(3 * size)
    return tmp / '199'


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
    quoin.run(peers.QEMU_IO, '-t', 'unsafe', '-f', 'qcow2', first, tmp=tmp, stdin=commands,
              check=True)
    for i in range(1, 20):
        shutil.copy(first, tmp / str(i))
        qemu_img(tmp, 'rebase', '-u', '-f', 'qcow2', '-b', below, '-F', 'qcow2', tmp / str(i))
        below = tmp / str(i)
    return below


IMAGES = {'full': full, 'large': large, 'small-clusters': small_clusters,
          'deflated': compressed('zlib'), 'zstd': compressed('zstd'), 'long-chain': long_chain,
          'many-tables': many_tables, 'full-tables': full_tables, 'deep-qcow': deep('qcow'),
          'deep-qcow2': deep('qcow2'), 'long-headers': long_headers}
OPTIONS = [['--verify'], ['--target-format', 'qcow2', '--verify'], ['--keep-chain', '--verify'],
           ['--salvage', '--resume', '--verify'], ['--json', '--no-digest']]


def run_measured(tmp, *argv):
    # A child's peak counts from its parent's memory on, so the parent is a small one.
    measure = ('import os, sys; pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ); '
               '_, status, usage = os.wait4(pid, 0); '
               'print(status, usage.ru_maxrss, file=sys.stderr)')
    r = quoin.run(sys.executable, '-ISc', measure, quoin.QUOIN, *argv, tmp=tmp, limit=60)
    status, kib = map(int, r.err.split()[-2:])
    assert status == 0, r.err
    assert kib * 1024 < MOST
    return r.out


def rescue_measured(tmp, image, *options):
    (tmp / 'key').write_text(PASSWORD)
    return run_measured(tmp, 'rescue', '-q', '--accept-unverified-key', '--key-file', tmp / 'key',
                        *options, image, tmp / 'out')


@pytest.mark.parametrize('name, options', [
    (name, OPTIONS[(i + n) % len(OPTIONS)]) for i, name in enumerate(list(IMAGES)[:7])
    for n in (0, 2)] + [('many-tables', OPTIONS[2])])
def test_memory_stays_below_64_mb(tmp, name, options):
    rescue_measured(tmp, IMAGES[name](tmp), *options)


@pytest.mark.parametrize('name', ['deep-qcow', 'deep-qcow2', 'full-tables', 'long-headers'])
def test_tables_of_all_layers_stay_below_64_mb(tmp, name):
    rescue_measured(tmp, IMAGES[name](tmp))


@pytest.mark.parametrize('name', ['deep-qcow2', 'full-tables'])
def test_tables_of_kept_layers_stay_below_64_mb(tmp, name):
    rescue_measured(tmp, IMAGES[name](tmp), '--keep-chain')


def test_tables_in_pieces_lead_to_the_same_data(tmp):
    out = tmp / 'out'
    rescue_measured(tmp, full_tables(tmp))
    with open(out, 'rb') as f:
        assert f.read(512) == TEXT * 32 and f.read(65536) == b'A' * 65536
        for at in range(STEP, FULL, STEP):
            assert os.pread(f.fileno(), 1024, at) == TEXT * 32 + bytes(512)
            assert f.seek(at - 4096, os.SEEK_DATA) in (at - 4096, at)
    assert out.stat().st_size == FULL


def many_names(tmp, kind):
    """65,535 internal snapshots or bitmaps, with the longest names that fit into 64 MiB."""
    image = create(tmp, 'qcow2', tmp / 'image', '1M')
    entries, n = bytearray(), 65535
    for i in range(n):
        name = (b'%d ' % i).ljust(900, b'n')
        if kind == 'snapshots':
            entries += struct.pack('>QIHHIIQIIQQ2s', 0, 0, 2, len(name), 0, 0, 0, 0, 16, 0, MIB,
                                   b'id')
        else:
            entries += struct.pack('>QIIBBHI', 65536, 1, 0, 1, 16, len(name), 0)
        entries += name
        entries += bytes(-len(entries) % 8)
    with open(image, 'r+b') as f:
        at = f.seek(0, os.SEEK_END) + 65535 & ~65535
        os.pwrite(f.fileno(), entries + bytes(-len(entries) % 65536), at)
        if kind == 'snapshots':
            os.pwrite(f.fileno(), struct.pack('>IQ', n, at), 60)
        else:
            end = int.from_bytes(os.pread(f.fileno(), 4, 100), 'big')
            while int.from_bytes(os.pread(f.fileno(), 4, end), 'big'):
                end += 8 + (int.from_bytes(os.pread(f.fileno(), 4, end + 4), 'big') + 7 & ~7)
            extension = struct.pack('>IIIIQQQ', 0x23852875, 24, n, 0, len(entries), at, 0)
            os.pwrite(f.fileno(), extension, end)
            os.pwrite(f.fileno(), struct.pack('>Q', 1), 88)
    return image


@pytest.mark.parametrize('kind', ['snapshots', 'bitmaps'])
def test_names_by_the_ten_thousand_take_no_memory(tmp, kind):
    image = many_names(tmp, kind)
    run_measured(tmp, 'info', image)
    found = json.loads(run_measured(tmp, 'info', '--json', image))[kind]
    assert len(found) == 65535 and found[65000]['name'].startswith('65000 nnn')
    rescue_measured(tmp, image, '--json')


def test_keys_of_many_mebibytes_are_refused(tmp):
    image = standard(tmp, 'qcow2')[1]
    with open(tmp / 'key', 'wb') as f:
        f.truncate(8 * MIB)
    r = quoin.run(quoin.QUOIN, 'rescue', *['--key-file', tmp / 'key'] * 3, image, tmp / 'out',
                  tmp=tmp)
    assert r.status == 1 and 'The keys are longer than 16777216 bytes in all' in r.err


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
