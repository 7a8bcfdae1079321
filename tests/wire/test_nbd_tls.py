# SPDX-License-Identifier: Apache-2.0
"""TLS on the NBD server: by raw bytes before it, by Python's ssl and strangers in it."""
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

import nbdraw as nbd
import peers
import pytest
import quoin
import tlskit
from nbdraw import Conn

MIB = 1 << 20
SIZE = 16 * MIB


class Certs:
    """One authority that the server trusts, one that it does not, and their people."""

    def __init__(self, folder):
        ca = tlskit.Authority(folder / 'ca')
        other = tlskit.Authority(folder / 'other', cn='Other CA')
        self.server = ca.server('server')
        self.alice = ca.client('alice', cn='alice')
        self.bob = ca.client('bob', cn='bob')
        self.expired = ca.client('expired', 'tls_www_client', *tlskit.EXPIRED, cn='old')
        self.future = ca.client('future', 'tls_www_client', *tlskit.FUTURE, cn='young')
        self.stranger = other.client('stranger', cn='alice')
        shutil.copy(ca.cert, self.stranger / 'ca-cert.pem')     # it trusts us, we not it
        self.nobody = folder / 'nobody'
        self.nobody.mkdir()
        shutil.copy(ca.cert, self.nobody)


@pytest.fixture(scope='module')
def certs():
    folder = pathlib.Path(tempfile.mkdtemp(prefix='q-tls-'))
    yield Certs(folder)
    shutil.rmtree(folder)


@pytest.fixture
def disk(tmp):
    path = tmp / 'disk'
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def serve(start, tmp, disk, certs):
    """serve(*objects, **options of the server) -> (daemon, path); forced TLS."""
    def serve_it(*objects, creds=None, limit=None, **options):
        path = tmp / 'nbd'
        creds = creds or f'tls-creds-x509,id=tls,dir={certs.server},endpoint=server'
        server = ''.join(f',{k.replace("_", "-")}={v}' for k, v in options.items())
        args = [a for o in (creds, *objects) for a in ('--object', o)]
        return start(*args, '--blockdev', f'file,node-name=f,filename={disk}',
                     '--nbd-server', f'addr.type=unix,addr.path={path},tls-creds=tls{server}',
                     '--export', 'nbd,id=rw,node-name=f,name=rw,writable=on'), path
    return serve_it


@pytest.fixture
def path(serve):
    return serve()[1]


def enter(path, folder, structured=False, **how):
    c = Conn(path).starttls(tlskit.context(folder, **how))
    if structured:
        c.option(nbd.OPT_STRUCTURED)
    assert c.go('rw')[-1] == (nbd.REP_ACK, b'')
    return c


def assert_serves(path, folder):
    with enter(path, folder) as c:
        c.request(nbd.READ, length=512)
        assert c.simple(512)[0] == 0


def is_refused(path, folder):
    """Is the client thrown out, with not a byte of an option's reply?"""
    try:
        c = Conn(path).starttls(tlskit.context(folder))
        c.option(nbd.OPT_LIST)
    except (nbd.Closed, ssl.SSLError, OSError):
        return True
    return False


# ---- before TLS ----

BEFORE_TLS = [
    (nbd.OPT_LIST, b''), (nbd.OPT_INFO, nbd.go_data('rw')), (nbd.OPT_GO, nbd.go_data('rw')),
    (nbd.OPT_STRUCTURED, b''), (nbd.OPT_EXTENDED, b''), (nbd.OPT_LIST, b'junk'),
    (nbd.OPT_SET_META, nbd.meta_data('rw', 'base:allocation')),
    (nbd.OPT_LIST_META, nbd.meta_data('rw')), (4, b''), (99, bytes(100000))]


@pytest.mark.parametrize('option, data', BEFORE_TLS, ids=range(len(BEFORE_TLS)))
def test_every_option_before_tls_is_refused(path, certs, option, data):
    with Conn(path) as c:
        assert c.option(option, data) == [
            (nbd.ERR_TLS_REQD, f'Option 0x{option:x} not permitted before TLS'.encode())]
        # The refusal has done no harm.
        c.starttls(tlskit.context(certs.alice))
        assert c.go('rw')[-1] == (nbd.REP_ACK, b'')


