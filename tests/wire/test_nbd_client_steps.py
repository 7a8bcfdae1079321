# SPDX-License-Identifier: Apache-2.0
"""An NBD server that lies at one step of the protocol: whoever uses a node on it gets
errors or what the server says, in bounded time and memory, and the daemon lives on.

What it may say of an export, of a read and of a status, and what becomes of each, is
in test_nbd_client_hostile.py."""
import re
import struct

import nbdraw as nbd
import nbdserver
import pytest
import quoin
from nbdserver import HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES

SIZE = 1 << 20
FLAGS = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_ZEROES
BASE = b'base:allocation'
TOP = (1 << 32) - 1


def reply(option, kind, data=b'', length=None, magic=nbd.REPLY_MAGIC):
    return struct.pack('>QIII', magic, option, kind,
                       len(data) if length is None else length) + data


def info(size=SIZE, flags=FLAGS):
    return struct.pack('>HQH', nbd.INFO_EXPORT, size, flags)


def go(*infos):
    return b''.join(reply(nbd.OPT_GO, nbd.REP_INFO, i) for i in infos) + reply(nbd.OPT_GO, nbd.REP_ACK)


def chunk(kind, cookie, data=b'', flags=1, length=None, magic=nbd.STRUCTURED_MAGIC):
    return struct.pack('>IHHQI', magic, flags, kind, cookie,
                       len(data) if length is None else length) + data


def simple(cookie, error=0, magic=nbd.SIMPLE_MAGIC):
    return struct.pack('>IIQ', magic, error, cookie)


def extents(*pairs, context=1):
    return struct.pack('>I', context) + b''.join(struct.pack('>II', *p) for p in pairs)


META = reply(nbd.OPT_SET_META, nbd.REP_META, struct.pack('>I', 1) + BASE)
META_END = reply(nbd.OPT_SET_META, nbd.REP_ACK)
HEAD = 1 << 15 | 1      # an error

# What is sent instead of the truth; of a request it is made of (cookie, offset, length).
LIES = {
    'greeting': [
        b'', b'x' * 18, b'NBDMAGIC' + b'x' * 10, b'NBDMAGIC' + b'IHAVEOPT' + b'\0\0',
        b'NBDMAGIC' + b'IHAVEOPT' + b'\xff\xff', b'NBDMAGIC' + bytes.fromhex('00420281861253'),
        b'NBDMAGIC' + struct.pack('>QQI', 0x00420281861253, SIZE, 0xffff) + bytes(124),
        b'NBDMAGIC' + struct.pack('>QQI', 0x00420281861253, (1 << 64) - 1, TOP) + bytes(124),
    ],
    'structured': [
        reply(nbd.OPT_STRUCTURED, nbd.REP_ACK, b'data'), reply(nbd.OPT_GO, nbd.REP_ACK),
        reply(nbd.OPT_STRUCTURED, nbd.REP_INFO), reply(nbd.OPT_STRUCTURED, 77),
        reply(nbd.OPT_STRUCTURED, nbd.REP_ERR + 99, b'y' * 4096),
        reply(nbd.OPT_STRUCTURED, nbd.REP_ERR + 99, b'\xff\0%s%n' * 9),
        reply(nbd.OPT_STRUCTURED, nbd.REP_ACK, magic=1),
        reply(nbd.OPT_STRUCTURED, nbd.REP_ACK, length=TOP),
        reply(nbd.OPT_STRUCTURED, nbd.REP_ACK, length=33 << 20) + bytes(1 << 20),
    ],
    'meta': [
        META_END, reply(nbd.OPT_SET_META, nbd.REP_META) + META_END,
        reply(nbd.OPT_SET_META, nbd.REP_META, b'\0\0') + META_END,
        reply(nbd.OPT_SET_META, nbd.REP_META, b'\0\0\0\1') + META_END,
        reply(nbd.OPT_SET_META, nbd.REP_META, b'\0\0\0\1' + b'z' * 5000) + META_END,
        reply(nbd.OPT_SET_META, nbd.REP_META, b'\0\0\0\1other:thing') + META_END,
        META * 20 + META_END, META * 5000 + META_END,
        reply(nbd.OPT_SET_META, nbd.REP_META, length=TOP),
        reply(nbd.OPT_SET_META, nbd.REP_ACK, b'more'),
    ],
    'write': [
        lambda c, at, n: simple(c, 28), lambda c, at, n: simple(c, 1 << 31),
        lambda c, at, n: simple(c) * 2, lambda c, at, n: simple(c ^ 1 << 63),
        lambda c, at, n: chunk(nbd.CHUNK_NONE, c), lambda c, at, n: chunk(nbd.CHUNK_NONE, c) * 3,
        lambda c, at, n: chunk(nbd.CHUNK_DATA, c, struct.pack('>Q', at) + b'h' * n),
        lambda c, at, n: chunk(nbd.CHUNK_HOLE, c, struct.pack('>QI', at, n)),
        lambda c, at, n: chunk(nbd.CHUNK_STATUS, c, extents((n, 0))),
        lambda c, at, n: chunk(HEAD, c, struct.pack('>IH', 28, 0)),
    ],
}
LIES.update({step: LIES['write'] for step in ('flush', 'trim', 'zeroes')})
OPTIONS = {nbd.OPT_STRUCTURED: 'structured', nbd.OPT_SET_META: 'meta', nbd.OPT_GO: 'go'}
REQUESTS = {nbd.READ: 'read', nbd.WRITE: 'write', nbd.FLUSH: 'flush', nbd.TRIM: 'trim',
            nbd.WRITE_ZEROES: 'zeroes', nbd.BLOCK_STATUS: 'status'}


