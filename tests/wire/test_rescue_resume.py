# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --resume: what an interrupted run did is kept, and nothing else is believed."""
import atexit
import fcntl
import json
import os
import pathlib
import random
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
from rescuekit import (LOOKS_IN, MIB, PASSWORD, Terminal, break_entry, content, create, digest,
                       encrypt, image_opts, noise, qemu_img, rescue, same, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

SIZE = 80


def mixed(path, mib=SIZE):
    """Text, noise, zeroes and holes."""
    block = random.Random(5).randbytes(MIB)
    with open(path, 'wb') as f:
        for i in range(mib):
            f.seek(i * MIB)
            if i % 8 == 5:
                continue
            f.write(bytes([i]) * 4096 + block[4096:] if i % 8 else b'text ' * (MIB // 5))
        f.truncate(mib * MIB)
    return path


_made = {}


def sample(tmp, kind):
    """A plain disk and its encrypted image, which are made once and must not be changed
    but by break_entry()."""
    if kind not in _made:
        _made[kind] = folder = pathlib.Path(tempfile.mkdtemp(prefix='q-resume-'))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        encrypt(folder, kind, mixed(folder / 'plain'), folder / 'image')
    shutil.copy(_made[kind] / 'image', tmp / 'image')
    return _made[kind] / 'plain', tmp / 'image'


def run(tmp, image, *options):
    """One that may be killed.  LeakSanitizer, whose process is killed while it looks for
    leaks at the end, reports that: so it does not look."""
    env = quoin.environment(tmp)
    env['ASAN_OPTIONS'] += ':detect_leaks=0'
    (tmp / 'key').write_text(PASSWORD)
    return subprocess.Popen([quoin.QUOIN, 'rescue', '--resume', '--key-file', tmp / 'key',
                             *options, image, tmp / 'out'], stderr=subprocess.PIPE,
                            env=env, text=True)


def state(tmp):
    """What is recorded; '' if nothing, any more."""
    try:
        return (tmp / '.out.rescue-state').read_text()
    except FileNotFoundError:
        return ''


def recorded(tmp):
    """Bytes that the state says are done."""
    return sum(int(n) for n in re.findall(r'^done \d+ (\d+)$', state(tmp), re.M))


def is_open(pid, path):
    """Has the process this file open?"""
    folder = '/proc/%d/fd' % pid
    try:
        return str(path) in [os.readlink('%s/%s' % (folder, n)) for n in os.listdir(folder)]
    except OSError:     # it opens and closes others
        return False


def hidden(tmp):
    return sorted(n for n in os.listdir(tmp) if n.startswith('.out'))


def cut_short(tmp, image, *options, sig=signal.SIGKILL, most=1 << 62):
    """Run until something is recorded, then end it; anew if it was too fast, or had
    recorded more than `most` by then."""
    for _ in range(20):
        p = run(tmp, image, *options)
        while p.poll() is None and not recorded(tmp):
            pass
        p.send_signal(sig)
        p.communicate(timeout=quoin.LIMIT)
        # It may have been killed when all was done but its exit.
        if p.returncode == -sig and not os.path.exists(tmp / 'out') and recorded(tmp) < most:
            return
        for n in [*hidden(tmp), 'out', 'out.map']:
            if os.path.isdir(tmp / n):
                shutil.rmtree(tmp / n)
            else:
                (tmp / n).unlink(missing_ok=True)
    pytest.skip('it always ended before it could be killed')


def flat(tmp, target):
    qemu_img(tmp, 'convert', '-f', target, '-O', 'raw', tmp / 'out', tmp / 'flat')
    return content(tmp / 'flat')


@pytest.mark.io
@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_a_run_that_was_killed_goes_on(tmp, target):
    plain, image = sample(tmp, 'qcow')
    options = ['--target-format', target]
    cut_short(tmp, image, *options)
    assert hidden(tmp)[:2] == ['.out.rescue', '.out.rescue-state']
    assert not os.path.exists(tmp / 'out')
    for n in hidden(tmp):
        assert os.stat(tmp / n).st_mode & 0o7777 == 0o600
    r = rescue(tmp, '--resume', '--verify', *options, image, tmp / 'out')
    assert r.status == 0, r.err
    assert re.search(r'going on: .* of the disk were done by an earlier run', r.err)
    assert same(flat(tmp, target), content(plain))
    if target == 'qcow2':
        assert 'No errors' in qemu_img(tmp, 'check', '-f', 'qcow2', tmp / 'out').out
    assert hidden(tmp) == []


@pytest.mark.io
@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_kills_at_random_points(tmp, target):
    """Over and over, until a run gets through."""
    plain, image = sample(tmp, 'qcow2')
    seed = int(os.environ.get('QUOIN_SEED', '1'))
    kills = int(os.environ.get('QUOIN_KILLS', '8'))
    r = random.Random(seed)
    start = time.monotonic()
    p = run(tmp, image, '--target-format', target)
    p.communicate(timeout=quoin.LIMIT)
    whole = time.monotonic() - start
    os.unlink(tmp / 'out')
    killed = 0
    for _ in range(4 * kills):
        # A run that was killed behind its end may leave its state, which the next removes.
        before = recorded(tmp) if os.path.exists(tmp / '.out.rescue') else 0
        start = time.monotonic()
        p = run(tmp, image, '--target-format', target)
        try:
            p.wait(r.uniform(0, whole))
            # The first one may have had to wait for others.
            if not before:
                whole = min(whole, time.monotonic() - start)
        except subprocess.TimeoutExpired:
            p.kill()
            killed += 1
        err = p.communicate(timeout=quoin.LIMIT)[1]
        if os.path.exists(tmp / '.out.rescue'):
            quoin.wait_for_locks(tmp / '.out.rescue')
        assert p.returncode in (0, -signal.SIGKILL), err
        now, ended = recorded(tmp), os.path.exists(tmp / 'out')
        assert now >= before or ended, 'seed %d: %d, then %d' % (seed, before, now)
        if p.returncode == 0 or ended:
            assert same(flat(tmp, target), content(plain)), 'seed %d' % seed
            os.unlink(tmp / 'out')
        if killed == kills:
            break
    assert killed, 'none in %g s' % whole
    r = rescue(tmp, '--resume', '--verify', '--target-format', target, image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(flat(tmp, target), content(plain)), 'seed %d' % seed


def test_a_signal_keeps_what_was_done(tmp):
    plain, image = sample(tmp, 'qcow')
    p = run(tmp, image)
    while p.poll() is None and not recorded(tmp):
        pass
    before = recorded(tmp)
    p.send_signal(signal.SIGTERM)
    err = p.communicate(timeout=quoin.LIMIT)[1]
    if p.returncode == 0:
        pytest.skip('it had ended before the signal could be sent')
    assert p.returncode == -signal.SIGTERM and 'the same command goes on' in err
    assert recorded(tmp) >= before > 0
    assert rescue(tmp, '--resume', image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))


@pytest.fixture(scope='module')
def cut(tmp_path_factory):
    """A folder with a run that was killed, to be copied."""
    folder = tmp_path_factory.mktemp('cut')
    plain, image = sample(folder, 'qcow')
    shutil.copy(plain, folder / 'plain')
    cut_short(folder, image, most=(SIZE - 16) * MIB)
    return folder


def copy_of(cut, tmp):
    """... with the times that the state is bound to."""
    os.link(cut / 'plain', tmp / 'plain')
    for n in ['image', '.out.rescue', '.out.rescue-state']:
        shutil.copy2(cut / n, tmp / n)
    assert recorded(tmp)
    return tmp / 'image'


def test_a_copy_with_the_same_times_goes_on(tmp, cut):
    image = copy_of(cut, tmp)
    r = rescue(tmp, '--resume', '--json', image, tmp / 'out')
    assert r.status == 0 and 'going on' in r.err, r.err
    assert same(content(tmp / 'out'), content(tmp / 'plain'))
    # The digest is of all of it, not of what this run copied.
    copy, = json.loads(r.out)['copies']
    assert copy['resumed-at'] and copy['sha256'] == digest(tmp / 'plain')


@pytest.mark.parametrize('what', ['time', 'size', 'header'])
def test_a_source_that_changed_is_refused(tmp, cut, what):
    image = copy_of(cut, tmp)
    st = os.stat(image)
    if what == 'size':
        os.truncate(image, st.st_size + 512)
    if what == 'header':
        with open(image, 'r+b') as f:
            f.seek(8192)
            f.write(b'x')
    if what != 'time':
        os.utime(image, ns=(st.st_atime_ns, st.st_mtime_ns))
    else:
        os.utime(image, ns=(st.st_atime_ns, st.st_mtime_ns + 1))
    before = digest(tmp / '.out.rescue')
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1
    assert 'the source was changed since it was begun' in r.err, r.err
    assert "remove '%s' to begin anew" % (tmp / '.out.rescue-state') in r.err
    assert digest(tmp / '.out.rescue') == before


def touch(path):
    st = os.stat(path)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns + 1))


def test_a_source_of_another_time_goes_on_if_all_is_compared(tmp, cut):
    image = copy_of(cut, tmp)
    touch(image)
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1 and 'or let --verify compare all of it' in r.err, r.err
    r = rescue(tmp, '--resume', '--verify', image, tmp / 'out')
    assert r.status == 0 and 'going on' in r.err, r.err
    assert 'the source was changed since it was begun; all of it will be compared' in r.err
    assert same(content(tmp / 'out'), content(tmp / 'plain'))
    assert hidden(tmp) == []


def test_what_was_done_of_a_source_that_changed_is_found(tmp, cut):
    """It is not kept then: the next run gets all of it as it is now."""
    image = copy_of(cut, tmp)
    write(tmp, image_opts('qcow', image), 'write -P 1 64k 64k')
    touch(image)
    r = rescue(tmp, '--resume', '--verify', image, tmp / 'out')
    assert r.status == 1 and 'differs' in r.err, r.err
    assert not os.path.exists(tmp / 'out')
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 0 and 'going on' not in r.err, r.err
    plain = content(tmp / 'plain')
    assert same(content(tmp / 'out'), plain[:65536] + b'\1' * 65536 + plain[131072:])


def test_doubt_outlives_the_run_that_would_have_compared(tmp, cut):
    image = copy_of(cut, tmp)
    touch(image)
    p = run(tmp, image, '--verify')
    while p.poll() is None and 'doubtful' not in state(tmp):
        pass
    p.kill()
    p.communicate(timeout=quoin.LIMIT)
    if p.returncode != -signal.SIGKILL or not state(tmp):
        pytest.skip('it had ended before it could be killed')
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1 and 'or let --verify compare all of it' in r.err, r.err


def test_a_touch_meanwhile_loses_no_work(tmp):
    plain, image = sample(tmp, 'qcow2')
    p = run(tmp, image)
    while p.poll() is None and not recorded(tmp):
        pass
    touch(image)
    err = p.communicate(timeout=quoin.LIMIT)[1]
    if p.returncode == 0:
        pytest.skip('it had ended before the source was touched')
    assert p.returncode == 1 and not os.path.exists(tmp / 'out')
    assert "'%s' was changed while it was read" % image in err
    assert 'the same command with --verify goes on, and compares all of it' in err
    r = rescue(tmp, '--resume', '--verify', image, tmp / 'out')
    assert r.status == 0 and 'going on' in r.err, r.err
    assert same(content(tmp / 'out'), content(plain))


def test_a_source_that_changes_before_it_is_copied(tmp):
    """The record is of the source as its headers were read."""
    image = sample(tmp, 'luks')[1]
    t = Terminal(tmp, 'rescue', '--resume', image, tmp / 'out')
    t.expect('Password for')
    t.wait_for_silence()
    touch(image)
    t.send(PASSWORD + '\n')
    t.expect('was changed while it was read')
    assert t.end() == 1
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1 and 'or let --verify compare all of it' in r.err, r.err


def test_a_change_ends_it_at_once(tmp):
    """It would have to wait for who reads a pipe otherwise, and for the rest of the disk."""
    image = sample(tmp, 'qcow2')[1]
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, '-'],
                         env=quoin.environment(tmp), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout.read(1)
    touch(image)
    while p.stderr.readline() not in (b'the source was changed; ending\n', b''):
        pass
    out, err = p.communicate(timeout=quoin.LIMIT)
    assert p.returncode == 1 and b'was changed while it was read' in err, err
    assert len(out) < SIZE * MIB // 2


