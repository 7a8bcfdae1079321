# SPDX-License-Identifier: Apache-2.0
"""The driver nbd: an NBD server below a node, and all that a server may do."""
import json
import os
import random
import signal
import socket
import struct
import subprocess
import time

import images
import nbdraw
import nbdserver
import peers
import pytest
import quoin

MIB = 1 << 20


def content(size=4 * MIB, seed=1):
    """Half of it zeroes."""
    r = random.Random(seed)
    return b''.join(r.randbytes(65536) if r.random() < .5 else bytes(65536)
                    for _ in range(size // 65536))


def unix(path):
    return {'type': 'unix', 'path': str(path)}


def add(d, path, name='n', **more):
    d.cmd('blockdev-add', dict({'driver': 'nbd', 'node-name': name, 'server': unix(path)},
                               **{k.replace('_', '-'): v for k, v in more.items()}))


def served(d, tmp, node='n', writable=True):
    """The daemon's own socket, at which node is exported as 'e'."""
    path = tmp / 'own.sock'
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': node, 'name': 'e',
                               'writable': writable})
    return path


def io(path, *commands):
    argv = [peers.QEMU_IO, '-f', 'raw']
    for c in commands:
        argv += ['-c', c]
    return quoin.run(*argv, 'nbd+unix:///e?socket=%s' % path, tmp=os.path.dirname(path))


def job_end(d, name):
    return d.wait_event('JOB_STATUS_CHANGE', id=name, status='concluded', limit=60 * quoin.SLOW)


def job_error(d, name):
    job_end(d, name)
    info = [j for j in d.cmd('query-jobs') if j['id'] == name][0]
    d.cmd('job-dismiss', id=name)
    return info.get('error')


@pytest.fixture
def kit(tmp):
    """kit(*nbdkit's arguments) -> the socket of a running nbdkit."""
    running = []

    def start_it(*argv, name='kit'):
        path = tmp / (name + '.sock')
        pid = tmp / (name + '.pid')
        if os.path.exists(path):
            os.unlink(path)
        if os.path.exists(pid):
            os.unlink(pid)
        p = subprocess.Popen(['nbdkit', '-f', '-P', str(pid), '-U', str(path), *map(str, argv)])
        running.append(p)
        end = time.monotonic() + quoin.LIMIT
        while not os.path.exists(pid):      # written once it listens
            assert p.poll() is None and time.monotonic() < end
            os.sched_yield()
        start_it.process = p
        return path
    yield start_it
    for p in running:
        if p.poll() is None:
            p.kill()
        p.wait()


def kill(process):
    process.kill()
    process.wait()


# ---- moving data ----

@pytest.mark.io
def test_it_moves_data_both_ways(start, tmp, kit):
    disk = tmp / 'disk.raw'
    disk.write_bytes(content())
    path = kit('file', disk)
    d = start()
    add(d, path)
    own = served(d, tmp)
    assert io(own, 'write -P 7 5000 70000', 'write -z 1M 128k', 'discard 2M 64k',
              'flush').status == 0
    expected = bytearray(content())
    expected[5000:75000] = b'\7' * 70000
    expected[MIB:MIB + 131072] = bytes(131072)
    copy = tmp / 'copy.raw'
    quoin.run('nbdcopy', 'nbd+unix:///e?socket=%s' % own, copy, tmp=tmp, check=True)
    got = bytearray(copy.read_bytes())
    got[2 * MIB:2 * MIB + 65536] = expected[2 * MIB:2 * MIB + 65536] = b''
    assert got == expected
    d.stop()
    assert disk.read_bytes()[:2 * MIB] == bytes(expected[:2 * MIB])


