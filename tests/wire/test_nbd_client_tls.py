# SPDX-License-Identifier: Apache-2.0
"""The driver nbd over TLS: a node whose server nobody else can be, or read along."""
import os
import pathlib
import random
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time

import nbdraw
import nbdserver
import peers
import pytest
import quoin
import tlskit
from proxy import Proxy

MIB = 1 << 20
SECRET = b'nobody shall read this ' * 4096


class Certs:
    """Servers of several names, who may talk to them, and an authority apart."""

    def __init__(self, folder):
        ca, other = tlskit.Authority(folder / 'ca'), tlskit.Authority(folder / 'other', cn='Other')
        self.ca = ca.cert
        self.server = ca.server('server')
        self.elsewhere = ca.server('elsewhere', 'dns_name = "elsewhere"', 'tls_www_server',
                                   'signing_key', 'encryption_key', cn='elsewhere')
        self.expired = ca.server('expired', 'dns_name = "localhost"', 'tls_www_server',
                                 *tlskit.EXPIRED)
        self.client = ca.client('client')
        self.stranger = other.client('stranger')
        self.psk, self.psk2 = folder / 'psk', folder / 'psk2'
        for f, key in ((self.psk, '0011223344556677'), (self.psk2, '7766554433221100')):
            f.mkdir()
            (f / 'keys.psk').write_text(f'qemu:{key}\n')
            (f / 'keys.psk').chmod(0o600)


@pytest.fixture(scope='module')
def certs():
    folder = pathlib.Path(tempfile.mkdtemp(prefix='q-tls-'))
    yield Certs(folder)
    shutil.rmtree(folder)


def creds(kind, role, folder=None):
    return f'tls-creds-{kind},id=tls,endpoint={role}' + (f',dir={folder}' if folder else '')


@pytest.fixture
def serve(start, tmp):
    """serve(creds, content, inet=False) -> (daemon, address): our own server."""
    def serve_it(creds, content=bytes(MIB), inet=False):
        disk = tmp / 'served.raw'
        disk.write_bytes(content)
        where = 'inet,addr.host=127.0.0.1,addr.port=0' if inet else f'unix,addr.path={tmp}/tls.sock'
        d = start('--object', creds, '--blockdev', f'file,node-name=f,filename={disk}',
                  '--nbd-server', f'addr.type={where},tls-creds=tls',
                  '--export', 'nbd,id=e,node-name=f,name=e,writable=on')
        if not inet:
            return d, unix(tmp / 'tls.sock')
        listens = d.cmd('x-quoin-query-nbd-servers')[0]['addresses'][0]
        return d, {'type': 'inet', 'host': '127.0.0.1', 'port': listens['port']}
    return serve_it


def unix(path):
    return {'type': 'unix', 'path': str(path)}


def options(server, **more):
    return dict({'driver': 'nbd', 'node-name': 'n', 'server': server, 'export': 'e',
                 'tls-creds': 'tls'}, **{k.replace('_', '-'): v for k, v in more.items()})


def export(d, tmp):
    """The node n, in plain text on a socket for tests."""
    path = tmp / 'own.sock'
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'x', 'node-name': 'n', 'name': 'e',
                               'writable': True})
    return path


def read(path, at=0, length=4096):
    with nbdraw.connect(path, 'e') as c:
        c.request(nbdraw.READ, at, length)
        error, _, data = c.simple(length)
        assert not error
        return data


def write(path, data, at=0):
    with nbdraw.connect(path, 'e') as c:
        c.request(nbdraw.WRITE, at, len(data), data=data)
        assert c.simple()[0] == 0
        c.request(nbdraw.FLUSH)
        assert c.simple()[0] == 0


def fails(d, text, server, **more):
    with pytest.raises(quoin.QmpError) as e:
        d.cmd('blockdev-add', options(server, **more))
    assert text in e.value.desc
    assert d.cmd('query-named-block-nodes') == []


# ---- moving data ----

