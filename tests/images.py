# SPDX-License-Identifier: Apache-2.0
"""Images made and read by QEMU's own tools, for tests that compare with them.

Every function takes paths; `key` is a password.  ENCRYPTED maps a kind to a
function(path, key, size, backing) that makes such an image.
"""
import atexit
import functools
import os
import shutil
import subprocess
import tempfile

import peers

LIMIT = 60


@functools.cache
def quick_luks():
    """What to add to qemu-img's environment, for the fewest iterations of key derivation
    without seconds of measuring.  Nothing where there is no compiler."""
    compiler = shutil.which('cc')
    if not compiler:
        return {}
    folder = tempfile.mkdtemp(prefix='q-clock-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = os.path.join(folder, 'slowclock.so')
    subprocess.run([compiler, '-D_GNU_SOURCE', '-shared', '-fPIC', '-o', library,
                    os.path.join(peers.TOP, 'tests', 'support', 'slowclock.c')], check=True)
    return {'LD_PRELOAD': library}


def tool(*argv, check=True):
    """Run one of QEMU's tools to its end; its output."""
    p = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, timeout=LIMIT,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       env=dict(os.environ, **quick_luks()))
    assert not check or p.returncode == 0, '%s: status %d\n%s' % (argv, p.returncode, p.stdout)
    return p.stdout


def img(*argv, **kw):
    return tool(peers.QEMU_IMG, *argv, **kw)


def _secret(key):
    return ('--object', 'secret,id=key,data=' + key)


def _create(fmt, options, path, key, size, backing):
    options = list(options)
    if backing:
        options += ['backing_file=%s' % backing[0], 'backing_fmt=%s' % backing[1]]
    img('create', '-q', '-f', fmt, *_secret(key), '-o', ','.join(options), path, size)


def qcow_aes(path, key, size='4M', backing=None):
    """backing: a path; the qcow format keeps no backing format."""
    options = ['encrypt.format=aes', 'encrypt.key-secret=key']
    if backing:
        options.append('backing_file=%s' % backing[0])
    img('create', '-q', '-f', 'qcow', *_secret(key), '-o', ','.join(options), path, size)


def qcow2_aes(path, key, size='4M', backing=None):
    _create('qcow2', ['encrypt.format=aes', 'encrypt.key-secret=key'], path, key, size, backing)


def _once(make):
    """The key derivation of LUKS can take seconds: make each such image once a run,
    and copy it from then on."""
    made = {}

    def make_or_copy(path, key, size='4M', backing=None):
        if backing:
            make(path, key, size, backing)
            return
        if (key, size) not in made:
            folder = tempfile.mkdtemp(prefix='q-luks-')
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            made[key, size] = os.path.join(folder, 'image')
            make(made[key, size], key, size, None)
        shutil.copyfile(made[key, size], path)
    return make_or_copy


@_once
def qcow2_luks(path, key, size='4M', backing=None):
    _create('qcow2', ['encrypt.format=luks', 'encrypt.key-secret=key', 'encrypt.iter-time=10'],
            path, key, size, backing)


@_once
def luks(path, key, size='4M', backing=None):
    assert not backing
    _create('luks', ['key-secret=key', 'iter-time=10'], path, key, size, None)


ENCRYPTED = {'qcow-aes': qcow_aes, 'qcow2-aes': qcow2_aes, 'qcow2-luks': qcow2_luks,
             'luks': luks}
DRIVER = {'qcow-aes': 'qcow', 'qcow2-aes': 'qcow2', 'qcow2-luks': 'qcow2', 'luks': 'luks'}


def qcow2(path, size='4M', backing=None, *more):
    """A plain one; `more`: further -o options."""
    options = list(more)
    if backing:
        options += ['backing_file=%s' % backing[0], 'backing_fmt=%s' % backing[1]]
    img('create', '-q', '-f', 'qcow2', *(['-o', ','.join(options)] if options else []),
        path, size)


def raw(path, content):
    """A raw image of these bytes."""
    with open(path, 'wb') as f:
        f.write(content)


def encrypted_opts(kind, path, key_id='key'):
    """--image-opts for an encrypted image."""
    text = 'driver=%s,file.filename=%s' % (DRIVER[kind], path)
    if kind == 'luks':
        return text + ',key-secret=' + key_id
    return text + ',encrypt.format=%s,encrypt.key-secret=%s' % (
        'luks' if kind == 'qcow2-luks' else 'aes', key_id)


def write_encrypted(kind, path, key, *commands):
    """qemu-io commands on an encrypted image."""
    argv = []
    for c in commands:
        argv += ['-c', c]
    tool(peers.QEMU_IO, *_secret(key), '--image-opts', encrypted_opts(kind, path), *argv)


def decrypt(kind, path, key, target):
    """What qemu-img makes of an encrypted image, as raw."""
    img('convert', *_secret(key), '--image-opts', encrypted_opts(kind, path), '-O', 'raw', target)


def io(path, *commands, fmt='raw', **kw):
    """qemu-io commands on an image, or what a URI stands for."""
    argv = []
    for c in commands:
        argv += ['-c', c]
    return tool(peers.QEMU_IO, '-f', fmt, '-d', 'unmap', path, *argv, **kw)


def check(path, fmt='qcow2'):
    """Assert that qemu-img check finds nothing at all."""
    out = img('check', '-f', fmt, path)
    assert 'No errors were found' in out and 'leaked' not in out, out


def compare(a, fmt_a, b, fmt_b):
    img('compare', '-f', fmt_a, '-F', fmt_b, a, b)


def content(path):
    with open(path, 'rb') as f:
        return f.read()
