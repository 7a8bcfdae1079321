# SPDX-License-Identifier: Apache-2.0
"""Entries of tables that cannot be, met by each kind of request: what fails, what is
said of it, whether the image is marked and what it shows then is as in QEMU."""
import struct

import pytest

import images
import nbdraw as nbd

COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
CLUSTER = 65536
AT = CLUSTER            # the guest's second cluster is the one that is broken

REQUESTS = {
    'read': (nbd.READ, AT, CLUSTER, 0),
    'read some': (nbd.READ, AT + 8192, 4096, 0),
    'read before': (nbd.READ, 0, 2 * CLUSTER, 0),
    'write': (nbd.WRITE, AT, CLUSTER, 0),
    'write some': (nbd.WRITE, AT + 8192, 4096, 0),
    'write more': (nbd.WRITE, AT, 3 * CLUSTER, 0),
    'zero': (nbd.WRITE_ZEROES, AT, CLUSTER, nbd.NO_HOLE),
    'zero and unmap': (nbd.WRITE_ZEROES, AT, CLUSTER, 0),
    'zero some': (nbd.WRITE_ZEROES, AT + 8192, 4096, nbd.NO_HOLE),
    'discard': (nbd.TRIM, AT, CLUSTER, 0),
    'write elsewhere': (nbd.WRITE, 2 << 20, CLUSTER, 0),
}


MODES = [(r, False) for r in REQUESTS] + [(r, True) for r in REQUESTS if r.startswith('read')]