@pytest.mark.io
@pytest.mark.parametrize('server', ['memory 64M', 'malloc'])
def test_random_requests_against_a_model(start, tmp, kit, server):
    nbd = pytest.importorskip('nbd')
    if server == 'malloc':      # one that says nothing of blocks, flushes or zeroes
        context = nbdserver.Server(tmp / 's.sock', bytes(MIB),
                                   flags=nbdserver.HAS_FLAGS)
    else:
        context = None
        path = kit('memory', '1M')
    with context or open(os.devnull) as s:
        d = start()
        add(d, s.path if context else path)
        own = served(d, tmp)
        h = nbd.NBD()
        h.connect_uri('nbd+unix:///e?socket=%s' % own)
        r = random.Random(5)
        model = bytearray(MIB)
        for _ in range(300):
            at = r.randrange(MIB - 1)
            n = min(r.choice((1, 511, 512, 4096, 70001)), MIB - at)
            what = r.randrange(4)
            if what == 0:
                data = r.randbytes(n)
                h.pwrite(data, at, nbd.CMD_FLAG_FUA if r.randrange(2) else 0)
                model[at:at + n] = data
            elif what == 1:
                h.zero(n, at)
                model[at:at + n] = bytes(n)
            else:
                assert h.pread(n, at) == bytes(model[at:at + n])
        h.flush()
        assert h.pread(MIB, 0) == bytes(model)
        h.shutdown()
        d.stop()


def test_a_job_leaves_holes_out(start, tmp, kit):
    disk = tmp / 'disk.raw'
    with open(disk, 'wb') as f:
        f.truncate(64 * MIB)
        f.seek(32 * MIB)
        f.write(b'x' * MIB)
    log = tmp / 'log'
    path = kit('--filter=log', 'file', disk, 'logfile=%s' % log)
    copy = tmp / 'copy.raw'
    with open(copy, 'wb') as f:
        f.truncate(64 * MIB)
    d = start()
    add(d, path)
    d.cmd('blockdev-add', driver='file', node_name='t', filename=str(copy))
    d.cmd('blockdev-backup', job_id='j', device='n', target='t', sync='full',
          auto_dismiss=False)
    assert job_error(d, 'j') is None
    d.stop()
    assert copy.read_bytes() == disk.read_bytes()
    read = sum(int(line.split('count=')[1].split()[0], 0) for line in open(log)
               if ' Read ' in line and 'count=' in line)
    assert MIB <= read <= 4 * MIB, read


def test_a_backup_to_a_server(start, tmp, kit):
    source = tmp / 's.raw'
    source.write_bytes(content())
    target = tmp / 't.raw'
    target.write_bytes(b'?' * (4 * MIB))
    path = kit('file', target)
    d = start()
    d.cmd('blockdev-add', driver='file', node_name='s', filename=str(source))
    add(d, path)
    d.cmd('blockdev-backup', job_id='j', device='s', target='n', sync='full',
          auto_dismiss=False)
    assert job_error(d, 'j') is None
    d.stop()
    assert target.read_bytes() == source.read_bytes()


def test_a_qcow2_image_may_lie_on_a_server(start, tmp, kit):
    image = tmp / 'i.qcow2'
    images.qcow2(image, '16M')
    quoin.run('truncate', '-s', '8M', image, tmp=tmp, check=True)
    path = kit('file', image)
    d = start()
    add(d, path, 'f')
    d.cmd('blockdev-add', driver='qcow2', node_name='n', file='f')
    own = served(d, tmp)
    assert io(own, 'write -P 9 1M 300k', 'read -P 9 1M 300k', 'flush').status == 0
    d.stop()
    images.check(image)
    assert 'Pattern verification failed' not in quoin.run(
        peers.QEMU_IO, '-f', 'qcow2', '-c', 'read -P 9 1M 300k', image, tmp=tmp, check=True).out


