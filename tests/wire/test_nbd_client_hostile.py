# SPDX-License-Identifier: Apache-2.0
"""The driver nbd and a server that lies: errors, never a hang, a crash or others' memory."""
import json
import struct
import threading
import time

import nbdraw
import nbdserver
import pytest
import quoin
from nbdserver import chunk, option_reply, simple

MIB = 1 << 20
U32 = 0xffffffff


def unix(path):
    return {'type': 'unix', 'path': str(path)}


def add(d, s, **more):
    return d.ask('blockdev-add', {'driver': 'nbd', 'node-name': 'n', 'server': unix(s.path), **more})


def export(d, tmp):
    path = tmp / 'own.sock'
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'x', 'node-name': 'n', 'name': 'e',
                               'writable': True})
    return path


def word(*numbers):
    return struct.pack(f'>{len(numbers)}I', *numbers)


def data(cookie, at, content, **how):
    return chunk(cookie, nbdserver.CHUNK_DATA, struct.pack('>Q', at) + content, **how)


def hole(cookie, at, length, **how):
    return chunk(cookie, nbdserver.CHUNK_HOLE, struct.pack('>QI', at, length), **how)


def error(cookie, number=5, text=b'', length=None, kind=nbdserver.CHUNK_ERROR, more=b'', **how):
    return chunk(cookie, kind, struct.pack('>IH', number, len(text) if length is None else length)
                 + text + more, **how)


