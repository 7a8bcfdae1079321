# SPDX-License-Identifier: Apache-2.0
"""quoin rescue: what it gets out of images is what qemu-img gets; keys; targets."""
import atexit
import functools
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time

import peers
import pytest
import quoin
from rescuekit import (LOOKS_IN, MIB, PASSWORD, Terminal, content, create, create_options, digest,
                       disk, encrypt, image_opts, mkfs, noise, peer_content, qemu_img, rescue, same,
                       secret, small_file_system, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

# Leaks cannot be looked for under strace.
NO_LEAKS = {'ASAN_OPTIONS': 'detect_leaks=0'}
KINDS = ['qcow', 'qcow2', 'qcow2-luks', 'luks']
AES = ['qcow', 'qcow2']


def leftovers(tmp, *known):
    """Names in tmp that nobody expects."""
    known = {os.path.basename(str(k)) for k in known} | {'key'}
    return [n for n in os.listdir(tmp) if n not in known]


# ---- content ----

@pytest.mark.io
@pytest.mark.parametrize('target', ['raw', 'qcow2'])
@pytest.mark.parametrize('kind', KINDS)
def test_what_comes_out_is_what_went_in(tmp, kind, target):
    plain, image = standard(tmp, kind)
    before = digest(image), os.stat(image).st_mtime_ns
    r = rescue(tmp, '--target-format', target, image, tmp / 'out')
    assert r.status == 0, r.err
    assert (digest(image), os.stat(image).st_mtime_ns) == before
    if target == 'qcow2':
        qemu_img(tmp, 'check', '-f', 'qcow2', tmp / 'out')
        qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'out', tmp / 'flat')
        assert same(content(tmp / 'flat'), content(plain))
    else:
        assert same(content(tmp / 'out'), content(plain))
    assert same(peer_content(tmp, image_opts(kind, image)), content(plain))


@pytest.mark.parametrize('cluster', ['512', '4k', '2M'])
def test_all_cluster_sizes_of_qcow2(tmp, cluster):
    plain = disk(tmp / 'plain', 8)
    image = encrypt(tmp, 'qcow2', plain, tmp / 'image', more=',cluster_size=' + cluster)
    assert rescue(tmp, image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))


def test_subclusters(tmp):
    plain = disk(tmp / 'plain', 8)
    image = encrypt(tmp, 'qcow2', plain, tmp / 'image', more=',extended_l2=on,cluster_size=128k')
    assert rescue(tmp, image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))


def test_preallocated_space_reads_as_the_peer_reads_it(tmp):
    """Clusters that were never written are decrypted too, and so become noise."""
    image = create(tmp, 'qcow2', tmp / 'image', '8M', more=',preallocation=metadata')
    write(tmp, image_opts('qcow2', image), 'write -P 65 1M 1M')
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), peer_content(tmp, image_opts('qcow2', image)))


def test_a_disk_whose_size_is_odd(tmp):
    image = create(tmp, 'qcow2', tmp / 'image', str(3 * MIB + 512 * 7))
    write(tmp, image_opts('qcow2', image), 'write -P 66 2M %d' % (MIB + 512 * 7))
    assert rescue(tmp, image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), bytes(2 * MIB) + b'B' * (MIB + 512 * 7))


def test_internal_snapshots_do_not_disturb(tmp):
    image = create(tmp, 'qcow2', tmp / 'image', '4M')
    opts = image_opts('qcow2', image)
    write(tmp, opts, 'write -P 65 0 2M')
    qemu_img(tmp, 'snapshot', *secret(), '-c', 'before', '--image-opts', opts)
    write(tmp, opts, 'write -P 66 1M 2M')
    assert rescue(tmp, image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), b'A' * MIB + b'B' * 2 * MIB + bytes(MIB))


# ---- chains ----

@pytest.mark.parametrize('kind', AES)
def test_an_encrypted_overlay_on_a_plain_base(tmp, kind):
    base = disk(tmp / 'base.img', 4)
    image = create(tmp, kind, tmp / 'top', '6M',
                   more=',backing_file=%s,backing_fmt=raw' % base)
    write(tmp, image_opts(kind, image), 'write -P 65 64k 64k', 'write -P 66 3M 2500k')
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 0, r.err
    want = bytearray(content(base) + bytes(2 * MIB))
    want[65536:131072] = b'A' * 65536
    want[3 * MIB:3 * MIB + 2500 * 1024] = b'B' * 2500 * 1024
    assert same(content(tmp / 'out'), bytes(want))