def test_fua_is_passed_on_or_made_up_for(start, tmp):
    flags = nbdserver.HAS_FLAGS | nbdserver.SEND_FLUSH
    for fua in (True, False):
        with nbdserver.Server(tmp / 's.sock', flags=flags | (nbdserver.SEND_FUA if fua else 0)) as s:
            d = start()
            add(d, s.path)
            with nbdraw.connect(served(d, tmp), 'e') as c:
                c.request(nbdraw.WRITE, 0, 512, flags=nbdraw.FUA, data=b'a' * 512)
                assert c.simple()[0] == 0
            seen = [(kind, flags & 1) for kind, _, _, flags in s.requests]
            assert seen == ([(nbdserver.WRITE, 1)] if fua
                            else [(nbdserver.WRITE, 0), (nbdserver.FLUSH, 0)])
            d.stop()
            os.unlink(tmp / 'own.sock') if os.path.exists(tmp / 'own.sock') else None


def test_connections_are_many_where_the_server_allows_it(start, tmp):
    flags = nbdserver.HAS_FLAGS | nbdserver.SEND_FLUSH
    for multi in (False, True):
        with nbdserver.Server(tmp / 's.sock', bytes(8 * MIB),
                              flags=flags | (nbdserver.MULTI if multi else 0)) as s:
            target = tmp / 't.raw'
            target.write_bytes(b'')
            os.truncate(target, 8 * MIB)
            d = start()
            add(d, s.path)
            d.cmd('blockdev-add', driver='file', node_name='t', filename=str(target))
            d.cmd('blockdev-backup', job_id='j', device='n', target='t', sync='full',
                  auto_dismiss=False)
            assert job_error(d, 'j') is None
            assert (s.connections > 1) == (multi and os.cpu_count() > 1)
            d.stop()


def test_requests_are_as_long_as_the_server_takes_them(start, tmp, kit):
    """One that refuses what is longer or between its blocks sees nothing of either."""
    disk = tmp / 'disk.raw'
    disk.write_bytes(content())
    path = kit('--filter=blocksize-policy', 'file', disk, 'blocksize-minimum=512',
               'blocksize-preferred=4096', 'blocksize-maximum=64K', 'blocksize-error-policy=error')
    d = start()
    add(d, path)
    own = served(d, tmp)
    with nbdraw.connect(own, 'e') as c:
        c.request(nbdraw.READ, 1001, 3 * MIB)
        error, _, data = c.simple(3 * MIB)
        assert not error and data == content()[1001:1001 + 3 * MIB]
        c.request(nbdraw.WRITE, 999, MIB, data=b'w' * MIB)
        assert c.simple()[0] == 0
        c.request(nbdraw.WRITE_ZEROES, 2 * MIB - 3, MIB)
        assert c.simple()[0] == 0
    d.stop(status=None)
    expected = bytearray(content())
    expected[999:999 + MIB] = b'w' * MIB
    expected[2 * MIB - 3:3 * MIB - 3] = bytes(MIB)
    assert disk.read_bytes() == expected