def test_export_name_before_tls_ends_the_connection(path):
    with Conn(path) as c:
        c.option_send(nbd.OPT_EXPORT_NAME, b'rw')
        assert c.closed()


def test_abort_before_tls_is_acknowledged(path):
    with Conn(path) as c:
        assert c.option(nbd.OPT_ABORT) == [(nbd.REP_ACK, b'')]
        assert c.closed()


def test_old_client_is_thrown_out(path):
    assert Conn(path, flags=0).closed()
    assert Conn(path, flags=2).closed()


def test_starttls_with_data_ends_the_connection(path):
    with Conn(path) as c:
        assert c.option(nbd.OPT_STARTTLS, b'x') == [
            (nbd.ERR_INVALID, b"option 'starttls' has unexpected length")]
        assert c.closed()


def test_plain_text_behind_starttls_is_never_an_option(path):
    """What an attacker on the wire puts there is no handshake, and ends it all."""
    go = nbd.go_data('rw')
    for behind in (struct.pack('>QII', nbd.IHAVEOPT, nbd.OPT_GO, len(go)) + go,
                   struct.pack('>QII', nbd.IHAVEOPT, nbd.OPT_STRUCTURED, 0) * 20,
                   struct.pack('>QII', nbd.IHAVEOPT, nbd.OPT_ABORT, 0)):
        with Conn(path) as c:
            c.send(struct.pack('>QII', nbd.IHAVEOPT, nbd.OPT_STARTTLS, 0) + behind)
            assert c.option_reply() == (nbd.OPT_STARTTLS, nbd.REP_ACK, b'')
            rest = b''
            try:
                while True:
                    rest += c.recv(1)
            except nbd.Closed:
                pass
            # At most an alert of TLS.
            assert not rest or rest[0] == 21
            assert struct.pack('>Q', nbd.REPLY_MAGIC) not in rest


@pytest.mark.parametrize('length', [1, 5, 100, 16384, 100000])
def test_junk_in_place_of_a_handshake(path, certs, length):
    rng = random.Random(length)
    with Conn(path) as c:
        assert c.option(nbd.OPT_STARTTLS) == [(nbd.REP_ACK, b'')]
        try:
            c.send(rng.randbytes(length))
            c.sock.shutdown(socket.SHUT_WR)
            while c.sock.recv(4096):
                pass
        except (nbd.Closed, OSError):
            pass
    assert_serves(path, certs.alice)


def client_hello(folder):
    """What a client says first."""
    out = ssl.MemoryBIO()
    talk = tlskit.context(folder).wrap_bio(ssl.MemoryBIO(), out, server_hostname='localhost')
    with pytest.raises(ssl.SSLWantReadError):
        talk.do_handshake()
    return out.read()


def test_disconnect_at_every_byte_of_the_hello(serve, certs):
    d, path = serve(max_connections=2)
    hello = client_hello(certs.alice)
    for cut in range(0, len(hello), 7):
        with Conn(path) as c:
            assert c.option(nbd.OPT_STARTTLS) == [(nbd.REP_ACK, b'')]
            c.send(hello[:cut])
    # There is room for new ones only if the old ones are gone.
    for c in [enter(path, certs.alice) for _ in range(2)]:
        c.sock.close()


def test_silence_in_the_handshake_has_a_time_limit(serve, certs):
    _, path = serve(handshake_max_seconds=1)
    begin = time.monotonic()
    with Conn(path) as silent, Conn(path) as half:
        try:
            for c in (silent, half):
                assert c.option(nbd.OPT_STARTTLS) == [(nbd.REP_ACK, b'')]
            half.send(client_hello(certs.alice)[:50])
        except nbd.Closed:
            pass        # we were even slower
        assert silent.closed() and half.closed()
    assert 0.5 < time.monotonic() - begin < 15 * quoin.SLOW


# ---- who may come in ----

def test_client_without_a_certificate_is_refused(path, certs):
    assert is_refused(path, certs.nobody)
    assert_serves(path, certs.alice)


@pytest.mark.parametrize('who', ['stranger', 'expired', 'future'])
def test_client_with_a_wrong_certificate_is_refused(path, certs, who):
    assert is_refused(path, getattr(certs, who))
    assert_serves(path, certs.alice)


def test_client_that_need_not_show_a_certificate(serve, certs):
    _, path = serve(creds=f'tls-creds-x509,id=tls,dir={certs.server},endpoint=server,'
                          'verify-peer=off')
    for who in (certs.nobody, certs.alice, certs.stranger):
        assert_serves(path, who)