def test_other_options_are_refused(tmp, cut):
    image = copy_of(cut, tmp)
    r = rescue(tmp, '--resume', '--salvage', image, tmp / 'out')
    assert r.status == 1 and 'the options were changed' in r.err


def test_another_key_is_refused(tmp, cut):
    """The first 16 bytes make the key of a qcow image: another key, accepted unverified."""
    image = copy_of(cut, tmp)
    r = rescue(tmp, '--resume', '--accept-unverified-key', image, tmp / 'out', key='other')
    assert r.status == 1 and 'the key was changed' in r.err


@pytest.mark.parametrize('how', [
    lambda text: text[:-3], lambda text: text.replace('done', 'gone'),
    lambda text: re.sub('done 0 .*', 'done 0 %d' % (SIZE * MIB + 1), text),
    lambda text: text.replace('end', 'lost 0 512 512 1 1\nend'),        # there is no such layer
    lambda text: text.replace('end', 'lost 0 %d 512 1 0\nend' % (SIZE * MIB))])
def test_a_damaged_state_is_refused(tmp, cut, how):
    image = copy_of(cut, tmp)
    state = tmp / '.out.rescue-state'
    state.write_text(how(state.read_text()))
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1 and 'its state was damaged' in r.err


@pytest.mark.parametrize('gone', ['.out.rescue', '.out.rescue-state'])
def test_half_of_it_is_worth_nothing(tmp, cut, gone):
    image = copy_of(cut, tmp)
    os.unlink(tmp / gone)
    if gone == '.out.rescue-state':     # what is there is not believed to be zero
        with open(tmp / '.out.rescue', 'r+b') as f:
            f.seek(5 * MIB)
            f.write(b'x' * MIB)
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 0 and 'going on' not in r.err, r.err
    assert same(content(tmp / 'out'), content(tmp / 'plain'))
    assert hidden(tmp) == []


