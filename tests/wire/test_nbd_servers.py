# SPDX-License-Identifier: Apache-2.0
"""Several NBD servers at a time, where they listen, and who uses them."""
import os
import socket
import struct
import time

import nbdraw as nbd
import pytest
import quoin
import tlskit
from nbdraw import Conn, connect

MIB = 1 << 20


def unix(path, **more):
    return {'addr': {'type': 'unix', 'path': str(path), **more}}


@pytest.fixture
def daemon(start):
    return start('--blockdev', f'null-co,node-name=n,size={MIB},read-zeroes=on')


def add(d, server, **args):
    d.cmd('x-quoin-nbd-server-add', {'id': server, **args})


def export(d, name, *servers, **more):
    args = {'type': 'nbd', 'id': name, 'node-name': 'n', 'name': name}
    if servers:
        args['x-quoin-servers'] = list(servers)
    args.update({k.replace('_', '-'): v for k, v in more.items()})
    return d.ask('block-export-add', args)


def names(path):
    with Conn(path) as c:
        return [data[4:].decode() for kind, data in c.option(nbd.OPT_LIST)
                if kind == nbd.REP_SERVER]


def test_each_server_shows_its_own_exports(daemon, tmp):
    daemon.cmd('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': f'{tmp}/0'}}})
    for server in ('one', 'two'):
        add(daemon, server, **unix(tmp / server))
    assert 'return' in export(daemon, 'a')
    assert 'return' in export(daemon, 'b', 'one')
    assert 'return' in export(daemon, 'c', 'two', 'one')
    assert 'return' in export(daemon, 'd', 'default', 'two')
    assert names(tmp / '0') == ['a', 'd']
    assert names(tmp / 'one') == ['b', 'c']
    assert names(tmp / 'two') == ['c', 'd']
    for path, name in ((tmp / 'one', 'c'), (tmp / 'two', 'c'), (tmp / '0', 'd')):
        with connect(path, name) as c:
            c.request(nbd.READ, length=512)
            assert c.simple(512)[0] == 0
    with Conn(tmp / 'one') as c:
        assert c.go('a')[0][0] == nbd.ERR_UNKNOWN


def test_a_server_takes_only_those_exports_with_it_that_nobody_else_shows(daemon, tmp):
    for server in ('one', 'two'):
        add(daemon, server, **unix(tmp / server))
    export(daemon, 'mine', 'one')
    export(daemon, 'both', 'one', 'two')
    by_one, by_two = connect(tmp / 'one', 'both'), connect(tmp / 'two', 'both')
    daemon.cmd('x-quoin-nbd-server-del', {'id': 'one'})
    daemon.wait_event('BLOCK_EXPORT_DELETED', id='mine')
    assert by_one.closed()
    assert not (tmp / 'one').exists()
    by_two.request(nbd.READ, length=512)
    assert by_two.simple(512)[0] == 0
    by_two.sock.close()
    assert [e['id'] for e in daemon.cmd('query-block-exports')] == ['both']
    daemon.cmd('x-quoin-nbd-server-del', {'id': 'two'})
    assert daemon.cmd('query-block-exports') == []


def test_stopping_qemus_server_leaves_the_others_alone(daemon, tmp):
    daemon.cmd('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': f'{tmp}/0'}}})
    add(daemon, 'one', **unix(tmp / 'one'))
    export(daemon, 'a')
    export(daemon, 'b', 'one')
    daemon.cmd('nbd-server-stop')
    assert [e['id'] for e in daemon.cmd('query-block-exports')] == ['b']
    assert names(tmp / 'one') == ['b']
    assert daemon.ask('nbd-server-stop')['error']['desc'] == 'NBD server not running'
    assert export(daemon, 'c')['error']['desc'] == 'NBD server not running'


