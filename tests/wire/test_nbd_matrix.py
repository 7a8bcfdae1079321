# SPDX-License-Identifier: Apache-2.0
"""The protocol's text, requirement by requirement, by raw bytes.

docs/nbd.md lists the requirements and names their tests; many stand in
test_nbd.py, test_nbd_tls.py and test_nbd_servers.py.
"""
import itertools
import os
import random
import shutil
import struct
import time

import nbdraw as nbd
import pytest
import quoin
from nbdraw import Closed, Conn, connect

MIB = 1 << 20
SIZE = 64 * MIB
ACK = (nbd.REP_ACK, b'')
EDGES = (256, 257, 4096, 4097, 0xffffffff)
MODES = ('simple', 'structured', 'extended')
COMMANDS = range(8)


@pytest.fixture
def disk(tmp):
    path = tmp / 'disk'
    with open(path, 'wb') as f:
        f.write(random.Random(1).randbytes(MIB))
        f.truncate(SIZE)
    return path


@pytest.fixture
def server(start, tmp, disk):
    """(daemon, path) of exports rw and ro, with two contexts."""
    d = start('--blockdev', f'file,node-name=f,filename={disk}',
              '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
              '--export', 'nbd,id=rw,node-name=f,name=rw,writable=on,allocation-depth=on',
              '--export', 'nbd,id=ro,node-name=f,name=ro,description=for reading')
    return d, tmp / 'nbd'


@pytest.fixture
def path(server):
    return server[1]


def enter(path, mode, name='rw', meta=('base:allocation', 'qemu:allocation-depth')):
    return connect(path, name, structured=mode == 'structured', extended=mode == 'extended',
                   meta=meta if mode != 'simple' else None)


def ask(c, mode, kind, offset=0, length=0, flags=0, data=b''):
    """The error of a request, 0 for success; its reply is read to the end."""
    if kind == nbd.WRITE and mode == 'extended' and data:
        flags |= nbd.PAYLOAD_LEN
    c.request(kind, offset, length, flags, data=data)
    if mode == 'simple':
        return c.simple(length if kind == nbd.READ else 0)[0]
    chunk, payload = c.chunks()[-1]
    if chunk == 'simple':
        return payload
    return struct.unpack('>I', payload[:4])[0] if chunk >= 0x8000 else 0


def assert_serves(path):
    with connect(path, 'ro') as c:
        c.request(nbd.READ, length=512)
        assert c.simple(512)[0] == 0


# ---- the handshake ----

def test_the_greeting_claims_nothing_unknown(path):
    with Conn(path, greet=False) as c:
        assert c.recv(18) == struct.pack('>QQH', nbd.NBDMAGIC, nbd.IHAVEOPT, 3)


@pytest.mark.parametrize('bit', range(2, 32))
def test_each_unknown_client_flag_ends_the_connection(path, bit):
    assert Conn(path, flags=1 << bit).closed()
    assert Conn(path, flags=1 << bit | 3).closed()


class Model:
    """What the text says that a server has agreed on after some options."""

    def __init__(self):
        self.mode, self.meta = 0, None

    def expect(self, what):
        """The kinds of replies to an option."""
        if what == 'structured':
            if self.mode:
                return [nbd.ERR_EXT_REQD if self.mode == 2 else nbd.ERR_INVALID]
            self.mode = 1
        elif what == 'extended':
            if self.mode == 2:
                return [nbd.ERR_INVALID]
            self.mode = 2
        elif what == 'list':
            return [nbd.REP_SERVER, nbd.REP_SERVER, nbd.REP_ACK]
        elif what == 'info':
            return [nbd.REP_INFO, nbd.REP_INFO, nbd.REP_ACK]
        elif what == 'list-meta':
            return [nbd.REP_META, nbd.REP_META, nbd.REP_ACK]
        elif what.startswith('meta'):
            if not self.mode:
                return [nbd.ERR_INVALID]
            self.meta = what[-2:]
            return [nbd.REP_META, nbd.REP_ACK]
        elif what == 'bad-meta':
            if self.mode:
                self.meta = None
            return [nbd.ERR_UNKNOWN if self.mode else nbd.ERR_INVALID]
        else:
            assert what == 'unknown'
            return [nbd.ERR_UNSUP]
        return [nbd.REP_ACK]