def test_what_lies_behind_the_record_is_not_believed(tmp, cut):
    image = copy_of(cut, tmp)
    done = recorded(tmp)
    hole = next(i for i in range(SIZE) if i % 8 == 5 and i * MIB >= done)
    with open(tmp / '.out.rescue', 'r+b') as f:
        f.seek(hole * MIB)
        f.write(b'x' * MIB)
    assert rescue(tmp, '--resume', image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(tmp / 'plain'))


def test_a_partial_file_that_is_shorter_than_its_record_is_refused(tmp, cut):
    """What is not there is not zero."""
    image = copy_of(cut, tmp)
    os.truncate(tmp / '.out.rescue', 4096)
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1 and "The partial file of '%s' is damaged" % (tmp / 'out') in r.err
    assert not os.path.exists(tmp / 'out')


def test_room_is_wanted_for_the_rest_only(tmp, cut):
    """Also where all of it is read once more, for its digest."""
    image = copy_of(cut, tmp)
    small = tmp / 'small'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=%dm' % (SIZE - 2), 'tmpfs', small],
                      capture_output=True).returncode:
        pytest.skip('a file system of a given size cannot be mounted here')
    try:
        subprocess.run(['cp', '-p', '--sparse=always', tmp / '.out.rescue',
                        tmp / '.out.rescue-state', small], check=True)
        r = rescue(tmp, '--resume', '--json', image, small / 'out')
        assert r.status == 0, r.err
        assert same(content(small / 'out'), content(tmp / 'plain'))
    finally:
        subprocess.run(['umount', small], check=True)


