# SPDX-License-Identifier: Apache-2.0
"""Broken images are opened, read, written and checked: what is wrong is said, and
nothing crashes, hangs, or takes much memory.

By default some of the broken images; with QUOIN_BROKEN=all all of them.
"""
import os
import re
import subprocess
import zlib

import broken
import peers
import pytest
import quoin

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')
EVERY = 1 if os.environ.get('QUOIN_BROKEN') == 'all' else 50
MEMORY = 120 << 10      # KiB that the daemon may grow by; a cap is 32 MiB
KINDS = ['plain', 'v2', 'snapshots', 'compressed', 'bitmaps', 'subclusters', 'qcow']

# How a refusal names what is broken.
NAMED = {
    'header magic': 'not in qcow2? format',
    'header version': r'version|header|feature|compression|qcow2 images|too large|width',
    'header backing-offset': r'[Bb]acking file|[Hh]eader extension',
    'header backing-size': 'Backing file name too long',
    'header cluster-bits': r'[Cc]luster size|table|L1|exceeds|extension',
    'header size': r'[Ss]ize|too big|too small|too large|L1|bitmap',
    'header crypt-method': r'[Ee]ncrypt|CRYPTO',
    'header l1-size': 'L1 table|large',
    'header l1-offset': 'L1 table',
    'header l2-bits': 'L2 table size',
    'header reftable': '[Rr]eference count table|refcount',
    'header nb-snapshots': '[Ss]napshot',
    'header snapshots-offset': '[Ss]napshot',
    'header incompatible': 'feature|corrupt|compression|dirty|data.file|subcluster',
    'header autoclear': 'data-file-raw|data file',
    'header refcount-order': 'width|dirty',
    'header header-length': r'header|extension',
    'header compression': 'ompression',
    'extension': r'extension|ext|bitmap|feature|CRYPTO|directory|data.file|[Bb]acking',
    'snapshot': '[Ss]napshot',
    'bitmap': '[Bb]itmap',
    'cut': r'.',
}


def some(kind, data):
    make = broken.broken_qcow if kind == 'qcow' else broken.broken
    every = max(1, EVERY // 10) if kind == 'qcow' else EVERY
    return [(n, d) for n, d in make(data) if zlib.crc32(n.encode()) % every == 0]


def base(tmp, kind):
    (broken.qcow if kind == 'qcow' else broken.BASES[kind])(tmp / kind)
    return (tmp / kind).read_bytes()


def memory(pid):
    with open('/proc/%d/status' % pid) as f:
        return int(re.search(r'VmHWM:\s+(\d+)', f.read())[1])


class Victim:
    """A daemon that gets one broken image after the other."""

    def __init__(self, d, tmp, kind):
        self.d, self.tmp, self.kind = d, tmp, kind
        self.unclear = []
        self.image = tmp / 'image'
        d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(tmp / 'nbd')}})

    def open(self, data, read_only):
        self.image.write_bytes(data)
        return self.d.ask('blockdev-add', {
            'driver': 'qcow' if self.kind == 'qcow' else 'qcow2', 'node-name': 'n',
            'read-only': read_only, 'file': {'driver': 'file', 'filename': str(self.image)}})

    def use(self, read_only):
        """Read, write and flush; whether that works is not the point, but that it ends."""
        self.d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n', 'name': 'n',
                                        'writable': not read_only})
        commands = ['read 0 128k', 'read 1M 100k']
        if not read_only:
            commands += ['write 1000 70k', 'write 1030k 100k', 'write -z -u 64k 64k', 'discard 0 64k',
                         'flush']
        subprocess.run([peers.QEMU_IO, '-f', 'raw', *[x for c in commands for x in ('-c', c)],
                        'nbd+unix:///n?socket=%s' % (self.tmp / 'nbd')],
                       stdin=subprocess.DEVNULL, capture_output=True, timeout=quoin.LIMIT)
        self.d.cmd('block-export-del', id='e', mode='hard')
        self.d.qmp.wait_event('BLOCK_EXPORT_DELETED', id='e')
        self.d.cmd('blockdev-del', node_name='n')

    def judge(self, name, data, read_only):
        """Whether it opens; what a refusal says."""
        reply = self.open(data, read_only)
        if 'error' not in reply:
            self.use(read_only)
            return True
        text = reply['error']['desc']
        key = max((k for k in NAMED if name.startswith(k)), key=len, default=None)
        if not key or not re.search(NAMED[key], text, re.I):
            self.unclear.append('%s: %s' % (name, text))
        return False


@pytest.mark.limit(900)
@pytest.mark.parametrize('kind', KINDS)
def test_broken_images_are_used_or_refused(start, run, tmp, kind):
    data = base(tmp, kind)
    d = start()
    v = Victim(d, tmp, kind)
    assert v.judge('sound', data, False)
    before = memory(d.pid)
    opened = 0
    for name, bad in some(kind, data):
        opened += v.judge(name, bad, True) + v.judge(name, bad, False)
        r = run(quoin.QUOIN, 'check', '-q', '-r', 'all', '-f', 'qcow' if kind == 'qcow' else 'qcow2',
                v.image)
        assert r.status in (0, 1, 2, 3, 63), (name, r)
        assert not r.status or r.err, name
    assert opened
    assert not v.unclear, '\n'.join(v.unclear)
    assert 'asan' in quoin.QUOIND or memory(d.pid) - before < MEMORY
    # What could not be stored in such an image is in the exit status.
    d.stop(None)
    assert d.proc.returncode in (0, 1), d.stderr()
