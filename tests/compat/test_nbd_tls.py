# SPDX-License-Identifier: Apache-2.0
"""TLS credentials, and what may be said before TLS, beside qemu-storage-daemon.

Known differences, each safer than what it differs from: QEMU takes a rule who may
connect where nobody can show who he is (no TLS, no certificates, certificates that
are not verified), and lets everybody in; and it talks TLS older than 1.2 unless
told not to.
"""
import pathlib
import shutil
import tempfile

import nbdraw as nbd
import pytest
import tlskit
from nbdraw import Conn
from pair import make_pair

CA = ('ca', 'cert_signing_key')
SERVER = ('tls_www_server', 'signing_key', 'encryption_key')


@pytest.fixture(scope='module')
def folders():
    """Folders with credentials of all sorts: below DIR/NAME in what is asked."""
    top = pathlib.Path(tempfile.mkdtemp(prefix='q-tls-'))
    ca = tlskit.Authority(top / 'ca')
    other = tlskit.Authority(top / 'other', cn='Other CA')
    ca.server('good')
    ca.server('bare', 'dns_name = "localhost"')
    ca.server('expired', *SERVER, *tlskit.EXPIRED)
    ca.server('future', *SERVER, *tlskit.FUTURE)
    ca.server('is-ca', *CA)
    ca.server('for-clients', 'tls_www_client', 'signing_key', 'encryption_key')
    ca.server('no-signing', 'encryption_key')
    ca.server('no-encryption', 'signing_key')
    ca.client('client')
    shutil.copytree(top / 'good', top / 'stranger')
    shutil.copy(other.cert, top / 'stranger')
    for name, extra in (('ca-expired', (*CA, *tlskit.EXPIRED)), ('ca-future', (*CA, *tlskit.FUTURE)),
                        ('ca-no-ca', ('cert_signing_key',)), ('ca-no-signing', ('ca', 'crl_signing_key'))):
        tlskit.Authority(top / f'{name}-own', extra=extra).server(name)
    shutil.copytree(top / 'client', top / 'client-no-cert')
    (top / 'client-no-cert' / 'client-cert.pem').unlink()
    for name, missing in (('no-ca', 'ca-cert.pem'), ('no-key', 'server-key.pem'),
                          ('no-cert', 'server-cert.pem')):
        shutil.copytree(top / 'good', top / name)
        (top / name / missing).unlink()
    for name, junk in (('junk-cert', 'server-cert.pem'), ('junk-ca', 'ca-cert.pem'),
                       ('junk-key', 'server-key.pem'), ('junk-crl', 'ca-crl.pem'),
                       ('junk-dh', 'dh-params.pem')):
        shutil.copytree(top / 'good', top / name)
        (top / name / junk).write_text('junk\n')
    (top / 'empty').mkdir()
    (top / 'psk').mkdir()
    (top / 'psk' / 'keys.psk').write_text('qemu:001122\nodd:zz\n')
    (top / 'psk' / 'keys.psk').chmod(0o600)
    yield top
    shutil.rmtree(top)


@pytest.fixture
def pair(tmp, start, start_peer, folders):
    p = make_pair(tmp, start, start_peer)
    p.prepare(lambda folder: [shutil.copytree(f, folder / f.name) for f in folders.iterdir()
                              if f.name not in ('ca', 'other')])
    return p


def add(pair, kind, folder=None, **more):
    args = {'qom-type': kind, 'id': more.pop('id', 't')}
    if folder:
        args['dir'] = f'DIR/{folder}'
    args.update({k.replace('_', '-'): v for k, v in more.items()})
    reply = pair.ask('object-add', args)
    if 'return' in reply:
        pair.ask('object-del', {'id': args['id']})
    return reply


@pytest.mark.parametrize('folder, good', [
    ('good', True), ('bare', True), ('expired', False), ('future', False), ('is-ca', False),
    ('for-clients', None), ('no-signing', None), ('no-encryption', None), ('stranger', False),
    ('ca-expired', False), ('ca-future', False), ('ca-no-ca', False), ('ca-no-signing', None),
    ('no-ca', False), ('no-key', False), ('no-cert', False), ('junk-cert', False),
    ('junk-ca', False), ('junk-key', False), ('junk-crl', False), ('junk-dh', False),
    ('empty', False), ('none', False), ('client', False)])
def test_certificates_of_a_server(pair, folder, good):
    reply = add(pair, 'tls-creds-x509', folder, endpoint='server')
    assert good is None or ('return' in reply) == good
    add(pair, 'tls-creds-x509', folder, endpoint='server', sanity_check=False)


@pytest.mark.parametrize('folder', ['client', 'client-no-cert', 'good', 'empty', 'junk-ca'])
def test_certificates_of_a_client(pair, folder):
    add(pair, 'tls-creds-x509', folder)
    add(pair, 'tls-creds-x509', folder, endpoint='client', verify_peer=False)


