# SPDX-License-Identifier: Apache-2.0
"""An NBD server to misbehave: what a client must live with.

    with Server(path, content) as s:     # one thread; ended with the block
        s.silent = True                  # take requests, answer none
        s.drop()                         # close all connections
        s.cut = 20                       # close each after so many bytes sent
        s.connections, s.requests        # what came so far

It speaks fixed newstyle with simple replies, and keeps what is written in
s.content.  `garble(bytes) -> bytes` may change all that it sends.  With `tls`, an
ssl.SSLContext, it serves nobody who does not ask for TLS.  With `structured` it gives
structured replies, and block status in the context 1, where all is data.

`s.lie(kind, cookie, at, length)` gives bytes to send in place of a reply, or None;
`s.infos`, bytes to send in place of the first reply to GO.
"""
import os
import select
import socket
import struct
import threading

HANDSHAKE = b'NBDMAGIC' + b'IHAVEOPT' + struct.pack('>H', 3)
OPT_EXPORT_NAME, OPT_ABORT, OPT_STARTTLS, OPT_GO, OPT_STRUCTURED, OPT_SET_META = 1, 2, 5, 7, 8, 10
REP_ACK, REP_INFO, REP_META = 1, 3, 4
REP_ERR_UNSUP, REP_ERR_TLS_REQD = 0x80000001, 0x80000005
CONTEXT = 1
HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES, MULTI = 1, 4, 8, 32, 64, 256
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)


def hang_up(s):
    try:
        socket.socket.shutdown(s, socket.SHUT_RDWR)     # of TLS, not its end
    except OSError:
        pass


class Server:
    def __init__(self, path, content=bytes(1 << 20),
                 flags=HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_ZEROES, garble=None,
                 tls=None, structured=False):
        self.path = str(path)
        self.content = bytearray(content)
        self.flags = flags
        self.garble = garble
        self.tls = tls
        self.structured = structured
        self.lie = lambda kind, cookie, at, length: None
        self.infos = None
        self.silent = False
        self.cut = None
        self.connections = 0
        self.requests = []
        self.lock = threading.Lock()
        self.open = {}          # thread: its socket
        self.ending = False

    def __enter__(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.end_r, self.end_w = os.pipe()
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()
        return self

    def __exit__(self, *exc):
        self.ending = True
        os.write(self.end_w, b'x')
        self.drop()
        for t in list(self.threads):
            t.join(10)
        self.listener.close()
        os.close(self.end_r)
        os.close(self.end_w)
        os.unlink(self.path)

    def drop(self):
        with self.lock:
            for s in self.open.values():
                hang_up(s)

    def _accept(self):
        while True:
            ready, _, _ = select.select([self.listener, self.end_r], [], [])
            if self.end_r in ready:
                return
            s, _ = self.listener.accept()
            t = threading.Thread(target=self._serve, args=(s,), daemon=True)
            with self.lock:
                self.open[t] = s
                self.connections += 1
            self.threads.append(t)
            t.start()

    def _send(self, s, data):
        if self.garble:
            data = self.garble(data)
        if self.cut is not None:
            data, self.cut = data[:self.cut], max(0, self.cut - len(data))
            s.sendall(data)
            if self.cut == 0:
                raise EOFError
            return
        s.sendall(data)

    @staticmethod
    def _recv(s, n):
        data = b''
        while len(data) < n:
            more = s.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _serve(self, s):
        try:
            s = self._handshake(s)
            while s and self._request(s):
                pass
        except (EOFError, OSError):
            pass
        finally:
            with self.lock:
                self.open.pop(threading.current_thread()).close()

    def _start_tls(self, s):
        with self.lock:
            s = self.tls.wrap_socket(s, server_side=True, do_handshake_on_connect=False)
            self.open[threading.current_thread()] = s
        s.do_handshake()
        return s

    def _handshake(self, s):
        self._send(s, HANDSHAKE)
        self._recv(s, 4)
        plain = self.tls is not None
        while True:
            _, option, length = struct.unpack('>QII', self._recv(s, 16))
            self._recv(s, length)
            if option == OPT_STARTTLS and plain:
                self._reply(s, option, REP_ACK)
                s, plain = self._start_tls(s), False
                continue
            if plain and option != OPT_ABORT:
                self._reply(s, option, REP_ERR_TLS_REQD)
                continue
            if option == OPT_GO:
                info = struct.pack('>HQH', 0, len(self.content), self.flags)
                self._send(s, self.infos or option_reply(option, REP_INFO, info))
                self._reply(s, option, REP_ACK)
                return s
            if option == OPT_SET_META and self.structured:
                self._reply(s, option, REP_META, struct.pack('>I', CONTEXT) + b'base:allocation')
            known = option == OPT_ABORT or (self.structured and
                                            option in (OPT_STRUCTURED, OPT_SET_META))
            self._reply(s, option, REP_ACK if known else REP_ERR_UNSUP)
            if option == OPT_ABORT:
                return None

    def _reply(self, s, option, kind, data=b''):
        self._send(s, option_reply(option, kind, data))

    def _request(self, s):
        magic, flags, kind, cookie, at, length = struct.unpack('>IHHQQI', self._recv(s, 28))
        assert magic == 0x25609513
        data = self._recv(s, length) if kind == WRITE else b''
        with self.lock:
            self.requests.append((kind, at, length, flags))
        if kind == DISC:
            return False
        if self.silent:
            return True
        if kind == WRITE:
            self.content[at:at + length] = data
        elif kind == ZEROES:
            self.content[at:at + length] = bytes(length)
        self._send(s, self.lie(kind, cookie, at, length) or self._truth(kind, cookie, at, length))
        return True

    def _truth(self, kind, cookie, at, length):
        data = bytes(self.content[at:at + length]) if kind == READ else b''
        if self.structured and kind == READ:
            return chunk(cookie, CHUNK_DATA, struct.pack('>Q', at) + data)
        if kind == STATUS:
            return chunk(cookie, CHUNK_STATUS, struct.pack('>III', CONTEXT, length, 0))
        return simple(cookie) + data


CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERROR, CHUNK_ERROR_OFFSET = (
    0, 1, 2, 5, 0x8001, 0x8002)


def option_reply(option, kind, data=b'', length=None):
    return struct.pack('>QIII', 0x3e889045565a9, option, kind,
                       len(data) if length is None else length) + data


def simple(cookie, error=0):
    return struct.pack('>IIQ', 0x67446698, error, cookie)


def chunk(cookie, kind, data=b'', flags=1, length=None):
    return struct.pack('>IHHQI', 0x668e33ef, flags, kind, cookie,
                       len(data) if length is None else length) + data