def test_requests_beyond_4_gib(start, tmp, kit):
    """Which the protocol's 32 bits do not hold: zeroes, trims, status."""
    log = tmp / 'log'
    path = kit('--filter=log', 'memory', '10G', 'logfile=%s' % log)
    d = start()
    add(d, path, discard='unmap')
    own = served(d, tmp)
    with nbdraw.connect(own, 'e', extended=True, meta=('base:allocation',)) as c:
        c.request(nbdraw.WRITE, 9 << 30, 512, flags=nbdraw.PAYLOAD_LEN, data=b'x' * 512)
        assert c.chunks() == [(nbdraw.CHUNK_NONE, b'')]
        for kind in (nbdraw.WRITE_ZEROES, nbdraw.TRIM):
            c.request(kind, 1 << 30, (8 << 30) + 256)
            assert c.chunks() == [(nbdraw.CHUNK_NONE, b'')]
        c.request(nbdraw.READ, 9 << 30, 512)
        assert c.chunks()[-1][1][8:] == bytes(256) + b'x' * 256
        c.request(nbdraw.BLOCK_STATUS, 0, 10 << 30)
        kind, payload = c.chunks()[-1]
        extents = struct.unpack('>%dQ' % ((len(payload) - 8) // 8), payload[8:])
        assert kind == nbdraw.CHUNK_STATUS_EXT and sum(extents[::2]) > 4 << 30
    d.stop(status=None)
    counts = [int(line.split('count=')[1].split()[0], 0) for line in open(log)
              if 'count=' in line and (' Zero ' in line or ' Trim ' in line)]
    assert sum(counts) == 2 * ((8 << 30) + 256) and max(counts) < 1 << 32


# ---- a server that goes away ----

@pytest.mark.io
def test_requests_wait_for_a_server_that_comes_back(start, tmp, kit):
    disk = tmp / 'disk.raw'
    disk.write_bytes(content())
    path = kit('file', disk)
    d = start()
    add(d, path, reconnect_delay=30)
    own = served(d, tmp)
    with nbdraw.connect(own, 'e') as c:
        for round in range(3):
            kill(kit.process)
            for i in range(8):
                c.request(nbdraw.READ, i * 65536, 4096, cookie=i)
            kit('file', disk)
            for i in range(8):
                assert c.simple(4096)[0] == 0
    assert io(own, 'write -P 5 0 64k', 'read -P 5 0 64k').status == 0
    d.stop()


def test_without_a_delay_they_fail_and_the_next_one_connects_anew(start, tmp):
    d = start()
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB) as s:
        add(d, s.path)
        own = served(d, tmp)
        c = nbdraw.connect(own, 'e')
        s.silent = True
        c.request(nbdraw.READ, 0, 4096)
        wait_for(lambda: s.requests)
        s.drop()
        assert c.simple()[0] == nbdraw.EIO
        s.silent = False
        c.request(nbdraw.READ, 0, 4096)
        assert c.simple(4096)[2] == b'q' * 4096
    c.request(nbdraw.READ, 0, 4096)
    assert c.simple()[0] == nbdraw.EIO
    c.__exit__(None, None, None)
    d.stop()


class Deaf(nbdserver.Server):
    """Takes each connection but the first, and those from `hears` on, and says nothing."""
    hears = 1 << 30

    def _serve(self, s):
        if 1 < self.connections < self.hears:
            try:
                self._recv(s, 1)
            except EOFError:
                pass
        super()._serve(s)


@pytest.mark.patient
@pytest.mark.limit(90)
def test_one_silent_handshake_is_not_waited_for_as_long_as_for_the_server(start, tmp):
    """A half dead server takes the connection; its successor comes long before the
    delay is over."""
    d = start()
    with Deaf(tmp / 's.sock', b'q' * MIB) as s:
        add(d, s.path, reconnect_delay=3600)
        own = served(d, tmp)
        with nbdraw.connect(own, 'e') as c:
            c.sock.settimeout(40)
            s.drop()
            c.request(nbdraw.READ, 0, 4096)
            wait_for(lambda: s.connections > 1)
            s.hears = s.connections + 1
            assert c.simple(4096)[2] == b'q' * 4096
    d.stop(status=None)


def test_an_export_that_changed_meanwhile_is_not_taken(start, tmp):
    d = start()
    with nbdserver.Server(tmp / 's.sock', bytes(MIB)) as s:
        add(d, s.path)
        own = served(d, tmp)
        with nbdraw.connect(own, 'e') as c:
            s.content = bytearray(b'x' * 2 * MIB)
            s.drop()
            c.request(nbdraw.READ, 0, 4096)
            assert c.simple()[0] == nbdraw.EIO
    d.stop()


@pytest.mark.skipif(os.cpu_count() == 1, reason='one loop has one connection')
def test_a_server_that_takes_back_what_many_connections_rely_on_is_not_taken(start, tmp):
    """A flush on one would not cover what was written on the others."""
    flags = nbdserver.HAS_FLAGS | nbdserver.SEND_FLUSH
    d = start()
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB, flags=flags | nbdserver.MULTI) as s:
        add(d, s.path)
        own = served(d, tmp)
        with nbdraw.connect(own, 'e') as c:
            for offered, error in ((flags, nbdraw.EIO), (flags | nbdserver.MULTI, 0)):
                s.flags = offered
                s.drop()
                c.request(nbdraw.READ, 0, 4096)
                assert c.simple(4096)[0] == error
    d.stop(status=None)


