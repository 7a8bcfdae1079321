# SPDX-License-Identifier: Apache-2.0
"""quoin check beside qemu-img check, on sound and on broken images.

Report, exit status and what is said line by line are the same, but for what
stands in KNOWN.  After a repair by either, the other finds nothing more, and
the guest's data is what the other's repair shows.

By default some of the broken images; with QUOIN_BROKEN=all all of them.
"""
import json
import os
import re
import shutil
import subprocess
import zlib

import broken
import peers
import pytest
import quoin

pytestmark = pytest.mark.skipif(peers.version(peers.QEMU_IMG) < (10, 0),
                                reason='no qemu-img 10.0 is here')
BASES = {**broken.BASES, 'data-file': broken.data_file}
EVERY = 1 if os.environ.get('QUOIN_BROKEN') == 'all' else 60

# (what was done, how it was checked): why the verdict differs.  Each is a function
# of the name of the damage, the options, and the two results.
KNOWN = [
    # The sum of a disk's last L1 entry wraps around there.
    lambda name, how, peer, own: 'Could not refresh total sector count' in peer.err,
    # No guest data is read, so no key is asked for.
    lambda name, how, peer, own: 'required for cipher' in peer.err,
    # Nor is the data file looked for, by whatever name.
    lambda name, how, peer, own: "'data-file' is required" in peer.err
    or 'data-file-raw requires a data file' in peer.err
    or (name.startswith('extension data-file') and 'Could not open' in peer.err),
    # Stored bitmaps are judged by the check and not at open; both refuse, but for those of
    # a disk of no size.
    lambda name, how, peer, own: peer.status == own.status == 1 and 'itmap' in peer.err,
    lambda name, how, peer, own: own.status == 0 and name.startswith('header size')
    and 'Could not read bitmap' in peer.err,
    # Nor are they marked as in use, or not to be trusted any more, by a repair.
    lambda name, how, peer, own: "Can't update bitmap directory" in peer.err
    or 'a program lacking bitmap support' in peer.err,
    # To clear an autoclear bit the peer writes the header, before it has read the snapshots:
    # it loses them, and then repairs what that leaves.
    lambda name, how, peer, own: 'all' in how and peer.status == 0
    and name.startswith(('header autoclear', 'header nb-snapshots', 'header snapshots-offset')),
    # Memory for a table at a place that cannot be.
    lambda name, how, peer, own: peer.status == own.status == 1
    and 'Cannot allocate memory' in peer.err,
    # What is broken in a table is given up there, and its clusters are given back as
    # leaks, though the file was cut off in the midst of it.
    lambda name, how, peer, own: how and 'exceeding the end of the file' in peer.err,
    # The snapshot table is only written anew where the counts say what is free.
    lambda name, how, peer, own: 'all' in how and 'nb-snapshots' in name and own.status == 2,
    # The peer marks the image as corrupt in the midst of the repair, and gives up.
    lambda name, how, peer, own: 'all' in how and own.status in (0, 2)
    and 'Marking image as corrupt' in peer.err and 'Check failed: ' in peer.err,
    # An overlap of the tables that are about to be replaced keeps the peer from
    # replacing them.
    lambda name, how, peer, own: 'all' in how and 'ERROR writing ref' in peer.err,
    # Where tables lie in what is no table, each repair writes into another's: what
    # is left depends on its order, but it is broken.
    lambda name, how, peer, own: how and peer.status == own.status == 2
    and 'reserved bits set' in peer.err,
    # Counts of a terabyte of such small clusters are more memory than a check takes; the
    # peer takes it, and then gives up as well.
    lambda name, how, peer, own: peer.status == own.status == 1
    and 'could not resize image: File too large' in own.err,
    # It too should have been repaired, by giving the entry a place of its own.
    lambda name, how, peer, own: 'all' in how and 'overlap check failed' in peer.err,
]


def lines(r):
    """What was said of the image, line by line, but for their ends.  The peer says of some faults more, once; why the
    file cannot grow is the file's affair."""
    text = r.err.replace('qemu-img: ', '').replace('quoin check: ', '')
    return [s[:900] for s in text.splitlines()
            if not s.startswith(('qcow2: ', 'Could not resize', 'Failed to resize',
                                 'ERROR could not resize'))]


