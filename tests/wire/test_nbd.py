# SPDX-License-Identifier: Apache-2.0
"""The NBD server by raw bytes: every option and command, right and wrong."""
import os
import random
import socket
import struct
import threading
import time

import images
import nbdraw as nbd
import pytest
import quoin
from nbdraw import Conn, connect

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def disk(tmp):
    """A raw image with data in its first MiB, and nothing else."""
    path = tmp / 'disk.raw'
    with open(path, 'wb') as f:
        f.write(random.Random(1).randbytes(MIB))
        f.truncate(SIZE)
    return path


@pytest.fixture
def serve(start, tmp, disk):
    """serve(**options of the server) -> (daemon, socket path), exports rw and ro."""
    def serve_it(**options):
        path = tmp / 'nbd'
        server = ''.join(f',{k.replace("_", "-")}={v}' for k, v in options.items())
        d = start('--blockdev', f'file,node-name=f,filename={disk}',
                  '--nbd-server', f'addr.type=unix,addr.path={path}{server}',
                  '--export', 'nbd,id=rw,node-name=f,name=rw,writable=on',
                  '--export', 'nbd,id=ro,node-name=f,name=ro,description=for reading')
        return d, path
    return serve_it


@pytest.fixture
def path(serve):
    return serve()[1]


def assert_serves(path):
    with connect(path, 'ro') as c:
        c.request(nbd.READ, length=512)
        assert c.simple(512)[0] == 0


# ---- the handshake ----

def test_unknown_client_flag_ends_the_connection(path):
    assert Conn(path, flags=4 | 3).closed()


@pytest.mark.parametrize('option, data', [
    (nbd.OPT_LIST, b''), (nbd.OPT_GO, nbd.go_data('rw')), (nbd.OPT_ABORT, b''), (99, b'')])
def test_old_client_may_only_choose_an_export(path, option, data):
    c = Conn(path, flags=0)
    c.option_send(option, data)
    assert c.closed()


def test_export_name_sends_zeroes_unless_told_not_to(path):
    for flags, zeroes in ((0, 124), (1, 124), (2, 0), (3, 0)):
        with Conn(path, flags=flags) as c:
            c.option_send(nbd.OPT_EXPORT_NAME, b'ro')
            size, transmission = struct.unpack('>QH', c.recv(10))
            assert (size, transmission) == (SIZE, 0x50f)
            assert c.recv(zeroes) == bytes(zeroes)
            c.request(nbd.READ, length=512)
            assert c.simple(512)[0] == 0


@pytest.mark.parametrize('name', [b'nope', b'', b'n' * 4096, b'n' * 4097, b'ro\0', b'n' * 99999])
def test_export_name_that_is_not_there_ends_the_connection(path, name):
    c = Conn(path)
    c.option_send(nbd.OPT_EXPORT_NAME, name)
    assert c.closed()


def test_option_with_a_wrong_magic_ends_the_connection(path):
    c = Conn(path)
    c.send(b'x' * 16)
    assert c.closed()


def test_list(path):
    with Conn(path) as c:
        assert c.option(nbd.OPT_LIST) == [
            (nbd.REP_SERVER, b'\0\0\0\2rw'), (nbd.REP_SERVER, b'\0\0\0\2rofor reading'),
            (nbd.REP_ACK, b'')]
        assert c.option(nbd.OPT_LIST, b'x') == [
            (nbd.ERR_INVALID, b"option 'list' has unexpected length")]


@pytest.mark.parametrize('option, text', [
    (4, b'Unsupported option 4 (<unknown>)'), (99, b'Unsupported option 99 (<unknown>)'),
    (0, b'Unsupported option 0 (<unknown>)'), (0xffffffff, b'Unsupported option 4294967295 (<unknown>)')])
def test_unknown_option_is_refused_and_skipped(path, option, text):
    with Conn(path) as c:
        for data in (b'', b'x', b'y' * 100000):
            assert c.option(option, data) == [(nbd.ERR_UNSUP, text)]
        assert c.go('ro')[-1] == (nbd.REP_ACK, b'')


def test_tls_is_refused(path):
    with Conn(path) as c:
        assert c.option(nbd.OPT_STARTTLS) == [(nbd.ERR_POLICY, b'TLS not configured')]
        assert c.option(nbd.OPT_STARTTLS, b'x')[0][0] == nbd.ERR_INVALID
        assert c.go('ro')[-1] == (nbd.REP_ACK, b'')


def test_abort_is_acknowledged(path):
    for data in (b'', b'bye'):
        with Conn(path) as c:
            assert c.option(nbd.OPT_ABORT, data) == [(nbd.REP_ACK, b'')]
            assert c.closed()


def test_structured_reply_is_negotiated_once(path):
    with Conn(path) as c:
        assert c.option(nbd.OPT_STRUCTURED, b'x')[0][0] == nbd.ERR_INVALID
        assert c.option(nbd.OPT_STRUCTURED) == [(nbd.REP_ACK, b'')]
        assert c.option(nbd.OPT_STRUCTURED) == [
            (nbd.ERR_INVALID, b'structured reply already negotiated')]


def test_go_tells_size_flags_block_sizes_name_and_description(path):
    with Conn(path) as c:
        info = [d for k, d in c.go('ro', [nbd.INFO_NAME, nbd.INFO_BLOCK_SIZE, 77], nbd.OPT_INFO)
                if k == nbd.REP_INFO]
        assert info == [b'\0\1ro', b'\0\2for reading',
                        struct.pack('>HIII', 3, 1, 4096, 32 * MIB),
                        struct.pack('>HQH', 0, SIZE, 0x50f)]
        c.go('rw')
        assert c.transmission == 0xd6d