@pytest.mark.io
def test_a_connection_that_was_given(start, tmp):
    """Serves as long as it lasts; then nobody can connect again."""
    with nbdserver.Server(tmp / 's.sock', b'q' * MIB,
                          flags=nbdserver.HAS_FLAGS | nbdserver.MULTI) as s:
        mine = socket.socket(socket.AF_UNIX)
        mine.connect(s.path)
        d = start(pass_fds=[mine.fileno()])
        given = {'type': 'fd', 'str': str(mine.fileno())}
        mine.close()
        d.cmd('blockdev-add', {'driver': 'nbd', 'node-name': 'n', 'server': given})
        with nbdraw.connect(served(d, tmp), 'e') as c:
            for i in range(20):
                c.request(nbdraw.READ, i * 4096, 4096)
                assert c.simple(4096)[2] == b'q' * 4096
            s.drop()
            c.request(nbdraw.READ, 0, 4096)
            assert c.simple()[0] == nbdraw.EIO
        assert s.connections == 1
        d.cmd('block-export-del', id='e', mode='hard')
        d.cmd('blockdev-del', node_name='n')
        for fd in (given['str'], '0', '999', 'name'):
            with pytest.raises(quoin.QmpError):
                d.cmd('blockdev-add', {'driver': 'nbd', 'node-name': 'n',
                                       'server': {'type': 'fd', 'str': fd}})
        assert d.cmd('query-named-block-nodes') == []
    d.stop()


def test_open_timeout_waits_for_the_server(start, tmp, kit):
    d = start()
    path = tmp / 'kit.sock'
    d.qmp.send_raw(b'{"execute":"blockdev-add","arguments":{"driver":"nbd","node-name":"n",'
                   b'"server":{"type":"unix","path":"%s"},"open-timeout":30},"id":1}'
                   % str(path).encode())
    other = d.connect()
    assert other.cmd('query-named-block-nodes') == []
    kit('memory', '1M')
    assert d.qmp.recv() == {'return': {}, 'id': 1}
    d.stop()


def wait_for(fn):
    end = time.monotonic() + quoin.LIMIT
    while not fn():
        assert time.monotonic() < end
        os.sched_yield()


def test_open_timeout_is_the_limit_of_a_silent_handshake_too(start, tmp):
    d = start()
    with Deaf(tmp / 's.sock') as s:
        s.connections = 1       # not even the first one is greeted
        begin = time.monotonic()
        reply = d.ask('blockdev-add', {'driver': 'nbd', 'node-name': 'n', 'server': unix(s.path),
                                       'open-timeout': 1})
        assert reply['error']['desc'] == 'Connection attempt cancelled by timeout'
        assert 1 <= time.monotonic() - begin < 6 * quoin.SLOW
    d.stop()


# ---- a server that says nothing ----

def silent_backup(d, s, tmp, source, target):
    d.cmd('blockdev-backup', job_id='j', device=source, target=target, sync='full',
          auto_dismiss=False)
    wait_for(lambda: len(s.requests) > 0)


@pytest.mark.parametrize('side', ['source', 'target'])
def test_a_job_is_cancelled_while_the_server_is_silent(start, tmp, side):
    with nbdserver.Server(tmp / 's.sock', b'a' * MIB) as s:
        other = tmp / 'o.raw'
        other.write_bytes(b'b' * MIB)
        d = start()
        add(d, s.path)
        d.cmd('blockdev-add', driver='file', node_name='o', filename=str(other))
        s.silent = True
        silent_backup(d, s, tmp, *(('n', 'o') if side == 'source' else ('o', 'n')))
        d.cmd('job-cancel', id='j')
        assert job_error(d, 'j') is not None
        # The node is good again as soon as the server is.
        s.silent = False
        own = served(d, tmp)
        assert io(own, 'read -P 97 0 64k').status == 0
        # qemu-io's connection may not be over yet.
        d.cmd('block-export-del', id='e', mode='hard')
        d.wait_event('BLOCK_EXPORT_DELETED', id='e')
        d.cmd('nbd-server-stop')
        d.cmd('blockdev-del', node_name='n')
        d.stop()


