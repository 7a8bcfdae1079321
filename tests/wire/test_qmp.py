# SPDX-License-Identifier: Apache-2.0
"""Sessions of a whole daemon: streams, many clients, hostile ones, quoin qmp."""
import json
import socket

import pytest

import quoin

VERSION = b'{"execute":"query-version"}'


def rss_kib(d):
    with open('/proc/%d/status' % d.proc.pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith('VmRSS'))


def read_line(sock):
    data = b''
    while not data.endswith(b'\n'):
        more = sock.recv(1 << 16)
        assert more, 'connection closed after %r' % data[-200:]
        data += more
    return data


# ---- the stream ---------------------------------------------------------------

def test_a_request_in_pieces(start):
    q = start().connect()
    for byte in b'{\n\t"execute" : "query-version",\r\n "id" : [1,\n2] }':
        q.send_raw(bytes([byte]))
    assert q.recv()['id'] == [1, 2]


def test_many_requests_in_one_write(start):
    q = start().connect()
    q.send_raw(b''.join(b'{"execute":"query-version","id":%d}' % i for i in range(1000)))
    assert [q.recv()['id'] for _ in range(1000)] == list(range(1000))


def test_a_reply_is_one_line_of_ascii(start):
    q = start().connect()
    q.send_raw('{"execute":"ä€😀\\n"}'.encode())
    line = read_line(q.sock)
    assert line.isascii() and line.count(b'\n') == 1
    assert json.loads(line)['error']['desc'] == 'The command ä€😀\n has not been found'


def test_a_deep_id_comes_back(start):
    d = start()
    q = d.connect()
    deep = b'[' * 1023 + b']' * 1023
    q.send_raw(b'{"execute":"query-version","id":' + deep + b'}')
    assert read_line(q.sock).endswith(b'"id": ' + deep + b'}\r\n')
    d.cmd('query-version')


def test_deep_arguments_are_refused(start):
    d = start()
    for levels, text in ((1000, 'nested too deeply'), (2000, 'JSON nesting depth limit exceeded')):
        q = d.connect()
        q.send_raw(b'{"execute":"blockdev-add","arguments":{"driver":"raw","node-name":"x","file":'
                   + b'{"driver":"raw","file":' * levels + b'"y"' + b'}' * levels + b'}}')
        assert text in q.recv()['error']['desc']
        q.close()
    d.cmd('query-version')


def test_ninety_nodes_one_in_another(start):
    d = start()
    node = {'driver': 'null-co', 'size': 1 << 20, 'read-zeroes': True}
    for _ in range(90):
        node = {'driver': 'raw', 'file': node}
    d.cmd('blockdev-add', dict(node, **{'node-name': 'top'}))
    assert len(d.cmd('query-named-block-nodes', flat=True)) == 91
    d.cmd('blockdev-del', node_name='top')
    assert d.cmd('query-named-block-nodes', flat=True) == []


# ---- many clients ---------------------------------------------------------------

def test_fifty_clients_at_once(start):
    d = start()
    clients = [d.connect() for _ in range(50)]
    for i, q in enumerate(clients):
        q.send_raw(b'{"execute":"query-commands","id":%d}' % i)
    for i, q in enumerate(clients):
        assert q.recv()['id'] == i


def test_events_reach_every_client_that_has_negotiated(start, tmp):
    d = start()
    others = [d.connect() for _ in range(5)]
    silent = d.connect(negotiate=False)
    d.cmd('blockdev-create', job_id='j', options={
        'driver': 'file', 'filename': str(tmp / 'f'), 'size': 65536})
    for q in [d.qmp, *others]:
        q.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded')
    silent.send_raw(b'{"execute":"qmp_capabilities"}')
    assert silent.recv() == {'return': {}}
    d.cmd('job-dismiss', id='j')


def test_a_session_that_ends_in_the_middle_of_a_request(start):
    d = start()
    for end in range(len(VERSION)):
        q = d.connect(negotiate=False)
        q.send_raw(b'{"execute":"qmp_capabilities"}' + VERSION[:end])
        q.close()
    d.cmd('query-version')


def test_a_client_that_only_stops_sending_gets_its_replies(start):
    q = start().connect()
    q.send_raw(VERSION * 100)
    q.sock.shutdown(socket.SHUT_WR)
    for _ in range(100):
        assert 'return' in q.recv()
    assert q.ended()


# ---- hostile clients --------------------------------------------------------------

