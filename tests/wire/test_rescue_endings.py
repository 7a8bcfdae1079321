# SPDX-License-Identifier: Apache-2.0
"""How runs of quoin rescue end before their time: soon, with nothing half done under the target's
name, and saying what is left."""
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess

import nbdserver
import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, content, create, encrypt, image_opts, need_libnbd, noise,
                       rescue, same, secret, small_file_system, standard)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def defaults():
    # Whoever runs the tests may ignore these: nohup, a shell in the background.
    for sig in SIGNALS:
        signal.signal(sig, signal.SIG_DFL)


def begin(tmp, *argv, stdout=None, before=defaults):
    (tmp / 'key').write_text(PASSWORD)
    return subprocess.Popen([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', *argv],
                            stdout=stdout, stderr=subprocess.PIPE, text=True, preexec_fn=before,
                            env=quoin.environment(tmp))


def end(p, sig):
    """(how it ended, what it said) when it gets a signal."""
    p.send_signal(sig)
    try:
        err = p.communicate(timeout=quoin.LIMIT)[1]
    finally:
        p.kill()
    return p.returncode, err


def wait_for(what, p):
    while not what() and p.poll() is None:
        select.select([], [], [], 0.01)


# ---- the other end keeps it waiting ----

@pytest.mark.parametrize('sig', SIGNALS)
def test_a_server_that_does_not_greet(tmp, sig):
    need_libnbd()
    image = standard(tmp, 'qcow2')[1]
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp / 'sock'))
        s.listen(1)
        p = begin(tmp, '--force', image, 'nbd+unix:///?socket=%s' % (tmp / 'sock'))
        connected = bool(select.select([s], [], [], quoin.LIMIT)[0])
        status, err = end(p, sig)
    assert connected and status == -sig, err
    assert 'interrupted, nothing was left behind' in err


@pytest.mark.io
@pytest.mark.parametrize('sig', SIGNALS)
def test_a_server_that_does_not_answer(tmp, sig):
    """Neither requests nor the wish to disconnect."""
    need_libnbd()
    image = standard(tmp, 'qcow2')[1]
    with nbdserver.Server(tmp / 'sock', bytes(4 * MIB)) as s:
        s.silent = True
        p = begin(tmp, '--force', image, 'nbd+unix:///?socket=%s' % (tmp / 'sock'))
        wait_for(lambda: s.requests, p)
        status, err = end(p, sig)
    assert status == -sig, err
    assert 'interrupted, the target is half written' in err


@pytest.mark.io
@pytest.mark.parametrize('sig', SIGNALS)
@pytest.mark.parametrize('kind', ['pipe', 'socket'])
def test_a_reader_that_does_not_read(tmp, kind, sig):
    image = encrypt(tmp, 'qcow2', noise(tmp / 'plain', 8 * MIB), tmp / 'image')
    ours, theirs = os.pipe() if kind == 'pipe' else (s.detach() for s in socket.socketpair())
    p = begin(tmp, '--accept-unverified-key', image, '-', stdout=theirs)
    os.close(theirs)
    readable = bool(select.select([ours], [], [], quoin.LIMIT)[0])
    status, err = end(p, sig)
    os.close(ours)
    assert readable and status == -sig, err
    assert 'interrupted, a part of the disk was written' in err


def test_nobody_writes_to_the_source_meanwhile(tmp):
    """QEMU's locks keep it away from each layer, until the run ends."""
    base = encrypt(tmp, 'qcow2', noise(tmp / 'plain', 8 * MIB), tmp / 'base')
    image = create(tmp, 'qcow2-luks', tmp / 'image', '8M',
                   more=',backing_file=%s,backing_fmt=qcow2' % base)
    ours, theirs = os.pipe()
    p = begin(tmp, '--accept-unverified-key', image, '-', stdout=theirs)
    os.close(theirs)
    readable = bool(select.select([ours], [], [], quoin.LIMIT)[0])

    def tries():
        below = image_opts('qcow2', base, prefix='backing.')
        for opts in (image_opts('qcow2', base), '%s,%s' % (image_opts('qcow2-luks', image), below)):
            r = quoin.run(peers.QEMU_IO, *secret(), '--image-opts', opts, '-c', 'write 0 512',
                          tmp=tmp)
            yield r.out + r.err
    locked = list(tries())
    end(p, signal.SIGTERM)
    os.close(ours)
    assert readable
    assert all('Failed to get "write" lock' in text for text in locked), locked
    for path in (base, image):
        quoin.wait_for_locks(path)
    assert all('wrote 512/512 bytes' in text for text in tries())


@pytest.mark.parametrize('kind', ['pipe', 'socket', 'pipe that does not block'])
def test_a_slow_reader_gets_all_of_it(tmp, kind):
    """And who shares the other end finds it as it was."""
    plain, image = standard(tmp, 'qcow2')
    ours, theirs = os.pipe() if 'pipe' in kind else (s.detach() for s in socket.socketpair())
    if 'not' in kind:
        os.set_blocking(theirs, False)
    flags = fcntl.fcntl(theirs, fcntl.F_GETFL)
    p = begin(tmp, image, '-', stdout=theirs)
    got = b''
    while len(got) < 4 * MIB and select.select([ours], [], [], quoin.LIMIT)[0]:
        assert fcntl.fcntl(theirs, fcntl.F_GETFL) == flags
        got += os.read(ours, 50000)
    os.close(theirs)
    rest = os.read(ours, 1)
    os.close(ours)
    err = p.communicate(timeout=quoin.LIMIT)[1]
    assert p.returncode == 0 and not rest, err
    assert same(got, content(plain))