def test_other_credentials_and_rules(pair):
    for kind in ('tls-creds-x509', 'tls-creds-psk', 'tls-creds-anon'):
        for endpoint in ('server', 'client', 'both'):
            add(pair, kind, endpoint=endpoint)
            add(pair, kind, 'empty', endpoint=endpoint)
        add(pair, kind, 'junk-dh', endpoint='server')
        add(pair, kind, 'good', endpoint='server', nonsense=1)
    for more in ({'endpoint': 'server'}, {'endpoint': 'client'}, {'username': 'none'},
                 {'username': 'odd'}, {'endpoint': 'server', 'username': 'qemu'}):
        add(pair, 'tls-creds-psk', 'psk', **more)
    add(pair, 'tls-creds-anon', endpoint='server', priority='JUNK')
    add(pair, 'tls-creds-anon', id='9')
    add(pair, 'authz-simple')
    add(pair, 'authz-simple', identity='CN=x')
    for rules in ([], [{'match': 'x', 'policy': 'allow'}], [{'match': 'x'}], [{'policy': 'deny'}],
                  [{'match': 'x', 'policy': 'allow', 'format': 'regex'}]):
        add(pair, 'authz-list', rules=rules, policy='allow')
    add(pair, 'authz-list')
    add(pair, 'authz-list', policy='maybe')


def test_servers(pair):
    addr = {'type': 'unix', 'data': {'path': 'DIR/nbd'}}
    for args in ({'qom-type': 'tls-creds-anon', 'id': 'srv', 'endpoint': 'server'},
                 {'qom-type': 'tls-creds-anon', 'id': 'cli'},
                 {'qom-type': 'authz-simple', 'id': 'rule', 'identity': 'x'}):
        pair.ask('object-add', args)
        pair.ask('object-add', args)
    for more in ({'tls-creds': 'none'}, {'tls-creds': 'rule'}, {'tls-creds': 'cli'},
                 {'tls-creds': 'srv', 'tls-authz': 'none'}, {'tls-creds': 'srv'}):
        pair.ask('nbd-server-start', {'addr': addr, **more})
    pair.ask('object-del', {'id': 'srv'})
    pair.ask('nbd-server-stop')
    pair.ask('object-del', {'id': 'srv'})
    ours, theirs = (s.ask('nbd-server-start', {'addr': addr, 'tls-authz': 'rule'})
                    for s in pair.sides)
    assert 'error' in ours and 'return' in theirs


def talk(*options, flags=3):
    """What each of these options is answered, until the connection ends."""
    def ask(side):
        answers = []
        with Conn(side.folder / 'nbd', flags=flags) as c:
            for option, data in options:
                try:
                    answers.append(c.option(option, data))
                except nbd.Closed:
                    return [*answers, 'closed']
        return answers
    return ask


def test_before_tls(tmp, start, start_peer):
    pair = make_pair(tmp, start, start_peer, (
        '--object', 'tls-creds-anon,id=t,endpoint=server',
        '--blockdev', 'null-co,node-name=n,size=1048576',
        '--nbd-server', 'addr.type=unix,addr.path=DIR/nbd,tls-creds=t',
        '--export', 'nbd,id=e,node-name=n'))
    go = nbd.go_data('n')
    for option, data in ((nbd.OPT_LIST, b''), (nbd.OPT_LIST, b'x'), (nbd.OPT_GO, go),
                         (nbd.OPT_INFO, go), (nbd.OPT_INFO, b''), (nbd.OPT_STRUCTURED, b''),
                         (nbd.OPT_EXTENDED, b''), (nbd.OPT_SET_META, nbd.meta_data('n')),
                         (4, b''), (99, b'abc'),
                         (0, b''), (0xffffffff, b''), (nbd.OPT_EXPORT_NAME, b'n'),
                         (nbd.OPT_STARTTLS, b'x')):
        pair.each(talk((option, data), (nbd.OPT_LIST, b'')))
    # The protocol excepts ABORT from what is refused; QEMU refuses it, and obeys.
    for data in (b'', b'x'):
        ours, theirs = (talk((nbd.OPT_ABORT, data), (nbd.OPT_LIST, b''))(s) for s in pair.sides)
        assert ours == [[(nbd.REP_ACK, b'')], 'closed']
        assert theirs[0][0][0] == nbd.ERR_TLS_REQD and theirs[1] == 'closed'
    for flags in (0, 1, 2):
        pair.each(talk((nbd.OPT_EXPORT_NAME, b'n'), flags=flags))
        pair.each(talk((nbd.OPT_STARTTLS, b''), flags=flags))
