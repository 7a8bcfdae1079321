# SPDX-License-Identifier: Apache-2.0
"""quoin rescue to what is no plain file: devices, NBD exports, standard output."""
import os
import select
import shutil
import signal
import subprocess

import nbdserver
import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, content, create, disk, encrypt, image_opts, need_libnbd,
                       qemu_img, rescue, same, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


def losetup(*argv):
    p = subprocess.run(['losetup', *map(str, argv)], capture_output=True, text=True)
    if p.returncode:
        pytest.skip('loop devices cannot be used here: ' + p.stderr.strip())
    return p.stdout.strip()


@pytest.fixture
def loop():
    """make(path, *options) -> a block device that shows a file."""
    made = []
    if not shutil.which('losetup') or not os.path.exists('/dev/loop-control'):
        pytest.skip('there are no loop devices here')

    def make(path, *options):
        made.append(losetup('-f', '--show', *options, path))
        return made[-1]
    yield make
    for device in made:
        subprocess.run(['losetup', '-d', device], check=True)


def filled(path, size):
    """Old data that must not show through."""
    with open(path, 'wb') as f:
        f.write(b'old data' * (size // 8))
    return path


class Nbd:
    """qemu-nbd over a raw file."""

    def __init__(self, tmp, path, *options):
        self.socket = tmp / 'nbd.sock'
        self.uri = 'nbd+unix:///?socket=%s' % self.socket
        # It returns once it listens.
        quoin.run(peers.QEMU_NBD, '--fork', '-f', 'raw', '-t', '-k', self.socket, '--pid-file',
                  tmp / 'nbd.pid', *options, path, tmp=tmp, check=True)
        self.pid = os.pidfd_open(int((tmp / 'nbd.pid').read_text()))

    def stop(self):
        """Until all that was written is in the file."""
        if self.pid is None:
            return
        signal.pidfd_send_signal(self.pid, signal.SIGTERM)
        assert select.select([self.pid], [], [], quoin.LIMIT)[0]
        os.close(self.pid)
        self.pid = None


@pytest.fixture
def nbd(tmp):
    if not peers.QEMU_NBD:
        pytest.skip('no qemu-nbd is installed')
    servers = []

    def make(*argv):
        servers.append(Nbd(tmp, *argv))
        return servers[-1]
    yield make
    for s in servers:
        s.stop()


# ---- devices ----

@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_a_device_is_overwritten_with_force(tmp, loop, target):
    plain, image = standard(tmp, 'qcow2')
    device = loop(filled(tmp / 'disk', 6 * MIB))
    r = rescue(tmp, '--target-format', target, image, device)
    assert r.status == 1 and '--force' in r.err
    assert same(content(tmp / 'disk'), b'old data' * (6 * MIB // 8))
    r = rescue(tmp, '--force', '--verify', '--target-format', target, image, device)
    assert r.status == 0, r.err
    assert 'verified: read back' in r.err
    qemu_img(tmp, 'convert', '-f', target, '-O', 'raw', device, tmp / 'flat')
    assert same(content(tmp / 'flat')[:4 * MIB], content(plain))
    if target == 'raw':
        assert same(content(tmp / 'flat')[4 * MIB:], b'old data' * (2 * MIB // 8))


def test_a_device_that_is_too_small_is_left_alone(tmp, loop):
    image = standard(tmp, 'qcow2')[1]
    device = loop(filled(tmp / 'disk', 3 * MIB))
    r = rescue(tmp, '--force', image, device)
    assert r.status == 1 and 'too small' in r.err
    assert same(content(tmp / 'disk'), b'old data' * (3 * MIB // 8))


def test_a_device_in_use_is_left_alone(tmp, loop):
    image = standard(tmp, 'qcow2')[1]
    device = loop(filled(tmp / 'disk', 6 * MIB))
    fd = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        r = rescue(tmp, '--force', image, device)
        assert r.status == 1 and 'in use' in r.err
    finally:
        os.close(fd)


def test_a_device_is_a_source(tmp, loop):
    plain, image = standard(tmp, 'luks')
    os.chmod(image, 0o400)
    assert rescue(tmp, loop(image, '-r'), tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))


@pytest.mark.parametrize('how', ['same device', 'symlink', 'loop over the file'])
def test_a_source_is_never_overwritten_through_a_device(tmp, loop, how):
    plain, image = standard(tmp, 'luks')
    before = content(image)
    device = loop(image)
    source, target = device, device
    if how == 'symlink':
        target = tmp / 'link'
        target.symlink_to(device)
    elif how == 'loop over the file':
        source = image
    r = rescue(tmp, '--force', source, target)
    assert r.status == 1 and 'same device' in r.err, r.err
    assert same(content(image), before)


# ---- NBD ----

@pytest.mark.io
@pytest.mark.parametrize('shared', [1, 8])
def test_an_nbd_export_is_overwritten_with_force(tmp, nbd, shared):
    plain, image = standard(tmp, 'qcow2-luks')
    server = nbd(filled(tmp / 'disk', 5 * MIB), '-e', str(shared))
    r = rescue(tmp, image, server.uri)
    if 'without libnbd' in r.err:
        pytest.skip('this program was built without libnbd')
    assert r.status == 1 and '--force' in r.err
    r = rescue(tmp, '--force', '--verify', image, server.uri)
    if 'without libnbd' in r.err:
        pytest.skip('this program was built without libnbd')
    assert r.status == 0, r.err
    server.stop()
    assert same(content(tmp / 'disk')[:4 * MIB], content(plain))
    assert same(content(tmp / 'disk')[4 * MIB:], b'old data' * (MIB // 8))


@pytest.mark.parametrize('size, options, text', [
    (4 * MIB, ['-r'], 'is read-only'), (2 * MIB, [], 'is too small')])
def test_an_export_that_cannot_take_the_disk(tmp, nbd, size, options, text):
    image = standard(tmp, 'qcow2')[1]
    server = nbd(filled(tmp / 'disk', size), *options)
    r = rescue(tmp, '--force', image, server.uri)
    if 'without libnbd' in r.err:
        pytest.skip('this program was built without libnbd')
    assert r.status == 1 and text in r.err, r.err
    assert same(content(tmp / 'disk'), b'old data' * (size // 8))


def test_a_server_that_fails_is_an_error(tmp):
    if not shutil.which('nbdkit'):
        pytest.skip('no nbdkit is installed')
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'key').write_text(PASSWORD)
    r = quoin.run('nbdkit', '-U', '-', '--filter=error', 'memory', '8M', 'error-pwrite=EIO',
                  'error-pwrite-rate=100%', '--run',
                  '%s rescue --force --key-file %s %s "$uri"' % (
                      quoin.QUOIN, tmp / 'key', image), tmp=tmp)
    if 'without libnbd' in r.err:
        pytest.skip('this program was built without libnbd')
    assert r.status == 1
    assert "Could not write 'nbd" in r.err and 'Input/output error' in r.err, r.err


def test_an_export_is_flushed_before_success_is_said(tmp):
    need_libnbd()
    image = standard(tmp, 'qcow2')[1]
    with nbdserver.Server(tmp / 'sock', bytes(4 * MIB)) as server:
        r = rescue(tmp, '--force', image, 'nbd+unix:///?socket=%s' % (tmp / 'sock'))
    assert r.status == 0, r.err
    kinds = [kind for kind, *_ in server.requests]
    assert nbdserver.WRITE in kinds
    assert kinds[-2:] == [nbdserver.FLUSH, nbdserver.DISC]


def test_an_export_that_cannot_be_flushed_is_an_error(tmp):
    need_libnbd()
    image = standard(tmp, 'qcow2')[1]
    with nbdserver.Server(tmp / 'sock', bytes(4 * MIB)) as server:
        server.lie = lambda kind, cookie, at, length: (
            nbdserver.simple(cookie, 5) if kind == nbdserver.FLUSH else None)
        r = rescue(tmp, '--force', image, 'nbd+unix:///?socket=%s' % (tmp / 'sock'))
    assert r.status == 1 and "Could not write 'nbd" in r.err, r.err
    assert 'on disk' not in r.err


# ---- standard output ----

@pytest.mark.io
@pytest.mark.parametrize('kind', ['qcow', 'luks'])
def test_standard_output_gets_all_of_the_disk_in_order(tmp, kind):
    plain = disk(tmp / 'plain', 24)
    image = encrypt(tmp, kind, plain, tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.run([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, '-'],
                       capture_output=True, timeout=quoin.LIMIT * 3, env=quoin.environment(tmp))
    assert p.returncode == 0, p.stderr
    assert same(p.stdout, content(plain))
    assert b'all of the disk was written to standard output' in p.stderr


def test_holes_go_to_standard_output_as_zeroes(tmp):
    image = create(tmp, 'qcow2', tmp / 'image', '70M')
    write(tmp, image_opts('qcow2', image), 'write -P 65 69M 64k')
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.run([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, '-'],
                       capture_output=True, timeout=quoin.LIMIT * 3, env=quoin.environment(tmp))
    assert p.returncode == 0, p.stderr
    assert b'100% (70 MiB of 70 MiB, ' in p.stderr
    assert same(p.stdout, bytes(69 * MIB) + b'A' * 65536 + bytes(MIB - 65536))


def test_a_reader_that_goes_away_is_an_error(tmp):
    image = encrypt(tmp, 'qcow2', disk(tmp / 'plain', 16), tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, '-'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=quoin.environment(tmp))
    p.stdout.read(100)
    p.stdout.close()
    assert p.wait(quoin.LIMIT) == 1
    assert b'Broken pipe' in p.stderr.read()
    p.stderr.close()


def test_standard_output_is_never_the_source(tmp):
    image = standard(tmp, 'qcow2')[1]
    before = content(image)
    (tmp / 'key').write_text(PASSWORD)
    with open(image, 'ab') as f:
        p = subprocess.run([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, '-'],
                           stdout=f, stderr=subprocess.PIPE, timeout=quoin.LIMIT,
                           env=quoin.environment(tmp))
    assert p.returncode == 1 and b'same file' in p.stderr
    assert same(content(image), before)


@pytest.mark.parametrize('argv', [['--verify', 'x', '-'], ['--salvage', 'x', '-'],
                                  ['--map', 'm', 'x', 'y'], ['--salvage', 'x', 'nbd://h/'],
                                  ['--target-format', 'qcow2', 'x', '-']])
def test_what_a_stream_cannot_do(tmp, argv):
    image = standard(tmp, 'qcow2')[1]
    argv = [str(image) if a == 'x' else a for a in argv]
    assert rescue(tmp, *argv).status in (1, 2)
    assert rescue(tmp, *argv).out == ''


# ---- verifying ----

@pytest.mark.io
@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_verify_reads_the_target_back(tmp, target):
    plain, image = standard(tmp, 'qcow')
    r = rescue(tmp, '--verify', '--target-format', target, image, tmp / 'out')
    assert r.status == 0, r.err
    assert 'verified: read back' in r.err
    qemu_img(tmp, 'convert', '-f', target, '-O', 'raw', tmp / 'out', tmp / 'flat')
    assert same(content(tmp / 'flat'), content(plain))


@pytest.mark.parametrize('where', ['data', 'hole'])
def test_verify_notices_a_target_that_changed(tmp, nbd, where):
    """A server that forgets a write: it says that all went well."""
    if not shutil.which('nbdkit'):
        pytest.skip('no nbdkit is installed')
    image = create(tmp, 'qcow2', tmp / 'image', '4M')
    write(tmp, image_opts('qcow2', image), 'write -P 65 1M 1M')
    at = MIB + 4096 if where == 'data' else 3 * MIB
    script = tmp / 'server.sh'
    script.write_text('''#!/bin/sh
case "$1" in
get_size) echo 4M ;;
can_write|can_zero|can_flush) exit 0 ;;
open) truncate -s 4M %(disk)s ;;
pwrite) dd of=%(disk)s conv=notrunc oflag=seek_bytes seek=$4 status=none ;;
zero) ;;
flush) printf X | dd of=%(disk)s conv=notrunc oflag=seek_bytes seek=%(at)d status=none ;;
pread) dd if=%(disk)s iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none ;;
*) exit 2 ;;
esac
''' % {'disk': tmp / 'disk', 'at': at})
    script.chmod(0o700)
    (tmp / 'key').write_text(PASSWORD)
    r = quoin.run('nbdkit', '-U', '-', 'sh', script, '--run',
                  '%s rescue --force --verify --key-file %s %s "$uri"' % (
                      quoin.QUOIN, tmp / 'key', image), tmp=tmp)
    if 'without libnbd' in r.err:
        pytest.skip('this program was built without libnbd')
    assert r.status == 1
    assert 'differs from' in r.err and 'at byte %d of the disk' % at in r.err, r.err