def test_a_server_with_room_for_one_client(tmp):
    """It says that several may write at once, and takes no second one."""
    need_libnbd()
    if not shutil.which('nbdkit'):
        pytest.skip('no nbdkit is installed')
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'key').write_text(PASSWORD)
    r = quoin.run('nbdkit', '-U', '-', '--filter=limit', 'memory', '4M', 'limit=1', '--run',
                  '%s rescue --force --key-file %s %s "$uri"' % (
                      quoin.QUOIN, tmp / 'key', image), tmp=tmp)
    assert r.status == 0 and 'too many clients' in r.err, r.err


# ---- what is left is said ----

@pytest.mark.parametrize('sig', SIGNALS)
def test_an_ignored_signal_stays_ignored(tmp, sig):
    plain, image = standard(tmp, 'qcow2')
    p = begin(tmp, image, '-', stdout=subprocess.PIPE,
              before=lambda: signal.signal(sig, signal.SIG_IGN))
    assert select.select([p.stdout], [], [], quoin.LIMIT)[0]
    p.send_signal(sig)
    got = p.stdout.buffer.read()
    err = p.communicate(timeout=quoin.LIMIT)[1]
    assert p.returncode == 0, err
    assert same(got, content(plain))


def test_an_export_that_fails_is_half_written(tmp):
    need_libnbd()
    image = standard(tmp, 'qcow2')[1]
    with nbdserver.Server(tmp / 'sock', bytes(4 * MIB)) as s:
        s.lie = lambda kind, cookie, at, length: nbdserver.simple(cookie, 28)
        r = rescue(tmp, '--force', image, 'nbd+unix:///?socket=%s' % (tmp / 'sock'))
    assert r.status == 1
    assert 'No space left on device; the target is half written\n' in r.err, r.err


@pytest.fixture
def small_disk(tmp):
    yield from small_file_system(tmp, '20m')


def test_what_a_full_disk_leaves_is_kept_by_resume(tmp, small_disk):
    """Compressed, for of what is not the size is known before."""
    plain, out = noise(tmp / 'plain', 40 * MIB), small_disk / 'out'
    image = encrypt(tmp, 'qcow2', plain, tmp / 'image')
    options = ['--accept-unverified-key', '--target-format', 'qcow2', '--compress', 'zlib']
    r = rescue(tmp, *options, image, out)
    assert r.status == 1 and r.err.endswith(' No space left on device\n'), r.err
    assert os.listdir(small_disk) == []
    r = rescue(tmp, *options, '--resume', image, out)
    assert r.status == 1, r.err
    assert re.search('No space left on device; [1-9].* MiB of the disk are kept, and the same '
                     'command goes on\n$', r.err), r.err
    subprocess.run(['mount', '-o', 'remount,size=50m', small_disk], check=True)
    r = rescue(tmp, *options, '--resume', image, out)
    assert r.status == 0 and 'were done by an earlier run' in r.err, r.err
    assert os.listdir(small_disk) == ['out']


def test_a_place_that_takes_no_files_is_told_before_keys_are_tried(tmp, small_disk):
    image = standard(tmp, 'qcow2')[1]
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    for argv in ([image, small_disk / 'out'], ['--resume', image, small_disk / 'out'],
                 ['--keep-chain', image, small_disk / 'out'],
                 ['--salvage', '--map', small_disk / 'map', image, tmp / 'out']):
        r = rescue(tmp, *argv, key='wrong')
        assert r.status == 1 and 'Read-only file system' in r.err, (argv, r)
        assert str(small_disk) in r.err and not os.path.exists(tmp / 'out')


def test_a_disk_in_the_way_of_a_user(tmp):
    """Who may read the image, and not write where it is."""
    if os.geteuid() != 0:
        pytest.skip('only root can be somebody else')
    image = standard(tmp, 'qcow2')[1]
    tmp.chmod(0o755)
    image.chmod(0o644)
    (tmp / 'mine').mkdir()
    os.chown(tmp / 'mine', 65534, 65534)
    for target, status in ((tmp / 'out', 1), (tmp / 'mine' / 'out', 0)):
        (tmp / 'key').write_text(PASSWORD)
        (tmp / 'key').chmod(0o644)
        p = subprocess.run([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, target],
                           capture_output=True, text=True, user=65534, group=65534,
                           extra_groups=[], env=quoin.environment(tmp), timeout=quoin.LIMIT)
        assert p.returncode == status, p.stderr
        assert ('Permission denied' in p.stderr) == (status == 1)
    assert os.stat(tmp / 'mine' / 'out').st_mode & 0o777 == 0o600


# ---- what people get wrong ----

@pytest.mark.parametrize('target, text', [
    ('', 'the target has no name'),
    ('nbd:localhost:10809', 'an NBD export is nbd://HOST:PORT/NAME'),
    ('no/such/folder', "Could not open the folder of 'no/such/folder'"),
    ('/dev/null', 'something that is not a regular file is there')])
def test_targets_that_are_none(tmp, target, text):
    image = standard(tmp, 'qcow2')[1]
    r = rescue(tmp, image, target, cwd=tmp)
    assert r.status in (1, 2) and text in r.err, r.err
    assert sorted(os.listdir(tmp)) == ['image', 'key', 'plain']


@pytest.mark.parametrize('slashes', ['', '/', '//'])
def test_the_folder_of_a_chain_may_end_in_slashes(tmp, slashes):
    image = standard(tmp, 'qcow2')[1]
    r = rescue(tmp, '--keep-chain', image, str(tmp / 'chain') + slashes)
    assert r.status == 0, r.err
    assert os.listdir(tmp / 'chain') == ['image']


def test_the_program_that_speaks_is_named(run, tmp):
    for argv in (['--no-such-option'], ['--key-file']):
        r = run(quoin.QUOIN, 'rescue', *argv)
        assert r.status == 2 and r.err.startswith('quoin rescue: '), r.err
