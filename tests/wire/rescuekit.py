# SPDX-License-Identifier: Apache-2.0
"""Images for the tests of quoin rescue, made and read by qemu-img."""
import atexit
import fcntl
import hashlib
import os
import pathlib
import pty
import random
import select
import shutil
import signal
import subprocess
import tempfile
import termios

import images
import peers
import pytest
import quoin

MIB = 1 << 20
PASSWORD = 'geheim und lang genug'
# quoin rescue forbids it.
LOOKS_IN = pytest.mark.skipif(os.geteuid() != 0, reason='only root can look into the process')


def qemu_img(tmp, *argv, **kw):
    """qemu-img to its end.  Without quick_luks(), its LUKS gives up when its clock is too
    coarse for the little time that it shall take; it is asked again then."""
    for _ in range(20):
        r = quoin.run(peers.QEMU_IMG, *argv, tmp=tmp, limit=120 * quoin.SLOW,
                      env=images.quick_luks(), **kw)
        if 'Unable to get accurate CPU usage' not in r.err:
            break
    assert r.status == 0, (argv, r)
    return r


def mkfs(path, mib=16, tool='mkfs.ext4', args=('-q', '-F')):
    """A file system in a file; zeroes with a little text where there is no mkfs."""
    with open(path, 'wb') as f:
        f.truncate(mib * MIB)
    found = shutil.which(tool, path=os.environ.get('PATH', '') + ':/sbin:/usr/sbin')
    if found:
        quoin.run(found, *args, path, tmp=os.path.dirname(path), check=True)
    else:
        with open(path, 'r+b') as f:
            f.write(b'no file system, but some text\n' * 100)
    return path


def noise(path, size, seed=1):
    with open(path, 'wb') as f:
        f.write(random.Random(seed).randbytes(size))
    return path


def disk(path, mib=16, seed=1):
    """A file system with noise, zeroes and text in it, as a disk in use has them."""
    mkfs(path, mib)
    r = random.Random(seed)
    with open(path, 'r+b') as f:
        for _ in range(mib * 2):
            f.seek(r.randrange(2, mib * 16) * 65536 - r.choice((0, 512, 7 * 512)))
            kind = r.randrange(3)
            f.write((r.randbytes(40000), b'some text that a guest wrote\n' * 3000,
                     bytes(70000))[kind])
        f.truncate(mib * MIB)
    return path


def create_options(fmt, secret='s'):
    """(-O's format, -o's options) of a kind of encryption."""
    return {
        'qcow': ('qcow', 'encrypt.format=aes,encrypt.key-secret=' + secret),
        'qcow2': ('qcow2', 'encrypt.format=aes,encrypt.key-secret=' + secret),
        'qcow2-luks': ('qcow2', 'encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret='
                       + secret),
        'luks': ('luks', 'iter-time=10,key-secret=' + secret),
    }[fmt]


def secret(password=PASSWORD, name='s'):
    return ('--object', 'secret,id=%s,data=%s' % (name, password))


def encrypt(tmp, fmt, src, dst, password=PASSWORD, more='', convert=()):
    out, options = create_options(fmt)
    qemu_img(tmp, 'convert', '-f', 'raw', '-O', out, *convert, *secret(password),
             '-o', options + more, src, dst)
    return dst


_made = {}


def standard(tmp, fmt):
    """A disk of 4 MiB and its encrypted image, both the test's own copies; what
    they are copied from is made once."""
    if not _made:
        _made['folder'] = folder = pathlib.Path(tempfile.mkdtemp(prefix='q-standard-'))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        disk(folder / 'plain', 4)
    if fmt not in _made:
        folder = _made['folder']
        _made[fmt] = encrypt(folder, fmt, folder / 'plain', folder / fmt)
    shutil.copy(_made['folder'] / 'plain', tmp / 'plain')
    shutil.copy(_made[fmt], tmp / 'image')
    return tmp / 'plain', tmp / 'image'


def create(tmp, fmt, dst, size, password=PASSWORD, more=''):
    out, options = create_options(fmt)
    qemu_img(tmp, 'create', '-q', '-f', out, *secret(password), '-o', options + more, dst, size)
    return dst


def image_opts(fmt, path, name='s', prefix=''):
    """--image-opts text for an encrypted image."""
    driver, enc = {'qcow': ('qcow', 'aes'), 'qcow2': ('qcow2', 'aes'),
                   'qcow2-luks': ('qcow2', 'luks'), 'luks': ('luks', '')}[fmt]
    text = '%sdriver=%s,%sfile.driver=file,%sfile.filename=%s' % (
        prefix, driver, prefix, prefix, path)
    if enc:
        return text + ',%sencrypt.format=%s,%sencrypt.key-secret=%s' % (prefix, enc, prefix, name)
    return text + ',%skey-secret=%s' % (prefix, name)