OPTIONS = {
    'structured': (nbd.OPT_STRUCTURED, b''), 'extended': (nbd.OPT_EXTENDED, b''),
    'list': (nbd.OPT_LIST, b''), 'info': (nbd.OPT_INFO, nbd.go_data('rw')),
    'list-meta': (nbd.OPT_LIST_META, nbd.meta_data('rw')),
    'meta-rw': (nbd.OPT_SET_META, nbd.meta_data('rw', 'base:allocation')),
    'meta-ro': (nbd.OPT_SET_META, nbd.meta_data('ro', 'base:allocation')),
    'bad-meta': (nbd.OPT_SET_META, nbd.meta_data('none', 'base:allocation')),
    'unknown': (99, b'data'),
}


@pytest.mark.limit(180)
def test_options_in_every_order(path):
    """CVE-2019-14850 and -14851: no order confuses the server or opens a disk."""
    for order in itertools.product(OPTIONS, repeat=3):
        model = Model()
        with Conn(path) as c:
            for what in order:
                expected = model.expect(what)
                assert [k for k, _ in c.option(*OPTIONS[what])] == expected, (order, what)
            assert c.go('rw')[-1] == ACK
            c.extended = model.mode == 2
            assert bool(c.transmission & 0x80) == (model.mode > 0), order
            assert bool(c.transmission & 0x1000) == (model.mode == 2 and model.meta == 'rw'), order
            error = ask(c, MODES[model.mode], nbd.BLOCK_STATUS, length=4096)
            assert error == (0 if model.meta == 'rw' else nbd.EINVAL), order


def test_nothing_follows_on_go(path):
    """No zeroes after GO, whatever was agreed on; and no more options."""
    with Conn(path, flags=1) as c:
        c.go('ro')
        c.request(nbd.READ, length=16)
        assert c.simple(16)[0] == 0
        c.option_send(nbd.OPT_LIST, bytes(12))      # as long as a request
        assert c.closed()


def test_go_tells_what_info_told(path):
    with Conn(path) as c:
        for option in (nbd.OPT_STRUCTURED, nbd.OPT_EXTENDED):
            c.option(option)
            told = c.go('rw', [1, 3, 77], nbd.OPT_INFO)
            assert c.go('rw', [1, 3, 77], nbd.OPT_INFO) == told
        assert c.go('rw', [1, 3, 77]) == told


def test_list_meta_context_needs_nothing_agreed_on(path):
    with Conn(path) as c:
        assert len(c.set_meta('rw', option=nbd.OPT_LIST_META)) == 3


def test_contexts_have_ids_of_their_own(path):
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        *found, last = c.set_meta('rw', 'qemu:allocation-depth', 'base:allocation')
        assert last == ACK
        assert len({data[:4] for _, data in found}) == 2


@pytest.mark.parametrize('option', [nbd.OPT_STARTTLS, nbd.OPT_LIST, nbd.OPT_STRUCTURED,
                                    nbd.OPT_EXTENDED])
def test_options_without_data_refuse_any(path, option):
    with Conn(path) as c:
        for data in (b'x', bytes(4096)):
            assert c.option(option, data)[0][0] == nbd.ERR_INVALID
        assert c.go('rw')[-1] == ACK


# ---- lengths: CVE-2017-15118, -15119, CVE-2022-26495, -26496 ----

@pytest.mark.parametrize('length', EDGES)
@pytest.mark.parametrize('option', [nbd.OPT_INFO, nbd.OPT_GO, nbd.OPT_SET_META,
                                    nbd.OPT_LIST_META])
def test_lengths_of_names(path, option, length):
    name = b'n' * min(length, 5000)
    tail = struct.pack('>H', 0) if option in (nbd.OPT_INFO, nbd.OPT_GO) else struct.pack('>I', 0)
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        (kind, text), = c.option(option, struct.pack('>I', length) + name + tail)
        assert kind == (nbd.ERR_UNKNOWN if length <= 4096 else nbd.ERR_INVALID)
        assert len(text) <= 4096
        assert c.go('rw')[-1] == ACK