def test_df_is_offered_with_structured_replies(path):
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        c.go('rw')
        assert c.transmission == 0xded


@pytest.mark.parametrize('length', [0, 1, 79, 80, 81, 255, 256, 257, 4096])
def test_unknown_export_is_named_but_not_at_any_length(path, length):
    name = 'n' * length
    shown = name if length < 80 else name[:80] + '...'
    with Conn(path) as c:
        for option in (nbd.OPT_INFO, nbd.OPT_GO):
            assert c.go(name, option=option) == [
                (nbd.ERR_UNKNOWN, f"export '{shown}' not present".encode())]
        assert c.go('ro')[-1] == (nbd.REP_ACK, b'')


@pytest.mark.parametrize('data, text', [
    (nbd.go_data('n' * 4097), b'Invalid name length: 4097'),
    (b'\xff\xff\xff\xff', b'Invalid name length: 4294967295'),
    (b'', b'Inconsistent lengths in option go'),
    (b'abc', b'Inconsistent lengths in option go'),
    (b'\0\0\0\5ab', b'Inconsistent lengths in option go'),
    (b'\0\0\0\2ro', b'Inconsistent lengths in option go'),
    (b'\0\0\0\2ro\0', b'Inconsistent lengths in option go'),
    (b'\0\0\0\2ro\0\1', b'Inconsistent lengths in option go'),
    (b'\0\0\0\2ro\xff\xff\0\1', b'Inconsistent lengths in option go'),
    (nbd.go_data('r\0'), b'Unexpected embedded NUL in option go'),
    (nbd.go_data('ro') + b'x', b"option 'go' has unexpected length")])
def test_go_with_inconsistent_lengths_is_refused(path, data, text):
    with Conn(path) as c:
        assert c.option(nbd.OPT_GO, data) == [(nbd.ERR_INVALID, text)]
        assert c.go('ro')[-1] == (nbd.REP_ACK, b'')


def test_too_long_an_option_is_skipped_or_ends_the_connection(path):
    with Conn(path) as c:
        assert c.option(nbd.OPT_GO, bytes(1 << 20))[0][0] in (nbd.ERR_TOO_BIG, nbd.ERR_INVALID)
        assert c.go('ro')[-1] == (nbd.REP_ACK, b'')
    for length in ((32 << 20) + 1, 0xffffffff):
        c = Conn(path)
        c.option_send(nbd.OPT_LIST, length=length)
        assert c.closed()


# ---- metadata contexts ----

ALLOCATION = (nbd.REP_META, b'\0\0\0\0base:allocation')
ACK = (nbd.REP_ACK, b'')


@pytest.mark.parametrize('queries, found', [
    ((), []), (('base:allocation',), [ALLOCATION]), (('base:',), []), (('base:x',), []),
    (('allocation',), []), (('', 'qemu:', 'x-y:z'), []),
    (('qemu:allocation-depth', 'base:allocation', 'base:allocation'), [ALLOCATION]),
    (('a' * 4096,), []), (('a' * 4097, 'base:allocation'), [ALLOCATION])])
def test_set_meta_context(path, queries, found):
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        assert c.set_meta('rw', *queries) == [*found, ACK]


def test_list_meta_context_knows_wildcards(path):
    with Conn(path) as c:
        for queries in ((), ('base:',), ('base:allocation',)):
            assert c.set_meta('rw', *queries, option=nbd.OPT_LIST_META) == [ALLOCATION, ACK]
        assert c.set_meta('rw', 'qemu:', option=nbd.OPT_LIST_META) == [ACK]
        assert c.set_meta('nope', option=nbd.OPT_LIST_META)[0][0] == nbd.ERR_UNKNOWN


def test_set_meta_context_needs_structured_replies(path):
    with Conn(path) as c:
        assert c.set_meta('rw', 'base:allocation') == [
            (nbd.ERR_INVALID, b"request option 'set meta context' when structured reply "
                              b"is not negotiated")]


@pytest.mark.parametrize('cut', range(1, 26))
def test_meta_context_with_inconsistent_lengths_is_refused(path, cut):
    data = nbd.meta_data('rw', 'base:allocation')
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        assert c.option(nbd.OPT_SET_META, data[:-cut])[-1][0] == nbd.ERR_INVALID
        assert c.option(nbd.OPT_SET_META, data + b'x')[-1][0] == nbd.ERR_INVALID
        assert c.set_meta('rw', 'base:allocation') == [ALLOCATION, ACK]


@pytest.mark.parametrize('queries, name', [
    (('base:',), 'rw'),                 # nothing selected
    (('base:allocation',), 'ro')])      # selected for another export
def test_block_status_needs_a_context_of_this_export(path, queries, name):
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        c.set_meta('rw', *queries)
        c.go(name)
        assert c.error_of(nbd.BLOCK_STATUS, length=4096) == (
            nbd.EINVAL, 'CMD_BLOCK_STATUS not negotiated')


def test_failed_set_meta_context_deselects(path):
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        c.set_meta('rw', 'base:allocation')
        c.set_meta('nope', 'base:allocation')
        c.go('rw')
        assert c.error_of(nbd.BLOCK_STATUS, length=4096)[0] == nbd.EINVAL


# ---- transmission ----

