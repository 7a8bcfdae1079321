# SPDX-License-Identifier: Apache-2.0
"""A wire between a client and a server at Unix sockets, to listen on and to cut.

    with Proxy(tmp / 'wire.sock', server_path) as wire:    # clients connect to wire.path
        wire.up, wire.down      # the bytes that clients, and the server, have sent
        wire.cut = 20           # end each connection after so many bytes of the server's
        wire.stalled = True     # let nothing pass
"""
import select
import socket
import threading


class Proxy:
    def __init__(self, path, target):
        self.path, self.target = str(path), target
        self.up, self.down = bytearray(), bytearray()
        self.cut = None
        self.stalled = False
        self.connections = 0
        self.ending = False
        self.threads = []

    def __enter__(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.end_r, self.end_w = socket.socketpair()
        self._spawn(self._accept)
        return self

    def __exit__(self, *exc):
        self.ending = True
        self.end_w.close()
        for t in list(self.threads):
            t.join(10)
        self.listener.close()
        self.end_r.close()

    def _spawn(self, fn, *args):
        t = threading.Thread(target=fn, args=args, daemon=True)
        self.threads.append(t)
        t.start()

    def _accept(self):
        while True:
            ready, _, _ = select.select([self.listener, self.end_r], [], [])
            if self.end_r in ready:
                return
            client, _ = self.listener.accept()
            self.connections += 1
            self._spawn(self._carry, client)

    def _carry(self, client):
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self.target))
            left = self.cut
            while left is None or left > 0:
                # A stall is looked at again ten times a second.
                ready, _, _ = select.select([self.end_r] + ([] if self.stalled else [client, server]),
                                            [], [], .1)
                if self.end_r in ready:
                    return
                for s in ready:
                    data = s.recv(65536 if s is client or left is None else min(left, 65536))
                    if not data:
                        return
                    (self.up if s is client else self.down).extend(data)
                    (server if s is client else client).sendall(data)
                    if s is server and left is not None:
                        left -= len(data)
        except OSError:
            pass
        finally:
            client.close()
            server.close()