class Image:
    """A sound qcow2 file of one L2 table, to be broken."""

    def __init__(self, path, *options):
        images.qcow2(path, '4M', None, *options)
        images.io(path, 'write -P 1 0 256k', fmt='qcow2')
        self.sound = path.read_bytes()
        self.l1, self.reftable = self.u64(40), self.u64(48)
        self.l2 = self.u64(self.l1) & ~COPIED
        self.refblock = self.u64(self.reftable)
        self.width = 16 if self.sound[7] > 2 and self.u64(72) & 16 else 8
        self.entry = self.l2 + self.width * (AT // CLUSTER)
        self.host = self.u64(self.entry) & ~COPIED
        self.data = None

    def u64(self, off):
        return struct.unpack_from('>Q', self.sound, off)[0]

    def broken(self, way):
        self.data = bytearray(self.sound)
        way(self)
        return self.data

    def put(self, off, value):
        struct.pack_into('>Q', self.data, off, value)

    def puts(self, value, bitmap=None):
        """The entry, and its bitmap."""
        self.put(self.entry, value)
        if bitmap is not None:
            self.put(self.entry + 8, bitmap)


BASES = {
    'plain': (), 'v2': ('compat=0.10',), 'subclusters': ('extended_l2=on',),
    'data file': ('data_file=DATA',), 'raw data file': ('data_file=DATA', 'data_file_raw=on'),
}
ALL, SOME = 0xffffffff, 0xf0
FAR = 1 << 40

WAYS = {
    'plain': {
        'odd': lambda i: i.puts(i.host + 512 | COPIED),
        'odd, shared': lambda i: i.puts(i.host + 512),
        'odd, zero': lambda i: i.puts(i.host + 512 | COPIED | ZERO),
        'odd, zero, shared': lambda i: i.puts(i.host + 512 | ZERO),
        'far': lambda i: i.puts(FAR | COPIED),
        'far, odd': lambda i: i.puts(FAR + 512),
        'reserved bits': lambda i: i.puts(i.host | COPIED | 1 << 57 | 2),
        'compressed, no data': lambda i: i.puts(COMPRESSED | i.host),
        'compressed, far': lambda i: i.puts(COMPRESSED | FAR),
        'compressed, ours': lambda i: i.puts(COMPRESSED | COPIED | i.host),
        'L1 odd': lambda i: i.put(i.l1, i.l2 + 512 | COPIED),
        'L1 odd, shared': lambda i: i.put(i.l1, i.l2 + 512),
        'L1 reserved bits': lambda i: i.put(i.l1, i.l2 | COPIED | 1 << 57 | 2),
        'L1 far': lambda i: i.put(i.l1, FAR | COPIED),
        'refcount table odd': lambda i: i.put(i.reftable, i.refblock + 512),
        'refcount table far': lambda i: i.put(i.reftable, FAR),
        'refcount table reserved bits': lambda i: i.put(i.reftable, i.refblock | 2),
        'refcount table empty': lambda i: i.put(i.reftable, 0),
    },
    'v2': {
        'zero': lambda i: i.puts(ZERO),
        'zero, with a place': lambda i: i.puts(i.host | COPIED | ZERO),
        'zero, with a shared place': lambda i: i.puts(i.host | ZERO),
    },
    'subclusters': {
        'data and zero': lambda i: i.puts(i.host | COPIED, ALL << 32 | ALL),
        'data and zero, shared': lambda i: i.puts(i.host, SOME << 32 | ALL),
        'data and zero, elsewhere': lambda i: i.puts(i.host | COPIED, 1 << 63 | 1 << 31),
        'data nowhere': lambda i: i.puts(0, ALL),
        'data nowhere, elsewhere': lambda i: i.puts(0, 1 << 31),
        'compressed': lambda i: i.puts(COMPRESSED | i.host, ALL),
        'zero flag': lambda i: i.puts(i.host | COPIED | ZERO, ALL),
        'odd': lambda i: i.puts(i.host + 512 | COPIED, ALL),
        'odd, shared': lambda i: i.puts(i.host + 512, ALL),
        'odd, no data': lambda i: i.puts(i.host + 512 | COPIED, 0),
    },
    'data file': {
        'compressed': lambda i: i.puts(COMPRESSED | i.host),
        'elsewhere': lambda i: i.puts(i.host + CLUSTER | COPIED),
        'elsewhere, shared': lambda i: i.puts(i.host + CLUSTER),
        'shared': lambda i: i.puts(i.host),
        'odd': lambda i: i.puts(i.host + 512 | COPIED),
    },
    'raw data file': {
        'compressed': lambda i: i.puts(COMPRESSED | i.host),
        'elsewhere': lambda i: i.puts(i.host + CLUSTER | COPIED),
    },
}

# (base, way, request, ours, theirs): where they may differ, and why.
KNOWN = [
    # Whether a cluster reads as zeroes around a part of it cannot be seen: the peer
    # goes on to write, and then finds its image gone, which is another error.
    lambda base, way, request, ours, theirs: request == 'zero some' and ours[1:] == theirs[1:]
    and ours[0][0][0] and theirs[0][0][0],
    # Subclusters are zeroed by the peer whatever the entry's others are; it finds the
    # same at the next read.
    lambda base, way, request, ours, theirs: base == 'subclusters' and request == 'zero some'
    and ours[1:] == theirs[1:] and ours[0][0][0],
    # To the peer a table behind the end of the file is empty; we take it for lost.
    lambda base, way, request, ours, theirs: way == 'L1 far' and not ours[1] and not theirs[1],
    # The peer writes a guest's data where another's are, and finds out when it reads.
    lambda base, way, request, ours, theirs: way == 'elsewhere' and request.startswith('write')
    and ours[1:] == theirs[1:] and ours[0][0][0],
    # Zeroed, the entry says again where the data is.
    lambda base, way, request, ours, theirs: (base, way, request) == ('raw data file', 'elsewhere', 'zero')
    and not ours[1],
    # It looks into the counts whether the image was preallocated.
    lambda base, way, request, ours, theirs: (way, request) == ('refcount table odd', 'zero some')
    and not ours[1],
    # To free a cluster without a count it makes a block of counts.
    lambda base, way, request, ours, theirs: way == 'refcount table empty'
    and request in ('discard', 'zero and unmap') and not ours[1],
    # Where all seems free, the first place that is found is in another table.
    lambda base, way, request, ours, theirs: (way, request) == ('refcount table empty', 'write elsewhere')
    and ours[0] == theirs[0] and 'overlaps with' in ours[1][0]['data']['msg'],
]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """base -> (Image, what is in the data file)"""
    folder = tmp_path_factory.mktemp('impossible')
    got = {}
    for name, options in BASES.items():
        data = folder / 'data'
        image = Image(folder / 'image', *[o.replace('DATA', str(data)) for o in options])
        got[name] = (image, data.read_bytes() if data.exists() else None)
        for path in folder.iterdir():
            path.unlink()
    return got


def ask(conn, kind, at, length, flags=0):
    conn.request(kind, at, length, flags, data=b'\x77' * length if kind == nbd.WRITE else b'')
    error, _, data = conn.simple(length if kind == nbd.READ else 0)
    return error, data


def use(side, image, data, request, read_only=False):
    """What one request meets in this image, what is said, and what is left."""
    path = side.folder / 'image'
    path.write_bytes(image)
    options = {'driver': 'qcow2', 'node-name': 'n', 'read-only': read_only, 'discard': 'unmap',
               'file': {'driver': 'file', 'filename': str(path)}}
    if data is not None:
        (side.folder / 'data').write_bytes(data)
        options['data-file'] = {'driver': 'file', 'filename': str(side.folder / 'data')}
    d = side.daemon
    d.cmd('blockdev-add', options)
    d.cmd('block-export-add', type='nbd', id='e', node_name='n', writable=not read_only)
    with nbd.connect(side.folder / 'nbd', 'n') as conn:
        said = [ask(conn, *REQUESTS[request])]
        # It frees what the request left behind; what it says is not compared, for the
        # peer did that before, and a node that is flushed already has nothing to do.
        ask(conn, nbd.FLUSH, 0, 0)
        said += [ask(conn, nbd.READ, AT, CLUSTER), ask(conn, nbd.READ, 0, 4096)]
    d.cmd('block-export-del', id='e', mode='hard')
    d.wait_event('BLOCK_EXPORT_DELETED')
    d.cmd('blockdev-del', node_name='n')
    d.cmd('query-jobs')
    events = [e for e in side.events() if e['event'] == 'BLOCK_IMAGE_CORRUPTED']
    with open(path, 'rb') as f:
        head = f.read(80)
    return said, events, struct.unpack_from('>Q', head, 72)[0] if head[7] > 2 else None


def serve(pair):
    for side in pair.sides:
        side.daemon.cmd('nbd-server-start', addr={
            'type': 'unix', 'data': {'path': str(side.folder / 'nbd')}})


def short(result):
    said, events, marks = result
    return ([(error, data and (len(data), data[:1], data[-1:])) for error, data in said],
            [(e['data'].get('msg'), e['data'].get('fatal')) for e in events], marks)


@pytest.mark.parametrize('base', WAYS)
def test_what_each_request_makes_of_it(pair, made, base):
    image, data = made[base]
    serve(pair)
    bad = []
    for way in WAYS[base]:
        broken = bytes(image.broken(WAYS[base][way]))
        for request, read_only in MODES:
            ours, theirs = (use(s, broken, data, request, read_only) for s in pair.sides)
            if ours != theirs and not any(k(base, way, request, ours, theirs) for k in KNOWN):
                bad.append('%s: %s%s\n  ours:   %s\n  theirs: %s' % (
                    way, request, ', read-only' if read_only else '', short(ours), short(theirs)))
    # What could not be stored is in the exit status.
    pair.sides[0].daemon.stop(None)
    assert pair.sides[0].daemon.proc.returncode in (0, 1)
    assert not bad, '\n'.join(bad)


def test_sound_images_are_used_alike(pair, made):
    serve(pair)
    for base, (image, data) in made.items():
        for request in REQUESTS:
            ours, theirs = (use(s, image.sound, data, request) for s in pair.sides)
            assert ours == theirs and not ours[1], (base, request, short(ours), short(theirs))
