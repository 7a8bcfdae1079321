# SPDX-License-Identifier: Apache-2.0
"""The driver nbd over TLS and over sockets of all kinds, beside QEMU's: its texts."""
import pathlib
import shutil
import socket
import ssl
import struct
import tempfile
import threading

import nbdraw
import nbdserver
import pytest
import tlskit
from pair import make_pair


@pytest.fixture(scope='module')
def folders():
    """DIR/NAME in what is asked."""
    top = pathlib.Path(tempfile.mkdtemp(prefix='q-tls-'))
    ca, other = tlskit.Authority(top / 'ca'), tlskit.Authority(top / 'other', cn='Other')
    ca.server('server')
    ca.server('elsewhere', 'dns_name = "elsewhere"', 'tls_www_server', cn='elsewhere')
    ca.server('expired', 'dns_name = "localhost"', 'tls_www_server', *tlskit.EXPIRED)
    ca.server('future', 'dns_name = "localhost"', 'tls_www_server', *tlskit.FUTURE)
    ca.client('client')
    other.client('stranger')
    (top / 'psk').mkdir()
    (top / 'psk' / 'keys.psk').write_text('qemu:00112233\n')
    yield top
    shutil.rmtree(top)


@pytest.fixture
def pair(tmp, start, start_peer, folders):
    p = make_pair(tmp, start, start_peer)
    p.prepare(lambda folder: [shutil.copytree(folders / n, folder / n)
                              for n in ('client', 'stranger', 'psk')])
    for args in (
            {'qom-type': 'tls-creds-x509', 'id': 'x509', 'dir': 'DIR/client'},
            {'qom-type': 'tls-creds-x509', 'id': 'blind', 'dir': 'DIR/client', 'verify-peer': False},
            {'qom-type': 'tls-creds-x509', 'id': 'other', 'dir': 'DIR/stranger'},
            {'qom-type': 'tls-creds-psk', 'id': 'psk', 'dir': 'DIR/psk'},
            {'qom-type': 'tls-creds-anon', 'id': 'anon'},
            {'qom-type': 'tls-creds-psk', 'id': 'server', 'dir': 'DIR/psk', 'endpoint': 'server'},
            {'qom-type': 'authz-simple', 'id': 'rule', 'identity': 'x'}):
        assert 'return' in p.ask('object-add', args)
    return p


def context(folder):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    c.load_cert_chain(folder / 'server-cert.pem', folder / 'server-key.pem')
    return c


def options(server, creds='x509', **more):
    o = {'driver': 'nbd', 'node-name': 'n', 'server': server, 'tls-creds': creds}
    if isinstance(server, str):
        o['server'] = {'type': 'unix', 'path': server}
    return dict(o, **{k.replace('_', '-'): v for k, v in more.items()})


def add(pair, o, **how):
    reply = pair.ask('blockdev-add', o, **how)
    if 'return' in reply:
        pair.ask('blockdev-del', {'node-name': 'n'})
    return reply


def test_credentials_that_will_not_do(pair):
    for creds in ('none', 'rule', 'server', ''):
        assert 'error' in add(pair, options('/nonexistent', creds))


@pytest.mark.parametrize('server', ['server', 'elsewhere', 'expired', 'future'])
def test_certificates(pair, tmp, folders, server):
    with nbdserver.Server(tmp / 's.sock', tls=context(folders / server)) as s:
        for creds in ('x509', 'other', 'blind'):
            for name in (None, 'localhost', 'elsewhere', '127.0.0.1'):
                more = {'tls-hostname': name} if name else {}
                add(pair, options(s.path, creds, **more))


def test_what_is_shown_and_held(pair, tmp, folders):
    with nbdserver.Server(tmp / 's.sock', tls=context(folders / 'server')) as s:
        assert 'return' in pair.ask('blockdev-add', options(s.path, tls_hostname='localhost'))
        pair.each(lambda side: side.ask('query-named-block-nodes')['return'][0]['file'])
        # Whoever uses credentials goes on to, whatever becomes of the object.
        pair.ask('object-del', {'id': 'x509'})
        pair.ask('blockdev-del', {'node-name': 'n'})
        pair.ask('object-del', {'id': 'x509'})


