# SPDX-License-Identifier: Apache-2.0
"""Broken qcow2 and qcow images, made of sound ones.

BASES maps a name to a function(path) that has QEMU's tools make a sound image
with something of each kind in it.  broken(data) yields (name, data) pairs: in
each, one field of the header, of an extension, of a table or of a directory has
a value at the edge of what it can be, or one that makes two things overlap.
"""
import struct

import images

MASK = 0x00fffffffffffe00
WIDTHS = {1: '>B', 2: '>H', 4: '>I', 8: '>Q'}
EXTENSIONS = {0xe2792aca: 'backing-format', 0x6803f857: 'features', 0x23852875: 'bitmaps',
              0x0537be77: 'crypto', 0x44415441: 'data-file'}


def qemu_io(path, *commands, fmt='qcow2'):
    argv = [x for c in commands for x in ('-c', c)]
    images.tool(images.peers.QEMU_IO, '-f', fmt, *argv, path)


# ---- sound images ----

def _plain(*options):
    def make(path):
        images.qcow2(path, '2M', None, *options)
        qemu_io(path, 'write -P 1 0 300k', 'write -P 2 1M 70000', 'write -z 600k 64k',
                'discard 1M 8k')
    return make


def _snapshots(path):
    images.qcow2(path, '1M', None, 'cluster_size=4k')
    qemu_io(path, 'write -P 1 0 100k')
    images.img('snapshot', '-c', 'one', path)
    qemu_io(path, 'write -P 2 50k 100k')
    images.img('snapshot', '-c', 'two', path)
    qemu_io(path, 'write -P 3 0 20k', 'write -z 500k 64k')


def _compressed(path):
    plain = str(path) + '.plain'
    _plain('cluster_size=4k')(plain)
    images.img('convert', '-q', '-c', '-O', 'qcow2', '-o', 'cluster_size=4k', plain, path)
    qemu_io(path, 'write -P 4 100k 10k')


def _subclusters(path):
    images.qcow2(path, '2M', None, 'cluster_size=16k', 'extended_l2=on')
    qemu_io(path, 'write -P 1 0 100k', 'write -P 2 1M 70000', 'write -z 300k 64k',
            'discard 1M 16k', 'write -c -P 4 592k 16k', 'write -P 3 513k 1k')


def _bitmaps(path):
    _plain('cluster_size=4k')(path)
    images.img('bitmap', '--add', '-g', '4k', path, 'b0')
    images.img('bitmap', '--add', path, 'b1')
    qemu_io(path, 'write -P 5 200k 64k')


BASES = {
    'plain': _plain(),
    'v2': _plain('compat=0.10', 'cluster_size=512'),
    'narrow': _plain('refcount_bits=1', 'cluster_size=512'),
    'wide': _plain('refcount_bits=64', 'cluster_size=4k'),
    'lazy': _plain('lazy_refcounts=on', 'cluster_size=4k'),
    'snapshots': _snapshots,
    'compressed': _compressed,
    'subclusters': _subclusters,
    'bitmaps': _bitmaps,
}


# ---- where things stand ----