@pytest.mark.io
@pytest.mark.parametrize('kind', ['x509', 'psk', 'anon'])
def test_data_is_what_it_is_without_and_nobody_reads_along(start, tmp, certs, serve, kind):
    ours, theirs = {'x509': (certs.client, certs.server), 'psk': (certs.psk, certs.psk),
                    'anon': (None, None)}[kind]
    server, _ = serve(creds(kind, 'server', theirs), SECRET + bytes(MIB))
    d = start('--object', creds(kind, 'client', ours))
    with Proxy(tmp / 'wire.sock', tmp / 'tls.sock') as wire:
        d.cmd('blockdev-add', options(unix(wire.path), tls_hostname='localhost'))
        own = export(d, tmp)
        assert read(own, 0, len(SECRET)) == SECRET
        write(own, SECRET[::-1], MIB // 2)
        assert read(own, MIB // 2, len(SECRET)) == SECRET[::-1]
        d.stop()
        assert len(wire.down) > len(SECRET) and len(wire.up) > len(SECRET)
        assert SECRET[:20] not in wire.down and SECRET[::-1][:20] not in wire.up
    server.stop()
    assert (tmp / 'served.raw').read_bytes()[MIB // 2:MIB // 2 + len(SECRET)] == SECRET[::-1]


@pytest.mark.io
def test_random_requests_of_several_clients_against_a_model(start, tmp, certs, serve):
    """Which each have a connection of their own to a server that allows many."""
    r = random.Random(7)
    model = bytearray(r.randbytes(4 * MIB))
    serve(creds('psk', 'server', certs.psk), bytes(model))
    d = start('--object', creds('psk', 'client', certs.psk))
    d.cmd('blockdev-add', options(unix(tmp / 'tls.sock')))
    own = export(d, tmp)
    clients = [nbdraw.connect(own, 'e') for _ in range(4)]
    for i in range(400):
        c = clients[i % 4]
        at = r.randrange(4 * MIB - 300000)
        n = r.choice((1, 512, 4096, 70001, 300000))
        if r.randrange(3) == 0:
            model[at:at + n] = data = r.randbytes(n)
            c.request(nbdraw.WRITE, at, n, data=data)
            assert c.simple()[0] == 0
        else:
            c.request(nbdraw.READ, at, n)
            assert c.simple(n)[2] == model[at:at + n]
    for c in clients:
        c.sock.close()
    d.stop()


def test_a_host_is_the_name_that_its_certificate_must_have(start, certs, serve):
    _, address = serve(creds('x509', 'server', certs.server), inet=True)
    d = start('--object', creds('x509', 'client', certs.client))
    d.cmd('blockdev-add', options(address))
    d.cmd('blockdev-del', node_name='n')
    fails(d, 'Certificate does not match the hostname elsewhere', address,
          tls_hostname='elsewhere')
    d.stop()


@pytest.fixture
def strangers(tmp):
    """strangers(*argv): run a server that makes tmp / 'tls.sock'."""
    running = []

    def run(*argv):
        running.append(subprocess.Popen([str(a) for a in argv]))
        end = time.monotonic() + quoin.LIMIT
        while not os.path.exists(tmp / 'tls.sock'):
            assert running[-1].poll() is None and time.monotonic() < end
            os.sched_yield()
    yield run
    for p in running:
        p.kill()
        p.wait()


@pytest.mark.parametrize('server', ['nbdkit, x509', 'nbdkit, psk', 'qemu-nbd'])
def test_servers_of_strangers(start, tmp, certs, strangers, server):
    disk = tmp / 'disk.raw'
    disk.write_bytes(SECRET + bytes(MIB))
    kind, ours = 'x509', certs.client
    if server == 'qemu-nbd':
        strangers(peers.QEMU_NBD, '-f', 'raw', '-x', 'e', '-t', '-k', tmp / 'tls.sock', '--object',
                  creds('x509', 'server', certs.server), '--tls-creds', 'tls', disk)
    elif 'psk' in server:
        kind, ours = 'psk', certs.psk
        strangers('nbdkit', '-f', '-U', tmp / 'tls.sock', '--tls=require',
                  f'--tls-psk={certs.psk}/keys.psk', 'file', disk)
    else:
        strangers('nbdkit', '-f', '-U', tmp / 'tls.sock', '--tls=require', '--tls-verify-peer',
                  f'--tls-certificates={certs.server}', 'file', disk)
    d = start('--object', creds(kind, 'client', ours))
    d.cmd('blockdev-add', options(unix(tmp / 'tls.sock'), tls_hostname='localhost'))
    own = export(d, tmp)
    assert read(own, 0, len(SECRET)) == SECRET
    write(own, b'x' * 70000, 5000)
    d.stop()
    assert disk.read_bytes()[5000:75000] == b'x' * 70000


# ---- who is not talked to ----

def test_a_server_of_another_name_or_authority_is_refused(start, tmp, certs, serve):
    d = start('--object', creds('x509', 'client', certs.client), '--object',
              f'tls-creds-x509,id=other,endpoint=client,dir={certs.stranger}', '--object',
              f'tls-creds-x509,id=blind,endpoint=client,verify-peer=off,dir={certs.client}')
    server, address = serve(creds('x509', 'server', certs.elsewhere))
    fails(d, 'Certificate does not match the hostname localhost', address,
          tls_hostname='localhost')
    fails(d, "The certificate hasn't got a known issuer", address, tls_creds='other',
          tls_hostname='elsewhere')
    fails(d, 'No hostname for certificate validation', address)
    d.cmd('blockdev-add', options(address, tls_hostname='elsewhere'))
    d.cmd('blockdev-del', node_name='n')
    # Who wants to see nothing is shown nothing.
    d.cmd('blockdev-add', options(address, tls_creds='blind'))
    d.cmd('blockdev-del', node_name='n')
    d.stop()


def test_a_server_whose_certificate_has_expired_is_refused(start, tmp, certs):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.expired / 'server-cert.pem', certs.expired / 'server-key.pem')
    d = start('--object', creds('x509', 'client', certs.client))
    with nbdserver.Server(tmp / 's.sock', tls=context) as s:
        fails(d, 'The certificate is not trusted', unix(s.path), tls_hostname='localhost')
        assert not s.requests
    d.stop()


def test_another_key_is_refused(start, certs, serve):
    _, address = serve(creds('psk', 'server', certs.psk))
    d = start('--object', creds('psk', 'client', certs.psk2))
    fails(d, 'TLS handshake failed', address)
    d.stop()


def test_a_server_without_tls_is_refused(start, tmp, certs):
    """And is asked for nothing but TLS."""
    d = start('--object', creds('psk', 'client', certs.psk))
    with nbdserver.Server(tmp / 's.sock') as s:
        with Proxy(tmp / 'wire.sock', s.path) as wire:
            fails(d, "Server don't support STARTTLS option", unix(wire.path))
            options_asked = wire.up[4:]
        assert len(options_asked) == 16 and options_asked[8:12] == b'\0\0\0\5'
    d.stop()


def test_a_server_that_needs_tls_refuses_who_has_none(start, certs, serve):
    _, address = serve(creds('psk', 'server', certs.psk))
    d = start()
    o = options(address)
    del o['tls-creds']
    with pytest.raises(quoin.QmpError):
        d.cmd('blockdev-add', o)
    assert d.cmd('query-named-block-nodes') == []
    d.stop()


def test_which_objects_will_do(start, tmp, certs):
    d = start('--object', f'tls-creds-psk,id=server,endpoint=server,dir={certs.psk}',
              '--object', 'authz-simple,id=rule,identity=x')
    nowhere = unix(tmp / 'none.sock')
    fails(d, "No TLS credentials with id 'tls'", nowhere)
    fails(d, "Object with id 'rule' is not TLS credentials", nowhere, tls_creds='rule')
    fails(d, 'Expected TLS credentials for a client endpoint', nowhere, tls_creds='server')
    d.stop()


# ---- a server that goes away ----

@pytest.mark.io
def test_who_comes_back_must_speak_tls_again(start, tmp, certs):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.server / 'server-cert.pem', certs.server / 'server-key.pem')
    d = start('--object', creds('x509', 'client', certs.client))
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB, tls=context) as s:
        d.cmd('blockdev-add', options(unix(s.path), tls_hostname='localhost', reconnect_delay=30))
        own = export(d, tmp)
        for _ in range(3):
            assert read(own) == b'q' * 4096
            s.drop()
        # The object is needed no more: its files were read when it was made.
        d.cmd('object-del', id='tls')
        s.drop()
        assert read(own) == b'q' * 4096
        s.tls = None
        s.drop()
        with nbdraw.connect(own, 'e') as c:
            before = s.connections
            c.request(nbdraw.WRITE, 0, 512, data=b'w' * 512)
            while s.connections < before + 3:
                os.sched_yield()
            assert not [k for k, *_ in s.requests if k == nbdserver.WRITE]
            s.tls = context
            assert c.simple()[0] == 0
        assert s.content[:512] == b'w' * 512
        d.stop()