class Liar(nbdserver.Server):
    """Honest but at one step, where it says `lie`, and then, of requests, nothing more."""

    def __init__(self, path, step, lie):
        super().__init__(path, bytes(SIZE), FLAGS)
        self.step, self.lie = step, lie
        self.told = 0

    def tell(self, s, step, truth, *request):
        if step == self.step:
            self.told += 1
            truth = self.lie(*request) if callable(self.lie) else self.lie
        self._send(s, truth)

    def _handshake(self, s):
        self.tell(s, 'greeting', nbdserver.HANDSHAKE)
        self._recv(s, 4)
        while True:
            _, option, length = struct.unpack('>QII', self._recv(s, 16))
            self._recv(s, length)
            truth = {nbd.OPT_STRUCTURED: reply(option, nbd.REP_ACK), nbd.OPT_SET_META: META + META_END,
                     nbd.OPT_GO: go(info())}.get(option, reply(option, nbd.ERR_UNSUP))
            self.tell(s, OPTIONS.get(option), truth)
            if option in (nbd.OPT_GO, nbd.OPT_ABORT):
                return s if option == nbd.OPT_GO else None

    def _request(self, s):
        _, flags, kind, cookie, at, length = struct.unpack('>IHHQQI', self._recv(s, 28))
        if kind == nbd.WRITE:
            self._recv(s, length)
        if kind == nbd.DISC:
            return False
        truth = chunk(nbd.CHUNK_NONE, cookie)
        if kind == nbd.READ:
            truth = chunk(nbd.CHUNK_DATA, cookie, struct.pack('>Q', at) + bytes(length))
        elif kind == nbd.BLOCK_STATUS:
            truth = chunk(nbd.CHUNK_STATUS, cookie, extents((length, 0)))
        self.tell(s, REQUESTS[kind], truth, cookie, at, length)
        return REQUESTS[kind] != self.step


def memory(pid):
    with open('/proc/%d/status' % pid) as f:
        return int(re.search(r'VmHWM:\s+(\d+)', f.read())[1])


def use(own):
    """Each kind of request through the daemon; the errors."""
    with nbd.connect(own, 'e', structured=True, meta=[BASE.decode()]) as c:
        length = min(c.size, 4096)
        if not length:
            return
        last = (c.size - length) // length * length
        for kind, at in ((nbd.READ, 0), (nbd.READ, last), (nbd.BLOCK_STATUS, 0), (nbd.WRITE, 0),
                         (nbd.WRITE_ZEROES, 0), (nbd.TRIM, 0), (nbd.FLUSH, 0), (nbd.BLOCK_STATUS, last)):
            n = 0 if kind == nbd.FLUSH else length
            c.request(kind, at, n, data=b'w' * n if kind == nbd.WRITE else b'')
            c.chunks()


def one(d, own, path, step, lie):
    with Liar(path, step, lie) as s:
        # What waits for bytes that never come: the server hangs up by its own thread.
        asked = d.connect()
        asked.send_raw(b'{"execute":"blockdev-add","arguments":{"driver":"nbd","node-name":"n",'
                       b'"discard":"unmap","server":{"type":"unix","path":"%s"}}}' % str(path).encode())
        try:
            answer = asked.recv(limit=.3 * quoin.SLOW)
        except TimeoutError:
            s.drop()
            answer = asked.recv()
        asked.close()
        if 'error' in answer:
            return False
        told = d.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n', 'name': 'e',
                                          'writable': True})
        if 'return' in told:
            use(own)
            d.cmd('block-export-del', id='e', mode='hard')
            d.wait_event('BLOCK_EXPORT_DELETED')
        d.cmd('blockdev-del', node_name='n')
        assert s.told or not step
        return True


@pytest.mark.limit(120)
@pytest.mark.parametrize('step', LIES)
def test_a_server_that_lies(start, tmp, step):
    d = start()
    own = tmp / 'own.sock'
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(own)}})
    assert one(d, own, tmp / 's.sock', None, None)
    before = memory(d.pid)
    opened = [one(d, own, tmp / 's.sock', step, lie) for lie in LIES[step]]
    assert all(opened) or step in ('greeting', *OPTIONS.values())
    assert d.cmd('query-named-block-nodes') == []
    assert 'asan' in quoin.QUOIND or memory(d.pid) - before < 64 << 10
    # A flush that failed is in the exit status.
    d.stop(None)
    assert d.proc.returncode in (0, 1)
