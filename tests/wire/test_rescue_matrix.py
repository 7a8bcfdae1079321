# SPDX-License-Identifier: Apache-2.0
"""Every kind of source to every kind of target under every option: what comes out is what
qemu-img convert gets, byte for byte.

By default each two of source, target and option that go together meet; QUOIN_MATRIX=full runs
all three against each other.
"""
import atexit
import os
import pathlib
import select
import shutil
import signal
import subprocess
import tempfile

import images
import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, content, create, disk, encrypt, image_opts, peer_content,
                       qemu_img, same, standard, write)
from test_rescue_header import detach

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

FULL = os.environ.get('QUOIN_MATRIX') == 'full'
SIZE = 4 * MIB
TARGETS = ['raw', 'qcow2', 'device', 'nbd', 'stdout', 'chain', 'zlib', 'zstd', 'zlib chain']
OPTIONS = [[], ['--verify'], ['--salvage'], ['--resume'], ['--json', '-q'],
           ['--mixed-encryption'], ['--verify', '--salvage', '--resume']]


# ---- sources: (the image, --image-opts for the peer[, options of ours, the peer's]) ----

def single(kind):
    def make(folder):
        image = standard(folder, kind)[1]
        return image, image_opts(kind, image)
    return make


def two_layers(folder):
    """The old AES in small clusters over LUKS."""
    base = standard(folder, 'qcow2-luks')[1].rename(folder / 'base')
    image = create(folder, 'qcow', folder / 'image', str(SIZE + MIB),
                   more=',backing_file=%s,backing_fmt=qcow2' % base)
    opts = '%s,%s' % (image_opts('qcow', image), image_opts('qcow2-luks', base, 's', 'backing.'))
    write(folder, opts, 'write -P 65 1000k 9k', 'write -P 0 2M 64k', 'write -P 66 4M 100k')
    return image, opts