@pytest.mark.io
@pytest.mark.parametrize('structured', [False, True])
def test_what_was_written_is_read(path, structured):
    rng = random.Random(2)
    with connect(path, 'rw', structured) as c:
        for length in (1, 511, 4096, 5000, 65536, 65537, 300000, 32 * MIB):
            offset = rng.randrange(SIZE - length)
            data = rng.randbytes(length)
            c.request(nbd.WRITE, offset, length, data=data)
            assert c.chunks() == [('simple', 0)] if structured else c.simple()[0] == 0
            c.request(nbd.READ, offset, length)
            if structured:
                got = bytearray(length)
                for kind, payload in c.chunks():
                    at = struct.unpack('>Q', payload[:8])[0] - offset
                    if kind == nbd.CHUNK_DATA:
                        got[at:at + len(payload) - 8] = payload[8:]
                    else:
                        assert kind == nbd.CHUNK_HOLE
                assert got == data
            else:
                assert c.simple(length) == (0, 7, data)


@pytest.mark.io
def test_many_requests_in_one_write_are_all_answered(path, disk):
    content = disk.read_bytes()[:MIB]
    with connect(path, 'ro') as c:
        batch = b''.join(struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.READ, i, i * 512, 512)
                         for i in range(2000))
        sender = threading.Thread(target=c.send, args=(batch,))
        sender.start()
        seen = set()
        for _ in range(2000):
            error, cookie, data = c.simple(512)
            assert error == 0 and data == content[cookie * 512:cookie * 512 + 512]
            seen.add(cookie)
        sender.join()
        assert len(seen) == 2000


@pytest.mark.io
def test_requests_that_come_byte_by_byte(path):
    data = bytes(range(256)) * 2
    with connect(path, 'rw') as c:
        for byte in struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.WRITE, 1, 7, 512) + data:
            c.send(bytes([byte]))
        assert c.simple() == (0, 1, b'')
        for byte in struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.READ, 2, 7, 512):
            c.send(bytes([byte]))
        assert c.simple(512) == (0, 2, data)


@pytest.mark.parametrize('kind, args, error', [
    (nbd.READ, dict(offset=SIZE, length=1), (nbd.EINVAL, 'operation past EOF; From: 67108864, Len: 1, Size: 67108864')),
    (nbd.READ, dict(offset=(1 << 64) - 1, length=1), (nbd.EINVAL, 'operation past EOF; From: 18446744073709551615, Len: 1, Size: 67108864')),
    (nbd.READ, dict(offset=1, length=SIZE // 2 + 1), (nbd.EINVAL, 'len (33554433) is larger than max len (33554432)')),
    (nbd.READ, dict(length=512, flags=64), (nbd.EINVAL, 'unsupported flags for command read (got 0x40)')),
    (nbd.READ, dict(length=512, flags=nbd.REQ_ONE), (nbd.EINVAL, 'unsupported flags for command read (got 0x8)')),
    (nbd.WRITE, dict(length=2, data=b'xx', flags=nbd.DF), (nbd.EINVAL, 'unsupported flags for command write (got 0x4)')),
    (nbd.WRITE, dict(offset=SIZE - 1, length=2, data=b'xx'), (nbd.ENOSPC, 'operation past EOF; From: 67108863, Len: 2, Size: 67108864')),
    (nbd.WRITE_ZEROES, dict(offset=SIZE, length=2), (nbd.ENOSPC, 'operation past EOF; From: 67108864, Len: 2, Size: 67108864')),
    (nbd.TRIM, dict(offset=SIZE, length=2), (nbd.EINVAL, 'operation past EOF; From: 67108864, Len: 2, Size: 67108864')),
    (nbd.CACHE, dict(length=33 * MIB), (nbd.EINVAL, 'len (34603008) is larger than max len (33554432)')),
    (nbd.BLOCK_STATUS, dict(length=512), (nbd.EINVAL, 'CMD_BLOCK_STATUS not negotiated')),
    (99, dict(), (nbd.EINVAL, 'invalid request type (99) received')),
    (99, dict(flags=64), (nbd.EINVAL, 'unsupported flags for command <unknown> (got 0x40)'))])
def test_wrong_request_is_refused_and_the_connection_goes_on(path, kind, args, error):
    with connect(path, 'rw', structured=True) as c:
        assert c.error_of(kind, **args) == error
        c.request(nbd.READ, 0, 16)
        assert len(c.chunks()[0][1]) == 24
    with connect(path, 'rw') as c:
        c.request(kind, **args)
        assert c.simple()[0] == error[0]
        c.request(nbd.READ, 0, 16)
        assert c.simple(16)[0] == 0


def test_too_long_a_write_is_refused_and_ends_the_connection(path):
    with connect(path, 'rw') as c:
        c.request(nbd.WRITE, 0, 33 * MIB)
        assert c.simple()[0] == nbd.EINVAL
        assert c.closed()
    assert_serves(path)


@pytest.mark.parametrize('kind', [nbd.WRITE, nbd.WRITE_ZEROES, nbd.TRIM])
def test_read_only_export_refuses_changes(path, kind):
    data = b'x' * 512 if kind == nbd.WRITE else b''
    with connect(path, 'ro', structured=True) as c:
        for _ in range(3):
            assert c.error_of(kind, length=512, data=data) == (nbd.EPERM, 'Export is read-only')
        c.request(nbd.FLUSH)
        assert c.chunks() == [('simple', 0)]


def test_request_with_a_wrong_magic_ends_the_connection(path):
    for junk in (b'\0' * 28, b'\xff' * 28, random.Random(3).randbytes(4096)):
        c = connect(path, 'rw')
        c.send(junk)
        assert c.closed()
    assert_serves(path)


def test_disconnect_lets_what_was_asked_before_end(path, disk):
    with connect(path, 'rw') as c:
        batch = b''.join(struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.WRITE, i, i * 4096, 4096)
                         + bytes([i]) * 4096 for i in range(50))
        c.send(batch + struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.DISC, 0, 0, 0))
        for _ in range(50):
            assert c.simple()[0] == 0
        assert c.closed()
    assert disk.read_bytes()[:50 * 4096] == b''.join(bytes([i]) * 4096 for i in range(50))