def test_the_one_who_is_authorized(serve, certs):
    d, path = serve('authz-simple,id=one,identity=CN=alice', tls_authz='one')
    assert_serves(path, certs.alice)
    assert is_refused(path, certs.bob)
    # The name is looked up by each who comes.
    d.cmd('object-del', id='one')
    assert is_refused(path, certs.alice)
    d.cmd('object-add', {'qom-type': 'authz-list', 'id': 'one', 'rules': [
        {'match': 'CN=al*', 'policy': 'deny', 'format': 'glob'},
        {'match': 'CN=alice', 'policy': 'allow'},
        {'match': 'CN=b?b', 'policy': 'allow', 'format': 'glob'}]})
    assert is_refused(path, certs.alice)
    assert_serves(path, certs.bob)


def test_who_shows_no_identity_is_not_authorized(serve, certs):
    _, path = serve('authz-list,id=all,policy=allow', tls_authz='all',
                    creds=f'tls-creds-x509,id=tls,dir={certs.server},endpoint=server,'
                          'verify-peer=off')
    assert is_refused(path, certs.alice)
    assert is_refused(path, certs.nobody)


def test_authorization_needs_tls(start, tmp):
    d = start('--object', 'authz-simple,id=a,identity=x')
    reply = d.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': f'{tmp}/s'}},
                                       'tls-authz': 'a'})
    assert reply['error']['desc'] == ("Parameter 'tls-authz' needs 'tls-creds': without TLS nobody"
                                      " knows who connects")
    assert not (tmp / 's').exists()


# ---- inside ----

def test_starttls_twice_is_refused(path, certs):
    with Conn(path).starttls(tlskit.context(certs.alice)) as c:
        assert c.option(nbd.OPT_STARTTLS) == [(nbd.ERR_INVALID, b'TLS already enabled')]
        assert c.option(nbd.OPT_STARTTLS, b'x')[0][0] == nbd.ERR_INVALID
        assert c.go('rw')[-1] == (nbd.REP_ACK, b'')


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_old_versions_are_not_spoken(path, certs):
    c = tlskit.context(certs.alice)
    c.set_ciphers('ALL:@SECLEVEL=0')
    c.minimum_version = ssl.TLSVersion.TLSv1
    c.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, OSError)):
        Conn(path).starttls(c)


@pytest.mark.io
@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_data_is_what_it_is_without(path, certs, disk, version):
    rng = random.Random(2)
    with enter(path, certs.alice, version=version) as c:
        for length in (1, 4096, 16384, 16385, 65537, 300000, 8 * MIB):
            offset = rng.randrange(SIZE - length)
            data = rng.randbytes(length)
            c.request(nbd.WRITE, offset, length, data=data)
            assert c.simple()[0] == 0
            c.request(nbd.READ, offset, length)
            assert c.simple(length) == (0, 7, data)
        c.request(nbd.DISC)
        # A disconnect that is no attack says so.
        assert c.sock.recv(1) == b''


@pytest.mark.io
def test_many_requests_whose_replies_are_read_late(path, certs, disk):
    content = disk.read_bytes()
    with enter(path, certs.alice) as c:
        batch = b''.join(struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.READ, i, i * 4096,
                                     65536) for i in range(1000))
        sender = threading.Thread(target=c.send, args=(batch,))
        sender.start()
        for _ in range(1000):
            error, cookie, data = c.simple(65536)
            assert error == 0 and data == content[cookie * 4096:cookie * 4096 + 65536]
        sender.join()


@pytest.mark.io
def test_clients_with_tls_at_the_same_time(path, certs):
    failures = []

    def work(n):
        try:
            rng = random.Random(n)
            with enter(path, certs.alice) as c:
                for i in range(40):
                    data, at = rng.randbytes(30000), n * MIB + i * 100
                    c.request(nbd.WRITE, at, len(data), data=data)
                    assert c.simple()[0] == 0
                    c.request(nbd.READ, at, len(data))
                    assert c.simple(len(data))[2] == data
        except Exception as e:          # noqa: B902 - told below
            failures.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_stop_and_quit_with_clients_in_tls(serve, certs):
    d, path = serve()
    inside, half = enter(path, certs.alice), Conn(path)
    assert half.option(nbd.OPT_STARTTLS) == [(nbd.REP_ACK, b'')]
    d.cmd('nbd-server-stop')
    assert inside.closed() and half.closed()
    d.cmd('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': str(path)}},
                               'tls-creds': 'tls'})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'rw', 'node-name': 'f', 'name': 'rw'})
    again = enter(path, certs.alice)
    d.stop()
    assert again.closed()