def test_a_client_that_never_reads_does_not_grow_the_daemon(start):
    d = start()
    q = d.connect()
    before = rss_kib(d)
    q.sock.setblocking(False)
    sent = 0
    # Until the daemon has stopped reading: each would be answered with 40 kB.
    while sent < 100000:
        try:
            q.sock.send(b'{"execute":"query-qmp-schema"}' * 10)
            sent += 10
        except BlockingIOError:
            break
    assert sent < 100000
    d.cmd('query-version')
    assert rss_kib(d) - before < 20000 * (1 if quoin.SLOW == 1 else 10)


@pytest.mark.limit(120)
def test_a_string_without_end(start):
    d = start()
    q = d.connect()
    piece = b'x' * (1 << 20)
    q.send_raw(b'{"execute":"')
    for _ in range(65):
        q.send_raw(piece)
    assert q.recv()['error']['desc'] == 'JSON token size limit exceeded'
    q.close()
    d.cmd('query-version')
    assert rss_kib(d) < 60000 * (1 if quoin.SLOW == 1 else 10)


def test_a_read_only_socket(start, tmp):
    d = start('--qmp', 'path=%s,read-only=on' % (tmp / 'watch'))
    q = d.connect(path=str(tmp / 'watch'))
    names = {c['name'] for c in q.cmd('query-commands')}
    assert names and all(n.removeprefix('x-quoin-').startswith('query-')
                         or n == 'qmp_capabilities' for n in names)
    q.cmd('query-named-block-nodes')
    for name in ('quit', 'blockdev-add', 'job-cancel'):
        with pytest.raises(quoin.QmpError, match='read-only socket') as e:
            q.cmd(name)
        assert e.value.error_class == 'CommandNotFound'


# ---- quoin qmp ---------------------------------------------------------------------

def test_quoin_qmp_sends_a_command(start, run):
    d = start()

    def ask(*words):
        return run(quoin.QUOIN, 'qmp', d.path, *words)

    done = ask('blockdev-add', 'driver=raw', 'node-name=n', 'file.driver=null-co',
               'file.size=1048576', 'file.read-zeroes=on', 'size=65536')
    assert (done.status, done.out, done.err) == (0, '{}\n', '')
    nodes = json.loads(ask('query-named-block-nodes', '{"flat": true}').out)
    assert {n['node-name']: n['image']['virtual-size'] for n in nodes}['n'] == 65536
    pretty = run(quoin.QUOIN, 'qmp', '--pretty', d.path, 'query-version').out
    assert pretty.startswith('{\n    "qemu": {\n') and json.loads(pretty)['qemu']['major'] == 10


def test_quoin_qmp_tells_errors_by_its_status(start, run, tmp):
    d = start()
    done = run(quoin.QUOIN, 'qmp', d.path, 'blockdev-del', 'node-name=nope')
    assert (done.status, done.out) == (1, '')
    assert done.err == "quoin: Failed to find node with node-name='nope'\n"
    assert run(quoin.QUOIN, 'qmp', d.path, 'nonsense', 'a=b').status == 1
    for words in ([d.path], [], ['--timeout', 'x', d.path, 'quit'],
                  [d.path, 'blockdev-del', 'node=x'], [d.path, 'blockdev-del', '{"a":']):
        assert run(quoin.QUOIN, 'qmp', *words).status == 2
    gone = run(quoin.QUOIN, 'qmp', str(tmp / 'nowhere'), 'quit')
    assert gone.status == 2 and 'nowhere' in gone.err


def test_quoin_qmp_does_not_wait_for_ever(run, tmp):
    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind(str(tmp / 'deaf'))
    deaf.listen()
    done = run(quoin.QUOIN, 'qmp', '--timeout', '0.2', str(tmp / 'deaf'), 'query-version')
    deaf.close()
    assert done.status == 2
    assert done.err == 'quoin: The daemon did not answer in time\n'


def test_quoin_qmp_prints_events_where_asked(start, run, tmp):
    d = start()
    words = ('blockdev-create', 'job-id=j', 'options.driver=file', 'options.size=64k',
             'options.filename=%s' % (tmp / 'f'))
    lines = run(quoin.QUOIN, 'qmp', '--events', d.path, *words).out.splitlines()
    assert json.loads(lines[-1]) == {}
    assert [json.loads(line)['event'] for line in lines[:-1]] == \
        ['JOB_STATUS_CHANGE'] * (len(lines) - 1) and len(lines) > 1