def test_empty_requests_succeed(path):
    with connect(path, 'rw') as c:
        for kind in (nbd.READ, nbd.WRITE, nbd.FLUSH, nbd.TRIM, nbd.CACHE, nbd.WRITE_ZEROES):
            c.request(kind, offset=SIZE)
            assert c.simple()[0] == 0
    with connect(path, 'rw', structured=True) as c:
        c.request(nbd.READ)
        assert c.chunks() == [(nbd.CHUNK_NONE, b'')]


@pytest.mark.io
def test_structured_read_leaves_holes_out(path, disk):
    content = disk.read_bytes()[MIB - 65536:MIB]
    with connect(path, 'ro', structured=True) as c:
        c.request(nbd.READ, MIB - 65536, 131072)
        assert c.chunks() == [
            (nbd.CHUNK_DATA, struct.pack('>Q', MIB - 65536) + content),
            (nbd.CHUNK_HOLE, struct.pack('>QI', MIB, 65536))]
        c.request(nbd.READ, 2 * MIB, 4096)
        assert c.chunks() == [(nbd.CHUNK_HOLE, struct.pack('>QI', 2 * MIB, 4096))]
        c.request(nbd.READ, 2 * MIB, 4096, flags=nbd.DF)
        assert c.chunks() == [(nbd.CHUNK_DATA, struct.pack('>Q', 2 * MIB) + bytes(4096))]


@pytest.mark.io
def test_zeroes_and_trim_read_as_zeroes(path):
    with connect(path, 'rw') as c:
        for kind, flags in ((nbd.WRITE_ZEROES, 0), (nbd.WRITE_ZEROES, nbd.NO_HOLE),
                            (nbd.WRITE_ZEROES, nbd.FUA), (nbd.WRITE_ZEROES, nbd.NO_HOLE | nbd.FUA)):
            c.request(nbd.WRITE, 4096, 8192, data=b'x' * 8192, flags=nbd.FUA)
            assert c.simple()[0] == 0
            c.request(kind, 5000, 4096, flags=flags)
            assert c.simple()[0] == 0
            c.request(nbd.READ, 4096, 8192)
            assert c.simple(8192)[2] == b'x' * 904 + bytes(4096) + b'x' * 3192
        for kind, flags in ((nbd.TRIM, 0), (nbd.TRIM, nbd.FUA), (nbd.FLUSH, 0),
                            (nbd.CACHE, 0), (nbd.READ, nbd.FUA)):
            c.request(kind, 0, 0 if kind == nbd.FLUSH else 65536, flags=flags)
            assert c.simple(65536 if kind == nbd.READ else 0)[0] == 0


def status(c, offset, length, flags=0):
    c.request(nbd.BLOCK_STATUS, offset, length, flags)
    (kind, payload), = c.chunks()
    assert kind == nbd.CHUNK_STATUS and payload[:4] == b'\0\0\0\0'
    return list(struct.iter_unpack('>II', payload[4:]))


@pytest.mark.io
def test_block_status(path):
    with connect(path, 'rw', structured=True, meta=['base:allocation']) as c:
        assert status(c, 0, SIZE) == [(MIB, 0), (SIZE - MIB, 3)]
        assert status(c, 4096, SIZE - 4096, nbd.REQ_ONE) == [(MIB - 4096, 0)]
        assert status(c, 4096, 512, nbd.REQ_ONE) == [(512, 0)]
        assert status(c, MIB + 1, 10) == [(10, 3)]
        assert status(c, SIZE - 1, 1) == [(1, 3)]
        assert c.error_of(nbd.BLOCK_STATUS, offset=SIZE - 1, length=2)[0] == nbd.EINVAL
        assert c.error_of(nbd.BLOCK_STATUS, length=0xffffffff)[0] == nbd.EINVAL
        assert c.error_of(nbd.BLOCK_STATUS) == (nbd.EINVAL, 'need non-zero length')


@pytest.mark.io
def test_extended_headers_serve_every_command(path):
    data = random.Random(7).randbytes(70000)
    with connect(path, 'rw', extended=True, meta=['base:allocation']) as c:
        assert c.transmission == 0x1ded
        done = [(nbd.CHUNK_NONE, b'')]
        c.request(nbd.WRITE, 4 * MIB, len(data), nbd.PAYLOAD_LEN | nbd.FUA, data=data)
        assert c.chunks() == done and c.offset == 4 * MIB
        c.request(nbd.READ, 4 * MIB + 1, 1000)
        assert c.chunks() == [(nbd.CHUNK_DATA, struct.pack('>Q', 4 * MIB + 1) + data[1:1001])]
        c.request(nbd.READ, 4 * MIB - 65536, 65536 + len(data))
        assert c.chunks() == [
            (nbd.CHUNK_HOLE, struct.pack('>QI', 4 * MIB - 65536, 65536)),
            (nbd.CHUNK_DATA, struct.pack('>Q', 4 * MIB) + data)] or len(data) % 4096
        assert c.offset == 4 * MIB - 65536
        for kind, length in ((nbd.FLUSH, 0), (nbd.CACHE, MIB), (nbd.TRIM, SIZE),
                             (nbd.WRITE_ZEROES, SIZE)):
            c.request(kind, 0, length, cookie=1 << 63)
            assert c.chunks() == done
        c.request(nbd.BLOCK_STATUS, 0, SIZE)
        (kind, payload), = c.chunks()
        assert kind == nbd.CHUNK_STATUS_EXT
        assert payload == struct.pack('>IIQQ', 0, 1, SIZE, 3)


