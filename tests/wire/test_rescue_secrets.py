# SPDX-License-Identifier: Apache-2.0
"""quoin rescue: at its end no key is left anywhere in its memory, and before that they are in
memory only that is locked and left out of core dumps.

Every key that plays a part is computed from the image by tests/wire/keyhunt.py, down to the
round keys of AES, and looked for in all that the process can write: heap, stacks of
all threads and coroutines, buffers, data.
"""
import base64
import os
import select
import shutil
import signal
import subprocess

import keyhunt
import peers
import pytest
import quoin
from rescuekit import (LOOKS_IN, MIB, Terminal, break_entry, content, create, disk, encrypt,
                       image_opts, noise, qemu_img, same, secret, write)

pytestmark = [
    pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed'),
    LOOKS_IN,
    pytest.mark.skipif('san' in quoin.QUOIN, reason="a sanitizer keeps what was freed, and "
                                                    "stands in for mlock()")]

PASSWORD = 'kX7#mQ2v!pZ9wL4rT8yB'
OTHER = 'Jd5*nW8c@fG3hS6uE1xA'


# ---- sources: the arguments of quoin rescue, and what must not be found ----

def give(tmp, text, name='key'):
    """--key-file."""
    (tmp / name).write_text(text)
    return '--key-file', tmp / name


def legacy(kind):
    def make(tmp):
        image = encrypt(tmp, kind, disk(tmp / 'plain', 4), tmp / 'image', PASSWORD)
        return [*give(tmp, PASSWORD), image], keyhunt.Keys().legacy(PASSWORD.encode())
    return make


def luks_at(image):
    return content(image).index(b'LUKS\xba\xbe\0\1')


def luks(kind, more=''):
    def make(tmp):
        image = encrypt(tmp, kind, disk(tmp / 'plain', 4), tmp / 'image', PASSWORD, more)
        return [*give(tmp, PASSWORD), image], \
            keyhunt.Keys().luks(image, PASSWORD.encode(), luks_at(image))
    return make


def detached(tmp):
    argv, keys = luks('luks')(tmp)
    data = content(tmp / 'image')
    at = int.from_bytes(data[104:108], 'big') * 512
    (tmp / 'header').write_bytes(data[:104] + bytes(4) + data[108:at])
    (tmp / 'image').write_bytes(data[at:])
    return ['--header', tmp / 'header', *argv], keys


def snapshot(tmp):
    argv, keys = legacy('qcow2')(tmp)
    qemu_img(tmp, 'snapshot', *secret(PASSWORD), '-c', 'one', '--image-opts',
             image_opts('qcow2', tmp / 'image'))
    return ['--snapshot', 'one', *argv], keys


def chain(tmp):
    """AES over LUKS, and a key for each; each is tried on the other too."""
    argv, keys = luks('qcow2-luks')(tmp)
    create(tmp, 'qcow2', tmp / 'top', '4M', OTHER, ',backing_file=%s,backing_fmt=qcow2'
           % (tmp / 'image'))
    opts = image_opts('qcow2', tmp / 'top', 'o')
    below = image_opts('qcow2-luks', tmp / 'image', prefix='backing.')
    write(tmp, opts + ',' + below, 'write -P 65 0 2M', password=PASSWORD, more=secret(OTHER, 'o'))
    with open(tmp / 'plain', 'r+b') as f:
        f.write(b'A' * 2 * MIB)
    return [*argv[:2], *give(tmp, OTHER, 'other'), tmp / 'top'], keys.legacy(OTHER.encode())


def with_line_end(make):
    """The key file has a newline more than the password."""
    def made(tmp):
        argv, keys = make(tmp)
        (tmp / 'key').write_text(PASSWORD + '\n')
        return argv, keys
    return made


def without_line_end(tmp):
    """... or less: of the old AES only short ones are another key with one."""
    image = encrypt(tmp, 'qcow2', disk(tmp / 'plain', 4), tmp / 'image', OTHER[:12] + '\n')
    return [*give(tmp, OTHER[:12]), image], \
        keyhunt.Keys().legacy((OTHER[:12] + '\n').encode()).legacy(OTHER[:12].encode())


def wrong_first(make):
    def made(tmp):
        argv, keys = make(tmp)
        return [*give(tmp, OTHER, 'other'), *argv], keys.legacy(OTHER.encode())
    return made


def word_list(tmp):
    argv, keys = legacy('qcow')(tmp)
    (tmp / 'words').write_text('%s\n%s\n' % (OTHER, PASSWORD))
    return ['--try-keys', tmp / 'words', *argv[2:]], keys.legacy(OTHER.encode())