def test_a_job_is_cancelled_while_the_server_is_silent(start, tmp, certs, serve):
    serve(creds('psk', 'server', certs.psk), b'a' * MIB)
    target = tmp / 't.raw'
    target.write_bytes(bytes(MIB))
    d = start('--object', creds('psk', 'client', certs.psk))
    with Proxy(tmp / 'wire.sock', tmp / 'tls.sock') as wire:
        d.cmd('blockdev-add', options(unix(wire.path)))
        d.cmd('blockdev-add', driver='file', node_name='t', filename=str(target))
        wire.stalled = True
        d.cmd('blockdev-backup', job_id='j', device='n', target='t', sync='full',
              auto_dismiss=False)
        d.cmd('job-cancel', id='j')
        d.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded', limit=60 * quoin.SLOW)
        d.cmd('job-dismiss', id='j')
        wire.stalled = False
        assert read(export(d, tmp)) == b'a' * 4096
    d.stop(status=None)


# ---- a server that is no server ----

def test_an_end_at_any_byte(start, tmp, certs, serve):
    """Up to the first request: greeting, options, TLS, options in TLS."""
    serve(creds('psk', 'server', certs.psk))
    d = start('--object', creds('psk', 'client', certs.psk))
    with Proxy(tmp / 'wire.sock', tmp / 'tls.sock') as wire:
        d.cmd('blockdev-add', options(unix(wire.path)))
        d.cmd('blockdev-del', node_name='n')
        whole = len(wire.down)
        for cut in [*range(40), *range(40, whole - 40, 23), *range(whole - 200, whole - 100, 9)]:
            wire.cut = cut
            with pytest.raises(quoin.QmpError):
                d.cmd('blockdev-add', options(unix(wire.path)))
    assert d.cmd('query-named-block-nodes') == []
    d.stop()