@pytest.mark.io
def test_extended_requests_reach_beyond_4_gib(start, tmp):
    size = 12 << 30
    start('--blockdev', f'null-co,node-name=n,size={size},read-zeroes=on',
          '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
          '--export', 'nbd,id=e,node-name=n,name=big,writable=on')
    with connect(tmp / 'nbd', 'big', extended=True, meta=['base:allocation']) as c:
        for kind in (nbd.TRIM, nbd.WRITE_ZEROES):
            c.request(kind, 0, size)
            assert c.chunks() == [(nbd.CHUNK_NONE, b'')]
        c.request(nbd.BLOCK_STATUS, 1 << 30, size - (1 << 30))
        assert [struct.unpack('>IIQQ', p) for _, p in c.chunks()] == [
            (0, 1, size - (1 << 30), 3)]
        c.request(nbd.BLOCK_STATUS, 0, size, nbd.REQ_ONE)
        assert [struct.unpack('>IIQQ', p) for _, p in c.chunks()] == [(0, 1, size, 3)]
    # Compact headers cannot even ask.
    with connect(tmp / 'nbd', 'big', structured=True, meta=['base:allocation']) as c:
        assert status(c, 0, 0xffffffff) == [(0xffffffff, 3)]


def test_extended_write_needs_no_flag_for_its_data(path):
    """QEMU's client forgets it, and what it sends are not requests."""
    forged = struct.pack('>IHHQQQ', nbd.EXTENDED_REQUEST_MAGIC, 0, nbd.WRITE_ZEROES, 1, 0, 4096)
    with connect(path, 'rw', extended=True) as c:
        c.request(nbd.WRITE, 8 * MIB, len(forged), data=forged)
        assert c.chunks() == [(nbd.CHUNK_NONE, b'')]
        c.request(nbd.READ, 8 * MIB, len(forged))
        assert c.chunks()[0][1][8:] == forged
        c.request(nbd.READ, 0, 4096)
        assert c.chunks()[0][0] == nbd.CHUNK_DATA


@pytest.mark.parametrize('magic', [nbd.REQUEST_MAGIC, nbd.EXTENDED_REQUEST_MAGIC])
def test_headers_of_the_other_kind_end_the_connection(path, magic):
    with connect(path, 'rw', extended=magic == nbd.REQUEST_MAGIC) as c:
        c.request(nbd.FLUSH, magic=magic)
        assert c.closed()


def test_block_status_may_be_limited_to_some_contexts(start, tmp, disk):
    start('--blockdev', f'file,node-name=f,filename={disk}',
          '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
          '--export', 'nbd,id=e,node-name=f,allocation-depth=on')
    both = ['base:allocation', 'qemu:allocation-depth']
    with connect(tmp / 'nbd', 'f', extended=True, meta=both) as c:
        for ids in ((0,), (1,), (0, 1), (1, 0)):
            data = nbd.status_data(4096, *ids)
            c.request(nbd.BLOCK_STATUS, 0, len(data), nbd.PAYLOAD_LEN, data=data)
            assert [struct.unpack('>I', p[:4])[0] for _, p in c.chunks()] == sorted(ids)
        c.request(nbd.BLOCK_STATUS, 0, 4096)
        assert len(c.chunks()) == 2


# ---- dirty bitmaps ----

@pytest.fixture
def marked(start, tmp):
    """(daemon, path) of exports of an overlay: its bitmap `new`, its backing file's
    `old`, and another node's `other`."""
    base, top = tmp / 'base.qcow2', tmp / 'top.qcow2'
    images.img('create', '-f', 'qcow2', base, str(SIZE))
    images.img('create', '-f', 'qcow2', '-F', 'qcow2', '-b', base, top)
    d = start('--blockdev', f'file,node-name=bf,filename={base}',
              '--blockdev', 'qcow2,node-name=base,file=bf',
              '--blockdev', f'file,node-name=tf,filename={top}',
              '--blockdev', 'qcow2,node-name=top,file=tf,backing=base',
              '--blockdev', f'null-co,node-name=null,size={SIZE}',
              '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd')
    for node, name, disabled in (('top', 'new', False), ('base', 'old', True),
                                 ('null', 'other', False)):
        d.cmd('block-dirty-bitmap-add', {'node': node, 'name': name, 'disabled': disabled,
                                         'granularity': 65536})
    d.cmd('block-export-add', {
        'type': 'nbd', 'id': 'e', 'node-name': 'top', 'name': 'x', 'writable': True,
        'allocation-depth': True, 'bitmaps': ['new', 'old', {'node': 'null', 'name': 'other'}]})
    return d, tmp / 'nbd'


