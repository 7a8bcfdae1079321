# SPDX-License-Identifier: Apache-2.0
"""The command line, the start and the end of quoind."""
import os
import signal
import socket
import stat
import subprocess

import pytest

import images
import quoin


def fails(run, tmp, *options, text):
    """The start fails with one line on stderr, status 1, and nothing left behind."""
    before = sorted(os.listdir(tmp))
    r = run(quoin.QUOIND, *options)
    assert r.status == 1
    assert r.err == 'quoind: %s\n' % text
    assert r.out == ''
    assert sorted(os.listdir(tmp)) == before


def test_help_names_every_option(run):
    r = run(quoin.QUOIND, '--help', check=True)
    for option in ('--blockdev', '--chardev', '--monitor', '--nbd-server', '--export', '--object',
                   '--pidfile', '--daemonize', '--qmp', '--help', '--version'):
        assert option in r.out
    assert r.out == run(quoin.QUOIND, '-h', check=True).out


def test_version(run):
    r = run(quoin.QUOIND, '-V', check=True)
    assert r.out.startswith('quoind version ')


@pytest.mark.parametrize('argv, text', [
    (['foo'], 'foo: Unexpected argument'),
    (['--monitor', 'x'], '--monitor x: chardev "x" not found'),
    (['--blockdev', 'driver=file'], "--blockdev driver=file: Parameter 'filename' is missing"),
    (['--object', 'iothread'], "--object iothread: Parameter 'id' is missing"),
    (['--nbd-server', 'addr.type=unix'],
     "--nbd-server addr.type=unix: Parameter 'addr.path' is missing"),
    (['--monitor', 'mode=control'], "--monitor mode=control: Parameter 'chardev' is missing"),
    (['--chardev', 'null,id=a', '--chardev', 'null,id=a'],
     "--chardev null,id=a: Chardev with id 'a' already exists"),
    (['--chardev', 'null,id=a', '--monitor', 'a', '--monitor', 'a'],
     "--monitor a: chardev 'a' is already in use"),
    (['--qmp', '/nonexistent/dir/sock'],
     '--qmp /nonexistent/dir/sock: Failed to bind socket to /nonexistent/dir/sock:'
     ' No such file or directory'),
    (['--io-loops', 'many'], '--io-loops many: a number from 1 to 32 is expected'),
    (['--pidfile', '/nonexistent/pid'],
     "cannot create PID file: Could not create '/nonexistent/pid': No such file or directory"),
])
def test_a_bad_option_is_one_line(run, tmp, argv, text):
    fails(run, tmp, *argv, text=text)


def test_a_late_failure_takes_back_what_came_before(run, tmp):
    qmp, pid, disk = tmp / 'q.sock', tmp / 'pid', tmp / 'disk.raw'
    disk.write_bytes(b'\0' * 65536)
    fails(run, tmp, '--qmp', qmp, '--pidfile', pid,
          '--blockdev', 'driver=file,node-name=n,filename=%s' % disk,
          '--nbd-server', 'addr.type=unix,addr.path=%s' % (tmp / 'nbd.sock'),
          '--export', 'nbd,id=e,node-name=missing',
          text="--export nbd,id=e,node-name=missing: "
               "Cannot find device='' nor node-name='missing'")


def test_a_socket_path_that_is_too_long(run, tmp):
    path = str(tmp / ('x' * 120))
    r = run(quoin.QUOIND, '--qmp', path)
    assert r.status == 1 and r.err.count('\n') == 1
    assert path in r.err and 'less than 108 bytes' in r.err


def test_options_are_carried_out_in_order(start, tmp):
    disk = tmp / 'disk.raw'
    disk.write_bytes(b'\0' * 65536)
    d = start('--blockdev', 'file,node-name=f,filename=%s' % disk,
              '--blockdev', '{"driver": "raw", "node-name": "r", "file": "f"}')
    assert {n['node-name'] for n in d.cmd('query-named-block-nodes')} == {'f', 'r'}