def test_what_is_wrong_is_told_and_leaves_nothing(daemon, tmp):
    add(daemon, 'one', **unix(tmp / 'one'))

    def refused(command, **args):
        return daemon.ask(command, args)['error']['desc']

    for bad in ('', '1', 'a/b'):
        assert refused('x-quoin-nbd-server-add', id=bad, **unix(tmp / 'x')) == (
            'Invalid NBD server id')
    assert refused('x-quoin-nbd-server-add', id='one', **unix(tmp / 'x')) == (
        "NBD server id 'one' is already in use")
    assert refused('x-quoin-nbd-server-add', id='two', tls='optional', **unix(tmp / 'x')) == (
        "Parameter 'tls' needs 'tls-creds'")
    assert refused('x-quoin-nbd-server-del', id='two') == "NBD server 'two' is not found"
    assert not (tmp / 'x').exists()
    assert export(daemon, 'e', 'one', 'two')['error']['desc'] == "NBD server 'two' is not found"
    assert export(daemon, 'e', 'one', 'one')['error']['desc'] == (
        "NBD server already has export named 'e'")
    assert export(daemon, 'e', 'one', x_quoin_tls=True)['error']['desc'] == (
        "Export 'e' needs TLS, which NBD server 'one' does not have")
    reply = daemon.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n',
                                            'x-quoin-servers': []})
    assert reply['error']['desc'] == "Parameter 'x-quoin-servers' names no NBD server"
    assert names(tmp / 'one') == []
    assert 'return' in export(daemon, 'e', 'one')


def test_limits_are_each_servers_own(daemon, tmp):
    add(daemon, 'one', **{'max-connections': 1}, **unix(tmp / 'one'))
    add(daemon, 'two', **unix(tmp / 'two'))
    export(daemon, 'e', 'one', 'two')
    with connect(tmp / 'one', 'e') as first:
        assert not first.transmission & 0x100
        late = Conn(tmp / 'one', greet=False, timeout=0.3)
        with pytest.raises(socket.timeout):
            late.sock.recv(1)
        with connect(tmp / 'two', 'e') as other:
            assert other.transmission & 0x100
    late.sock.settimeout(20)
    assert late.recv(8) == b'NBDMAGIC'
    late.sock.close()


def test_servers_of_the_command_line(start, tmp):
    start('--blockdev', f'null-co,node-name=n,size={MIB}',
          '--x-quoin-nbd-server', f'one,addr.type=unix,addr.path={tmp}/one',
          '--x-quoin-nbd-server', f'id=two,addr.type=unix,addr.path={tmp}/two',
          '--export', 'nbd,id=e,node-name=n,x-quoin-servers.0=one,x-quoin-servers.1=two')
    assert names(tmp / 'one') == names(tmp / 'two') == ['n']


def test_servers_are_listed(daemon, tmp):
    assert daemon.cmd('x-quoin-query-nbd-servers') == []
    daemon.cmd('nbd-server-start', {
        'addr': {'type': 'inet', 'data': {'host': '127.0.0.1', 'port': '0'}},
        'max-connections': 7})
    add(daemon, 'one', **unix(tmp / 'one'))
    export(daemon, 'e', 'one')
    with connect(tmp / 'one', 'e'), Conn(tmp / 'one'):
        first, one = daemon.cmd('x-quoin-query-nbd-servers')
    assert one == {'id': 'one', 'addresses': [{'type': 'unix', 'path': f'{tmp}/one'}],
                   'connections': 2, 'max-connections': 100, 'exports': ['e']}
    address = first['addresses'][0]
    assert (first['id'], first['max-connections'], first['exports']) == ('default', 7, [])
    assert address['host'] == '127.0.0.1' and address['ipv4']
    # The port that the kernel chose.
    with socket.create_connection(('127.0.0.1', int(address['port']))) as s:
        assert s.recv(8) == b'NBDMAGIC'


# ---- TLS that is only offered ----

@pytest.fixture
def selective(daemon, tmp):
    ca = tlskit.Authority(tmp / 'ca')
    daemon.cmd('object-add', {'qom-type': 'tls-creds-x509', 'id': 'tls', 'endpoint': 'server',
                              'dir': str(ca.server('server'))})
    daemon.cmd('x-quoin-nbd-server-add', {'id': 'one', 'tls-creds': 'tls', 'tls': 'optional',
                                          **unix(tmp / 'one')})
    export(daemon, 'open', 'one')
    export(daemon, 'closed', 'one', x_quoin_tls=True)
    return tmp / 'one', tlskit.context(ca.client('client', cn='alice'))