BITMAPS = [f'qemu:dirty-bitmap:{name}' for name in ('new', 'old', 'other')]


def test_bitmaps_are_listed_and_chosen_by_name(marked):
    _, path = marked
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)

        def names(*queries, option=nbd.OPT_LIST_META):
            *found, last = c.set_meta('x', *queries, option=option)
            assert last == ACK
            return [(struct.unpack('>I', d[:4])[0], d[4:].decode()) for _, d in found]

        all_qemu = ['qemu:allocation-depth', *BITMAPS]
        assert names() == [(0, n) for n in ['base:allocation', *all_qemu]]
        assert names('qemu:') == [(0, n) for n in all_qemu]
        assert names('qemu:dirty-bitmap:') == [(0, n) for n in BITMAPS]
        assert names(BITMAPS[1], 'base:') == [(0, 'base:allocation'), (0, BITMAPS[1])]
        assert names('qemu:dirty-bitmap:ne', 'qemu:dirty-bitmap', BITMAPS[0] + 'x') == []
        for wildcard in ('base:', 'qemu:', 'qemu:dirty-bitmap:'):
            assert names(wildcard, option=nbd.OPT_SET_META) == []
        assert names(BITMAPS[2], BITMAPS[0], option=nbd.OPT_SET_META) == [
            (2, BITMAPS[0]), (4, BITMAPS[2])]


@pytest.mark.io
def test_block_status_tells_what_a_bitmap_marks(marked):
    _, path = marked
    with connect(path, 'x', structured=True, meta=BITMAPS) as c:
        c.request(nbd.WRITE, MIB + 5, 10, data=b'x' * 10)
        assert c.chunks() == [('simple', 0)]
        c.request(nbd.WRITE_ZEROES, 3 * MIB, 2 * MIB)
        assert c.chunks() == [('simple', 0)]

        def marks(offset, length, flags=0):
            c.request(nbd.BLOCK_STATUS, offset, length, flags)
            return {struct.unpack('>I', p[:4])[0]: list(struct.iter_unpack('>II', p[4:]))
                    for _, p in c.chunks()}

        clean = [(SIZE, 0)]
        assert marks(0, SIZE) == {
            2: [(MIB, 0), (65536, 1), (2 * MIB - 65536, 0), (2 * MIB, 1), (SIZE - 5 * MIB, 0)],
            3: clean, 4: clean}
        assert marks(MIB + 1, 100, nbd.REQ_ONE) == {2: [(100, 1)], 3: [(100, 0)], 4: [(100, 0)]}
        assert marks(MIB - 1, 100, nbd.REQ_ONE)[2] == [(1, 0)]
        assert marks(MIB - 1, 100)[2] == [(1, 0), (99, 1)]


def test_exported_bitmaps_are_busy_until_the_export_has_gone(marked):
    d, _ = marked
    busy = "Bitmap 'new' is currently in use by another operation and cannot be used"
    for command in ('remove', 'clear', 'disable'):
        assert d.ask(f'block-dirty-bitmap-{command}', {'node': 'top', 'name': 'new'})['error'][
            'desc'] == busy
    assert d.ask('block-export-add', {'type': 'nbd', 'id': 'e2', 'node-name': 'top', 'name': 'y',
                                      'writable': True, 'bitmaps': ['old', 'new']})[
        'error']['desc'].endswith('cannot be used')
    d.cmd('block-export-del', id='e')
    for node, name in (('top', 'new'), ('base', 'old'), ('null', 'other')):
        d.cmd('block-dirty-bitmap-remove', {'node': node, 'name': name})
    d.cmd('blockdev-del', node_name='null')


def test_a_failing_export_leaves_no_bitmap_busy(marked):
    d, _ = marked
    d.cmd('block-export-del', id='e')
    reply = d.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'top',
                                       'writable': True, 'bitmaps': ['new', 'old', 'none']})
    assert reply['error']['desc'] == "Bitmap 'none' is not found"
    for node, name in (('top', 'new'), ('base', 'old')):
        d.cmd('block-dirty-bitmap-remove', {'node': node, 'name': name})
    too_many = [{'node': 'top', 'name': f'b{i}'} for i in range(63)]
    reply = d.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'top',
                                       'bitmaps': too_many})
    assert reply['error']['desc'] == 'At most 62 bitmaps can be exported together'


@pytest.mark.limit(180)
def test_disconnect_at_every_byte(serve):
    """A whole session, cut after each of its bytes: nothing is left of any."""
    d, path = serve(max_connections=4)
    session = struct.pack('>I', 3)
    for option, data in ((nbd.OPT_STRUCTURED, b''), (nbd.OPT_LIST, b''),
                         (nbd.OPT_SET_META, nbd.meta_data('rw', 'base:allocation')),
                         (nbd.OPT_GO, nbd.go_data('rw', [3]))):
        session += struct.pack('>QII', nbd.IHAVEOPT, option, len(data)) + data
    for kind, data in ((nbd.READ, b''), (nbd.WRITE, b'z' * 64), (nbd.BLOCK_STATUS, b''),
                       (nbd.FLUSH, b''), (nbd.DISC, b'')):
        session += struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, kind, 1, 0,
                               64 if kind != nbd.FLUSH else 0) + data
    for cut in range(len(session) + 1):
        with Conn(path, greet=False) as c:
            c.send(session[:cut])
    # There is room for new ones only if the old ones are gone.
    conns = [connect(path, 'rw') for _ in range(4)]
    for c in conns:
        c.sock.close()
    assert {e['id']: e['shutting-down'] for e in d.cmd('query-block-exports')} == {
        'rw': False, 'ro': False}