@pytest.mark.parametrize('length', EDGES)
@pytest.mark.parametrize('option', [nbd.OPT_SET_META, nbd.OPT_LIST_META])
def test_lengths_and_counts_of_queries(path, option, length):
    name = struct.pack('>I', 2) + b'rw'
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        query = struct.pack('>II', 1, length) + b'q' * min(length, 5000)
        kinds = [k for k, _ in c.option(option, name + query)]
        assert kinds == [nbd.REP_ACK if length < 5000 else nbd.ERR_INVALID]
        # More queries than there are.
        assert c.option(option, name + struct.pack('>I', length))[-1][0] == nbd.ERR_INVALID
        assert c.go('rw')[-1] == ACK


@pytest.mark.parametrize('count', [1, 2, 256, 257, 0xffff])
def test_counts_of_information_requests(path, count):
    head = struct.pack('>I', 2) + b'rw' + struct.pack('>H', count)
    with Conn(path) as c:
        assert c.option(nbd.OPT_INFO, head + bytes(2 * count))[-1] == ACK
        assert c.option(nbd.OPT_INFO, head + bytes(2 * count - 1))[0][0] == nbd.ERR_INVALID
        assert c.go('rw')[-1] == ACK


@pytest.mark.parametrize('length', [*EDGES, 1 << 18, (1 << 18) + 1, 32 << 20, (32 << 20) + 1])
@pytest.mark.parametrize('option', [0, *range(2, 12), 99])
def test_lengths_of_options(path, option, length):
    """What can be skipped is; a length that nobody means ends the connection."""
    with Conn(path) as c:
        if length > 32 << 20:
            c.option_send(option, length=length)
            assert c.closed()
            return
        replies = c.option(option, bytes(length))
        if option == nbd.OPT_ABORT:
            assert c.closed()
            return
        assert replies[-1][0] & nbd.REP_ERR
        assert c.go('rw')[-1] == ACK


@pytest.mark.parametrize('length', [4097, (1 << 18) + 1, 32 << 20, (32 << 20) + 1])
def test_too_long_an_export_name_ends_the_connection(path, length):
    """EXPORT_NAME knows no error reply: it would be taken for a size and flags."""
    with Conn(path) as c:
        try:
            c.option_send(nbd.OPT_EXPORT_NAME, bytes(min(length, 32 << 20)), length)
        except Closed:
            pass
        assert c.closed()
    assert_serves(path)


def test_nobody_is_told_to_use_tls_where_there_is_none(path):
    data = (b'', b'none', nbd.go_data('none'), nbd.go_data('rw'), nbd.meta_data('none', 'base:'))
    for option in (0, *range(3, 7), *range(8, 13), 99):
        for payload in data:
            with Conn(path) as c:
                assert all(kind != nbd.ERR_TLS_REQD for kind, _ in c.option(option, payload))


HAS_FLAGS, READ_ONLY, TRIM, ZEROES, SEND_DF, FAST, STATUS_PAYLOAD = (
    1 << bit for bit in (0, 1, 5, 6, 7, 11, 12))
KNOWN_FLAGS = 0x1def


@pytest.mark.parametrize('name', ['rw', 'ro'])
@pytest.mark.parametrize('mode', MODES)
def test_transmission_flags_fit_together(path, mode, name):
    for meta in (None, ('base:allocation',), ('base:none',)):
        if meta and mode == 'simple':
            continue
        with enter(path, mode, name, meta) as c:
            flags = c.transmission
        assert flags & HAS_FLAGS and not flags & ~KNOWN_FLAGS
        assert bool(flags & READ_ONLY) == (name == 'ro')
        assert bool(flags & SEND_DF) == (mode != 'simple')
        assert bool(flags & FAST) == bool(flags & ZEROES) == bool(flags & TRIM) == (name == 'rw')
        assert bool(flags & STATUS_PAYLOAD) == (mode == 'extended' and meta == ('base:allocation',))
        if mode == 'extended':
            continue
        with Conn(path) as c:
            if mode == 'structured':
                c.option(nbd.OPT_STRUCTURED)
            c.option_send(nbd.OPT_EXPORT_NAME, name.encode())
            assert struct.unpack('>QH', c.recv(10)) == (SIZE, flags)


# ---- requests ----

