# SPDX-License-Identifier: Apache-2.0
"""quoind under a service manager: notifications, the watchdog, passed sockets."""
import os
import shutil
import socket
import subprocess

import pytest

import quoin


class Manager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, tmp):
        self.path = '%s/notify.sock' % tmp
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.settimeout(quoin.LIMIT)
        self.seen = []

    def wait_for(self, line):
        """Receive until this line, or one that begins so; all lines are kept."""
        while True:
            said = self.sock.recv(4096).decode().split('\n')
            self.seen += said
            if any(s.startswith(line) for s in said):
                return

    def env(self, **more):
        return dict(more, NOTIFY_SOCKET=self.path)


@pytest.fixture
def manager(tmp):
    m = Manager(tmp)
    yield m
    m.sock.close()


def test_ready_means_that_the_socket_takes_clients(start, tmp, manager):
    path = tmp / 'own.sock'
    d = start('--qmp', path, qmp=False, env=manager.env())
    manager.wait_for('READY=1')
    client = quoin.Qmp(path)
    assert client.cmd('query-version')['qemu']['major'] == 10
    client.close()
    d.stop()


def test_ready_means_that_every_option_worked(start, manager):
    d = start('--blockdev', 'null-co,node-name=n,size=1048576', env=manager.env())
    manager.wait_for('READY=1')
    assert [n['node-name'] for n in d.cmd('query-named-block-nodes')] == ['n']


def test_a_failed_start_never_says_ready(tmp, manager):
    r = quoin.run(quoin.QUOIND, '--blockdev', 'driver=file,node-name=f,filename=/nonexistent/x',
                  tmp=tmp, env=manager.env())
    assert r.status == 1
    manager.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            assert b'READY=1' not in manager.sock.recv(4096)


def test_quit_says_stopping(start, manager):
    d = start(env=manager.env())
    manager.wait_for('READY=1')
    d.stop()
    manager.wait_for('STOPPING=1')


def test_sigterm_says_stopping_and_ends_well(start, manager):
    d = start(env=manager.env())
    manager.wait_for('READY=1')
    d.send_signal(15)
    manager.wait_for('STOPPING=1')
    d.wait()


def test_status_lines_say_what_goes_on(start, manager):
    d = start(env=manager.env())
    manager.wait_for('STATUS=Serving')
    d.stop()
    manager.wait_for('STATUS=Flushing and closing images')


def test_the_watchdog_gets_its_sign_of_life(start, manager):
    start(env=manager.env(WATCHDOG_USEC='200000'))
    manager.wait_for('READY=1')
    for _ in range(3):
        manager.wait_for('WATCHDOG=1')


def activate(tmp, names, *options):
    """quoind as systemd starts it: at the first client, with sockets by name.
    Returns the process and the sockets' paths."""
    tool = shutil.which('systemd-socket-activate')
    if not tool:
        pytest.skip('systemd-socket-activate is not installed (Debian package: systemd)')
    paths = ['%s/%d-%s.sock' % (tmp, i, n) for i, n in enumerate(names)]
    argv = [tool, '--fdname=' + ':'.join(names)]
    for p in paths:
        argv.append('--listen=' + p)
    env = quoin.environment(tmp)
    argv += ['--setenv=%s=%s' % (k, env[k]) for k in env if k.endswith('SAN_OPTIONS')]
    p = subprocess.Popen([*argv, quoin.QUOIND, *map(str, options)], stdin=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, env=env, text=True)
    # It says on which sockets it listens; until then nobody can connect.
    while 'Listening on ' + paths[-1] not in (line := p.stderr.readline()):
        assert line, 'systemd-socket-activate ended'
    return p, paths


def finish(p, client):
    client.send_raw(b'{"execute":"quit"}\n')
    rest = p.communicate(timeout=quoin.LIMIT)[1]
    assert p.returncode == 0, rest


def test_the_qmp_socket_is_taken_from_the_manager(tmp):
    p, (path,) = activate(tmp, ['qmp'])
    try:
        client = quoin.Qmp(path)
        assert 'quit' in [c['name'] for c in client.cmd('query-commands')]
        finish(p, client)
        assert os.path.exists(path), 'a socket of the manager is not the daemon\'s to remove'
    finally:
        p.kill()
        p.wait()


def test_the_nbd_socket_is_taken_from_the_manager(tmp):
    if not shutil.which('nbdinfo'):
        pytest.skip('nbdinfo is not installed (Debian package: libnbd-bin)')
    p, (qmp, nbd) = activate(tmp, ['qmp', 'nbd'],
                             '--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on',
                             '--export', 'nbd,id=e,node-name=n,name=e')
    try:
        client = quoin.Qmp(qmp)
        r = quoin.run('nbdinfo', '--size', 'nbd+unix:///e?socket=' + nbd, tmp=tmp, check=True)
        assert r.out.strip() == '1048576'
        finish(p, client)
    finally:
        p.kill()
        p.wait()


def test_a_socket_of_an_unknown_name_is_an_error(tmp):
    p, (path,) = activate(tmp, ['nobody'])
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            text = p.communicate(timeout=quoin.LIMIT)[1]
        assert p.returncode == 1
        assert 'nobody' in text
    finally:
        p.kill()
        p.wait()


@pytest.mark.parametrize('names, options', [
    (['qmp', 'nbd', 'nbd'], []),
    (['qmp', 'nbd', 'nbd'], ['--nbd-server', 'addr.type=fd,addr.str=nbd,max-connections=3']),
    (['qmp', 'web', 'web'], ['--x-quoin-nbd-server', 'one,addr.type=fd,addr.str=web'])])
def test_an_nbd_server_takes_all_sockets_of_its_name(tmp, names, options):
    p, (qmp, *listeners) = activate(tmp, names, *options)
    try:
        client = quoin.Qmp(qmp)
        server, = client.cmd('x-quoin-query-nbd-servers')
        assert {a['path'] for a in server['addresses']} == set(listeners)
        assert server['id'] == ('one' if 'web' in names else 'default')
        assert server['max-connections'] == (3 if 'max' in str(options) else 100)
        for path in listeners:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(quoin.LIMIT)
                s.connect(path)
                assert s.recv(8) == b'NBDMAGIC'
        finish(p, client)
    finally:
        p.kill()
        p.wait()