def test_a_plain_compressed_overlay_on_an_encrypted_base(tmp):
    plain = disk(tmp / 'plain', 4)
    base = encrypt(tmp, 'qcow2', plain, tmp / 'base')
    want = bytearray(content(plain))
    want[MIB:2 * MIB] = b'text ' * (MIB // 5) + b'x'
    with open(tmp / 'changed', 'wb') as f:
        f.write(want)
    qemu_img(tmp, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', tmp / 'changed', tmp / 'top')
    qemu_img(tmp, 'rebase', '-u', '-f', 'qcow2', '-b', base, '-F', 'qcow2', tmp / 'top')
    r = rescue(tmp, tmp / 'top', tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), bytes(want))


def test_every_layer_takes_the_key_that_fits(tmp):
    plain = disk(tmp / 'plain', 4)
    base = encrypt(tmp, 'qcow', plain, tmp / 'base', password='first')
    middle = create(tmp, 'qcow2', tmp / 'middle', '4M', password='second',
                    more=',backing_file=%s,backing_fmt=qcow' % base)
    top = create(tmp, 'qcow2-luks', tmp / 'top', '4M', password='third',
                 more=',backing_file=%s,backing_fmt=qcow2' % middle)
    more = (*secret('second', 'm'), *secret('first', 'b'))
    opts_m = image_opts('qcow2', middle, 'm', 'backing.')
    opts_b = image_opts('qcow', base, 'b', 'backing.backing.')
    write(tmp, image_opts('qcow2', middle, 'm') + ',' + image_opts('qcow', base, 'b', 'backing.'),
          'write -P 65 1M 1M', more=more)
    opts = '%s,%s,%s' % (image_opts('qcow2-luks', top), opts_m, opts_b)
    write(tmp, opts, 'write -P 66 1536k 1M', password='third', more=more)
    keys = []
    for word in ('first', 'second', 'third'):
        (tmp / word).write_text(word)
        keys += ['--key-file', tmp / word]
    r = rescue(tmp, *keys, top, tmp / 'out', key=None)
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), peer_content(tmp, opts, more, password='third'))
    for layer, word in ((top, 'third'), (middle, 'second'), (base, 'first')):
        assert '%s: the key file %s fits' % (layer, tmp / word) in r.err


def test_what_an_image_names_is_literal(tmp):
    plain = disk(tmp / 'plain', 4)
    trick = 'json:{"driver":"file","filename":"%s"}' % plain
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-u', *secret(), '-o',
             'encrypt.format=aes,encrypt.key-secret=s', '-b', trick, '-F', 'raw',
             tmp / 'image', '4M')
    r = rescue(tmp, tmp / 'image', tmp / 'out')
    assert r.status == 1
    assert 'No such file' in r.err


# ---- keys ----

@pytest.mark.parametrize('kind', KINDS)
def test_a_wrong_key_is_refused_before_anything_is_written(tmp, kind):
    image = standard(tmp, kind)[1]
    r = rescue(tmp, image, tmp / 'out', key='not the password')
    assert r.status == 3, r.err
    assert 'the key is wrong' in r.err
    assert not leftovers(tmp, 'plain', 'image')


def test_the_evidence_is_shown(tmp):
    if not shutil.which('mkfs.ext4', path=os.environ['PATH'] + ':/sbin:/usr/sbin'):
        pytest.skip('no mkfs.ext4 is installed')
    image = encrypt(tmp, 'qcow2', mkfs(tmp / 'plain'), tmp / 'image')
    r = rescue(tmp, image, tmp / 'out')
    assert re.search(r'the key file \S+ fits: ext4 file system at the start of the disk, '
                     r'\d+ of \d+ sampled sectors are not noise', r.err), r.err