LEGAL = {       # the flags of each command, but FUA, which all have
    nbd.READ: nbd.DF, nbd.WRITE_ZEROES: nbd.NO_HOLE | nbd.FAST_ZERO,
    nbd.BLOCK_STATUS: nbd.REQ_ONE,
}


@pytest.mark.parametrize('mode', MODES)
def test_each_flag_of_each_command(path, mode):
    with enter(path, mode) as c:
        for kind in COMMANDS:
            for bit in range(16):
                flag = 1 << bit
                # It says that a payload follows: a test of its own.
                if kind == nbd.DISC or (mode == 'extended' and flag == nbd.PAYLOAD_LEN):
                    continue
                legal = flag == nbd.FUA or flag & LEGAL.get(kind, 0)
                if mode == 'simple' and (kind == nbd.BLOCK_STATUS or flag == nbd.DF):
                    legal = False
                data = bytes(512) if kind == nbd.WRITE else b''
                length = 0 if kind == nbd.FLUSH else 512
                error = ask(c, mode, kind, 8 * MIB, length, flag, data)
                allowed = (0, nbd.ENOTSUP) if flag == nbd.FAST_ZERO else (0,)
                assert error in (allowed if legal else (nbd.EINVAL,)), (kind, flag)


@pytest.mark.parametrize('mode', MODES)
def test_each_unknown_command_is_refused(path, mode):
    with enter(path, mode) as c:
        for kind in (8, 9, 255, 256, 0x7fff, 0xffff):
            for length in (0, 1, 0xffffffff):
                assert ask(c, mode, kind, 0, length) == nbd.EINVAL
        assert ask(c, mode, nbd.FLUSH) == 0