def test_credentials_may_be_deleted_while_they_are_used(serve, certs):
    d, path = serve()
    d.cmd('object-del', id='tls')
    assert_serves(path, certs.alice)
    d.cmd('nbd-server-stop')
    reply = d.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': str(path)}},
                                       'tls-creds': 'tls'})
    assert reply['error']['desc'] == "No TLS credentials with id 'tls'"


def test_a_secret_that_everybody_may_read_is_told(serve, certs, tmp):
    open_folder = tmp / 'open'
    shutil.copytree(certs.server, open_folder)
    d, path = serve()
    d.cmd('object-add', {'qom-type': 'tls-creds-x509', 'id': 'fine', 'endpoint': 'server',
                         'dir': str(open_folder)})
    assert 'everybody' not in d.stderr()
    (open_folder / 'server-key.pem').chmod(0o644)
    d.cmd('object-add', {'qom-type': 'tls-creds-x509', 'id': 'open', 'endpoint': 'server',
                         'dir': str(open_folder)})
    assert (f"object 'open': everybody may read the secret in {open_folder}/server-key.pem"
            in d.stderr())


# ---- strangers ----

def qemu_io(creds, path, *commands):
    options = f'driver=nbd,server.type=unix,server.path={path},export=rw,tls-creds=t'
    if 'x509' in creds:
        options += ',tls-hostname=localhost'
    args = [a for c in commands for a in ('-c', c)]
    return subprocess.run([str(peers.QEMU_IO), '--object', f'{creds},id=t,endpoint=client',
                           '--image-opts', options, *args], capture_output=True, text=True,
                          timeout=60)


WRITE_AND_READ = ('write -P 7 1000 3M', 'read -P 7 1000 3M', 'flush')


def test_qemu_with_a_certificate(path, certs):
    r = qemu_io(f'tls-creds-x509,dir={certs.alice}', path, *WRITE_AND_READ)
    assert r.returncode == 0, r.stderr + r.stdout
    r = qemu_io(f'tls-creds-x509,dir={certs.stranger}', path, *WRITE_AND_READ)
    assert r.returncode != 0


def test_qemu_with_a_key(serve, tmp):
    for name, line in (('keys', 'qemu:00112233\nother:44556677\n'), ('wrong', 'qemu:99\n')):
        (tmp / name).mkdir()
        (tmp / name / 'keys.psk').write_text(line)
        (tmp / name / 'keys.psk').chmod(0o600)
    _, path = serve('authz-simple,id=only,identity=qemu', tls_authz='only',
                    creds=f'tls-creds-psk,id=tls,dir={tmp}/keys,endpoint=server')
    r = qemu_io(f'tls-creds-psk,dir={tmp}/keys', path, *WRITE_AND_READ)
    assert r.returncode == 0, r.stderr + r.stdout
    for creds in (f'tls-creds-psk,dir={tmp}/wrong', f'tls-creds-psk,dir={tmp}/keys,username=other'):
        assert qemu_io(creds, path, *WRITE_AND_READ).returncode != 0


def test_qemu_with_nothing_to_show(serve):
    _, path = serve(creds='tls-creds-anon,id=tls,endpoint=server')
    r = qemu_io('tls-creds-anon', path, *WRITE_AND_READ)
    assert r.returncode == 0, r.stderr + r.stdout


def test_libnbd_requires_tls(path, certs, run):
    if not shutil.which('nbdinfo'):
        pytest.skip('nbdinfo is not installed')
    uri = f'nbds+unix://localhost/rw?socket={path}&tls-certificates={certs.alice}'
    assert 'newstyle-fixed with TLS' in run('nbdinfo', uri, check=True).out
    run('nbdcopy', uri, 'null:', check=True)
    assert run('nbdinfo', uri.replace('alice', 'expired')).status != 0
    assert run('nbdinfo', f'nbd+unix:///rw?socket={path}').status != 0
