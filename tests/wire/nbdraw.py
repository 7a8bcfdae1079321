# SPDX-License-Identifier: Apache-2.0
"""An NBD client of raw bytes: sends what it is told to, right or wrong.

Numbers are as the protocol's text names them (doc/proto.md of the NBD project).
"""
import socket
import ssl
import struct

NBDMAGIC = 0x4e42444d41474943
IHAVEOPT = 0x49484156454f5054
REPLY_MAGIC = 0x0003e889045565a9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668e33ef
EXTENDED_REQUEST_MAGIC = 0x21e41c71
EXTENDED_MAGIC = 0x6e8a278c

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS = 1, 2, 3, 5
OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED = 6, 7, 8, 9, 10, 11
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
REP_ERR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN, ERR_TOO_BIG, ERR_EXT_REQD = (
    REP_ERR + n for n in (1, 2, 3, 5, 6, 9, 10))
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = (
    1, 5, 12, 22, 28, 75, 95, 108)
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_STATUS_EXT = 0, 1, 2, 5, 6
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002


class Closed(Exception):
    """The server ended the connection."""


class Conn:
    extended = False    # headers are, from the next request on

    def __init__(self, path, flags=3, greet=True, timeout=20):
        tcp = isinstance(path, tuple)
        self.sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        # With a time limit a full backlog would be an error at once.
        self.sock.connect(path if tcp else str(path))
        self.sock.settimeout(timeout)
        if greet:
            magic, opts, self.flags = struct.unpack('>QQH', self.recv(18))
            assert (magic, opts) == (NBDMAGIC, IHAVEOPT)
            self.send(struct.pack('>I', flags))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            raise Closed from None

    def recv(self, n):
        data = b''
        while len(data) < n:
            try:
                more = self.sock.recv(n - len(data))
            except (ConnectionResetError, ssl.SSLError):
                more = b''
            if not more:
                raise Closed
            data += more
        return data

    def closed(self):
        """Has the server ended the connection, with nothing left to read?"""
        try:
            return self.sock.recv(1) == b''
        except (ConnectionResetError, ssl.SSLError):
            return True

    # ---- handshake ----

    def option_send(self, option, data=b'', length=None):
        self.send(struct.pack('>QII', IHAVEOPT, option,
                              len(data) if length is None else length) + data)

    def option_reply(self):
        magic, option, kind, length = struct.unpack('>QIII', self.recv(20))
        assert magic == REPLY_MAGIC
        return option, kind, self.recv(length)

    def option(self, option, data=b'', length=None):
        """All replies to an option: [(kind, data), ...], the final one last."""
        self.option_send(option, data, length)
        replies = []
        while True:
            echoed, kind, payload = self.option_reply()
            assert echoed == option
            replies.append((kind, payload))
            if kind == REP_ACK or kind & REP_ERR:
                return replies

    def go(self, name='', infos=(), option=OPT_GO):
        replies = self.option(option, go_data(name, infos))
        for kind, data in replies:
            if kind == REP_INFO and data[:2] == b'\0\0':
                self.size, self.transmission = struct.unpack('>QH', data[2:])
        return replies

    def set_meta(self, name, *queries, option=OPT_SET_META):
        return self.option(option, meta_data(name, *queries))

    def starttls(self, context, hostname='localhost'):
        assert self.option(OPT_STARTTLS) == [(REP_ACK, b'')]
        self.sock = context.wrap_socket(self.sock, server_hostname=hostname)
        return self

    # ---- transmission ----

    def request(self, kind, offset=0, length=0, flags=0, cookie=7, data=b'',
                magic=None):
        if self.extended:
            head = struct.pack('>IHHQQQ', magic or EXTENDED_REQUEST_MAGIC, flags, kind, cookie,
                               offset, length)
        else:
            head = struct.pack('>IHHQQI', magic or REQUEST_MAGIC, flags, kind, cookie, offset,
                               length)
        self.send(head + data)

    def simple(self, length=0):
        """A simple reply: (error, cookie, data), with data if error is 0."""
        magic, error, cookie = struct.unpack('>IIQ', self.recv(16))
        assert magic == SIMPLE_MAGIC, hex(magic)
        return error, cookie, self.recv(length) if not error else b''

    def chunks(self):
        """The chunks of one structured or extended reply: [(kind, payload), ...]; a
        simple reply, which is legal for all but reads, gives [('simple', error)]."""
        out = []
        while True:
            magic = struct.unpack('>I', self.recv(4))[0]
            if self.extended:
                assert magic == EXTENDED_MAGIC, hex(magic)
                flags, kind, _, self.offset, length = struct.unpack('>HHQQQ', self.recv(28))
                out.append((kind, self.recv(length)))
                if flags & 1:
                    return out
                continue
            if magic == SIMPLE_MAGIC:
                error, _ = struct.unpack('>IQ', self.recv(12))
                return [('simple', error)]
            assert magic == STRUCTURED_MAGIC, hex(magic)
            flags, kind, _, length = struct.unpack('>HHQI', self.recv(16))
            out.append((kind, self.recv(length)))
            if flags & 1:
                return out

    def error_of(self, kind, **args):
        """Send a request, return (error, text) of a structured error reply, or
        (error, None) of a simple one."""
        self.request(kind, **args)
        chunk, payload = self.chunks()[-1]
        if chunk == 'simple':
            return payload, None
        if chunk in (CHUNK_ERROR, CHUNK_ERROR_OFFSET):
            error, n = struct.unpack('>IH', payload[:6])
            return error, payload[6:6 + n].decode()
        return 0, None


def go_data(name='', infos=()):
    name = name if isinstance(name, bytes) else name.encode()
    return (struct.pack('>I', len(name)) + name
            + struct.pack(f'>H{len(infos)}H', len(infos), *infos))


def meta_data(name, *queries):
    data = struct.pack('>I', len(name)) + name.encode() + struct.pack('>I', len(queries))
    for query in queries:
        data += struct.pack('>I', len(query)) + query.encode()
    return data


def status_data(length, *contexts):
    """The payload of an extended BLOCK_STATUS."""
    return struct.pack(f'>Q{len(contexts)}I', length, *contexts)


def connect(path, name='', structured=False, meta=None, infos=(), extended=False):
    """A connection in transmission."""
    conn = Conn(path)
    if extended:
        assert conn.option(OPT_EXTENDED) == [(REP_ACK, b'')]
        conn.extended = True
    if structured:
        assert conn.option(OPT_STRUCTURED) == [(REP_ACK, b'')]
    if meta:
        conn.set_meta(name, *meta)
    assert conn.go(name, infos)[-1][0] == REP_ACK
    return conn