def test_a_guest_goes_on_when_a_backup_to_a_silent_server_is_cancelled(start, tmp):
    with nbdserver.Server(tmp / 's.sock', bytes(MIB)) as s:
        disk = tmp / 'o.raw'
        disk.write_bytes(b'b' * MIB)
        d = start()
        add(d, s.path)
        d.cmd('blockdev-add', driver='file', node_name='o', filename=str(disk))
        own = served(d, tmp, 'o')
        s.silent = True
        with nbdraw.connect(own, 'e') as c:
            silent_backup(d, s, tmp, 'o', 'n')
            c.request(nbdraw.WRITE, 0, 512, data=b'g' * 512)
            d.cmd('job-cancel', id='j')
            assert c.simple()[0] == 0
        assert job_error(d, 'j') is not None
        s.silent = False
        d.stop()
    assert disk.read_bytes()[:512] == b'g' * 512


def image_on(s, tmp, d, **more):
    """A qcow2 image on the server, with room to grow, as node 'q'."""
    images.qcow2(tmp / 'i.qcow2', '8M')
    image = (tmp / 'i.qcow2').read_bytes()
    s.content[:len(image)] = image
    d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'file': {
        'driver': 'nbd', 'server': unix(s.path), 'reconnect-delay': 60}, **more})


@pytest.mark.parametrize('command, arguments', [
    ('blockdev-snapshot-internal-sync', {'device': 'q', 'name': 's'}),
    ('block_resize', {'node-name': 'q', 'size': 512 * MIB})], ids=['snapshot', 'resize'])
def test_a_command_on_a_silent_server_holds_up_no_other(start, tmp, command, arguments):
    (tmp / 'o.raw').write_bytes(bytes(MIB))
    with nbdserver.Server(tmp / 's.sock', bytes(4 * MIB)) as s:
        d = start()
        image_on(s, tmp, d)
        asked, s.silent = len(s.requests), True
        other = d.connect()
        other.send_raw(json.dumps({'execute': command, 'arguments': arguments}).encode())
        wait_for(lambda: len(s.requests) > asked)
        add(d, tmp / 's.sock', 'n', **{'reconnect-delay': 60})
        d.cmd('blockdev-add', driver='file', node_name='o', filename=str(tmp / 'o.raw'))
        d.cmd('block_resize', node_name='o', size=2 * MIB)
        own = served(d, tmp, 'o')
        assert io(own, 'write -P 7 1M 64k').status == 0
        d.cmd('block-export-del', id='e', mode='hard')
        d.wait_event('BLOCK_EXPORT_DELETED', id='e')
        for name in ('o', 'n'):
            d.cmd('blockdev-del', node_name=name)
        assert 'error' in d.ask('blockdev-del', node_name='q')
        s.silent = False
        s.drop()
        while 'event' in (reply := other.recv()):
            pass
        assert 'return' in reply
        d.stop()


def test_who_waits_for_a_silent_server_holds_up_no_guest_of_another_disk(start, tmp):
    """A snapshot of what two disks stand on waits for the one, while the other is used."""
    for name in ('b', 'p'):
        images.qcow2(tmp / f'{name}.qcow2', '8M')
    with nbdserver.Server(tmp / 's.sock', bytes(4 * MIB)) as s:
        d = start()
        for name, more in (('b', {}), ('p', {'backing': 'b'})):
            d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': name, 'file': {
                'driver': 'file', 'filename': str(tmp / f'{name}.qcow2')}, **more})
        image_on(s, tmp, d, backing='b')
        own = served(d, tmp, 'p')
        asked, s.silent = len(s.requests), True
        resizing, waiting = d.connect(), d.connect()
        resizing.send_raw(b'{"execute": "block_resize", "arguments":'
                          b' {"node-name": "q", "size": %d}}' % (512 * MIB))
        wait_for(lambda: len(s.requests) > asked)
        waiting.send_raw(b'{"execute": "blockdev-snapshot-internal-sync", "arguments":'
                         b' {"device": "b", "name": "s"}}')
        d.cmd('query-version')
        assert io(own, 'write -P 7 1M 64k', 'read -P 7 1M 64k').status == 0
        s.silent = False
        s.drop()
        replies = []
        for session in (resizing, waiting):
            while 'event' in (reply := session.recv()):
                pass
            replies.append(reply)
        assert replies[0] == {'return': {}}
        assert replies[1]['error']['desc'] == 'Need a root block node'
        d.stop()