def test_junk_instead_of_a_handshake(path):
    rng = random.Random(4)
    for length in (1, 4, 20, 100, 4096, 100000):
        c = Conn(path, greet=False)
        try:
            c.send(rng.randbytes(length))
        except nbd.Closed:
            pass
        c.sock.close()
    c = Conn(path, greet=False)
    c.send(b'GET / HTTP/1.0\r\n\r\n')
    c.recv(18)
    assert c.closed()
    assert_serves(path)


# ---- many clients ----

@pytest.mark.io
def test_client_that_reads_no_replies_blocks_only_itself(serve):
    d, path = serve()
    c = connect(path, 'ro')
    c.sock.settimeout(2)
    sent = 0
    request = struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.READ, 1, 0, MIB) * 100
    with pytest.raises(socket.timeout):
        while sent < 1000:
            c.send(request)
            sent += 1
    for _ in range(20):
        assert_serves(path)
    assert rss_mib(d.pid) < 200 * (4 if quoin.SLOW > 1 else 1)
    assert d.cmd('block-export-del', id='ro', mode='hard') == {}
    assert c.sock.recv(1)
    c.sock.close()


def rss_mib(pid):
    with open(f'/proc/{pid}/status') as f:
        return int(next(line for line in f if line.startswith('VmRSS')).split()[1]) // 1024


@pytest.mark.io
@pytest.mark.limit(120)
def test_clients_at_the_same_time_keep_their_data_apart(path):
    failures = []

    def work(n):
        try:
            rng = random.Random(n)
            with connect(path, 'rw', structured=n % 2) as c:
                base = n * 4 * MIB
                for i in range(150):
                    length = rng.choice((512, 4096, 70000))
                    data = bytes([n * 16 + i % 16]) * length
                    c.request(nbd.WRITE, base + 64 * i, length, data=data)
                    assert c.chunks() == [('simple', 0)]
                    c.request(nbd.READ, base + 64 * i, length, flags=nbd.DF if n % 2 else 0)
                    got = c.chunks()[0][1][8:] if n % 2 else c.simple(length)[2]
                    assert got == data
        except Exception as e:          # noqa: B902 - told below
            failures.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_connections_beyond_the_limit_wait(serve):
    _, path = serve(max_connections=2)
    a, b = connect(path, 'ro'), connect(path, 'rw')
    late = Conn(path, greet=False, timeout=0.3)
    with pytest.raises(socket.timeout):
        late.sock.recv(1)
    a.sock.close()
    late.sock.settimeout(20)
    assert late.recv(8) == b'NBDMAGIC'
    for c in (b, late):
        c.sock.close()


def test_one_connection_only_means_no_multi_conn(serve):
    _, path = serve(max_connections=1)
    with connect(path, 'ro') as c:
        assert not c.transmission & 0x100


def test_handshake_has_a_time_limit(serve):
    _, path = serve(handshake_max_seconds=1)
    begin = time.monotonic()
    silent, slow, ready = Conn(path, greet=False), Conn(path), connect(path, 'ro')
    silent.recv(18)
    assert silent.closed() and slow.closed()
    assert 0.5 < time.monotonic() - begin < 15
    ready.request(nbd.READ, length=512)
    assert ready.simple(512)[0] == 0


# ---- life cycle ----

def test_stop_throws_everybody_out(serve):
    d, path = serve()
    silent, half, ready = Conn(path, greet=False), Conn(path), connect(path, 'rw')
    silent.recv(18)
    assert d.cmd('nbd-server-stop') == {}
    assert silent.closed() and half.closed() and ready.closed()
    assert {d.wait_event('BLOCK_EXPORT_DELETED')['data']['id'] for _ in range(2)} == {'rw', 'ro'}
    assert d.cmd('query-block-exports') == []
    assert not os.path.exists(path)
    assert d.ask('nbd-server-stop')['error']['desc'] == 'NBD server not running'
    assert d.cmd('blockdev-del', node_name='f') == {}


def test_quit_with_clients(serve):
    d, path = serve()
    conns = [Conn(path, greet=False), Conn(path), connect(path, 'rw')]
    conns[2].send(struct.pack('>IHH', nbd.REQUEST_MAGIC, 0, nbd.WRITE))
    d.stop()
    assert not os.path.exists(path)
    conns[0].recv(18)
    assert all(c.closed() for c in conns)


def test_safe_delete_is_refused_while_a_client_is_there(serve):
    d, path = serve()
    with connect(path, 'rw') as c:
        assert d.ask('block-export-del', id='rw')['error']['desc'] == "export 'rw' still in use"
        c.request(nbd.DISC)
        assert c.closed()
    # The server learns of the end when it reads it.
    end = time.monotonic() + quoin.LIMIT
    while 'error' in d.ask('block-export-del', id='rw'):
        assert time.monotonic() < end
    d.wait_event('BLOCK_EXPORT_DELETED', id='rw')


def test_hard_delete_closes_connections_and_frees_the_node(serve):
    d, path = serve()
    c, stays = connect(path, 'rw'), connect(path, 'ro')
    assert d.cmd('block-export-del', id='rw', mode='hard') == {}
    d.wait_event('BLOCK_EXPORT_DELETED', id='rw')
    assert c.closed()
    stays.request(nbd.READ, length=512)
    assert stays.simple(512)[0] == 0
    stays.sock.close()
    assert d.cmd('block-export-del', id='ro', mode='hard') == {}
    assert d.cmd('blockdev-del', node_name='f') == {}