def test_two_runs_do_not_work_on_one_target(tmp, cut):
    image = copy_of(cut, tmp)
    with open(tmp / '.out.rescue') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1 and 'by another process' in r.err


def test_a_partial_file_of_somebody_else_is_left_alone(tmp, cut):
    image = copy_of(cut, tmp)
    os.link(tmp / '.out.rescue', tmp / 'precious')
    before = digest(tmp / 'precious')
    r = rescue(tmp, '--resume', image, tmp / 'out')
    assert r.status == 1 and 'not one of ours' in r.err
    assert digest(tmp / 'precious') == before


@pytest.mark.parametrize('name, more', [('.out.rescue', []), ('.out.rescue-state', []),
                                        ('.out.rescue-state.new', []),
                                        ('.out.rescue/disk', ['--keep-chain'])])
def test_the_source_is_never_taken_for_a_partial_target(tmp, name, more):
    image = standard(tmp, 'qcow2')[1]
    (tmp / name).parent.mkdir(exist_ok=True)
    image = image.rename(tmp / name)
    before = digest(image)
    r = rescue(tmp, '--resume', *more, image, tmp / 'out')
    assert r.status == 1 and 'never overwritten' in r.err, r.err
    assert digest(image) == before and not os.path.exists(tmp / 'out')


def test_what_was_lost_is_remembered(tmp):
    plain, image = sample(tmp, 'qcow2')
    break_entry(image, 1)
    cut_short(tmp, image, '--salvage')
    assert re.search(r'^lost 0 65536 65536 1 0$', (tmp / '.out.rescue-state').read_text(), re.M)
    r = rescue(tmp, '--resume', '--salvage', '--verify', image, tmp / 'out')
    assert r.status == 5, r.err
    assert '0x00010000  0x00010000  -' in (tmp / 'out.map').read_text()
    want = bytearray(content(plain))
    want[65536:131072] = bytes(65536)
    assert same(content(tmp / 'out'), bytes(want))