@pytest.mark.parametrize('kind', AES)
def test_noise_is_refused_unless_the_key_is_accepted_unverified(tmp, kind):
    plain = noise(tmp / 'plain', 4 * MIB)
    image = encrypt(tmp, kind, plain, tmp / 'image')
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 3
    assert 'or the disk holds nothing but noise, which looks the same' in r.err
    r = rescue(tmp, '--accept-unverified-key', image, tmp / 'out')
    assert r.status == 0, r.err
    assert 'unverified' in r.err
    assert same(content(tmp / 'out'), content(plain))


def test_a_little_noise_cannot_be_judged(tmp):
    plain = noise(tmp / 'plain', 16 * 1024)
    image = encrypt(tmp, 'qcow', plain, tmp / 'image')
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 4
    assert 'cannot be judged' in r.err and '--accept-unverified-key' in r.err
    assert not leftovers(tmp, 'plain', 'image')
    assert rescue(tmp, '--accept-unverified-key', image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))


def test_an_accepted_wrong_key_does_what_was_said(tmp):
    plain, image = standard(tmp, 'qcow2')
    r = rescue(tmp, '--accept-unverified-key', image, tmp / 'out', key='wrong')
    assert r.status == 0
    assert content(tmp / 'out') != content(plain)


@pytest.mark.parametrize('kind', ['luks'])
def test_no_option_accepts_a_wrong_passphrase_of_luks(tmp, kind):
    image = standard(tmp, kind)[1]
    assert rescue(tmp, '--accept-unverified-key', image, tmp / 'out', key='wrong').status == 3


def test_an_image_without_data_needs_no_key(tmp):
    image = create(tmp, 'qcow2', tmp / 'image', '4M')
    r = rescue(tmp, image, tmp / 'out', key=None)
    assert r.status == 0, r.err
    assert 'needs no key' in r.err
    assert same(content(tmp / 'out'), bytes(4 * MIB))


@pytest.mark.parametrize('kind, have, give, said', [
    ('qcow2', 'short', 'short\n', 'without the newline at its end'),
    ('qcow2', 'short\n', 'short', 'with a newline added'),
    ('qcow2', 'short\n', 'short\n', None),
    ('luks', 'short', 'short\n', 'without the newline at its end')])
def test_newlines_at_the_end_of_keys(tmp, kind, have, give, said):
    plain = disk(tmp / 'plain', 4)
    (tmp / 'secret').write_text(have)
    out, options = create_options(kind)
    qemu_img(tmp, 'convert', '-f', 'raw', '-O', out, '--object',
             'secret,id=s,file=%s' % (tmp / 'secret'), '-o', options, plain, tmp / 'image')
    r = rescue(tmp, tmp / 'image', tmp / 'out', key=give)
    assert r.status == 0, r.err
    assert (said in r.err) if said else ('newline' not in r.err)
    assert same(content(tmp / 'out'), content(plain))


def test_only_the_first_16_bytes_count_for_aes(tmp):
    plain = disk(tmp / 'plain', 4)
    image = encrypt(tmp, 'qcow2', plain, tmp / 'image', password='0123456789abcdefXYZ')
    assert rescue(tmp, image, tmp / 'out', key='0123456789abcdef and more').status == 0
    assert same(content(tmp / 'out'), content(plain))


def test_a_key_from_a_descriptor(tmp):
    plain, image = standard(tmp, 'qcow2')
    p = subprocess.run([quoin.QUOIN, 'rescue', '--key-fd', '0', image, tmp / 'out'],
                       input=PASSWORD.encode(), capture_output=True, timeout=quoin.LIMIT,
                       env=quoin.environment(tmp))
    assert p.returncode == 0, p.stderr
    assert same(content(tmp / 'out'), content(plain))


def test_the_prompt_names_the_layer_and_asks_again(tmp):
    plain, image = standard(tmp, 'qcow2')
    t = Terminal(tmp, 'rescue', image, tmp / 'out')
    t.expect('Password for %s (qcow2 AES-CBC): ' % image)
    t.wait_for_silence()
    t.send('wrong\n')
    t.expect('This cannot be the password')
    t.expect('Password for')
    t.wait_for_silence()
    t.send(PASSWORD + '\n')
    t.expect('the password fits')
    t.expect('100%')
    t.expect('whole and on disk')
    assert t.end() == 0
    assert PASSWORD not in t.text
    assert same(content(tmp / 'out'), content(plain))