class Liar:
    """A server that says these bytes, one list of them for each connection, and
    reads in between what is read."""

    def __init__(self, path, *lines):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(4)
        self.path, self.lines = str(path), lines
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        for line in self.lines:
            s, _ = self.listener.accept()
            try:
                for n, data in line:
                    while n:
                        n -= len(s.recv(n)) or n
                    s.sendall(data)
            except OSError:
                pass
            s.close()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.thread.join(20)
        self.listener.close()


ACK = struct.pack('>QIII', nbdraw.REPLY_MAGIC, nbdraw.OPT_STARTTLS, nbdraw.REP_ACK, 0)


def test_junk_in_place_of_a_handshake(start, tmp, certs):
    r = random.Random(4)
    d = start('--object', creds('psk', 'client', certs.psk))
    begin = [(0, nbdserver.HANDSHAKE), (20, ACK)]
    lines = [[*begin, (5, r.randbytes(n))] for n in (1, 5, 100, 16384, 100000)]
    # An alert, an application's record, one that is too long, an empty one.
    lines += [[*begin, (5, b'\x15\3\3\0\2\2\x28')], [*begin, (5, b'\x17\3\3\0\4abcd')],
              [*begin, (5, b'\x16\3\3\xff\xff' + bytes(65535))], [*begin, (5, b'\x16\3\3\0\0' * 999)]]
    # Plain replies that come with the word that TLS may begin.
    forged = nbdserver.option_reply(nbdraw.OPT_STRUCTURED, nbdraw.REP_ACK) + nbdserver.option_reply(
        nbdraw.OPT_GO, nbdraw.REP_INFO, struct.pack('>HQH', 0, MIB, 1)) + nbdserver.option_reply(
            nbdraw.OPT_GO, nbdraw.REP_ACK)
    lines += [[begin[0], (20, ACK + forged)], [begin[0], (20, ACK + forged[20:])]]
    with Liar(tmp / 'liar.sock', *lines) as s:
        for _ in lines:
            fails(d, '', unix(s.path))
    d.stop()