# Where a run is killed, of what it does last: files get their names, one by one.
LAST = ['linkat:1', 'linkat:2', 'renameat2:1', 'unlink:1', 'unlink:2', 'unlink:3']


@pytest.mark.parametrize('at', LAST)
@pytest.mark.parametrize('more', [[], ['--keep-chain']])
def test_a_run_that_was_killed_at_its_end_goes_on(tmp, at, more):
    """Its map has its name perhaps, which is no reason to give up."""
    if not shutil.which('strace'):
        pytest.skip('no strace is installed')
    plain, image = standard(tmp, 'qcow2')
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', image, '-F', 'qcow2', tmp / 'top', '4M')
    call, when = at.split(':')
    (tmp / 'key').write_text(PASSWORD)
    argv = [quoin.QUOIN, 'rescue', '--resume', '--salvage', *more, '--key-file', tmp / 'key',
            tmp / 'top', tmp / 'out']
    r = quoin.run('strace', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=' + call, '-e',
                  'inject=%s:signal=KILL:when=%s' % (call, when), *argv, tmp=tmp,
                  env={'ASAN_OPTIONS': 'detect_leaks=0'})
    if 'Operation not permitted' in r.err:
        pytest.skip('strace may not trace here')
    out = tmp / 'out' / 'top' if more else tmp / 'out'
    if not out.exists():
        assert r.status
        r = rescue(tmp, *argv[2:5 if more else 4], tmp / 'top', tmp / 'out')
        assert r.status == 0, r.err
        assert hidden(tmp) == []
    qemu_img(tmp, 'convert', '-f', 'qcow2' if more else 'raw', '-O', 'raw', out, tmp / 'flat')
    assert same(content(tmp / 'flat'), content(plain))
    assert os.path.exists(str(out) + '.map')


def test_a_map_that_came_meanwhile_is_left_alone(tmp):
    image = sample(tmp, 'qcow2')[1]
    cut_short(tmp, image, '--salvage')
    (tmp / 'out.map').write_text('precious')
    r = rescue(tmp, '--resume', '--salvage', image, tmp / 'out')
    assert r.status == 1 and 'it was left alone' in r.err, r.err
    assert (tmp / 'out.map').read_text() == 'precious' and not os.path.exists(tmp / 'out')
    (tmp / 'out.map').unlink()
    assert rescue(tmp, '--resume', '--salvage', image, tmp / 'out').status == 0


def test_a_kept_chain_takes_in_no_strange_files(tmp):
    """What a run with another source left would be published with this one's."""
    image = standard(tmp, 'qcow2')[1]
    (tmp / '.out.rescue').mkdir()
    for name in ('other', 'image.map'):
        (tmp / '.out.rescue' / name).write_text('of another run')
        r = rescue(tmp, '--resume', '--keep-chain', image, tmp / 'out')
        assert r.status == 1 and "%s' is nothing that this run would make" % name in r.err, r.err
        assert (tmp / '.out.rescue' / name).read_text() == 'of another run'
        (tmp / '.out.rescue' / name).unlink()
    assert rescue(tmp, '--resume', '--keep-chain', image, tmp / 'out').status == 0
    assert os.listdir(tmp / 'out') == ['image']


def kept_chain_cut_short(tmp):
    """An overlay, its base, and what a guest sees; a run that keeps the chain was killed."""
    plain, base = sample(tmp, 'qcow')
    top = create(tmp, 'qcow2', tmp / 'top', '%dM' % SIZE,
                 more=',backing_file=%s,backing_fmt=qcow' % base)
    write(tmp, '%s,%s' % (image_opts('qcow2', top), image_opts('qcow', base, 's', 'backing.')),
          'write -P 65 10M 4M')
    cut_short(tmp, top, '--keep-chain')
    want = bytearray(content(plain))
    want[10 * MIB:14 * MIB] = b'A' * 4 * MIB
    return top, base, want