# Each is what a read of n bytes at `at` is answered, in place of the truth.
SIMPLE_LIES = {
    'another magic': lambda c, at, n: b'x' * 16,
    'another cookie': lambda c, at, n: simple(c + 1) + b'x' * n,
    'an unknown error': lambda c, at, n: simple(c, 12345),
    'half of it': lambda c, at, n: simple(c) + b'x' * (n // 2),
    'half a header': lambda c, at, n: simple(c)[:7],
    'a structured reply': lambda c, at, n: data(c, at, b'x' * n),
    'an extended reply': lambda c, at, n: b'\x6e\x8a\x27\x8c' + bytes(28),
}
READ_LIES = {
    'a simple reply': lambda c, at, n: simple(c) + b'x' * n,
    'another cookie': lambda c, at, n: data(c + 1, at, b'x' * n),
    'the first half only': lambda c, at, n: data(c, at, b'x' * (n // 2)),
    'the last half only': lambda c, at, n: data(c, at + n // 2, b'x' * (n // 2)),
    'nothing': lambda c, at, n: chunk(c, nbdserver.CHUNK_NONE),
    'nothing, with data': lambda c, at, n: chunk(c, nbdserver.CHUNK_NONE, b'x' * n),
    'the same twice': lambda c, at, n: data(c, at, b'x' * n, flags=0) + data(c, at, b'x' * n),
    'a half twice': lambda c, at, n: (data(c, at, b'x' * (n // 2), flags=0)
                                      + data(c, at, b'x' * (n // 2))),
    'a half, and the same as a hole': lambda c, at, n: (
        data(c, at + n // 2, b'x' * (n // 2), flags=0) + hole(c, at + n // 2, n // 2)),
    'thirds that overlap': lambda c, at, n: (
        data(c, at, b'x' * (n // 2), flags=0) + data(c, at + n // 4, b'x' * (n // 2), flags=0)
        + chunk(c, nbdserver.CHUNK_NONE)),
    'all but a byte, a byte twice': lambda c, at, n: (
        data(c, at, b'x' * (n - 1), flags=0) + data(c, at + n - 2, b'x')),
    'bytes in any order, one twice, none last': lambda c, at, n: (
        b''.join(data(c, at + i, b'x', flags=0) for i in (*range(0, n, 2), *range(1, n - 1, 2), 5))
        + chunk(c, nbdserver.CHUNK_NONE)),
    'one byte too many': lambda c, at, n: data(c, at, b'x' * (n + 1)),
    'a byte before': lambda c, at, n: data(c, at - 1, b'x' * n),
    'a byte behind': lambda c, at, n: data(c, at + 1, b'x' * n),
    'far away': lambda c, at, n: data(c, (1 << 64) - n, b'x' * n),
    'round the end': lambda c, at, n: data(c, (1 << 64) - 1, b'x' * n),
    'no data': lambda c, at, n: data(c, at, b''),
    'no offset': lambda c, at, n: chunk(c, nbdserver.CHUNK_DATA, b'xx'),
    'a hole too long': lambda c, at, n: hole(c, at, n + 1),
    'a hole of 4 GiB': lambda c, at, n: hole(c, at, U32),
    'a hole of nothing': lambda c, at, n: hole(c, at, 0),
    'a hole far away': lambda c, at, n: hole(c, (1 << 64) - 1, n),
    'half a hole': lambda c, at, n: chunk(c, nbdserver.CHUNK_HOLE, bytes(5)),
    'a hole with more': lambda c, at, n: chunk(c, nbdserver.CHUNK_HOLE, bytes(13)),
    'a chunk of 4 GiB': lambda c, at, n: chunk(c, nbdserver.CHUNK_DATA, b'x' * n, length=U32),
    'a block status': lambda c, at, n: chunk(c, nbdserver.CHUNK_STATUS, word(1, n, 0)),
    'an unknown chunk': lambda c, at, n: chunk(c, 77, b'x' * 50),
    'an unknown error chunk': lambda c, at, n: chunk(c, 0x8077, word(5) + b'\0\0'),
    'an error of no length': lambda c, at, n: chunk(c, nbdserver.CHUNK_ERROR),
    'an error of success': lambda c, at, n: error(c, 0),
    'an error with too long a text': lambda c, at, n: error(c, text=b'text', length=0xffff),
    'an error of 64 KiB': lambda c, at, n: error(c, text=b'x' * 0xffff),
    'an error of 4 GiB': lambda c, at, n: chunk(c, nbdserver.CHUNK_ERROR, b'x' * n, length=U32),
    'an error at another offset': lambda c, at, n: error(
        c, kind=nbdserver.CHUNK_ERROR_OFFSET, more=struct.pack('>Q', 1 << 63)),
    'data, then an error': lambda c, at, n: data(c, at, b'x' * n, flags=0) + error(c),
}
LIMIT = 5 * quoin.SLOW


def refused(path, at, n):
    """A read of what lies below is answered by an error, soon."""
    with nbdraw.connect(path, 'e') as c:
        c.sock.settimeout(LIMIT)
        c.request(nbdraw.READ, at, n)
        return c.simple(n)[0] != 0


@pytest.mark.parametrize('structured', [False, True])
def test_replies_to_a_read(start, tmp, structured):
    """Each lie is an error, and the next read, told the truth, is well."""
    lies = READ_LIES if structured else SIMPLE_LIES
    d = start()
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB, structured=structured) as s:
        assert 'return' in add(d, s)
        own = export(d, tmp)
        wrong = []
        for name, lie in lies.items():
            def tell(kind, cookie, at, n):
                s.lie = lambda *a: None
                # What is incomplete stays so; the next connection is another one.
                threading.Timer(.05, nbdserver.hang_up,
                                (s.open[threading.current_thread()],)).start()
                return lie(cookie, at, n)
            s.lie = tell
            if not refused(own, 4096, 4096):
                wrong.append(name)
            with nbdraw.connect(own, 'e') as c:
                c.request(nbdraw.READ, 4096, 4096)
                assert c.simple(4096)[2] == b'q' * 4096, name
        assert not wrong
        d.cmd('block-export-del', id='x', mode='hard')
        d.cmd('blockdev-del', node_name='n')
    d.stop()


@pytest.mark.parametrize('structured', [False, True])
def test_replies_in_pieces_are_replies(start, tmp, structured):
    """What is unusual and right: many chunks, in any order, holes, an end apart."""
    ways = [lambda c, at, n: data(c, at, b'q' * n)]
    if structured:
        ways = [
            lambda c, at, n: data(c, at + n // 2, b'q' * (n // 2), flags=0) + data(c, at, b'q' * (n // 2)),
            lambda c, at, n: data(c, at, b'q' * n, flags=0) + chunk(c, nbdserver.CHUNK_NONE),
            lambda c, at, n: b''.join(data(c, at + i, b'q', flags=i == n - 1) for i in range(n)),
            lambda c, at, n: b''.join(data(c, at + i, b'q', flags=i == n - 1)
                                      for i in (*range(0, n, 2), *range(1, n, 2)))]
    else:
        ways = [lambda c, at, n: simple(c) + b'q' * n]
    d = start()
    with nbdserver.Server(tmp / 's.sock', bytes(MIB), structured=structured) as s:
        assert 'return' in add(d, s)
        own = export(d, tmp)
        for way in ways:
            s.lie = lambda kind, c, at, n: way(c, at, n) if kind == nbdserver.READ else None
            with nbdraw.connect(own, 'e') as c:
                c.request(nbdraw.READ, 4096, 4096)
                assert c.simple(4096)[2] == b'q' * 4096
    d.stop(status=None)


def test_memory_is_not_shown_where_a_server_leaves_out_data(start, tmp):
    d = start()
    with nbdserver.Server(tmp / 's.sock', b'secret' * 200000, structured=True) as s:
        assert 'return' in add(d, s)
        own = export(d, tmp)
        with nbdraw.connect(own, 'e') as c:
            c.request(nbdraw.READ, 0, 65536)
            assert c.simple(65536)[0] == 0
        s.lie = lambda kind, c, at, n: chunk(c, nbdserver.CHUNK_NONE)
        assert refused(own, 0, 65536)
    d.stop(status=None)


# ---- block status ----

# What a question about n bytes is answered; the disk has MIB bytes, in blocks of 512.
STATUS_LIES = {
    'no extents': lambda c, n: word(1),
    'no context': lambda c, n: b'',
    'an extent of nothing': lambda c, n: word(1, 0, 3),
    'many of nothing': lambda c, n: word(1, *(0, 3) * 1000),
    'not in blocks': lambda c, n: word(1, 100, 3),
    'not in blocks, more': lambda c, n: word(1, 1000, 3, 24, 0),
    'beyond the end': lambda c, n: word(1, U32, 3),
    'far beyond the end': lambda c, n: word(1, *(U32, 3) * 100),
    'flags that nobody knows': lambda c, n: word(1, n, U32),
    'another context': lambda c, n: word(77, n, 3),
    'half an extent': lambda c, n: word(1, n) + b'xx',
    'data': None, 'an error': None, 'another cookie': None, 'a simple reply': None,
}


def status_lie(name, kind, cookie, at, n):
    if kind != nbdserver.STATUS:
        return None
    if STATUS_LIES[name]:
        return chunk(cookie, nbdserver.CHUNK_STATUS, STATUS_LIES[name](cookie, n))
    return {'data': lambda: data(cookie, at, b'x' * 512), 'an error': lambda: error(cookie, 22),
            'another cookie': lambda: chunk(cookie + 1, nbdserver.CHUNK_STATUS, word(1, n, 3)),
            'a simple reply': lambda: simple(cookie)}[name]()


def test_block_status(start, tmp):
    """Whatever is said, ours says something that can be, or fails; and a backup ends."""
    d = start()
    target = tmp / 't.raw'
    target.write_bytes(bytes(MIB))
    d.cmd('blockdev-add', driver='file', node_name='t', filename=str(target))
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB, structured=True) as s:
        assert 'return' in add(d, s)
        own = export(d, tmp)
        for name in STATUS_LIES:
            s.lie = lambda *request: status_lie(name, *request)
            with nbdraw.connect(own, 'e', structured=True, meta=('base:allocation',)) as c:
                c.sock.settimeout(LIMIT)
                for at, n in ((0, MIB), (512, 1024), (MIB - 512, 512), (MIB - 1, 1)):
                    c.request(nbdraw.BLOCK_STATUS, at, n)
                    kind, payload = c.chunks()[-1]
                    if kind != nbdraw.CHUNK_STATUS:
                        continue
                    extents = struct.unpack(f'>{len(payload) // 4}I', payload)[1::2]
                    assert extents and all(extents), name
                    assert at + sum(extents) <= MIB, name
            d.cmd('blockdev-backup', job_id='j', device='n', target='t', sync='full',
                  auto_dismiss=False)
            d.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded', limit=30 * quoin.SLOW)
            d.cmd('job-dismiss', id='j')
        s.lie = lambda *request: None
    d.stop(status=None)


# ---- the handshake ----

def info(*parts, option=nbdserver.OPT_GO):
    return b''.join(option_reply(option, nbdserver.REP_INFO, p) for p in parts)


def export_info(size=MIB, flags=1):
    return struct.pack('>HQH', 0, size, flags)


def blocks(low, preferred, high):
    return struct.pack('>HIII', 3, low, preferred, high)


GO_LIES = {
    'no size': info(struct.pack('>HQ', 0, MIB)[:6]),
    'half a size': info(export_info()[:7]),
    'too much of it': info(export_info() + b'x'),
    'nothing of it': option_reply(nbdserver.OPT_GO, nbdserver.REP_ACK),
    'an info of no type': info(b''),
    'another option': info(export_info(), option=3),
    'another magic': b'x' * 20,
    'a length of 4 GiB': option_reply(nbdserver.OPT_GO, nbdserver.REP_INFO, export_info(), length=U32),
    'an error of 4 GiB': option_reply(nbdserver.OPT_GO, 0x80000002, b'x' * 100, length=U32),
    'an error of a MiB': option_reply(nbdserver.OPT_GO, 0x80000002, b'x' * MIB),
    'an unknown error': option_reply(nbdserver.OPT_GO, 0x80000077, b'x'),
    'a reply of no kind': option_reply(nbdserver.OPT_GO, 77),
    'blocks with more': info(blocks(1, 4096, MIB) + b'x', export_info()),
    'a size that is no block': info(blocks(512, 4096, MIB), export_info(MIB + 1)),
    'a size of 16 EiB': info(export_info((1 << 64) - 1)),
    'a size of 8 EiB': info(export_info(1 << 63)),
}
# These may be had; a disk that is taken for one works, or says that it does not.
GO_ODD = {
    'a size of 0': info(export_info(0)),
    'a byte less than 8 EiB': info(export_info((1 << 63) - 1)),
    '64 KiB less than 8 EiB, in such blocks': info(blocks(65536, 65536, MIB),
                                                   export_info((1 << 63) - 65536)),
    'no flags': info(export_info(MIB, 0)),
    'all flags': info(export_info(MIB, 0xffff)),
    'blocks of 3 bytes': info(blocks(3, 4096, MIB), export_info()),
    'blocks of 2 GiB': info(blocks(1 << 31, 1 << 31, U32), export_info()),
    'blocks of 0 bytes': info(blocks(0, 0, 0), export_info()),
    'most less than least': info(blocks(512, 512, 1), export_info()),
    'most of a byte': info(blocks(1, 1, 1), export_info()),
    'most odd': info(blocks(512, 4096, 1000), export_info()),
    'preferred odd': info(blocks(1, 12345, MIB), export_info()),
    'twice': info(export_info(1 << 40), export_info()),
    'infos that nobody asked for': info(struct.pack('>H', 99) + b'x' * 3000, export_info()),
}


def test_what_go_is_answered(start, tmp):
    d = start()
    taken = []
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB) as s:
        for name, lie in GO_LIES.items():
            s.infos = lie
            stop = threading.Timer(.2, s.drop)      # a length that is waited for
            stop.start()
            if 'return' in add(d, s):
                taken.append(name)
                d.cmd('blockdev-del', node_name='n')
            stop.cancel()
        assert not taken
        assert d.cmd('query-named-block-nodes') == []
    d.stop()


@pytest.mark.parametrize('name', GO_ODD)
def test_what_is_odd_in_an_export(start, tmp, name):
    d = start()
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB) as s:
        s.infos = GO_ODD[name]
        if 'return' in add(d, s, **{'read-only': True}):
            size = d.cmd('query-named-block-nodes')[0]['image']['virtual-size']
            path = tmp / 'own.sock'
            d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
            d.cmd('block-export-add', {'type': 'nbd', 'id': 'x', 'node-name': 'n', 'name': 'e'})
            with nbdraw.connect(path, 'e') as c:
                c.sock.settimeout(LIMIT)
                for at, n in ((0, 1), (511, 1026), (size - 1, 1), (0, 5000)):
                    c.request(nbdraw.READ, at % (1 << 64), n)
                    error, _, content = c.simple(n)
                    assert error or content == b'q' * n
    d.stop()


class Mute(nbdserver.Server):
    """Each connection gets so many bytes, as the list says, and then nothing.  One that
    asks for TLS gets it, and no word of it."""

    def __init__(self, path, lengths):
        super().__init__(path, tls=True)
        self.lengths, self.left = list(lengths), {}

    def _serve(self, s):
        self.left[s] = self.lengths.pop()
        super()._serve(s)

    def _send(self, s, data):
        data = data[:self.left[s]]
        self.left[s] -= len(data)
        s.sendall(data)

    def _start_tls(self, s):
        self._recv(s, MIB)
        return s


class Flood(nbdserver.Server):
    """Goes on and on with what is no news."""
    more = info(struct.pack('>H', 99) + b'x' * 1000) * 1000

    def _reply(self, s, option, kind, data=b''):
        while option == nbdserver.OPT_GO:
            s.sendall(self.more)
        super()._reply(s, option, kind, data)


@pytest.mark.patient
@pytest.mark.limit(120)
def test_silence_and_endless_talk_in_the_handshake_have_a_time_limit(start, tmp):
    """Before any byte, within the greeting, between and within replies; others are
    served meanwhile."""
    (tmp / 'keys').mkdir()
    (tmp / 'keys' / 'keys.psk').write_text('qemu:0011223344556677\n')
    d = start('--object', 'tls-creds-psk,id=tls,endpoint=client,dir=%s/keys' % tmp)
    plain, tls = (0, 7, 18, 25, 38, 45, 58, 70, 89), (0, 18, 38)    # of 90 bytes, of 38
    with Mute(tmp / 'plain.sock', plain) as p, Mute(tmp / 'tls.sock', tls) as t, \
            Flood(tmp / 'flood.sock') as f:
        p.tls = None
        asked = [(d.connect(), s.path) for s in [p] * len(plain) + [t] * len(tls) + [f]]
        for i, (a, path) in enumerate(asked):
            a.send_raw(json.dumps({'execute': 'blockdev-add', 'arguments': {
                'driver': 'nbd', 'node-name': f'n{i}', 'server': unix(path),
                **({'tls-creds': 'tls'} if path == t.path else {})}}).encode())
        times = []
        while sum(times) < 1 or len(times) < 50:
            begin = time.monotonic()
            d.cmd('query-version')
            times.append(time.monotonic() - begin)
        assert sorted(times)[len(times) // 2] < .1 * quoin.SLOW
        for a, path in asked:
            reply = a.recv(limit=40 * quoin.SLOW)
            assert 'did not answer' in reply['error']['desc'], path
            a.close()
        assert not p.lengths and not t.lengths
    assert d.cmd('query-named-block-nodes') == []
    d.stop()