def test_qmp_socket_is_private_and_removed_at_the_end(start, tmp):
    path = tmp / 'q.sock'
    d = start('--qmp', path, qmp=False)
    client = d.connect(path=path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert client.cmd('query-version')['qemu'] == {'major': 10, 'minor': 0, 'micro': 0}
    client.send_raw(b'{"execute":"quit"}')
    d.wait()
    assert not path.exists()


def test_qmp_socket_mode(start, tmp):
    path = tmp / 'q.sock'
    d = start('--qmp', '%s,mode=0660' % path, qmp=False)
    d.connect(path=path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


def test_a_stale_socket_is_replaced(start, tmp):
    path = tmp / 'q.sock'
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(path))
    s.close()
    d = start('--qmp', path, qmp=False)
    d.connect(path=path)


def test_a_socket_in_use_is_not_replaced(start, run, tmp):
    path = tmp / 'q.sock'
    d = start('--qmp', path, qmp=False)
    d.connect(path=path)
    r = run(quoin.QUOIND, '--qmp', path)
    assert r.status == 1 and str(path) in r.err
    d.connect(path=path)


def test_a_read_only_socket_answers_queries_only(start, tmp):
    path = tmp / 'ro.sock'
    d = start('--qmp', '%s,read-only=on' % path)
    watcher = d.connect(path=path)
    assert watcher.cmd('query-named-block-nodes') == []
    for command, arguments in (('quit', None), ('blockdev-del', {'node-name': 'x'}),
                               ('object-add', {'qom-type': 'iothread', 'id': 'i'})):
        assert 'error' in watcher.ask(command, arguments)
    d.cmd('object-add', {'qom-type': 'iothread', 'id': 'i'})
    commands = {c['name'] for c in watcher.cmd('query-commands')}
    assert 'query-jobs' in commands and 'quit' not in commands


def test_stdio(tmp):
    p = subprocess.run([quoin.QUOIND, '--chardev', 'stdio,id=c', '--monitor', 'c'],
                       input=b'{"execute":"qmp_capabilities"}{"execute":"quit"}',
                       stdout=subprocess.PIPE, timeout=quoin.LIMIT,
                       env=quoin.environment(tmp))
    assert p.returncode == 0
    lines = p.stdout.splitlines()
    assert lines[0].startswith(b'{"QMP"')
    assert lines[1] == lines[2] == b'{"return": {}}'


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_well(start, tmp, sig):
    d = start('--pidfile', tmp / 'pid')
    assert int((tmp / 'pid').read_text()) == d.pid
    d.send_signal(sig)
    d.wait(0)
    assert not (tmp / 'pid').exists()


def test_a_signal_ends_the_wait_for_a_client(start, tmp):
    path = tmp / 'q.sock'
    d = start('--chardev', 'socket,id=c,path=%s,server=on' % path, '--monitor', 'c', qmp=False)
    while 'waiting for connection' not in d.stderr():
        assert not d._died(0.01)
    d.send_signal(signal.SIGTERM)
    d.wait(1)
    assert not path.exists()


def test_a_second_pidfile_user_is_refused(start, run, tmp):
    d = start('--pidfile', tmp / 'pid')
    r = run(quoin.QUOIND, '--pidfile', tmp / 'pid')
    assert r.status == 1
    assert r.err.startswith('quoind: cannot create PID file: ')
    assert int((tmp / 'pid').read_text()) == d.pid


def test_a_stale_pidfile_is_taken_over(start, tmp):
    (tmp / 'pid').write_text('99999999\n')
    d = start('--pidfile', tmp / 'pid')
    assert int((tmp / 'pid').read_text()) == d.pid


def test_daemonize(run, tmp):
    """The parent ends when clients can connect, not before."""
    path, pid = tmp / 'q.sock', tmp / 'pid'
    r = run(quoin.QUOIND, '--qmp', path, '--pidfile', pid, '--daemonize', check=True)
    assert (r.out, r.err) == ('', '')
    client = quoin.Qmp(path)
    daemon = os.pidfd_open(int(pid.read_text()))
    client.cmd('quit')
    assert client.ended()
    quoin.select.select([daemon], [], [], quoin.LIMIT)
    os.close(daemon)
    assert not pid.exists() and not path.exists()


def test_relative_paths_are_removed_from_where_they_were(run, tmp):
    """--daemonize changes the folder; the files lie where they were made."""
    run(quoin.QUOIND, '--qmp', 'q.sock', '--pidfile', 'pid', '--daemonize',
        '--nbd-server', 'addr.type=unix,addr.path=nbd.sock', cwd=tmp, check=True)
    daemon = os.pidfd_open(int((tmp / 'pid').read_text()))
    client = quoin.Qmp(tmp / 'q.sock')
    assert (tmp / 'nbd.sock').exists()
    client.cmd('quit')
    quoin.select.select([daemon], [], [], quoin.LIMIT)
    os.close(daemon)
    assert [p.name for p in tmp.iterdir() if not p.name.startswith('sanitizer')] == []


def test_a_relative_image_dir_is_one_of_the_folder_of_the_start(run, tmp):
    (tmp / 'images').mkdir()
    images.raw(tmp / 'images/base.raw', bytes(65536))
    images.qcow2(tmp / 'images/top.qcow2', 65536, ('base.raw', 'raw'))
    r = run(quoin.QUOIND, '--qmp', 'q.sock', '--pidfile', 'pid', '--daemonize', cwd=tmp, check=True,
            *('--image-dir', 'images', '--image-dir', 'nothing'))
    assert r.err == ('quoind: warning: --image-dir nothing: there is no such folder; until there '
                     'is, images can name no file in it\n')
    daemon = os.pidfd_open(int((tmp / 'pid').read_text()))
    client = quoin.Qmp(tmp / 'q.sock')
    client.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'top', 'file': {
        'driver': 'file', 'filename': str(tmp / 'images/top.qcow2')}})
    client.cmd('quit')
    quoin.select.select([daemon], [], [], quoin.LIMIT)
    os.close(daemon)