def test_exports_that_need_tls_are_not_there_without(selective):
    path, _ = selective
    with Conn(path) as c:
        assert [d for k, d in c.option(nbd.OPT_LIST) if k == nbd.REP_SERVER] == [b'\0\0\0\4open']
        # Nor can one find out that they are.
        for name in ('closed', 'none'):
            for option in (nbd.OPT_INFO, nbd.OPT_GO):
                assert c.go(name, option=option) == [
                    (nbd.ERR_TLS_REQD, f"export '{name}' not present without TLS".encode())]
            c.option(nbd.OPT_STRUCTURED)
            assert c.set_meta(name, 'base:allocation')[0][0] == nbd.ERR_UNKNOWN
            assert c.set_meta(name, option=nbd.OPT_LIST_META)[0][0] == nbd.ERR_UNKNOWN
        assert c.go('open')[-1] == (nbd.REP_ACK, b'')
    with Conn(path) as c:
        c.option_send(nbd.OPT_EXPORT_NAME, b'closed')
        assert c.closed()
    with Conn(path, flags=0) as c:
        c.option_send(nbd.OPT_EXPORT_NAME, b'open')
        assert len(c.recv(134)) == 134


def test_with_tls_they_are(selective):
    path, context = selective
    with Conn(path).starttls(context) as c:
        assert len(c.option(nbd.OPT_LIST)) == 3
        assert c.go('none') == [(nbd.ERR_UNKNOWN, b"export 'none' not present")]
        assert c.go('closed')[-1] == (nbd.REP_ACK, b'')
        c.request(nbd.READ, length=512)
        assert c.simple(512)[0] == 0


def test_what_was_agreed_on_before_tls_is_forgotten(selective):
    path, context = selective
    with Conn(path) as c:
        c.option(nbd.OPT_STRUCTURED)
        assert c.set_meta('open', 'base:allocation')[0][0] == nbd.REP_META
        c.starttls(context)
        assert c.set_meta('open', 'base:allocation')[0][0] == nbd.ERR_INVALID
        assert c.go('open')[-1] == (nbd.REP_ACK, b'')
        assert not c.transmission & 0x80
        c.request(nbd.READ, length=512)
        assert c.simple(512)[0] == 0
        c.request(nbd.BLOCK_STATUS, length=512)
        assert c.simple()[0] == nbd.EINVAL
    with Conn(path) as c:
        c.option(nbd.OPT_EXTENDED)
        c.starttls(context)
        assert c.option(nbd.OPT_STRUCTURED) == [(nbd.REP_ACK, b'')]


# ---- clients ----

def clients(d, name):
    return next(e for e in d.cmd('query-block-exports') if e['id'] == name).get(
        'x-quoin-clients', [])


def until(condition):
    end = time.monotonic() + quoin.LIMIT
    while not condition():
        assert time.monotonic() < end


@pytest.mark.io
def test_clients_are_told_with_what_they_did(daemon, tmp):
    add(daemon, 'one', **unix(tmp / 'one'))
    export(daemon, 'e', 'one', writable=True)
    assert clients(daemon, 'e') == []
    with connect(tmp / 'one', 'e') as c, connect(tmp / 'one', 'e', extended=True):
        for _ in range(3):
            c.request(nbd.READ, 0, 4096)
            c.simple(4096)
        c.request(nbd.WRITE, 0, 1000, data=bytes(1000))
        c.simple()
        c.request(nbd.FLUSH)
        c.simple()
        first, second = clients(daemon, 'e')
        assert first == {'server': 'one', 'pid': os.getpid(), 'uid': os.getuid(), 'tls': False,
                         'requests': 5, 'in-flight': first['in-flight'],
                         'bytes-read': 12288, 'bytes-written': 1000}
        assert second['requests'] == 0
    until(lambda: clients(daemon, 'e') == [])


MARKS = 20      # bitmaps
REQUESTS = 120  # fewer than a connection may have in flight where they are small


def flood_status(path):
    """Many extents to tell of, and a client that reads no reply."""
    c = connect(path, 'e', extended=True, meta=(
        'base:allocation', *(f'qemu:dirty-bitmap:b{i}' for i in range(MARKS))))
    c.send(struct.pack('>IHHQQQ', nbd.EXTENDED_REQUEST_MAGIC, 0, nbd.BLOCK_STATUS, 7, 0,
                       64 * MIB) * REQUESTS)
    return c, 32 * MIB // ((MARKS + 1) * 8192 * 16)