@pytest.mark.parametrize('touched', [False, True])
def test_a_kept_chain_goes_on(tmp, touched):
    top, base, want = kept_chain_cut_short(tmp)
    if touched:
        touch(base)
    r = rescue(tmp, '--resume', '--verify', '--keep-chain', top, tmp / 'out')
    assert r.status == 0 and 'going on' in r.err, r.err
    assert ('all of it will be compared' in r.err) == touched
    qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'out' / 'top', tmp / 'flat')
    assert same(content(tmp / 'flat'), bytes(want))
    assert hidden(tmp) == []


def test_a_layer_that_changed_below_the_others_is_found(tmp):
    top, base, _ = kept_chain_cut_short(tmp)
    write(tmp, image_opts('qcow', base), 'write -P 1 64k 64k')
    r = rescue(tmp, '--resume', '--verify', '--keep-chain', top, tmp / 'out')
    assert r.status == 1 and 'differs' in r.err, r.err
    assert not os.path.exists(tmp / 'out')


@LOOKS_IN
@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_locks_that_a_killed_run_still_holds_are_waited_for(tmp, target):
    """It had recorded nothing; the kernel ends its requests a moment later."""
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'key').write_text(PASSWORD)
    fd = os.open(tmp / '.out.rescue', os.O_RDWR | os.O_CREAT, 0o600)
    # What QEMU locks to say that it writes.
    lock = struct.pack('hhqqi4x', fcntl.F_RDLCK, os.SEEK_SET, 100, 101, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    p = run(tmp, image, '--target-format', target)
    tried = False
    deadline = time.monotonic() + quoin.LIMIT
    while not tried and time.monotonic() < deadline and p.poll() is None:
        tried = is_open(p.pid, tmp / '.out.rescue')
    os.close(fd)
    err = p.communicate(timeout=quoin.LIMIT)[1]
    assert tried and p.returncode == 0, err
    assert same(flat(tmp, target), content(plain))


def calls(trace):
    """(where it began, where it ended, the call) in a trace of several threads."""
    begun, lines = {}, trace.splitlines()
    for at, line in enumerate(lines):
        pid, _, text = line.partition(' ')
        text = text.lstrip()
        if text.endswith(' <unfinished ...>'):
            begun[pid] = at, text
        elif text.startswith('<... '):
            first, text = begun.pop(pid)
            yield first, at, text
        else:
            yield at, at, text


def test_data_is_stable_before_it_is_recorded(tmp):
    """What a record says is done was written before the last sync of the partial target began,
    and that ended before the record was written.  Without io_uring, to see the calls; and slowly,
    so that there is more than one record."""
    if not shutil.which('strace'):
        pytest.skip('no strace is installed')
    image = encrypt(tmp, 'qcow2', noise(tmp / 'plain', 40 * MIB), tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    r = quoin.run('strace', '-f', '-y', '-s', '1000', '-o', tmp / 'trace', '-e',
                  'trace=io_uring_setup,fsync,fdatasync,write,pwritev,pwritev2,pwrite64', '-e',
                  'inject=io_uring_setup:error=ENOSYS', '-e',
                  'inject=pwritev,pwritev2,pwrite64:delay_exit=40000', quoin.QUOIN, 'rescue',
                  '--resume', '--accept-unverified-key', '--key-file', tmp / 'key', image,
                  tmp / 'out', tmp=tmp, env={'ASAN_OPTIONS': 'detect_leaks=0'},
                  limit=60 * quoin.SLOW)
    if 'ptrace' in r.err and 'Operation not permitted' in r.err:
        pytest.skip('strace may not trace here')
    assert r.status == 0, r.err
    writes, syncs, records = [], [], []
    for begin, end, text in calls((tmp / 'trace').read_text()):
        if re.match(r'pwrite\w*\(\d+<[^>]*/.out.rescue>', text):
            # Behind the data and its length, or the vector and its.
            offset = re.search(r'(?:\]|"\.*), \d+, (\d+)', text)
            writes.append((end, int(offset[1])))
        elif re.match(r'f(?:data)?sync\(\d+<[^>]*/.out.rescue>', text):
            syncs.append((begin, end))
        elif '/.out.rescue-state.new>' in text and text.startswith('write('):
            records.append((begin, int(re.search(r'done 0 (\d+)', text)[1])))
    assert len(writes) >= 40 and len([n for _, n in records if 0 < n < 40 * MIB]) > 0
    assert records[-1][1] == 40 * MIB
    for at, done in records:
        behind = [end for end, offset in writes if offset < done]
        last = max([begin for begin, end in syncs if end < at], default=-1)
        assert not done or max(behind) < last, (at, done)