def compressed(how):
    """A plain overlay of compressed clusters over an encrypted one."""
    def make(folder):
        plain, image = standard(folder, 'qcow2')
        base = image.rename(folder / 'base')
        with open(folder / 'changed', 'wb') as f:
            data = bytearray(content(plain))
            data[MIB:2 * MIB] = b'text ' * (MIB // 5) + b'x'
            f.write(data)
        qemu_img(folder, 'convert', '-c', '-f', 'raw', *how, folder / 'changed', image)
        qemu_img(folder, 'rebase', '-u', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image)
        return image, 'driver=qcow2,file.driver=file,file.filename=%s,%s' % (
            image, image_opts('qcow2', base, 's', 'backing.'))
    return make


def compressed_below(folder):
    """An encrypted overlay over compressed clusters of a qcow image."""
    base = folder / 'base'
    qemu_img(folder, 'create', '-q', '-f', 'qcow', base, str(SIZE))
    write(folder, 'driver=qcow,file.filename=%s' % base,
          *['write -c -P %d %dk 4k' % (i + 1, 16 * i) for i in range(200)])
    image = create(folder, 'qcow', folder / 'image', str(SIZE),
                   more=',backing_file=%s,backing_fmt=qcow' % base)
    opts = image_opts('qcow', image)
    write(folder, opts, 'write -P 65 1M 70k', 'write -P 0 2M 64k')
    return image, opts


def variant(kind, more):
    """An image that differs in how it is laid out, with something written into it later."""
    def make(folder):
        image = encrypt(folder, kind, disk(folder / 'plain', SIZE // MIB), folder / 'image',
                        more=more % {'folder': folder})
        opts = image_opts(kind, image)
        write(folder, opts, 'write -P 65 1M 70k', 'write -z 2M 100k', 'discard 3M 128k')
        return image, opts
    return make


def snapshotted(folder):
    image, opts = variant('qcow2-luks', ',cluster_size=4k')(folder)
    qemu_img(folder, 'snapshot', '--object', 'secret,id=s,data=' + PASSWORD, '-c', 'before',
             '--image-opts', opts)
    write(folder, opts, 'write -P 66 1M 300k')
    return image, opts


def earlier(folder):
    """The same, as it was when the snapshot was taken."""
    image, opts = snapshotted(folder)
    return image, opts, ['--snapshot', 'before'], ['-l', 'snapshot.name=before']


def detached(folder):
    """A LUKS volume whose header is in another file."""
    header, volume = detach(folder, standard(folder, 'luks')[1])
    image = volume.rename(folder / 'image')
    return image, 'driver=luks,key-secret=s,file.driver=file,file.filename=%s,' \
                  'header.driver=file,header.filename=%s' % (image, header), ['--header', header]


def on_device(folder):
    """A LUKS volume on a block device that cannot be written to."""
    image, opts = single('luks')(folder)
    p = subprocess.run(['losetup', '-r', '-f', '--show', image], capture_output=True, text=True)
    if p.returncode:
        pytest.skip('loop devices cannot be used here: ' + p.stderr.strip())
    atexit.register(subprocess.run, ['losetup', '-d', p.stdout.strip()])
    return p.stdout.strip(), opts


SOURCES = {
    'qcow': single('qcow'), 'qcow2': single('qcow2'), 'qcow2-luks': single('qcow2-luks'),
    'luks': single('luks'), 'two layers': two_layers,
    'compressed': compressed(['-O', 'qcow2']),
    'compressed by zstd': compressed(['-O', 'qcow2', '-o', 'compression_type=zstd']),
    'compressed below': compressed_below,
    'v2': variant('qcow2', ',compat=0.10'),
    'small clusters': variant('qcow2-luks', ',cluster_size=512'),
    'large clusters': variant('qcow2', ',cluster_size=2M'),
    'subclusters': variant('qcow2-luks', ',cluster_size=16k,extended_l2=on'),
    'wide counts': variant('qcow2', ',refcount_bits=64,lazy_refcounts=on'),
    'aes subclusters': variant('qcow2', ',cluster_size=64k,extended_l2=on'),
    'data file': variant('qcow2', ',data_file=%(folder)s/data'),
    'raw data file': variant('qcow2-luks', ',data_file=%(folder)s/data,data_file_raw=on'),
    'snapshot': snapshotted, 'earlier': earlier, 'detached header': detached,
    'device': on_device}
_made = {}


def source(name):
    """The image, options that go with it, and what the peer makes of it; made once."""
    if name not in _made:
        folder = pathlib.Path(tempfile.mkdtemp(prefix='q-matrix-'))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        image, opts, ours, theirs = (*SOURCES[name](folder), [], [])[:4]
        _made[name] = image, ours, peer_content(folder, opts, theirs)
    return _made[name]


# ---- targets: run(argv with the target) -> the bytes that came out ----

def old_data(path):
    path.write_bytes(b'old data' * ((SIZE + MIB) // 8))
    return path


def as_raw(tmp, fmt, path):
    qemu_img(tmp, 'convert', '-f', fmt, '-O', 'raw', path, tmp / 'flat')
    return content(tmp / 'flat')


def to_file(tmp, go, fmt, *more):
    go('--target-format', fmt, *more, target=tmp / 'out')
    return as_raw(tmp, fmt, tmp / 'out')


def to_chain(tmp, go, *more):
    go('--keep-chain', '--target-format', 'qcow2', *more, target=tmp / 'out')
    return as_raw(tmp, 'qcow2', tmp / 'out' / 'image')


def to_device(tmp, go):
    p = subprocess.run(['losetup', '-f', '--show', old_data(tmp / 'disk')], capture_output=True,
                       text=True)
    if p.returncode:
        pytest.skip('loop devices cannot be used here: ' + p.stderr.strip())
    try:
        go('--force', target=p.stdout.strip())
    finally:
        subprocess.run(['losetup', '-d', p.stdout.strip()], check=True)
    return content(tmp / 'disk')


def to_nbd(tmp, go):
    if not peers.QEMU_NBD:
        pytest.skip('no qemu-nbd is installed')
    quoin.run(peers.QEMU_NBD, '--fork', '-f', 'raw', '-t', '-k', tmp / 'sock', '--pid-file',
              tmp / 'pid', old_data(tmp / 'disk'), tmp=tmp, check=True)
    pid = os.pidfd_open(int((tmp / 'pid').read_text()))
    try:
        go('--force', target='nbd+unix:///?socket=%s' % (tmp / 'sock'))
    finally:
        signal.pidfd_send_signal(pid, signal.SIGTERM)
        assert select.select([pid], [], [], quoin.LIMIT)[0]
        os.close(pid)
    return content(tmp / 'disk')


def run(tmp, image, options, *more, target, stdout=subprocess.PIPE):
    (tmp / 'key').write_text(PASSWORD)
    if '--salvage' in options and '--keep-chain' not in more:
        options = [*options, '--map', tmp / 'map']
    p = subprocess.run([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', *options, *more, image,
                        target], stdout=stdout, stderr=subprocess.PIPE, text=True,
                       env=quoin.environment(tmp), timeout=quoin.LIMIT)
    if 'without libnbd' in p.stderr:
        pytest.skip('this program was built without libnbd')
    assert p.returncode == 0, p.stderr


def rescued(tmp, image, target, options):
    def go(*more, target, **kw):
        run(tmp, image, options, *more, target=target, **kw)
    if target == 'stdout':
        with open(tmp / 'out', 'wb') as f:
            go(target='-', stdout=f)
        return content(tmp / 'out')
    return {'raw': lambda: to_file(tmp, go, 'raw'), 'qcow2': lambda: to_file(tmp, go, 'qcow2'),
            'zlib': lambda: to_file(tmp, go, 'qcow2', '--compress', 'zlib'),
            'zstd': lambda: to_file(tmp, go, 'qcow2', '--compress', 'zstd'),
            'chain': lambda: to_chain(tmp, go),
            'zlib chain': lambda: to_chain(tmp, go, '--compress', 'zlib'), 'device': lambda: to_device(tmp, go),
            'nbd': lambda: to_nbd(tmp, go)}[target]()


# ---- ----

def makes_sense(source, target, options):
    if source == 'device' and 'chain' in target:
        return False        # whose name is not known
    if target == 'stdout':
        return not {'--verify', '--resume', '--json'} & set(options)
    return target not in ('device', 'nbd') or '--resume' not in options


def matrix():
    for i, s in enumerate(SOURCES):
        for j, t in enumerate(TARGETS):
            for k, o in enumerate(OPTIONS):
                # Of a Latin square, in which each pair of two of them stands.
                if (FULL or k == (i + j) % len(OPTIONS)) and makes_sense(s, t, o):
                    yield pytest.param(s, t, o, id='-'.join([s, t, *o]).replace(' ', '-'))


@pytest.mark.parametrize('name, target, options', matrix())
def test_what_comes_out_is_what_the_peer_gets(tmp, name, target, options):
    if 'zstd' in name + target and b'libzstd' not in images.content(quoin.QUOIN):
        pytest.skip('this program was built without zstd')
    image, ours, want = source(name)
    got = rescued(tmp, image, target, [*options, *ours])
    assert same(got[:len(want)], want)
    assert len(got) == len(want) or target in ('device', 'nbd')
