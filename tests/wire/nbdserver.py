# SPDX-License-Identifier: Apache-2.0
"""An NBD server to misbehave: what a client must live with.

    with Server(path, content) as s:     # one thread; ended with the block
        s.silent = True                  # take requests, answer none
        s.drop()                         # close all connections
        s.cut = 20                       # close each after so many bytes sent
        s.connections, s.requests        # what came so far

It speaks fixed newstyle with simple replies, and keeps what is written in
s.content.  `garble(bytes) -> bytes` may change all that it sends.
"""
import os
import select
import socket
import struct
import threading

HANDSHAKE = b'NBDMAGIC' + b'IHAVEOPT' + struct.pack('>H', 3)
OPT_EXPORT_NAME, OPT_ABORT, OPT_GO = 1, 2, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 0x80000001
HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES, MULTI = 1, 4, 8, 32, 64, 256
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES = range(7)


class Server:
    def __init__(self, path, content=bytes(1 << 20),
                 flags=HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_ZEROES, garble=None):
        self.path = str(path)
        self.content = bytearray(content)
        self.flags = flags
        self.garble = garble
        self.silent = False
        self.cut = None
        self.connections = 0
        self.requests = []
        self.lock = threading.Lock()
        self.open = set()
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
            for s in self.open:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def _accept(self):
        while True:
            ready, _, _ = select.select([self.listener, self.end_r], [], [])
            if self.end_r in ready:
                return
            s, _ = self.listener.accept()
            with self.lock:
                self.open.add(s)
                self.connections += 1
            t = threading.Thread(target=self._serve, args=(s,), daemon=True)
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
            if self._handshake(s):
                while self._request(s):
                    pass
        except (EOFError, OSError):
            pass
        finally:
            with self.lock:
                self.open.discard(s)
            s.close()

    def _handshake(self, s):
        self._send(s, HANDSHAKE)
        self._recv(s, 4)
        while True:
            _, option, length = struct.unpack('>QII', self._recv(s, 16))
            self._recv(s, length)
            if option == OPT_GO:
                info = struct.pack('>HQH', 0, len(self.content), self.flags)
                self._reply(s, option, REP_INFO, info)
                self._reply(s, option, REP_ACK)
                return True
            self._reply(s, option, REP_ACK if option == OPT_ABORT else REP_ERR_UNSUP)
            if option == OPT_ABORT:
                return False

    def _reply(self, s, option, kind, data=b''):
        self._send(s, struct.pack('>QIII', 0x3e889045565a9, option, kind, len(data)) + data)

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
        reply = struct.pack('>IIQ', 0x67446698, 0, cookie)
        self._send(s, reply + (bytes(self.content[at:at + length]) if kind == READ else b''))
        return True