def test_export_of_a_deleted_name_is_not_found(serve):
    d, path = serve()
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        c.set_meta('rw', 'base:allocation')
        d.cmd('block-export-del', id='rw')
        assert c.go('rw')[0][0] == nbd.ERR_UNKNOWN
        d.cmd('block-export-add', {'type': 'nbd', 'id': 'new', 'node-name': 'f', 'name': 'rw',
                                   'writable': True})
        # What was selected was another export's.
        assert c.go('rw')[-1] == ACK
        assert c.error_of(nbd.BLOCK_STATUS, length=512)[0] == nbd.EINVAL


def test_server_starts_again_on_the_same_path(serve):
    d, path = serve()
    for _ in range(3):
        d.cmd('nbd-server-stop')
        d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
        d.cmd('block-export-add', {'type': 'nbd', 'id': 'ro', 'node-name': 'f', 'name': 'ro'})
        assert_serves(path)


def test_tcp_and_iothread(start, disk):
    port = free_port()
    d = start('--object', 'iothread,id=io', '--blockdev', f'file,node-name=f,filename={disk}',
              '--nbd-server', f'addr.type=inet,addr.host=127.0.0.1,addr.port={port}',
              '--export', 'nbd,id=e,node-name=f,iothread=io,fixed-iothread=on')
    sock = socket.create_connection(('127.0.0.1', port))
    sock.settimeout(20)
    assert sock.recv(18)[:8] == b'NBDMAGIC'
    assert 'error' in d.ask('object-del', id='io')
    sock.close()
    d.cmd('block-export-del', id='e', mode='hard')
    d.cmd('object-del', id='io')


def test_first_free_port_of_a_range_is_taken(start, tmp):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        address = {'host': '127.0.0.1', 'port': str(port)}
        d = start()
        assert d.ask('nbd-server-start', addr={'type': 'inet', 'data': address})['error'][
            'desc'] == 'Failed to find an available port: Address already in use'
        address['to'] = min(port + 20, 65535)
        d.cmd('nbd-server-start', addr={'type': 'inet', 'data': address})
        assert d.ask('nbd-server-start', addr={'type': 'inet', 'data': address})['error'][
            'desc'] == 'NBD server already running'


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def test_listening_fd_is_taken(start, tmp, disk):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp / 'given'))
    listener.listen()
    start('--blockdev', f'file,node-name=f,filename={disk}',
          '--nbd-server', f'addr.type=fd,addr.str={listener.fileno()}',
          '--export', 'nbd,id=ro,node-name=f,name=ro', pass_fds=[listener.fileno()])
    listener.close()
    assert_serves(tmp / 'given')


def test_failing_start_leaves_no_socket(start, tmp):
    d = start()
    addr = {'type': 'unix', 'data': {'path': str(tmp / 's')}}
    assert 'error' in d.ask('nbd-server-start', addr=addr, tls_creds='none')
    assert not (tmp / 's').exists()
    long = {'type': 'unix', 'data': {'path': '/tmp/' + 'n' * 120}}
    assert 'too long' in d.ask('nbd-server-start', addr=long)['error']['desc']
    d.cmd('nbd-server-start', addr=addr)


# ---- disks that hang ----

@pytest.fixture
def hung(start, tmp):
    """(daemon, connection) whose read of a node will not end for a minute."""
    path = tmp / 'nbd'
    d = start('--blockdev', 'null-co,node-name=n,size=1048576,latency-ns=60000000000',
              '--blockdev', 'null-co,node-name=other,size=1048576,read-zeroes=on',
              '--nbd-server', f'addr.type=unix,addr.path={path}',
              '--export', 'nbd,id=e,node-name=n,name=hangs',
              '--export', 'nbd,id=ro,node-name=other,name=ro',
              # What hangs at the end is let go of.
              env={'LSAN_OPTIONS': 'detect_leaks=0'})
    c = connect(path, 'hangs')
    c.request(nbd.READ, length=512)
    assert_serves(path)
    return d, c, path


@pytest.mark.patient
def test_hard_delete_returns_while_a_request_hangs(hung):
    d, c, path = hung
    begin = time.monotonic()
    assert d.cmd('block-export-del', id='e', mode='hard') == {}
    assert time.monotonic() - begin < 10 * quoin.SLOW
    assert c.closed()
    assert {e['id']: e['shutting-down'] for e in d.cmd('query-block-exports')} == {
        'e': True, 'ro': False}
    assert d.ask('block-export-del', id='e')['error']['desc'] == (
        "Export 'e' is already shutting down")
    assert_serves(path)


@pytest.mark.patient
def test_stop_returns_while_a_request_hangs(hung):
    d, c, path = hung
    begin = time.monotonic()
    assert d.cmd('nbd-server-stop') == {}
    assert time.monotonic() - begin < 15 * quoin.SLOW
    assert c.closed()
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'again', 'node-name': 'other', 'name': 'ro'})
    assert_serves(path)


@pytest.mark.patient
def test_a_hanging_request_holds_up_no_command(hung):
    d, _, _ = hung
    other = d.connect()
    d.qmp.send_raw(b'{"execute": "block-export-del", "arguments": {"id": "e", "mode": "hard"}}')
    begin = time.monotonic()
    other.cmd('query-version')
    assert time.monotonic() - begin < 1 * quoin.SLOW