def test_each_layer_is_asked_for_unless_a_password_is_known_already(tmp):
    base = encrypt(tmp, 'qcow2', disk(tmp / 'plain', 4), tmp / 'base', password='first')
    overlay = ',backing_file=%s,backing_fmt=qcow2'
    middle = create(tmp, 'qcow2', tmp / 'middle', '4M', 'second', overlay % base)
    top = create(tmp, 'qcow2', tmp / 'top', '4M', 'first', overlay % middle)
    more = (*secret('first', 'b'), *secret('second', 'm'))
    opts_b = image_opts('qcow2', base, 'b', 'backing.')
    write(tmp, image_opts('qcow2', middle, 'm') + ',' + opts_b, 'write -P 65 1M 1M', more=more)
    write(tmp, '%s,%s,%s' % (image_opts('qcow2', top), image_opts('qcow2', middle, 'm', 'backing.'),
                             image_opts('qcow2', base, 'b', 'backing.backing.')),
          'write -P 66 2M 1M', password='first', more=more)
    t = Terminal(tmp, 'rescue', top, tmp / 'out')
    for layer, word in ((top, 'first'), (middle, 'second')):
        t.expect('Password for %s (' % layer)
        t.wait_for_silence()
        t.send(word + '\n')
    t.expect('%s: the password fits' % base)
    t.expect('whole and on disk')
    assert t.end() == 0
    assert content(tmp / 'out')[MIB:3 * MIB] == b'A' * MIB + b'B' * MIB


def test_three_wrong_passwords_end_it(tmp):
    image = standard(tmp, 'qcow2')[1]
    t = Terminal(tmp, 'rescue', image, tmp / 'out')
    for _ in range(3):
        t.expect('Password for')
        t.wait_for_silence()
        t.send('wrong\n')
    t.expect('the key is wrong')
    assert t.end() == 3


def test_an_interrupt_at_the_prompt_ends_it(tmp):
    image = standard(tmp, 'qcow2')[1]
    t = Terminal(tmp, 'rescue', image, tmp / 'out')
    t.expect('Password for')
    t.wait_for_silence()
    t.send('\003')
    assert t.end() == -signal.SIGINT
    assert not leftovers(tmp, 'plain', 'image')


def test_without_a_terminal_and_without_a_key_it_says_so(tmp):
    image = standard(tmp, 'qcow2')[1]
    p = subprocess.run([quoin.QUOIN, 'rescue', image, tmp / 'out'], stdin=subprocess.DEVNULL,
                       capture_output=True, timeout=quoin.LIMIT, start_new_session=True,
                       env=quoin.environment(tmp), text=True)
    assert p.returncode == 1
    assert 'there is no terminal' in p.stderr


# ---- the target ----

def test_an_existing_target_is_replaced_by_force_only(tmp):
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'out').write_text('precious')
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 1 and '--force' in r.err
    assert (tmp / 'out').read_text() == 'precious'
    assert rescue(tmp, '--force', image, tmp / 'out', key='wrong').status == 3
    assert (tmp / 'out').read_text() == 'precious'
    assert rescue(tmp, '--force', image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))
    assert not leftovers(tmp, 'plain', 'image', 'out')


@pytest.mark.parametrize('how', ['itself', 'symlink', 'hardlink', 'base', 'other path'])
def test_the_source_is_never_overwritten(tmp, how):
    base = disk(tmp / 'base', 4)
    image = create(tmp, 'qcow2', tmp / 'image', '4M',
                   more=',backing_file=%s,backing_fmt=raw' % base)
    before = digest(image), digest(base)
    target = tmp / 'link'
    if how == 'itself':
        target = image
    elif how == 'symlink':
        target.symlink_to(image)
    elif how == 'hardlink':
        os.link(image, target)
    elif how == 'base':
        target = base
    else:
        target = '%s/../%s/image' % (tmp, tmp.name)
    r = rescue(tmp, '--force', image, target)
    assert r.status == 1 and 'same file' in r.err
    assert (digest(image), digest(base)) == before