SOURCES = {
    'qcow': legacy('qcow'), 'qcow2': legacy('qcow2'),
    'qcow2-luks': luks('qcow2-luks'), 'luks': luks('luks'),
    'luks-essiv': luks('luks', ',cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,'
                       'ivgen-hash-alg=sha256,hash-alg=sha1'),
    'luks-serpent': luks('luks', ',cipher-alg=serpent-256,hash-alg=sha512'),
    'luks-twofish': luks('luks', ',cipher-alg=twofish-256,cipher-mode=cbc,hash-alg=ripemd160'),
    'luks-cast5': luks('luks', ',cipher-alg=cast5-128,cipher-mode=cbc'),
    'detached': detached, 'snapshot': snapshot, 'chain': chain,
    'newline-less': with_line_end(luks('luks')), 'newline-more': without_line_end,
    'wrong-first': wrong_first(legacy('qcow2')), 'wrong-first-luks': wrong_first(luks('luks')),
    'list-of-candidates': word_list}


# ---- the run ----

def start(tmp, *argv, **kw):
    """A run that can be looked at when it ends."""
    with open(tmp / 'messages', 'wb') as err:
        return subprocess.Popen(
            [str(a) for a in (quoin.QUOIN, 'rescue', *argv)], stdin=kw.pop('stdin', None),
            stdout=kw.pop('stdout', err), stderr=err, env=quoin.environment(tmp, kw.pop('env', {})),
            preexec_fn=keyhunt.trace_me, **kw)


def left_over(p, keys):
    """Let a run come to its end; its status, and what of the keys is in its memory then."""
    traced = keyhunt.Traced(p.pid)
    traced.until_end()
    found = keyhunt.hunt(p.pid, keys.pieces)
    traced.release()
    return p.wait(quoin.LIMIT), keyhunt.describe(found)


def assert_nothing_is_left(tmp, p, keys, status=0):
    ended, found = left_over(p, keys)
    assert ended == status, (tmp / 'messages').read_text()
    assert not found, found


@pytest.mark.parametrize('source', SOURCES)
def test_no_key_is_left(tmp, source):
    argv, keys = SOURCES[source](tmp)
    assert_nothing_is_left(tmp, start(tmp, *argv, tmp / 'out'), keys)
    assert same(content(tmp / 'out'), content(tmp / 'plain'))


@pytest.mark.parametrize('options', [
    ['--keep-chain', '--verify'], ['--target-format', 'qcow2', '--compress', 'zlib'],
    ['--mixed-encryption', '--json', '--salvage', '--resume']])
def test_no_key_is_left_by_any_way_to_copy(tmp, options):
    argv, keys = chain(tmp)
    assert_nothing_is_left(tmp, start(tmp, *options, *argv, tmp / 'out'), keys)


@pytest.mark.parametrize('source', ['chain', 'wrong-first'])
def test_no_key_is_left_by_a_list(tmp, source):
    argv, keys = SOURCES[source](tmp)
    assert_nothing_is_left(tmp, start(tmp, '--list', *argv), keys)


@pytest.mark.parametrize('kind', ['qcow2', 'luks'])
def test_no_wrong_key_is_left(tmp, kind):
    image = encrypt(tmp, kind, disk(tmp / 'plain', 4), tmp / 'image', PASSWORD)
    keys = keyhunt.Keys().legacy(OTHER.encode())
    p = start(tmp, *give(tmp, OTHER), image, tmp / 'out')
    assert_nothing_is_left(tmp, p, keys, status=3)


def test_no_key_is_left_that_cannot_be_judged(tmp):
    image = encrypt(tmp, 'qcow', noise(tmp / 'plain', 16 * 1024), tmp / 'image', PASSWORD)
    keys = keyhunt.Keys().legacy(PASSWORD.encode())
    p = start(tmp, *give(tmp, PASSWORD), image, tmp / 'out')
    assert_nothing_is_left(tmp, p, keys, status=4)


def test_no_key_is_left_by_a_command_line_that_is_wrong(tmp):
    keys = keyhunt.Keys().legacy(PASSWORD.encode())
    assert_nothing_is_left(tmp, start(tmp, *give(tmp, PASSWORD), '--map', 'x', 'a', 'b'), keys, 2)


def test_no_key_from_a_descriptor_is_left(tmp):
    argv, keys = legacy('qcow2')(tmp)
    with open(tmp / 'key', 'rb') as f:
        p = start(tmp, '--key-fd', 0, *argv[2:], tmp / 'out', stdin=f)
    assert_nothing_is_left(tmp, p, keys)


def test_no_key_from_a_credential_is_left(tmp):
    argv, keys = luks('luks')(tmp)
    p = start(tmp, '--key-credential', 'key', *argv[2:], tmp / 'out',
              env={'CREDENTIALS_DIRECTORY': str(tmp)})
    assert_nothing_is_left(tmp, p, keys)


@pytest.mark.parametrize('kind', ['qcow2', 'luks'])
def test_no_answer_to_a_prompt_is_left(tmp, kind):
    image = encrypt(tmp, kind, disk(tmp / 'plain', 4), tmp / 'image', PASSWORD)
    keys = keyhunt.Keys().legacy(PASSWORD.encode()).legacy(OTHER.encode())
    t = Terminal(tmp, 'rescue', image, tmp / 'out', before=keyhunt.trace_me)
    traced = keyhunt.Traced(t.p.pid)
    for answer in (OTHER, PASSWORD):
        t.expect('Password for')
        t.wait_for_silence()
        t.send(answer + '\n')
    t.expect('whole and on disk')
    traced.until_end()
    found = keyhunt.hunt(t.p.pid, keys.pieces)
    traced.release()
    assert t.end() == 0
    assert not found, keyhunt.describe(found)