def test_a_payload_that_nobody_wants_is_skipped(path):
    mode = 'extended'
    with enter(path, mode) as c:
        for kind in (*COMMANDS, 99):
            if kind in (nbd.WRITE, nbd.DISC):
                continue
            for length in (1, 7, 512, 65536, 65537, 3 * MIB):
                # It would be requests, if it were taken for such.
                forged = struct.pack('>IHHQQQ', nbd.EXTENDED_REQUEST_MAGIC, 0, nbd.WRITE_ZEROES,
                                     9, 0, 512) * (length // 32 + 1)
                assert ask(c, mode, kind, 0, length, nbd.PAYLOAD_LEN, forged[:length]) == nbd.EINVAL
        c.request(nbd.READ, 0, 512)
        assert c.chunks()[0][0] == nbd.CHUNK_DATA


def test_too_long_a_payload_that_nobody_wants_ends_the_connection(path):
    for kind in (nbd.READ, nbd.FLUSH, nbd.TRIM, nbd.BLOCK_STATUS, 99):
        for length in (32 * MIB + 1, 1 << 32, (1 << 64) - 1):
            with enter(path, 'extended') as c:
                c.request(kind, 0, length, nbd.PAYLOAD_LEN)
                (chunk, payload), = c.chunks()
                assert (chunk, payload[:4]) == (nbd.CHUNK_ERROR, b'\0\0\0\x16')
                assert c.closed()
    assert_serves(path)


STATUS_PAYLOADS = {
    'nothing': b'', 'no ids': nbd.status_data(4096), 'half an effect length': bytes(4),
    'half an id': nbd.status_data(4096, 0)[:-1], 'an id and a half': nbd.status_data(4096, 0) + b'xx',
    'an unknown id': nbd.status_data(4096, 2), 'a known and an unknown id': nbd.status_data(4096, 0, 77),
    'ids beyond any': nbd.status_data(4096, 64, 0xffffffff), 'an id twice': nbd.status_data(4096, 0, 1, 0),
    'ids without end': nbd.status_data(4096, *range(500)), 'far too much': bytes(MIB),
    'an effect of nothing': nbd.status_data(0, 0), 'beyond the end': nbd.status_data(SIZE + 1, 0),
    'round the end': nbd.status_data((1 << 64) - 1, 0),
}


def test_block_status_with_a_payload_that_is_wrong_is_refused(path):
    with enter(path, 'extended') as c:
        for name, data in STATUS_PAYLOADS.items():
            for offset in (0, 4096):
                flags = nbd.PAYLOAD_LEN | nbd.REQ_ONE
                assert ask(c, 'extended', nbd.BLOCK_STATUS, offset, len(data), flags,
                           data) == nbd.EINVAL, name
        # The connection has not lost its place.
        good = nbd.status_data(4096, 1, 0)
        c.request(nbd.BLOCK_STATUS, 0, len(good), nbd.PAYLOAD_LEN, data=good)
        assert len(c.chunks()) == 2
    # Without contexts there are none to limit.
    with enter(path, 'extended', meta=None) as c:
        data = nbd.status_data(4096, 0)
        assert ask(c, 'extended', nbd.BLOCK_STATUS, 0, len(data), nbd.PAYLOAD_LEN,
                   data) == nbd.EINVAL


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('offset, length', [
    (0, 0xffffffff), (SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0), ((1 << 64) - 1, 1),
    ((1 << 64) - 1, 0xffffffff), (1 << 63, 1 << 31), ((1 << 64) - 512, 512)])
def test_ranges_that_end_nowhere(path, mode, offset, length):
    """CVE-2025-47711 and -47712 among them."""
    with enter(path, mode) as c:
        for kind in (nbd.READ, nbd.TRIM, nbd.CACHE, nbd.WRITE_ZEROES, nbd.BLOCK_STATUS):
            expected = nbd.ENOSPC if kind == nbd.WRITE_ZEROES else nbd.EINVAL
            assert ask(c, mode, kind, offset, length) == expected, kind
        if length <= 512:
            assert ask(c, mode, nbd.WRITE, offset, length, data=bytes(length)) == nbd.ENOSPC
        assert ask(c, mode, nbd.FLUSH) == 0


@pytest.mark.parametrize('mode', ['simple', 'extended'])
def test_a_write_of_any_length_is_taken_or_ends_the_connection(path, mode):
    for length in (256, 257, 4096, 4097, 32 * MIB, 32 * MIB + 1, 0xffffffff):
        with enter(path, mode) as c:
            if length <= 32 * MIB:
                assert ask(c, mode, nbd.WRITE, 0, length, data=bytes(length)) == 0
                continue
            c.request(nbd.WRITE, 0, length, nbd.PAYLOAD_LEN if mode == 'extended' else 0)
            assert (c.chunks()[-1][1][:4] == b'\0\0\0\x16' if mode == 'extended'
                    else c.simple()[0] == nbd.EINVAL)
            assert c.closed()
    assert_serves(path)


@pytest.mark.parametrize('mode', MODES)
def test_cookies_are_opaque_and_may_repeat(path, mode):
    with enter(path, mode) as c:
        for cookie in (0, 0, 0, (1 << 64) - 1, 1 << 63, 0x2560951300000000):
            c.request(nbd.READ, 0, 8, cookie=cookie)
            if mode == 'simple':
                assert c.simple(8)[1] == cookie
                continue
            size = 32 if mode == 'extended' else 20
            head = c.recv(size)
            assert struct.unpack('>Q', head[8:16])[0] == cookie
            c.recv(struct.unpack('>Q' if size == 32 else '>I', head[24 if size == 32 else 16:])[0])


# ---- replies ----

@pytest.mark.io
@pytest.mark.parametrize('mode', ['structured', 'extended'])
def test_chunks_cover_a_read_once_and_hold_what_is_there(path, disk, mode):
    content = disk.read_bytes()
    rng = random.Random(3)
    ranges = [(0, SIZE // 2), (MIB - 70000, 200000), (MIB - 1, 2), (MIB, 1)]
    ranges += [(rng.randrange(2 * MIB), rng.randrange(1, 2 * MIB)) for _ in range(20)]
    with enter(path, mode) as c:
        for offset, length in ranges:
            for flags in (0, nbd.DF):
                c.request(nbd.READ, offset, length, flags)
                covered, came, chunks = bytearray(length), bytearray(length), c.chunks()
                for kind, payload in chunks:
                    at = struct.unpack('>Q', payload[:8])[0] - offset
                    data = payload[8:] if kind == nbd.CHUNK_DATA else bytes(
                        struct.unpack('>I', payload[8:])[0])
                    assert data and at >= 0 and at + len(data) <= length
                    covered[at:at + len(data)] = data
                    assert not came.count(1, at, at + len(data))
                    came[at:at + len(data)] = b'\1' * len(data)
                assert came.count(1) == length and covered == content[offset:offset + length]
                assert len(chunks) == 1 or not flags
                assert flags == 0 or chunks[0][0] == nbd.CHUNK_DATA


@pytest.mark.io
@pytest.mark.parametrize('mode', ['structured', 'extended'])
def test_extents_are_as_the_text_wants_them(path, mode):
    rng = random.Random(4)
    with enter(path, mode) as c:
        # Data and holes in turn.
        for i in range(0, 64, 2):
            assert ask(c, mode, nbd.WRITE, 16 * MIB + i * 65536, 4096, data=b'x' * 4096) == 0
        for _ in range(200):
            offset = rng.randrange(SIZE - 1)
            length = rng.randrange(1, SIZE - offset + 1)
            one = rng.randrange(2)
            c.request(nbd.BLOCK_STATUS, offset, length, nbd.REQ_ONE if one else 0)
            chunks = c.chunks()
            assert len(chunks) == 2         # one for each context
            for kind, payload in chunks:
                if mode == 'extended':
                    assert kind == nbd.CHUNK_STATUS_EXT
                    assert struct.unpack('>I', payload[4:8])[0] * 16 + 8 == len(payload)
                    extents = list(struct.iter_unpack('>QQ', payload[8:]))
                else:
                    assert kind == nbd.CHUNK_STATUS
                    extents = list(struct.iter_unpack('>II', payload[4:]))
                assert extents and all(n for n, _ in extents)
                assert not one or (len(extents) == 1 and extents[0][0] <= length)
                assert sum(n for n, _ in extents[:-1]) < length
                assert all(a[1] != b[1] for a, b in zip(extents, extents[1:]))


MAGIC = {'simple': nbd.SIMPLE_MAGIC, 'structured': nbd.STRUCTURED_MAGIC,
         'extended': nbd.EXTENDED_MAGIC}


@pytest.mark.parametrize('mode', MODES)
def test_replies_are_of_the_form_agreed_on(path, mode):
    """A read that fails too, whatever is wrong with it."""
    with enter(path, mode) as c:
        for kind, offset, length, flags in (
                (nbd.READ, 4096, 512, 0), (nbd.READ, SIZE, 512, 0), (nbd.READ, 5, 0, 0),
                (nbd.READ, 4096, 512, 1 << 15), (nbd.READ, 4096, 33 * MIB, 0),
                (nbd.READ, 1 << 63, 1 << 31, nbd.DF), (nbd.FLUSH, 0, 0, 0),
                (nbd.TRIM, 8192, 512, 0), (nbd.TRIM, 1 << 63, 512, 0), (99, 12345, 1, 0),
                (nbd.BLOCK_STATUS, 512, 0, 0), (nbd.BLOCK_STATUS, 512, 512, 1 << 15)):
            c.request(kind, offset, length, flags, cookie=0x0123456789abcdef)
            head = c.recv(16)
            magic, middle, cookie = struct.unpack('>IIQ', head)
            assert cookie == 0x0123456789abcdef
            # What has no data may be simple where replies are structured.
            if magic == nbd.SIMPLE_MAGIC:
                assert mode == 'simple' or (mode == 'structured' and kind != nbd.READ)
                c.recv(length if mode == 'simple' and kind == nbd.READ and not middle else 0)
                continue
            assert magic == MAGIC[mode] != nbd.SIMPLE_MAGIC
            assert middle >> 16 == 1        # all of it in one chunk
            if mode == 'extended':
                assert struct.unpack('>Q', c.recv(8))[0] == offset
            rest = struct.unpack('>Q', c.recv(8))[0] if mode == 'extended' else (
                struct.unpack('>I', c.recv(4))[0])
            payload = c.recv(rest)
            if middle & 0x8000:
                error, n = struct.unpack('>IH', payload[:6])
                assert error and n == rest - 6


def test_error_texts_are_short(path):
    with enter(path, 'structured') as c:
        for kind in (nbd.READ, nbd.WRITE_ZEROES, 99):
            c.request(kind, (1 << 64) - 1, 0xffffffff, 0xffff)
            (chunk, payload), = c.chunks()
            assert chunk == 0x8001
            error, length = struct.unpack('>IH', payload[:6])
            assert error and length == len(payload) - 6 <= 4096


# ---- what commands promise ----

def allocated(path):
    return os.stat(path).st_blocks * 512


@pytest.mark.io
def test_no_hole_provisions_and_its_absence_may_free(start, tmp, disk):
    start('--blockdev', f'file,node-name=f,filename={disk},discard=unmap',
          '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
          '--export', 'nbd,id=e,node-name=f,name=rw,writable=on')
    with enter(tmp / 'nbd', 'simple') as c:
        assert ask(c, 'simple', nbd.WRITE_ZEROES, 8 * MIB, 4 * MIB, nbd.NO_HOLE) == 0
        full = allocated(disk)
        assert full >= 5 * MIB
        assert ask(c, 'simple', nbd.WRITE_ZEROES, 8 * MIB, 4 * MIB) == 0
        assert allocated(disk) <= full - 4 * MIB
        c.request(nbd.READ, 8 * MIB, 4 * MIB)
        assert not any(c.simple(4 * MIB)[2])


@pytest.mark.io
def test_fast_zero_is_fast_or_refused_unchanged(start, tmp):
    """A disk that cannot zero in place, written to before."""
    base, path = tmp / 'base', tmp / 'nbd'
    base.write_bytes(b'x' * MIB)
    start('--blockdev', f'file,node-name=f,filename={base}',
          '--blockdev', 'raw,node-name=r,file=f,offset=512,size=524288',
          '--nbd-server', f'addr.type=unix,addr.path={path}',
          '--export', 'nbd,id=e,node-name=r,name=e,writable=on')
    with connect(path, 'e') as c:
        for offset, length in ((0, 65536), (1, 100), (0, 524288)):
            error = ask(c, 'simple', nbd.WRITE_ZEROES, offset, length, nbd.FAST_ZERO)
            c.request(nbd.READ, offset, length)
            data = c.simple(length)[2]
            assert (error, data) in ((0, bytes(length)), (nbd.ENOTSUP, b'x' * length))
            # Without the flag it is never refused for being slow.
            assert ask(c, 'simple', nbd.WRITE_ZEROES, offset, length) == 0
            assert ask(c, 'simple', nbd.WRITE, offset, length, data=b'x' * length) == 0


def test_a_flush_covers_what_other_connections_were_told(start, tmp, disk):
    """What CAN_MULTI_CONN promises, and FUA for itself."""
    if not shutil.which('strace'):
        pytest.skip('strace is not installed')
    trace = tmp / 'trace'
    start('--no-io-uring', '--blockdev', f'file,node-name=f,filename={disk}',
          '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
          '--export', 'nbd,id=e,node-name=f,name=rw,writable=on',
          wrap=('strace', '-f', '-qq', '-e', 'trace=fdatasync,fsync,pwritev2', '-o', str(trace)),
          env={'ASAN_OPTIONS': 'detect_leaks=0'})

    def syncs():
        return trace.read_text().count('sync(')

    with connect(tmp / 'nbd', 'rw') as a, connect(tmp / 'nbd', 'rw') as b:
        assert a.transmission & 0x100
        for writer, flusher in ((a, b), (b, a)):
            before = syncs()
            assert ask(writer, 'simple', nbd.WRITE, 0, 512, data=b'y' * 512) == 0
            assert syncs() == before
            assert ask(flusher, 'simple', nbd.FLUSH) == 0
            assert syncs() == before + 1
        before = syncs()
        assert ask(a, 'simple', nbd.WRITE, 0, 512, nbd.FUA, data=b'z' * 512) == 0
        assert syncs() > before or 'RWF_DSYNC' in trace.read_text()


def test_new_connections_are_told_the_new_size(server):
    d, path = server
    with connect(path, 'ro') as c:
        assert c.size == SIZE
        # It stays while an export tells it.
        assert 'error' in d.ask('block_resize', {'node-name': 'f', 'size': 2 * SIZE})
    for name in ('rw', 'ro'):
        d.cmd('block-export-del', id=name, mode='hard')
        d.wait_event('BLOCK_EXPORT_DELETED', id=name)
    d.cmd('block_resize', {'node-name': 'f', 'size': 2 * SIZE})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'ro', 'node-name': 'f', 'name': 'ro'})
    with connect(path, 'ro') as c:
        assert c.size == 2 * SIZE


def test_a_size_that_is_no_multiple_of_512_is_rounded_down(start, tmp):
    """Sectors are what the clients there are ask for."""
    (tmp / 'odd').write_bytes(bytes(1000))
    start('--blockdev', f'file,node-name=f,filename={tmp}/odd',
          '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
          '--export', 'nbd,id=e,node-name=f,name=e')
    with connect(tmp / 'nbd', 'e') as c:
        assert c.size in (512, 1024)
        assert ask(c, 'simple', nbd.READ, 0, c.size) == 0
        assert ask(c, 'simple', nbd.READ, 0, c.size + 1) == nbd.EINVAL


def test_disconnect_answers_what_was_asked_before(path):
    with enter(path, 'extended') as c:
        batch = b''.join(struct.pack('>IHHQQQ', nbd.EXTENDED_REQUEST_MAGIC, 0, nbd.READ, i,
                                     i * 512, 512) for i in range(100))
        c.send(batch + struct.pack('>IHHQQQ', nbd.EXTENDED_REQUEST_MAGIC, 0, nbd.DISC, 0, 0, 0))
        for _ in range(100):
            assert c.chunks()[0][0] == nbd.CHUNK_DATA
        assert c.closed()


# ---- ends at every byte ----

def session(extended):
    """A client that uses everything, as bytes."""
    data = struct.pack('>I', 3)
    options = [(nbd.OPT_LIST, b''), (nbd.OPT_EXTENDED if extended else nbd.OPT_STRUCTURED, b''),
               (nbd.OPT_LIST_META, nbd.meta_data('rw')), (77, b'junk'),
               (nbd.OPT_SET_META, nbd.meta_data('rw', 'base:allocation')),
               (nbd.OPT_INFO, nbd.go_data('rw', [1, 2, 3])), (nbd.OPT_GO, nbd.go_data('rw', [3]))]
    for option, payload in options:
        data += struct.pack('>QII', nbd.IHAVEOPT, option, len(payload)) + payload
    for kind in (nbd.READ, nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES, nbd.BLOCK_STATUS, nbd.CACHE,
                 nbd.FLUSH, 99, nbd.DISC):
        payload = b'z' * 24 if kind == nbd.WRITE else b''
        if extended:
            flags = nbd.PAYLOAD_LEN if kind in (nbd.WRITE, nbd.BLOCK_STATUS) else 0
            if kind == nbd.BLOCK_STATUS:
                payload = nbd.status_data(24, 0)
            data += struct.pack('>IHHQQQ', nbd.EXTENDED_REQUEST_MAGIC, flags, kind, 1, 4096,
                                len(payload) or 24)
        else:
            data += struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, kind, 1, 4096, 24)
        data += payload
    return data


@pytest.mark.io
@pytest.mark.limit(180)
@pytest.mark.parametrize('extended', [False, True])
def test_an_end_after_every_byte_leaves_nothing(server, extended):
    """CVE-2017-9524 and -7539: also before and within the handshake."""
    d, path = server
    data = session(extended)
    for cut in range(len(data) + 1):
        with Conn(path, greet=False) as c:
            c.send(data[:cut])
    end = time.monotonic() + quoin.LIMIT
    while d.cmd('x-quoin-query-nbd-servers')[0]['connections']:
        assert time.monotonic() < end
    assert_serves(path)


@pytest.mark.limit(180)
def test_any_byte_may_be_wrong(server):
    """Each byte of a session replaced: an answer or an end, and the server goes on."""
    _, path = server
    rng = random.Random(5)
    for extended in (False, True):
        data = session(extended)
        for at in range(0, len(data), 3):
            bad = bytearray(data)
            bad[at] ^= rng.randrange(1, 256)
            with Conn(path, greet=False) as c:
                try:
                    c.send(bytes(bad))
                    c.sock.shutdown(1)
                    while c.sock.recv(65536):
                        pass
                except (Closed, OSError):
                    pass
    assert_serves(path)
