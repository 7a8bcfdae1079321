# SPDX-License-Identifier: Apache-2.0
"""Broken images: what one program opens the other opens, for reading and for writing,
and both see the same bytes, or fail to read at the same places.

Where they differ a function in KNOWN says so, with the reason.

By default some of the broken images; with QUOIN_BROKEN=all all of them.
"""
import os
import re
import zlib

import broken
import nbdraw as nbd
import peers
import pytest

pytestmark = pytest.mark.skipif(peers.version(peers.QSD) < (10, 0),
                                reason='no qemu-storage-daemon 10.0 is here')
EVERY = 1 if os.environ.get('QUOIN_BROKEN') == 'all' else 80
PIECE, PIECES = 32768, 80       # what is read: the first ones, and the last one
KINDS = [*broken.BASES, 'qcow']
DIED = 'it died'

ZEROES = {zlib.crc32(bytes(n)) for n in (512, 4096, PIECE)}


def lost(ours, theirs):
    """Are all differences places that we cannot read and that are zeroes to the peer?"""
    return ours[0] == theirs[0] and all(a == b or (a[1] < 0 and b[1] in ZEROES)
                                        for a, b in zip(ours[1], theirs[1]))


# (the damage, read-only?, ours, theirs), of which at least one opened: what was read,
# or the text of a refusal.
KNOWN = [
    # What would be a table behind the end of the file is empty to the peer; we take it
    # for lost.
    lambda name, read_only, ours, theirs: re.match('.*L1|header l1-offset|header size|cut at', name)
    and type(ours) is type(theirs) and lost(ours, theirs),
    # Of a read of many clusters the peer does some at once: it meets an entry that cannot
    # be behind one that cannot be read, and marks the image.
    lambda name, read_only, ours, theirs: not read_only and type(ours) is type(theirs)
    and all(a == b or (a[1] < 0 and b[1] < 0) for a, b in zip(ours[1], theirs[1])),
    # Stored bitmaps are marked as in use before the first write, not by opening.  If the
    # mark would ruin something, it is the write that fails.
    lambda name, read_only, ours, theirs: not read_only and "Can't update bitmap dir" in str(theirs),
    lambda name, read_only, ours, theirs: not read_only and re.match(r'L2 .*=0x8?0*67000$', name),
    # A disk of no size has a bitmap of no bits.
    lambda name, read_only, ours, theirs: name.startswith('header size') and ours[0] == 0
    and 'Could not read bitmap' in theirs,
]


class Program:
    """A daemon that gets one image after the other; the peer may die of it."""

    def __init__(self, start, folder, driver):
        self.start, self.folder, self.driver = start, folder, driver
        folder.mkdir()
        self.deaths = 0
        self.begin()

    def begin(self):
        self.d = self.start()
        (self.folder / 'nbd').unlink(missing_ok=True)
        self.d.cmd('nbd-server-start', addr={
            'type': 'unix', 'data': {'path': str(self.folder / 'nbd')}})

    def verdict(self, data, read_only):
        """The text of a refusal, or the size and what each piece reads as."""
        path = self.folder / 'image'
        path.write_bytes(data)
        try:
            return self.look(path, read_only)
        except (EOFError, BrokenPipeError, ConnectionResetError, nbd.Closed):
            self.deaths += 1
            self.d.destroy()
            self.begin()
            return DIED

    def look(self, path, read_only):
        d = self.d
        reply = d.ask('blockdev-add', {
            'driver': self.driver, 'node-name': 'n', 'read-only': read_only,
            'file': {'driver': 'file', 'filename': str(path)}})
        if 'error' in reply:
            return reply['error']['desc'].replace(str(path), 'IMAGE')
        reply = d.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n',
                                           'writable': not read_only})
        if 'error' in reply:
            got = reply['error']['desc']
        else:
            got = self.read()
            d.cmd('block-export-del', id='e', mode='hard')
            d.wait_event('BLOCK_EXPORT_DELETED')
        d.cmd('blockdev-del', node_name='n')
        d.qmp.events.clear()
        return got

    def read(self):
        with nbd.connect(self.folder / 'nbd', 'n') as conn:
            size = conn.size
            starts = list(range(0, min(size, PIECE * PIECES), PIECE))
            starts += [size - 512] if size > PIECE * PIECES else []
            return size, [self.piece(conn, at, min(PIECE, size - at)) for at in starts]

    @staticmethod
    def piece(conn, at, length):
        """Where, and its checksum or a negative errno."""
        conn.request(nbd.READ, at, length)
        error, _, content = conn.simple(length)
        return at, -error or zlib.crc32(content)


def base(tmp, kind):
    (broken.qcow if kind == 'qcow' else broken.BASES[kind])(tmp / kind)
    return (tmp / kind).read_bytes()


def some(kind, data):
    if kind == 'qcow':
        every, make = max(1, EVERY // 10), broken.broken_qcow
    else:
        every, make = EVERY, broken.broken
    return [('sound', data)] + [(n, d) for n, d in make(data) if zlib.crc32(n.encode()) % every == 0]


def differences(a, b):
    """Short: of two that opened only the pieces that are not alike."""
    if isinstance(a, str) or isinstance(b, str):
        return [v if isinstance(v, str) else 'opens, %d bytes' % v[0] for v in (a, b)]
    differ = [i for i, (x, y) in enumerate(zip(a[1], b[1])) if x != y]
    return [(v[0], len(differ), [v[1][i] for i in differ[:3]]) for v in (a, b)]


@pytest.mark.limit(1800)
@pytest.mark.parametrize('kind', KINDS)
def test_verdicts(tmp, start, start_peer, kind):
    data = base(tmp, kind)
    driver = 'qcow' if kind == 'qcow' else 'qcow2'
    ours, theirs = (Program(s, tmp / n, driver)
                    for s, n in ((start, 'ours'), (start_peer, 'theirs')))
    bad, same = [], 0
    for name, image in some(kind, data):
        for read_only in (True, False):
            a, b = ours.verdict(image, read_only), theirs.verdict(image, read_only)
            if a == b or (isinstance(a, str) and isinstance(b, str)):
                same += 1
            elif not any(k(name, read_only, a, b) for k in KNOWN):
                bad.append('%s, %s\n  ours:   %s\n  theirs: %s' % (
                    name, 'read-only' if read_only else 'writable', *differences(a, b)))
    ours.d.stop(None)
    assert ours.d.proc.returncode in (0, 1), ours.d.stderr()
    assert not ours.deaths
    assert not bad, '%d differ, %d are alike\n%s' % (len(bad), same, '\n'.join(bad[:300]))
    assert same > 10