class Image:
    """A sound qcow2 image, taken apart."""

    def __init__(self, data):
        self.data = data
        self.version = self.get(4, 4)
        self.bits = self.get(20, 4)
        self.cluster = 1 << self.bits
        self.l1, self.l1_size = self.get(40, 8), self.get(36, 4)
        self.reftable, self.reftable_clusters = self.get(48, 8), self.get(56, 4)
        self.snapshots, self.nb_snapshots = self.get(64, 8), self.get(60, 4)
        self.header = self.get(100, 4) if self.version > 2 else 72
        self.order = self.get(96, 4) if self.version > 2 else 4
        self.l2e = 16 if self.version > 2 and self.get(72, 8) & 16 else 8

    def get(self, off, width):
        return struct.unpack_from(WIDTHS[width], self.data, off)[0]

    def used(self, table, n, mask=MASK, width=8):
        """(offset of the entry, what it points at), for those that point at something."""
        return [(at, self.get(at, 8) & mask) for at in range(table, table + width * n, width)
                if self.get(at, 8) & mask]

    def l2_tables(self):
        return [t for _, t in self.used(self.l1, self.l1_size)]

    def l2_entries(self):
        return [e for t in self.l2_tables() for e in self.used(t, self.cluster // self.l2e,
                                                                   width=self.l2e)]

    def blocks(self):
        return [b for _, b in self.used(self.reftable, self.reftable_clusters * self.cluster // 8)]

    def extensions(self):
        """(type, offset of the extension, length)"""
        off, end = self.header, self.get(8, 8) or self.cluster
        while off + 8 <= end and self.get(off, 4):
            yield self.get(off, 4), off, self.get(off + 4, 4)
            off += 8 + (self.get(off + 4, 4) + 7) // 8 * 8

    def snapshot_entries(self):
        off = self.snapshots
        for _ in range(self.nb_snapshots):
            off = (off + 7) // 8 * 8
            yield off
            off += 40 + self.get(off + 36, 4) + self.get(off + 12, 2) + self.get(off + 14, 2)

    def bitmap_directory(self):
        """Its offset and the entries' offsets."""
        for kind, off, _ in self.extensions():
            if kind == 0x23852875:
                n, at = self.get(off + 8, 4), self.get(off + 24, 8)
                entries = []
                entry = at
                for _ in range(n):
                    entries.append(entry)
                    entry += (24 + self.get(entry + 18, 2) + self.get(entry + 20, 4) + 7) // 8 * 8
                return at, entries
        return None, []


# ---- what is done to them ----

HEADER = [('magic', 0, 4), ('version', 4, 4), ('backing-offset', 8, 8), ('backing-size', 16, 4),
          ('cluster-bits', 20, 4), ('size', 24, 8), ('crypt-method', 32, 4), ('l1-size', 36, 4),
          ('l1-offset', 40, 8), ('reftable-offset', 48, 8), ('reftable-clusters', 56, 4),
          ('nb-snapshots', 60, 4), ('snapshots-offset', 64, 8)]
HEADER_3 = [('incompatible', 72, 8), ('compatible', 80, 8), ('autoclear', 88, 8),
            ('refcount-order', 96, 4), ('header-length', 100, 4), ('compression', 104, 1)]
SNAPSHOT = [('l1-offset', 0, 8), ('l1-size', 8, 4), ('id-size', 12, 2), ('name-size', 14, 2),
            ('state-size', 32, 4), ('extra-size', 36, 4), ('disk-size', 48, 8)]
BITMAP = [('table-offset', 0, 8), ('table-size', 8, 4), ('flags', 12, 4), ('type', 16, 1),
          ('granularity', 17, 1), ('name-size', 18, 2), ('extra-size', 20, 4)]

# Caps: clusters of the refcount table, entries of an L1 table, snapshots, and more.
COUNTS = [0, 1, 2, 3, 7, 8, 9, 21, 22, 63, 64, 72, 104, 112, 1023, 1024, 1025, 4095, 4096,
          8 << 20 >> 9, (8 << 20 >> 9) + 1, 8 << 20 >> 12, (8 << 20 >> 12) + 1, 65535, 65536, 65537,
          32 << 20 >> 3, (32 << 20 >> 3) + 1, 1 << 31, (1 << 31) - 1, (1 << 32) - 1]
OFFSETS = [0, 1, 511, 512, 513, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 55), (1 << 56) - 512, 1 << 56,
           1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def places(im):
    """(name, offset, width) of every field, and of some entries of each table."""
    yield from (('header ' + n, o, w) for n, o, w in HEADER)
    if im.version > 2:
        yield from (('header ' + n, o, w) for n, o, w in HEADER_3 if o + w <= im.header)
    for kind, off, length in im.extensions():
        name = 'extension %s ' % EXTENSIONS.get(kind, '%x' % kind)
        yield from ((name + 'type', off, 4), (name + 'length', off + 4, 4))
        if kind == 0x23852875:
            yield from ((name + n, off + o, w) for n, o, w in (
                ('number', 8, 4), ('reserved', 12, 4), ('size', 16, 8), ('offset', 24, 8)))
    yield from (('L1 %d' % i, im.l1 + 8 * i, 8) for i in range(min(2, im.l1_size)))
    for k, t in enumerate(im.l2_tables()[:2]):
        yield from (('L2 %d %d' % (k, i), t + im.l2e * i, 8) for i in (0, 1, 37))
        if im.l2e == 16:
            yield from (('L2 bitmap %d %d' % (k, i), t + 16 * i + 8, 8) for i in (0, 1, 21, 37, 99))
    yield from (('refcount table %d' % i, im.reftable + 8 * i, 8) for i in (0, 1))
    yield from (('refcount block %d' % i, b + 8 * i, 8) for b in im.blocks()[:1] for i in (0, 1, 2))
    for k, s in enumerate(im.snapshot_entries()):
        yield from (('snapshot %d %s' % (k, n), s + o, w) for n, o, w in SNAPSHOT)
        yield from (('snapshot %d L1' % k, im.get(s, 8), 8) for _ in range(1))
    for k, b in enumerate(im.bitmap_directory()[1]):
        yield from (('bitmap %d %s' % (k, n), b + o, w) for n, o, w in BITMAP)
        yield ('bitmap %d table' % k, im.get(b, 8), 8)


def values(im, off, width, old):
    """What to put there."""
    end = len(im.data)
    if width == 8:
        clusters = [im.l1, im.reftable, *im.l2_tables()[:1], *im.blocks()[:1], im.snapshots,
                    *[h for _, h in im.l2_entries()[:2]], off // im.cluster * im.cluster,
                    end // im.cluster * im.cluster, end // im.cluster * im.cluster + im.cluster,
                    end + 99 * im.cluster]
        some = [*OFFSETS, *clusters, *[(c | 1 << 63) for c in clusters], old ^ 1 << 63, old ^ 1 << 62,
                old ^ 1, old ^ 2, old ^ 1 << 9, old ^ 1 << 57]
        some += [1 << i for i in range(8)] if off in (72, 80, 88) else []
    else:
        some = [*COUNTS, old - 1, old + 1]
    top = (1 << 8 * width) - 1
    return sorted({v & top for v in some if v <= top} - {old})


def patched(data, off, width, value):
    new = bytearray(data)
    struct.pack_into(WIDTHS[width], new, off, value)
    return bytes(new)


def broken(data):
    im = Image(data)
    for name, off, width in places(im):
        for v in values(im, off, width, im.get(off, width)):
            yield '%s=%#x' % (name, v), patched(data, off, width, v)
    for at in (0, 1, 71, 72, 103, 104, 511, im.cluster, len(data) // 2, len(data) - im.cluster):
        yield 'cut at %d' % at, data[:at]


# ---- more than one file ----

def data_file(path):
    """A sound image whose data lies beside it, which is not among BASES: only who names
    the data file gets it from quoind."""
    _plain('cluster_size=4k', 'data_file=%s.data' % path)(path)


# ---- the first version of qcow ----

QCOW = [('magic', 0, 4), ('version', 4, 4), ('backing-offset', 8, 8), ('backing-size', 16, 4),
        ('size', 24, 8), ('cluster-bits', 32, 1), ('l2-bits', 33, 1), ('crypt-method', 36, 4),
        ('l1-offset', 40, 8)]


def qcow(path):
    """A sound one, with a compressed cluster."""
    images.img('create', '-q', '-f', 'qcow', path, '2M')
    qemu_io(path, 'write -P 1 0 100k', 'write -c -P 2 1M 4k', fmt='qcow')


def broken_qcow(data):
    """As broken(), for an image of the first version."""
    l1 = struct.unpack_from('>Q', data, 40)[0]
    l2 = struct.unpack_from('>Q', data, l1)[0]
    fields = [('header ' + n, o, w) for n, o, w in QCOW]
    fields += [('L1 0', l1, 8), ('L2 0 0', l2, 8), ('L2 0 1', l2 + 8, 8), ('L2 0 256', l2 + 2048, 8)]
    for name, off, width in fields:
        old = struct.unpack_from(WIDTHS[width], data, off)[0]
        top = (1 << 8 * width) - 1
        some = [*OFFSETS, l1, l2, l2 + 8, off, len(data), old ^ 1 << 63, old ^ 1] if width == 8 else COUNTS
        for v in sorted({v & top for v in some} - {old}):
            yield '%s=%#x' % (name, v), patched(data, off, width, v)
    for at in (0, 1, 47, 48, 55, 512, 4096, len(data) - 4096):
        yield 'cut at %d' % at, data[:at]