def write(tmp, opts, *commands, password=PASSWORD, more=()):
    """Let qemu-io write into an encrypted image."""
    argv = [peers.QEMU_IO, '-t', 'unsafe', *secret(password), *more, '--image-opts', opts]
    for c in commands:
        argv += ['-c', c]
    r = quoin.run(*argv, tmp=tmp, check=True)
    assert 'error' not in r.out.lower(), r.out


def peer_content(tmp, opts, more=(), password=PASSWORD):
    """What qemu-img convert makes of it."""
    out = '%s/peer.raw' % tmp
    qemu_img(tmp, 'convert', *secret(password), *more, '--image-opts', opts, '-O', 'raw', out)
    with open(out, 'rb') as f:
        return f.read()


def rescue(tmp, *argv, key=PASSWORD, **kw):
    """quoin rescue with the key in a file; the Result."""
    options = []
    if key is not None:
        path = '%s/key' % tmp
        with open(path, 'w') as f:
            f.write(key)
        options = ['--key-file', path]
    return quoin.run(quoin.QUOIN, 'rescue', *options, *argv, tmp=tmp, limit=60 * quoin.SLOW, **kw)


class Terminal:
    """quoin on a terminal of its own."""

    def __init__(self, tmp, *argv, program=quoin.QUOIN, before=lambda: None):
        """before: called in the child before it becomes the program."""
        self.master, slave = pty.openpty()
        env = quoin.environment(tmp)
        self.p = subprocess.Popen([program, *map(str, argv)], stdin=slave, stdout=slave,
                                  stderr=slave, env=env, start_new_session=True,
                                  preexec_fn=lambda: (self.control(), before()))
        os.close(slave)
        self.text = ''
        self.seen = 0

    @staticmethod
    def control():
        # Whoever runs the tests may ignore these: nohup, a shell in the background.
        for sig in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(sig, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def expect(self, what):
        """Wait until `what` is printed, behind what was expected before."""
        while what not in self.text[self.seen:]:
            ready, _, _ = select.select([self.master], [], [], quoin.LIMIT)
            assert ready, 'no %r in %r' % (what, self.text)
            try:
                data = os.read(self.master, 4096)
            except OSError:
                data = b''
            assert data, 'no %r in %r' % (what, self.text)
            self.text += data.decode(errors='replace')
        self.seen = self.text.index(what, self.seen) + len(what)

    def send(self, text):
        os.write(self.master, text.encode())

    def wait_for_silence(self):
        """Until the terminal does not echo, which is when the prompt reads."""
        while termios.tcgetattr(self.master)[3] & termios.ECHO:
            assert self.p.poll() is None

    def end(self):
        try:
            status = self.p.wait(quoin.LIMIT)
        finally:
            self.p.kill()
            os.close(self.master)
        return status


def host_offset(path, guest):
    """Where in its file a qcow or qcow2 image stores this place of its disk."""
    with open(path, 'rb') as f:
        def be(at, n):
            f.seek(at)
            return int.from_bytes(f.read(n), 'big')
        old = be(4, 4) == 1
        bits = be(32, 1) if old else be(20, 4)
        l2_bits = be(33, 1) if old else bits - 3
        mask = (1 << 63) - 1 if old else (1 << 56) - 512
        cluster = guest >> bits
        table = be(be(40, 8) + 8 * (cluster >> l2_bits), 8) & mask
        entry = be(table + 8 * (cluster % (1 << l2_bits)), 8) & mask
    assert entry, 'it stores nothing there'
    return entry + guest % (1 << bits)


def break_entry(path, cluster, size=65536):
    """Make the L2 entry of a guest cluster of a qcow2 image point where none starts."""
    def be64(f, at):
        f.seek(at)
        return int.from_bytes(f.read(8), 'big')
    with open(path, 'r+b') as f:
        per_table = size // 8
        table = be64(f, be64(f, 40) + 8 * (cluster // per_table)) & ((1 << 56) - 512)
        at = table + 8 * (cluster % per_table)
        entry = be64(f, at) | 0x200
        f.seek(at)
        f.write(entry.to_bytes(8, 'big'))


def need_libnbd():
    if b'built without libnbd' in content(quoin.QUOIN):
        pytest.skip('this program was built without libnbd')


def content(path):
    with open(path, 'rb') as f:
        return f.read()


def digest(path):
    return hashlib.sha256(content(path)).hexdigest()


def same(a, b):
    """Compare without printing megabytes."""
    if a == b:
        return True
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    raise AssertionError('sizes %d and %d; first difference at %d' % (len(a), len(b), at))


def small_file_system(tmp, size):
    """For a fixture: a folder on a file system of its own, of so many bytes."""
    path = tmp / 'small'
    path.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=' + size, 'tmpfs', path],
                      capture_output=True).returncode:
        pytest.skip('a file system of a given size cannot be mounted here')
    yield path
    subprocess.run(['umount', path], check=True)