def test_with_and_without_tls(pair, tmp, folders):
    with nbdserver.Server(tmp / 'plain.sock') as s:
        for creds in ('x509', 'psk', 'anon'):
            assert 'error' in add(pair, options(s.path, creds, tls_hostname='localhost'))
    with nbdserver.Server(tmp / 's.sock', tls=context(folders / 'server')) as s:
        for creds in ('psk', 'anon'):
            assert 'error' in add(pair, options(s.path, creds))
        o = options(s.path)
        del o['tls-creds']
        assert 'error' in add(pair, o)


def reply(kind, data=b'', option=nbdraw.OPT_STARTTLS, magic=nbdraw.REPLY_MAGIC, length=None):
    return struct.pack('>QIII', magic, option, kind, len(data) if length is None else length) + data


GREETING = nbdserver.HANDSHAKE
LIES = {
    'nothing': (b'', b''), 'half a greeting': (GREETING[:9], b''), 'no flags': (GREETING[:16], b''),
    'no magic': (b'x' * 18, b''), 'another protocol': (GREETING[:8] + b'x' * 10, b''),
    'oldstyle': (GREETING[:8] + bytes.fromhex('0000420281861253') + bytes(136), b''),
    'not fixed': (GREETING[:16] + b'\0\0', b''), 'no reply': (GREETING, b''),
    'half a reply': (GREETING, reply(nbdraw.REP_ACK)[:10]),
    'wrong magic': (GREETING, reply(nbdraw.REP_ACK, magic=1)),
    'another option': (GREETING, reply(nbdraw.REP_ACK, option=3)),
    'ack with data': (GREETING, reply(nbdraw.REP_ACK, b'data')),
    'info': (GREETING, reply(nbdraw.REP_INFO)), 'unknown': (GREETING, reply(77)),
    **{f'error {n}': (GREETING, reply(nbdraw.REP_ERR + n)) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 99)},
    'error with a text': (GREETING, reply(nbdraw.REP_ERR + 2, b'because')),
    'text cut': (GREETING, reply(nbdraw.REP_ERR + 2, b'because', length=50)),
    'text of 4 GiB': (GREETING, reply(nbdraw.REP_ERR + 2, b'because', length=0xffffffff)),
}


NUMBERS = 'QEMU has names for all numbers of the protocol, and here it is of no use to say them'
DIFFERENT = {
    'another option': NUMBERS, 'info': NUMBERS, 'unknown': NUMBERS,
    'text cut': 'what a server says of its refusal is not waited for',
    'text of 4 GiB': 'what a server says of its refusal is not waited for',
}


def lie(listener, first, second):
    """To one client: greet, read flags and STARTTLS, reply."""
    s, _ = listener.accept()
    try:
        s.sendall(first)
        left = 20 if second else 0
        while left:
            n = len(s.recv(left))
            if not n:
                break
            left -= n
        s.sendall(second)
        s.shutdown(socket.SHUT_WR)
        while s.recv(4096):
            pass
    except OSError:
        pass
    s.close()


def test_replies_that_are_not_to_be_had(pair, tmp):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp / 'liar.sock'))
    listener.listen(4)
    wrong = {}
    for name, (first, second) in LIES.items():
        answers = []
        for side in pair.sides:
            t = threading.Thread(target=lie, args=(listener, first, second), daemon=True)
            t.start()
            answers.append(side.ask('blockdev-add', options(str(tmp / 'liar.sock'), 'psk')))
            t.join(20)
        assert all('error' in a for a in answers)
        if (answers[0] == answers[1]) == (name in DIFFERENT):
            wrong[name] = answers
    listener.close()
    assert not wrong, '\n'.join(f'{k}: {v}' for k, v in wrong.items())


def test_sockets_of_other_kinds(pair):
    def plain(address, **how):
        o = options(address)
        del o['tls-creds']
        assert 'error' in add(pair, o, **how)

    for name in ('999', 'name', '', '-1', '1x', '0', '99999999999999'):
        plain({'type': 'fd', 'str': name},
              differ='qemu-storage-daemon knows nobody who could have passed one')
    for cid, port in (('x', '1'), ('1', 'x'), ('-1', '1'), ('4294967296', '1'), ('1', '1')):
        plain({'type': 'vsock', 'cid': cid, 'port': port})