def flood_cache(path):
    c = connect(path, 'slow')
    c.send(struct.pack('>IHHQQI', nbd.REQUEST_MAGIC, 0, nbd.CACHE, 7, 0, 32 * MIB) * REQUESTS)
    return c, 32


@pytest.mark.parametrize('flood', [flood_status, flood_cache])
def test_memory_of_all_that_is_in_flight_is_bounded(start, tmp, flood):
    """Also where neither request nor reply has data of the length that is asked for."""
    with open(tmp / 'chequered', 'wb') as f:
        for i in range(8192):
            f.seek(i * 8192)
            f.write(b'x' * 4096)
        f.truncate(64 * MIB)
    d = start('--blockdev', f'file,node-name=f,filename={tmp}/chequered',
              '--blockdev', f'null-co,node-name=n,size={64 * MIB},latency-ns=60000000000',
              env={'LSAN_OPTIONS': 'detect_leaks=0'})
    for i in range(MARKS):
        d.cmd('block-dirty-bitmap-add', {'node': 'f', 'name': f'b{i}', 'disabled': True})
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(tmp / 'nbd')}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'f', 'name': 'e',
                               'bitmaps': [f'b{i}' for i in range(MARKS)]})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'slow', 'node-name': 'n', 'name': 'slow'})

    def in_flight():
        return max(c['in-flight'] for e in ('e', 'slow') for c in clients(d, e))

    c, most = flood(tmp / 'nbd')
    with c:
        until(lambda: in_flight() >= most - 1)
        # All that came was looked at in one go.
        assert all(in_flight() <= most for _ in range(50))


def test_a_client_by_tcp_and_tls_has_an_address_and_a_name(daemon, tmp):
    ca = tlskit.Authority(tmp / 'ca')
    daemon.cmd('object-add', {'qom-type': 'tls-creds-x509', 'id': 'tls', 'endpoint': 'server',
                              'dir': str(ca.server('server'))})
    daemon.cmd('x-quoin-nbd-server-add', {
        'id': 'lan', 'tls-creds': 'tls',
        'addr': {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}})
    export(daemon, 'e', 'lan')
    address = daemon.cmd('x-quoin-query-nbd-servers')[0]['addresses'][0]
    with Conn(('127.0.0.1', int(address['port']))) as c:
        c.starttls(tlskit.context(ca.client('client', cn='alice')))
        c.go('e')
        port = c.sock.getsockname()[1]
        (told,) = clients(daemon, 'e')
    assert told['address'] == {'type': 'inet', 'host': '127.0.0.1', 'port': str(port),
                               'ipv4': True}
    assert (told['tls'], told['identity'], told['server']) == (True, 'CN=alice', 'lan')
    assert 'pid' not in told


def test_a_request_that_hangs_is_seen_in_flight(start, tmp):
    d = start('--blockdev', 'null-co,node-name=n,size=1048576,latency-ns=60000000000',
              '--x-quoin-nbd-server', f'one,addr.type=unix,addr.path={tmp}/one',
              '--export', 'nbd,id=e,node-name=n,x-quoin-servers.0=one',
              env={'LSAN_OPTIONS': 'detect_leaks=0'})
    with connect(tmp / 'one', 'n') as c:
        for _ in range(3):
            c.request(nbd.READ, length=512)
        until(lambda: clients(d, 'e')[0]['in-flight'] == 3)
        begin = time.monotonic()
        d.cmd('x-quoin-nbd-server-del', id='one')
        assert time.monotonic() - begin < 15 * quoin.SLOW
        assert c.closed()
    assert d.cmd('x-quoin-query-nbd-servers') == []


# ---- sockets ----

def greets(address, family=socket.AF_UNIX):
    with socket.socket(family) as s:
        s.settimeout(20)
        s.connect(address)
        return s.recv(8) == b'NBDMAGIC'