# ---- while it runs ----

def stop_in_the_middle(tmp, *argv):
    """A run that has copied something, to a pipe that takes no more, and stands still."""
    with open(tmp / 'messages', 'wb') as err:
        p = subprocess.Popen([str(a) for a in (quoin.QUOIN, 'rescue', *argv, '-')],
                             stdout=subprocess.PIPE, stderr=err, env=quoin.environment(tmp))
    ready, _, _ = select.select([p.stdout], [], [], quoin.LIMIT)
    assert ready
    os.kill(p.pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(p.pid, os.WUNTRACED)[1]), (tmp / 'messages').read_text()
    return p


def go_on(p):
    os.kill(p.pid, signal.SIGCONT)
    return p.communicate(timeout=quoin.LIMIT)[0]


@pytest.mark.parametrize('source', SOURCES)
def test_keys_in_use_are_locked_and_not_dumped(tmp, source):
    argv, keys = SOURCES[source](tmp)
    p = stop_in_the_middle(tmp, *argv)
    found = keyhunt.hunt(p.pid, keys.pieces)
    assert same(go_on(p), content(tmp / 'plain'))
    assert p.returncode == 0
    if 'luks' in source or source in ('detached', 'newline-less'):
        # What opened the layer is gone, but for what decrypts it.
        assert not [f.what for f in found if 'password' in f.what or 'slot key' in f.what]
    if source in ('qcow', 'qcow2', 'qcow2-luks', 'luks', 'luks-essiv'):
        assert {f.what for f in found} >= keys.in_use
    loose = [f for f in found if not {'lo', 'dd', 'dc'} <= set(f.flags)]
    assert not loose, keyhunt.describe(loose)


def test_a_signal_leaves_no_key(tmp):
    argv, keys = luks('luks')(tmp)
    with open(tmp / 'messages', 'wb') as err:
        p = subprocess.Popen([str(a) for a in (quoin.QUOIN, 'rescue', *argv, '-')],
                             stdout=subprocess.PIPE, stderr=err, env=quoin.environment(tmp),
                             preexec_fn=keyhunt.trace_me)
    traced = keyhunt.Traced(p.pid)
    assert select.select([p.stdout], [], [], quoin.LIMIT)[0]
    os.kill(p.pid, signal.SIGINT)
    p.stdout.close()        # so that no write hangs
    traced.until_end()
    found = keyhunt.hunt(p.pid, keys.pieces)
    traced.release()
    assert p.wait(quoin.LIMIT) == -signal.SIGINT, (tmp / 'messages').read_text()
    assert not found, keyhunt.describe(found)


@pytest.mark.skipif(not shutil.which('strace'), reason='no strace is installed')
def test_it_forbids_cores_before_it_reads_a_key(tmp):
    quoin.run('strace', '-f', '-o', tmp / 'trace', '-e', 'trace=prctl,prlimit64,setrlimit,openat',
              quoin.QUOIN, 'rescue', *give(tmp, PASSWORD), 'a', 'b', tmp=tmp)
    before = (tmp / 'trace').read_text().split('"%s"' % (tmp / 'key'))
    assert len(before) == 2
    assert 'prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE) = 0' in before[0]
    assert 'RLIMIT_CORE, {rlim_cur=0, rlim_max=0}' in before[0]


# ---- what it writes ----

def spellings(keys):
    """The pieces, and how text would have them."""
    for piece, name in keys.pieces.items():
        yield name, piece
        yield name + ' as hex', piece.hex().encode()
        yield name + ' as base64', base64.b64encode(piece)[:10]


@pytest.mark.parametrize('source', ['chain', 'wrong-first'])
def test_no_key_is_in_what_is_written(tmp, source):
    """Messages, the report, the map, and what --resume keeps of a run that failed."""
    argv, keys = SOURCES[source](tmp)
    before = set(os.listdir(tmp))
    failed = quoin.run('prlimit', '--fsize=%d' % MIB, quoin.QUOIN, 'rescue', '--json', '--resume',
                       '--target-format', 'qcow2', *argv, tmp / 'part', tmp=tmp)
    assert failed.status == 1, failed.err
    break_entry(argv[-1], 20)
    r = quoin.run(quoin.QUOIN, 'rescue', '--json', '--salvage', *argv, tmp / 'out', tmp=tmp)
    assert r.status == 5, r.err
    written = {n: content(tmp / n) for n in set(os.listdir(tmp)) - before}
    assert set(written) == {'.part.rescue-state', '.part.rescue', 'out', 'out.map'}
    written['text'] = (failed.out + failed.err + r.out + r.err).encode()
    found = [(n, what) for n, data in written.items() for what, s in spellings(keys) if s in data]
    assert not found