def test_the_target_is_private_and_sparse(tmp):
    mkfs(tmp / 'plain', 64)
    image = encrypt(tmp, 'qcow2', tmp / 'plain', tmp / 'image')
    old = os.umask(0)
    try:
        assert rescue(tmp, image, tmp / 'out').status == 0
    finally:
        os.umask(old)
    st = os.stat(tmp / 'out')
    assert st.st_mode & 0o7777 == 0o600
    assert st.st_size == 64 * MIB
    assert st.st_blocks * 512 < 16 * MIB


def test_maps_folders_and_what_replaces_others_are_private_too(tmp):
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'out').write_text('old')
    (tmp / 'out').chmod(0o644)
    old = os.umask(0)
    try:
        assert rescue(tmp, '--force', '--salvage', image, tmp / 'out').status == 0
        assert rescue(tmp, '--keep-chain', '--salvage', image, tmp / 'chain').status == 0
    finally:
        os.umask(old)
    modes = {n: oct(os.stat(tmp / n).st_mode & 0o7777) for n in (
        'out', 'out.map', 'chain', 'chain/image', 'chain/image.map')}
    assert modes.pop('chain') == '0o700'
    assert set(modes.values()) == {'0o600'}, modes


@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_a_limit_on_file_size_is_an_error_that_leaves_nothing(tmp, target):
    image = encrypt(tmp, 'qcow2', noise(tmp / 'plain', 8 * MIB), tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    r = quoin.run('prlimit', '--fsize=%d' % (4 * MIB), quoin.QUOIN, 'rescue', '--key-file',
                  tmp / 'key', '--accept-unverified-key', '--target-format', target, image,
                  tmp / 'out', tmp=tmp)
    assert r.status == 1, r.err
    assert 'File too large' in r.err
    assert not leftovers(tmp, 'plain', 'image')


@pytest.fixture
def small_disk(tmp):
    """A folder on a file system of 8 MiB."""
    yield from small_file_system(tmp, '8m')


def test_free_space_is_looked_at_first(tmp, small_disk):
    image = encrypt(tmp, 'qcow2', disk(tmp / 'plain', 32), tmp / 'image')
    noise(tmp / 'more', 16 * MIB)
    write(tmp, image_opts('qcow2', image), 'write -s %s 16M 16M' % (tmp / 'more'))
    r = rescue(tmp, image, small_disk / 'out')
    assert r.status == 1
    assert 'not enough room' in r.err
    assert os.listdir(small_disk) == []


def test_a_folder_that_is_not_there(tmp):
    image = standard(tmp, 'qcow2')[1]
    r = rescue(tmp, image, tmp / 'none' / 'out')
    assert r.status == 1 and 'No such file or directory' in r.err


ORDER = {
    'new': ([], ['file', 'link', 'folder', 'said']),
    'force': (['--force'], ['file', 'link', 'rename', 'folder', 'said']),
    # The map of what is missing is there before what it is missing from.
    'salvage': (['--salvage'], ['file', 'file', 'link', 'folder', 'link', 'folder', 'said']),
    'chain': (['--keep-chain'], ['file', 'file', 'link', 'folder', 'link', 'folder', 'folder',
                                 'rename', 'folder', 'said'])}


@pytest.mark.parametrize('name', ORDER)
def test_data_is_on_disk_before_the_name_and_the_name_before_the_end(tmp, name):
    if not shutil.which('strace'):
        pytest.skip('no strace is installed')
    base = standard(tmp, 'qcow2')[1].rename(tmp / 'base')
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    options, order = ORDER[name]
    r = quoin.run('strace', '-f', '-y', '-s', '300', '-o', tmp / 'trace', '-e',
                  'trace=fsync,linkat,renameat,renameat2,write', quoin.QUOIN, 'rescue',
                  '--key-file', tmp / 'key', *options, tmp / 'image', tmp / 'out', tmp=tmp,
                  env=NO_LEAKS)
    if 'ptrace' in r.err and 'Operation not permitted' in r.err:
        pytest.skip('strace may not trace here')
    assert r.status == 0, r.err
    # A file without a name is shown as deleted.
    calls = re.findall(r'(?:(fsync)\(\d+<[^>]*>(\(deleted)?|(link|rename)at2?\(|(whole and on disk))',
                       (tmp / 'trace').read_text())
    assert [('file' if deleted else 'folder') if sync else call or 'said'
            for sync, deleted, call, said in calls] == order


# ---- signals, status, locks ----

@functools.cache
def large():
    """A folder with a disk that takes a while, and its image; made once, to be linked to."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix='q-large-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    noise(folder / 'plain', 128 * MIB)
    with open(folder / 'plain', 'r+b') as f:
        for at in range(0, 128 * MIB, MIB):
            f.seek(at)
            f.write(b'text ' * 10000)
    encrypt(folder, 'qcow', folder / 'plain', folder / 'image')
    return folder


class Copying:
    """quoin rescue on a large image, caught while it copies."""

    def __init__(self, tmp):
        for name in ('plain', 'image'):
            os.link(large() / name, tmp / name)
        image = tmp / 'image'
        (tmp / 'key').write_text(PASSWORD)
        self.p = subprocess.Popen([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image,
                                   tmp / 'out'], stderr=subprocess.PIPE,
                                  env=quoin.environment(tmp), text=True)

    def wait(self):
        """Until some of the target is written.  False: it was too fast."""
        fds = '/proc/%d/fd' % self.p.pid
        while self.p.poll() is None:
            try:
                for n in os.listdir(fds):
                    path = '%s/%s' % (fds, n)
                    name = os.readlink(path)
                    if ('deleted' in name or '/.out.' in name) and os.stat(path).st_blocks:
                        return True
            except FileNotFoundError:
                pass
        return False

    def end(self, sig):
        self.p.send_signal(sig)
        err = self.p.communicate(timeout=quoin.LIMIT)[1]
        return self.p.returncode, err


@LOOKS_IN
@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing(tmp, sig):
    c = Copying(tmp)
    if not c.wait():
        c.end(sig)
        pytest.skip('it had ended before the signal could be sent')
    status, err = c.end(sig)
    if status == 0:
        assert same(content(tmp / 'out'), content(tmp / 'plain'))
        return
    assert status == -sig, err
    assert not leftovers(tmp, 'plain', 'image')


@LOOKS_IN
def test_sigusr1_prints_the_status(tmp):
    c = Copying(tmp)
    if not c.wait():
        pytest.skip('it had ended before the signal could be sent')
    status, err = c.end(signal.SIGUSR1)
    assert status == 0, err
    assert re.search(r'^\d+% \(.* of .*\)$', err, re.M), err
    assert same(content(tmp / 'out'), content(tmp / 'plain'))


def caught(process):
    """Wait until SIGUSR1 would not end a process."""
    limit = time.monotonic() + quoin.LIMIT
    while time.monotonic() < limit:
        with open('/proc/%d/status' % process.pid) as f:
            mask = int(re.search(r'^SigCgt:\s*(\w+)$', f.read(), re.M).group(1), 16)
        if mask >> (signal.SIGUSR1 - 1) & 1:
            return
        os.sched_yield()
    raise AssertionError('it never caught SIGUSR1')


def test_sigusr1_while_the_key_is_awaited(tmp):
    plain, image = standard(tmp, 'qcow2')
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--key-fd', '0', image, tmp / 'out'],
                         stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=quoin.environment(tmp))
    caught(p)
    p.send_signal(signal.SIGUSR1)
    assert p.stderr.readline() == 'starting\n'
    err = p.communicate(PASSWORD, timeout=quoin.LIMIT)[1]
    assert p.returncode == 0, err
    assert same(content(tmp / 'out'), content(plain))


def test_sigusr1_while_keys_are_tried(tmp):
    image = standard(tmp, 'luks')[1]
    with open(image, 'r+b') as f:
        f.seek(208 + 4)
        f.write(struct.pack('>I', 50 * 1000 * 1000))    # iterations: minutes of it
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, tmp / 'out'],
                         stderr=subprocess.PIPE, text=True, env=quoin.environment(tmp))
    try:
        line = ''
        caught(p)
        while line != 'looking for the keys\n':
            p.send_signal(signal.SIGUSR1)
            line = p.stderr.readline()
            assert line in ('starting\n', 'reading headers\n', 'opening the images\n',
                            'looking for the keys\n')
    finally:
        p.kill()
        p.communicate(timeout=quoin.LIMIT)


def test_an_image_in_use_is_left_alone(tmp):
    image = standard(tmp, 'qcow2')[1]
    user = subprocess.Popen([peers.QEMU_IO, *secret(), '--image-opts', image_opts('qcow2', image)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        user.stdin.write('length\n')
        user.stdin.flush()
        while '4 MiB' not in (line := user.stdout.readline()):
            assert line, 'qemu-io has ended'
        r = rescue(tmp, image, tmp / 'out')
        assert r.status == 1
        assert 'lock' in r.err
    finally:
        user.stdin.close()
        user.wait(quoin.LIMIT)
        user.stdout.close()
    assert rescue(tmp, image, tmp / 'out').status == 0


# ---- the list ----

def test_the_list_shows_the_chain_and_tries_keys(tmp):
    base = standard(tmp, 'qcow2')[1]
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-u', '-b', 'image', '-F', 'qcow2', tmp / 'top',
             '4M')
    r = rescue(tmp, '--list', tmp / 'top', key=None)
    assert r.status == 0, r.err
    lines = r.out.splitlines()
    assert lines[0] == str(tmp / 'top') and lines[1].endswith('qcow2, 4 MiB, not encrypted')
    assert lines[3] == str(base) and lines[4].endswith('encrypted: qcow2 AES-CBC')
    assert lines[-1].startswith('to decrypt it: quoin rescue %s ' % (tmp / 'top'))
    r = rescue(tmp, '--list', tmp / 'top')
    assert r.status == 0 and '%s: the key file' % base in r.err
    assert rescue(tmp, '--list', tmp / 'top', key='wrong').status == 3
    assert rescue(tmp, '--list', tmp / 'top', tmp / 'out').status == 2
    assert not leftovers(tmp, 'plain', 'image', 'top')


# ---- damage ----

def test_the_first_damaged_place_ends_it_and_is_named(tmp):
    image = standard(tmp, 'qcow2')[1]
    write(tmp, image_opts('qcow2', image), 'write -P 65 2M 64k')
    with open(image, 'r+b') as f:
        def be64(at):
            f.seek(at)
            return int.from_bytes(f.read(8), 'big')
        entry = (be64(be64(40)) & ((1 << 56) - 512)) + 8 * (2 * MIB // 65536)
        mapped = be64(entry)
        assert mapped
        f.seek(entry)
        f.write((mapped | 0x200).to_bytes(8, 'big'))    # no cluster starts there
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 1
    assert "Could not read '%s' at byte %d of the disk: Input/output error" % (
        image, 2 * MIB) in r.err
    assert not leftovers(tmp, 'plain', 'image')


# ---- what is refused, and bad usage ----

def test_plain_images_are_nothing_to_rescue(tmp):
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', tmp / 'plain', '1M')
    r = rescue(tmp, tmp / 'plain', tmp / 'out')
    assert r.status == 1 and 'nothing to rescue' in r.err


@pytest.mark.parametrize('argv', [
    [], ['one'], ['a', 'b', 'c'], ['--target-format', 'vmdk', 'a', 'b'], ['--nonsense', 'a', 'b'],
    ['--key-fd', 'x', 'a', 'b'], ['--key-fd', '-1', 'a', 'b']])
def test_bad_usage_is_status_2(run, argv):
    assert run(quoin.QUOIN, 'rescue', *argv).status == 2


def test_the_help_names_every_option(run):
    r = run(quoin.QUOIN, 'rescue', '--help')
    assert r.status == 0
    for option in ('--list', '--key-file', '--key-fd', '--target-format', '--accept-unverified-key',
                   '--force', '--quiet', 'Exit status'):
        assert option in r.out
    assert 'rescue' in run(quoin.QUOIN, '--help').out


def test_quiet_prints_errors_only(tmp):
    image = standard(tmp, 'qcow2')[1]
    r = rescue(tmp, '-q', image, tmp / 'out')
    assert (r.status, r.out, r.err) == (0, '', '')