def test_a_socket_that_is_not_ours_any_more_stays(start, tmp):
    path = tmp / 'q.sock'
    d = start('--qmp', path)
    path.unlink()
    path.write_text('another file')
    d.stop()
    assert path.read_text() == 'another file'


def test_daemonize_tells_a_failure(run, tmp):
    fails(run, tmp, '--daemonize', '--blockdev', 'driver=file',
          text="--blockdev driver=file: Parameter 'filename' is missing")


# ---- sockets from a service manager; tests/wire/test_systemd.py has the rest ----

def activated(tmp, names, *options):
    """Run quoind as a service manager does: with listening sockets from fd 3 on."""
    sockets = []
    for name in names:
        s = socket.socket(socket.AF_UNIX)
        s.bind(str(tmp / (name + '.sock')))
        s.listen(8)
        sockets.append(s)
    script = 'export LISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=%s\nexec "$@" %s' % (
        len(names), ':'.join(names),
        ' '.join('%d<&%d' % (3 + i, 50 + i) for i in range(len(names))))
    for i, s in enumerate(sockets):
        os.dup2(s.fileno(), 50 + i, inheritable=True)
        s.close()
    try:
        return subprocess.Popen(['bash', '-c', script, 'bash', quoin.QUOIND, *options],
                                stderr=subprocess.PIPE, text=True, close_fds=False,
                                env=quoin.environment(tmp))
    finally:
        for i in range(len(names)):
            os.close(50 + i)


def test_passed_sockets_are_served_by_name(tmp):
    p = activated(tmp, ['qmp', 'qmp-ro'])
    try:
        qmp, ro = quoin.Qmp(tmp / 'qmp.sock'), quoin.Qmp(tmp / 'qmp-ro.sock')
        assert 'error' in ro.ask('quit')
        qmp.cmd('quit')
        assert p.wait(quoin.LIMIT) == 0
    finally:
        p.kill()
        p.wait()
    assert (tmp / 'qmp.sock').exists()      # the manager's, not ours to remove


def test_a_passed_socket_of_unknown_name_is_an_error(tmp):
    p = activated(tmp, ['teapot'])
    try:
        err = p.communicate(timeout=quoin.LIMIT)[1]
    finally:
        p.kill()
        p.wait()
    assert p.returncode == 1
    assert "'teapot'" in err and 'qmp-ro' in err