class Judge:
    def __init__(self, tmp, run):
        self.tmp, self.run = tmp, run
        self.image = tmp / 'image'
        self.compared = 0
        self.bad = []

    def check(self, program, data, *how):
        """The result, and what became of the image; None if it is large: a file grows
        to have a refcount block that is far behind its end."""
        self.image.write_bytes(data)
        r = self.run(*program, 'check', '-f', 'qcow2', '--output', 'json', *how, self.image)
        assert 0 <= r.status < 64, r
        small = os.path.getsize(self.image) < 64 << 20
        return r, self.image.read_bytes() if small else None

    def peer(self, data, *how):
        return self.check([peers.QEMU_IMG], data, *how)

    def own(self, data, *how):
        return self.check([quoin.QUOIN], data, *how)

    def alike(self, name, data, *how):
        """Both: with the same verdict, unless it is known to differ."""
        mine, my_image = self.own(data, *how)
        try:
            theirs, their_image = self.peer(data, *how)
        except subprocess.TimeoutExpired:
            # It goes through counts of terabytes one by one.
            return None
        if any(k(name, how, theirs, mine) for k in KNOWN):
            return None
        self.compared += 1
        if (theirs.status, theirs.out) != (mine.status, mine.out):
            self.bad.append((name, how, theirs, mine))
        elif '... and so on; no more is said' not in lines(mine) and lines(theirs) != lines(mine):
            self.bad.append((name, how, 'peer:', [s for s in lines(theirs) if s not in lines(mine)][:3],
                             'own:', [s for s in lines(mine) if s not in lines(theirs)][:3]))
        return their_image, my_image

    def repaired(self, name, data):
        images = self.alike(name, data, '-r', 'all')
        # Where neither changed anything the reports say it all.
        if not images or None in images or images[0] == images[1] == data:
            return
        if self.own(images[1])[0].status:
            return
        # The peer stores bitmaps behind its repair, which may then not be one.
        if self.peer(images[1])[0].status or \
                self.own(images[0])[0].status != self.peer(images[0])[0].status:
            self.bad.append((name, 'one finds what the other left'))
        if self.own(images[1], '-r', 'all')[1] != images[1]:
            self.bad.append((name, 'a second repair changed something'))
        self.same_data(name, *images)

    def same_data(self, name, a, b):
        for path, data in (('a', a), ('b', b)):
            (self.tmp / path).write_bytes(data)
        r = self.run(peers.QEMU_IMG, 'compare', '-f', 'qcow2', '-F', 'qcow2', self.tmp / 'a',
                     self.tmp / 'b')
        # 0: equal, 1: different; what neither can read is 2 and more.  A guest's cluster that
        # lies in the bitmaps' directory changes as the peer marks them.
        if r.status == 1 and not re.match('L2 .*67000$', name):
            self.bad.append((name, r))

    def verdict(self):
        assert not self.bad, '%d\n' % len(self.bad) + '\n'.join(map(str, self.bad[:200]))


@pytest.fixture
def judge(tmp, run):
    return Judge(tmp, run)


def base(tmp, name):
    BASES[name](tmp / name)
    return (tmp / name).read_bytes()


@pytest.mark.parametrize('name', BASES)
def test_sound_images(judge, tmp, name):
    data = base(tmp, name)
    judge.alike(name, data)
    judge.repaired(name, data)
    judge.verdict()
    assert judge.compared == 2


@pytest.mark.limit(3600)
@pytest.mark.parametrize('name', BASES)
def test_broken_images(judge, tmp, name):
    n = 0
    for what, data in broken.broken(base(tmp, name)):
        if zlib.crc32(what.encode()) % EVERY:
            continue
        n += 1
        judge.alike(what, data)
        judge.repaired(what, data)
    judge.verdict()
    assert n > 10 and judge.compared > n / 2


def leaky(data):
    """A cluster at the end is counted and not used; another one once too often."""
    im = broken.Image(data)
    entry, host = im.l2_entries()[0]
    data = broken.patched(data, entry, 8, host)
    data += bytes(im.cluster)
    for cluster, count in ((len(data) // im.cluster - 1, 1), (host // im.cluster, 2)):
        data = broken.patched(data, im.blocks()[0] + 2 * cluster, 2, count)
    return data


def test_leaks_only(judge, tmp):
    data = leaky(base(tmp, 'plain'))
    assert judge.peer(data)[0].status == 3
    judge.alike('leaks', data)
    theirs, mine = judge.alike('leaks', data, '-r', 'leaks')
    judge.same_data('leaks', theirs, mine)
    judge.verdict()
    assert json.loads(judge.own(mine)[0].out).get('leaks', 0) == 0


def test_human_report(tmp, run):
    data = leaky(base(tmp, 'compressed'))
    im = broken.Image(data)
    worse = broken.patched(data, im.l2_entries()[-1][0], 8, im.l2_entries()[0][1] + 512)
    for n, d in enumerate((data, worse, data[:1 << 16])):
        for how in ((), ('-r', 'leaks'), ('-r', 'all'), ('-q',)):
            got = []
            for program in (peers.QEMU_IMG, quoin.QUOIN):
                (tmp / 'image').write_bytes(d)
                r = run(program, 'check', *how, tmp / 'image')
                got.append((r.status, r.out, lines(r)))
            assert got[0] == got[1], (n, how)


def test_an_image_in_use_is_refused_by_both(tmp, run, start, start_peer):
    base(tmp, 'plain')
    image = tmp / 'plain'
    options = ('--blockdev', 'qcow2,node-name=n,file.driver=file,file.filename=%s' % image)
    for daemon in (start, start_peer):
        d = daemon(*options)
        for program in (peers.QEMU_IMG, quoin.QUOIN):
            for how in ((), ('-r', 'all')):
                r = run(program, 'check', *how, image)
                assert r.status == 1 and 'Failed to get' in r.err and 'lock' in r.err
            assert run(program, 'check', '-U', image).status == 0
        d.stop()
    shutil.rmtree(tmp / 'plain', ignore_errors=True)
