# SPDX-License-Identifier: Apache-2.0
"""The matrix of docs/nbd.md, put to qemu-storage-daemon 10.0 as well: each command with
each flag and at each edge, each option with data of many lengths, in all modes.

Answers must be equal: of a read what it says is there, be it data or a hole; of all
else every byte.  There is one difference: QEMU 10.0 has the protocol's own errors for
what is read-only or beyond the end, and replaces them by EINVAL.
"""
import struct

import nbdraw as nbd
import peers
import pytest
import quoin
from nbdraw import Closed, Conn, connect

MIB = 1 << 20
SIZE = 64 * MIB
MODES = ('simple', 'structured', 'extended')
COMMANDS = (nbd.READ, nbd.WRITE, nbd.FLUSH, nbd.TRIM, nbd.CACHE, nbd.WRITE_ZEROES,
            nbd.BLOCK_STATUS, 8, 255, 0xffff)
OPTIONS = (0, *range(2, 12), 99)
LENGTHS = (0, 1, 2, 4, 6, 8, 10, 255, 256, 257, 4096, 4097, 1 << 16)


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    if peers.version(peers.QSD) < (10, 0):
        pytest.skip('the peer is not 10.0, whose answers are compared')
    tmp, daemons, paths = tmp_path_factory.mktemp('both'), [], []
    for program, name in ((quoin.QUOIND, 'own'), (peers.QSD, 'peer')):
        folder = tmp / name
        folder.mkdir()
        with open(folder / 'disk', 'wb') as f:
            f.write(bytes(range(1, 256)) * 4112)
            f.truncate(SIZE)
        file = f'file,filename={folder}/disk,node-name='
        daemons.append(quoin.Daemon(
            '--blockdev', file + 'f', '--blockdev', file + 'r,read-only=on', '--nbd-server', 
            f'addr.type=unix,addr.path={folder}/nbd',
            '--export', 'nbd,id=rw,node-name=f,name=rw,writable=on',
            '--export', 'nbd,id=ro,node-name=r,name=ro', tmp=folder, program=program))
        paths.append(folder / 'nbd')
    yield paths
    for d in daemons:
        d.stop()


# ---- requests ----

def requests():
    """(mode, export, command, offset, length, flags) of each that is worth asking."""
    ranges = [(0, 0), (SIZE, 0), (SIZE, 1), (SIZE - 1, 1), (SIZE - 1, 2), (0, 512), (SIZE + 1, 0),
              (1 << 63, 1), ((1 << 64) - 1, 1), ((1 << 64) - 512, 512), (0, SIZE), (0, 32 * MIB),
              (0, 32 * MIB + 1)]
    beyond = [(0, 1 << 32), (0, 1 << 40), (1, (1 << 64) - 1)]
    for mode in MODES:
        for kind in COMMANDS:
            for bit in range(16):
                yield mode, 'rw', kind, 8 * MIB, 0 if kind == nbd.FLUSH else 512, 1 << bit
            for export in ('rw', 'ro'):
                for at, length in ranges + (beyond if mode == 'extended' else []):
                    # The data of a long write would come to nothing but time.
                    if kind != nbd.WRITE or length < MIB:
                        yield mode, export, kind, at, length, 0


def assemble(chunks, at, length):
    content = bytearray(length)
    for kind, payload in chunks:
        start = struct.unpack('>Q', payload[:8])[0] - at
        if kind == nbd.CHUNK_DATA:
            content[start:start + len(payload) - 8] = payload[8:]
    return content


def answer(path, mode, export, kind, at, length, flags):
    """What the reply says, and whether the connection is good afterwards."""
    with connect(path, export, structured=mode == 'structured', extended=mode == 'extended',
                 meta=('base:allocation',) if mode != 'simple' else None) as c:
        if mode == 'extended' and kind == nbd.WRITE and length:
            flags |= nbd.PAYLOAD_LEN
        follows = kind == nbd.WRITE or (mode == 'extended' and flags & nbd.PAYLOAD_LEN)
        c.request(kind, at, length, flags, data=bytes(length) if follows else b'')
        try:
            if mode == 'simple':
                got = c.simple(length if kind == nbd.READ else 0)
                got = got[2] if kind == nbd.READ and not got[0] else got[0]
            else:
                got = c.chunks()
                if kind == nbd.READ and got[-1][0] in (nbd.CHUNK_DATA, nbd.CHUNK_HOLE):
                    got = assemble(got, at, length)
            c.request(nbd.FLUSH)
            return got, (c.simple()[0] if mode == 'simple' else c.chunks())
        except Closed:
            return 'closed'


def with_qemus_errors(answered):
    """Ours, as QEMU would say it."""
    if answered == 'closed':
        return answered
    got, behind = answered
    if got in (nbd.EPERM, nbd.ENOSPC):
        return nbd.EINVAL, behind
    if isinstance(got, list) and got[-1][0] == nbd.CHUNK_ERROR:
        number = struct.unpack('>I', got[-1][1][:4])[0]
        if number in (nbd.EPERM, nbd.ENOSPC):
            got[-1] = nbd.CHUNK_ERROR, struct.pack('>I', nbd.EINVAL) + got[-1][1][4:]
    return got, behind


def test_requests(both):
    wrong, replaced = [], 0
    for q in requests():
        own, peer = (answer(path, *q) for path in both)
        if own != peer and with_qemus_errors(own) == peer:
            replaced += 1
        elif own != peer:
            wrong.append(f'{q}: {own} and the peer {peer}'[:500])
    assert not wrong, '\n'.join(wrong)
    assert replaced, 'QEMU has the right errors now'


# ---- options ----

def haggle(path, mode, option, data):
    with Conn(path) as c:
        if mode != 'simple':
            c.option(nbd.OPT_STRUCTURED if mode == 'structured' else nbd.OPT_EXTENDED)
        try:
            got = c.option(option, data)
            return got, c.option(nbd.OPT_LIST)
        except Closed:
            return 'closed'


def test_options(both):
    wrong = []
    for mode in MODES:
        for option in OPTIONS:
            for length in LENGTHS:
                for fill in (b'\0', b'\xff'):
                    own, peer = (haggle(path, mode, option, fill * length) for path in both)
                    if own != peer:
                        wrong.append(f'{mode} {option} {length} {fill}: {own} and the peer {peer}')
    assert not wrong, '\n'.join(wrong)