def test_abstract_socket(daemon):
    name = f'quoin-test-{os.getpid()}'
    add(daemon, 'one', **unix(name, abstract=True))
    assert greets('\0' + name)
    assert daemon.cmd('x-quoin-query-nbd-servers')[0]['addresses'] == [
        {'type': 'unix', 'path': name, 'abstract': True}]
    daemon.cmd('x-quoin-nbd-server-del', id='one')
    with pytest.raises(ConnectionRefusedError):
        greets('\0' + name)


def test_ipv6_and_both_families_of_a_name(daemon):
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(('::1', 0))
    except OSError as e:
        pytest.skip(f'no IPv6 here: {e}')
    add(daemon, 'six', addr={'type': 'inet', 'host': '::1', 'port': '0'})
    add(daemon, 'any', addr={'type': 'inet', 'host': '', 'port': '0'})
    six, any_ = daemon.cmd('x-quoin-query-nbd-servers')
    assert greets(('::1', int(six['addresses'][0]['port'])), socket.AF_INET6)
    assert {a['host'] for a in any_['addresses']} == {'0.0.0.0', '::'}
    port, = {int(a['port']) for a in any_['addresses']}
    assert greets(('::1', port), socket.AF_INET6)
    assert greets(('127.0.0.1', port), socket.AF_INET)


def test_a_socket_that_is_given_and_its_name(daemon, tmp, start):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp / 'given'))
        listener.listen()
        start('--x-quoin-nbd-server', f'one,addr.type=fd,addr.str={listener.fileno()}',
              pass_fds=[listener.fileno()])
    assert greets(str(tmp / 'given'))
    for bad in ('77', '-1', 'x', '0'):
        reply = daemon.ask('x-quoin-nbd-server-add', {'id': 'x', 'addr': {'type': 'fd', 'str': bad}})
        assert reply['error']['desc'].startswith(f"File descriptor '{bad}' is not")


def test_vsock(daemon):
    def ask(cid, port):
        return daemon.ask('x-quoin-nbd-server-add', {
            'id': 'v', 'addr': {'type': 'vsock', 'cid': cid, 'port': port}})

    assert ask('x', '1')['error']['desc'] == "Failed to parse cid 'x'"
    assert ask('2', '-1')['error']['desc'] == "Failed to parse port '-1'"
    reply = ask(str(0xffffffff), '54321')
    if 'error' in reply:
        pytest.skip('no vsock here: ' + reply['error']['desc'])
    assert daemon.cmd('x-quoin-query-nbd-servers')[0]['addresses'][0]['port'] == '54321'
    assert daemon.cmd('x-quoin-nbd-server-del', id='v') == {}


def test_vsock_carries_data(daemon, tmp):
    """Both sides of ours, where this machine can connect to itself."""
    port = str(20000 + os.getpid() % 20000)
    at = {'type': 'vsock', 'cid': '1', 'port': port}
    if 'error' in (reply := daemon.ask('x-quoin-nbd-server-add', {'id': 'v', 'addr': at})):
        pytest.skip('no vsock loopback here: ' + reply['error']['desc'])
    export(daemon, 'e', 'v', writable=True)
    daemon.cmd('blockdev-add', {'driver': 'nbd', 'node-name': 'far', 'server': at, 'export': 'e'})
    add(daemon, 'one', **unix(tmp / 'one'))
    export(daemon, 'f', 'one', node='far', writable=True)
    with connect(tmp / 'one', 'f') as c:
        c.request(nbd.WRITE, 4096, 5, data=b'hello')
        assert c.simple()[0] == 0
        c.request(nbd.READ, 4096, 5)
        assert c.simple(5)[2] == b'hello'
    assert clients(daemon, 'e')[0]['address']['cid'] == '1'


def test_half_open_clients_do_not_outlive_their_server(daemon, tmp):
    """CVE-2024-7409: they once did, and found it gone."""
    for i in range(5):
        add(daemon, 'one', **unix(tmp / 'one'))
        export(daemon, 'e', 'one')
        conns = [Conn(tmp / 'one', greet=False) for _ in range(40)]
        for c in conns[::2]:
            c.send(struct.pack('>I', 3) + b'IHAVEOPT')
        daemon.cmd('x-quoin-nbd-server-del', id='one')
        for c in conns:
            c.sock.close()
    assert daemon.cmd('query-block-exports') == []