@pytest.mark.patient
@pytest.mark.limit(120)
def test_the_daemon_ends_while_a_command_waits_for_the_server(start, tmp):
    with nbdserver.Server(tmp / 's.sock', bytes(4 * MIB)) as s:
        d = start()
        image_on(s, tmp, d)
        asked, s.silent = len(s.requests), True
        other = d.connect()
        other.send_raw(b'{"execute":"block_resize","arguments":'
                       b'{"node-name":"q","size":%d}}' % (512 * MIB))
        wait_for(lambda: len(s.requests) > asked)
        d.stop(limit=60 * quoin.SLOW, status=None)


@pytest.mark.patient
@pytest.mark.limit(120)
def test_the_daemon_ends_while_the_server_is_silent(start, tmp):
    with nbdserver.Server(tmp / 's.sock', b'a' * MIB) as s:
        other = tmp / 'o.raw'
        other.write_bytes(bytes(MIB))
        d = start()
        add(d, s.path)
        d.cmd('blockdev-add', driver='file', node_name='o', filename=str(other))
        s.silent = True
        silent_backup(d, s, tmp, 'n', 'o')
        d.stop(limit=60 * quoin.SLOW, status=None)


@pytest.mark.patient
@pytest.mark.limit(120)
def test_many_exports_of_a_silent_server_do_not_add_up_at_the_end(start, tmp):
    with nbdserver.Server(tmp / 's.sock', b'a' * MIB) as s:
        d = start()
        path = tmp / 'own.sock'
        d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
        clients = []
        s.silent = True
        for i in range(12):
            add(d, s.path, 'n%d' % i)
            d.cmd('block-export-add', {'type': 'nbd', 'id': 'e%d' % i, 'node-name': 'n%d' % i})
            clients.append(nbdraw.connect(path, 'n%d' % i))
            clients[-1].request(nbdraw.READ, 0, 4096)
        wait_for(lambda: len(s.requests) == 12)
        begin = time.monotonic()
        d.stop(limit=60 * quoin.SLOW, status=None)
        assert time.monotonic() - begin < 30 * quoin.SLOW
        for c in clients:
            c.sock.close()


# ---- a server that is no server, or a bad one ----

def test_a_server_that_hangs_up_at_any_byte_of_the_handshake(start, tmp):
    d = start()
    with nbdserver.Server(tmp / 's.sock') as s:
        for cut in range(0, 140):
            s.cut = cut
            before = s.connections
            reply = d.ask('blockdev-add', {'driver': 'nbd', 'node-name': 'n',
                                           'server': unix(s.path)})
            if 'return' in reply:
                break       # it was sent whole
            assert s.connections > before
        assert cut > 60
        s.cut = None
    d.cmd('blockdev-del', node_name='n')
    assert d.cmd('query-named-block-nodes') == []
    d.stop()


def test_a_server_that_sends_garbage(start, tmp):
    d = start()
    r = random.Random(3)

    def garble(data):
        data = bytearray(data)
        for _ in range(r.randrange(3)):
            data[r.randrange(len(data))] ^= 1 << r.randrange(8)
        return bytes(data)
    # A length that grew is waited for: the server is dropped by its own thread then.
    with nbdserver.Server(tmp / 's.sock', bytes(MIB), garble=garble) as s:
        for i in range(60):
            asked = d.connect()
            asked.send_raw(b'{"execute":"blockdev-add","arguments":{"driver":"nbd",'
                           b'"node-name":"n","server":{"type":"unix","path":"%s"}}}'
                           % s.path.encode())
            try:
                reply = asked.recv(limit=.5 * quoin.SLOW)
            except TimeoutError:
                s.drop()
                reply = asked.recv()
            if 'return' in reply:
                d.cmd('blockdev-del', node_name='n')
            asked.close()
    assert d.cmd('query-named-block-nodes') == []
    d.stop()


# ---- itself ----

def test_a_node_on_the_daemons_own_export(start, tmp):
    disk = tmp / 'disk.raw'
    disk.write_bytes(content())
    d = start('--blockdev', 'driver=file,node-name=f,filename=%s' % disk)
    own = served(d, tmp, 'f')
    d.cmd('blockdev-add', {'driver': 'nbd', 'node-name': 'n', 'server': unix(own), 'export': 'e'})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e2', 'node-name': 'n', 'name': 'e2',
                               'writable': True})
    with nbdraw.connect(own, 'e2') as c:
        c.request(nbdraw.WRITE, 0, 512, data=b'z' * 512)
        assert c.simple()[0] == 0
        c.request(nbdraw.READ, 0, 512)
        assert c.simple(512)[2] == b'z' * 512
        c.request(nbdraw.FLUSH)
        assert c.simple()[0] == 0
    # Ends both, in whatever order.
    d.send_signal(signal.SIGTERM)
    d.wait(0)
    assert disk.read_bytes()[:512] == b'z' * 512


@pytest.mark.parametrize('signo', [None, signal.SIGTERM])
def test_what_was_not_flushed_is_stored_through_all_of_its_own_exports(start, tmp, signo):
    """A node on an export of a node on an export of a qcow2 image on an export of a file."""
    disk = tmp / 'i.qcow2'
    images.qcow2(disk, '8M')
    disk.write_bytes(disk.read_bytes() + bytes(4 * MIB))
    d = start('--blockdev', 'driver=file,node-name=f,filename=%s' % disk)
    own = served(d, tmp, 'f')

    def on(export, name):
        return {'driver': 'nbd', 'node-name': name, 'server': unix(own), 'export': export}

    def show(node, export):
        d.cmd('block-export-add', {'type': 'nbd', 'id': export, 'node-name': node, 'name': export,
                                   'writable': True})
    d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'file': on('e', 'n')})
    show('q', 'e2')
    d.cmd('blockdev-add', on('e2', 'n2'))
    show('n2', 'e3')
    d.cmd('blockdev-add', on('e3', 'n3'))
    show('n3', 'e4')
    with nbdraw.connect(own, 'e4') as c:
        c.request(nbdraw.WRITE, MIB, 512, data=b'z' * 512)
        assert c.simple()[0] == 0
        if signo:
            d.send_signal(signo)
        else:
            d.cmd('quit')
        d.wait(0)
    assert 'could not store' not in d.stderr()
    images.check(disk)
    assert 'Pattern verification failed' not in quoin.run(
        peers.QEMU_IO, '-f', 'qcow2', '-c', 'read -P 122 1M 512', disk, tmp=tmp, check=True).out


def test_a_node_on_an_export_of_itself_holds_nothing_up(start, tmp):
    """A chain that bites its tail: its requests can't end, but all else can."""
    d = start('--blockdev', 'driver=null-co,node-name=f,size=1048576,read-zeroes=on')
    own = served(d, tmp, 'f', writable=False)
    d.cmd('blockdev-add', {'driver': 'nbd', 'node-name': 'n', 'server': unix(own), 'export': 'e',
                           'read-only': True})
    d.cmd('blockdev-del', node_name='n')
    with pytest.raises(quoin.QmpError):
        add(d, own, export='missing')
    assert [n['node-name'] for n in d.cmd('query-named-block-nodes')] == ['f']
    d.stop()
