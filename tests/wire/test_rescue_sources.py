# SPDX-License-Identifier: Apache-2.0
"""quoin rescue of what may not be written to: files, devices and file systems; and what is
read is overwritten by no road at all."""
import os
import re
import shutil
import stat
import subprocess

import peers
import pytest
import quoin
from rescuekit import (LOOKS_IN, MIB, PASSWORD, Terminal, content, create_options, digest, qemu_img,
                       rescue, same, secret, standard)
from test_rescue_targets import losetup

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

KINDS = ['qcow', 'qcow2', 'qcow2-luks', 'luks']


def mount(where, *argv):
    p = subprocess.run(['mount', *map(str, argv), where], capture_output=True, text=True)
    if p.returncode:
        pytest.skip('nothing can be mounted here: ' + p.stderr.strip())


@pytest.fixture
def mounted(tmp):
    """mount(options...) -> a folder, unmounted at the end."""
    where = tmp / 'mounted'
    where.mkdir()
    done = []

    def make(*argv):
        mount(where, *argv)
        done.append(where)
        return where
    yield make
    if done:
        subprocess.run(['umount', where], check=True)


@pytest.fixture
def loop():
    made = []

    def make(path, *options):
        if not os.path.exists('/dev/loop-control'):
            pytest.skip('there are no loop devices here')
        made.append(losetup('-f', '--show', *options, path))
        return made[-1]
    yield make
    for device in made:
        subprocess.run(['losetup', '-d', device], check=True)


# ---- no permission to write is needed ----

def as_nobody(tmp, *argv):
    """quoin rescue by a user to whom nothing belongs but a folder and the key."""
    if os.geteuid() or not shutil.which('setpriv'):
        pytest.skip('it takes root to become somebody else')
    (tmp / 'key').write_text(PASSWORD)
    (tmp / 'own').mkdir()
    for path in (tmp / 'key', tmp / 'own'):
        os.chown(path, 65534, 65534)
    os.chmod(tmp, 0o755)
    program = shutil.copy(quoin.QUOIN, tmp / 'quoin')
    return quoin.run('setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', program,
                     'rescue', '--key-file', tmp / 'key', *argv, tmp=tmp / 'own')


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_that_may_only_be_read(tmp, kind):
    plain, image = standard(tmp, kind)
    os.chmod(image, 0o444)
    r = as_nobody(tmp, image, tmp / 'own' / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'own' / 'out'), content(plain))


def test_a_file_that_may_not_even_be_read(tmp):
    image = standard(tmp, 'qcow2')[1]
    os.chmod(image, 0o400)
    r = as_nobody(tmp, image, tmp / 'own' / 'out')
    assert r.status == 1
    assert "Could not open '%s': Permission denied" % image in r.err


@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_that_is_mounted_to_be_read(tmp, mounted, kind):
    plain, image = standard(tmp, kind)
    (tmp / 'folder').mkdir()
    image.rename(tmp / 'folder' / 'image')
    where = mounted('--bind', tmp / 'folder')
    subprocess.run(['mount', '-o', 'remount,bind,ro', where], check=True)
    r = rescue(tmp, where / 'image', tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), content(plain))


def test_a_medium_that_cannot_be_written(tmp, mounted):
    plain, image = standard(tmp, 'qcow2')
    mkfs = shutil.which('mke2fs', path=os.environ['PATH'] + ':/sbin:/usr/sbin')
    if not mkfs:
        pytest.skip('no mke2fs is installed')
    (tmp / 'folder').mkdir()
    image.rename(tmp / 'folder' / 'image')
    subprocess.run([mkfs, '-q', '-t', 'ext4', '-d', tmp / 'folder', tmp / 'medium', '16M'],
                   check=True)
    os.chmod(tmp / 'medium', 0o400)
    before = digest(tmp / 'medium')
    r = rescue(tmp, mounted('-o', 'ro,loop,noload', tmp / 'medium') / 'image', tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), content(plain))
    assert digest(tmp / 'medium') == before


@pytest.mark.parametrize('kind', KINDS)
def test_a_device_that_cannot_be_written(tmp, loop, kind):
    plain, image = standard(tmp, kind)
    before = digest(image)
    r = rescue(tmp, '--verify', loop(image, '-r'), tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), content(plain))
    assert digest(image) == before


def test_nothing_asks_to_write_the_source(tmp):
    """Neither its opening nor its locks."""
    if not shutil.which('strace'):
        pytest.skip('no strace is installed')
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'key').write_text(PASSWORD)
    r = quoin.run('strace', '-f', '-y', '-o', tmp / 'trace', '-e',
                  'trace=openat,openat2,fcntl,io_uring_enter', quoin.QUOIN, 'rescue', '--key-file',
                  tmp / 'key', image, tmp / 'out', tmp=tmp,
                  env={'ASAN_OPTIONS': 'detect_leaks=0'})
    if 'Operation not permitted' in r.err:
        pytest.skip('strace may not trace here')
    assert r.status == 0, r.err
    trace = [x for x in (tmp / 'trace').read_text().splitlines() if str(image) in x]
    opens = [x for x in trace if re.search(r'openat2?\(', x)]
    assert opens and all('O_RDONLY' in x for x in opens)
    assert any('F_OFD_SETLK' in x for x in trace)
    assert not any('F_WRLCK' in x and '_SETLK' in x for x in trace)


# ---- and it is never written ----

def refused(tmp, source, *argv, files):
    before = [digest(f) for f in files]
    names = sorted(os.listdir(tmp))
    r = rescue(tmp, '--force', source, *argv)
    assert r.status == 1
    assert 'is never overwritten' in r.err or 'Standard output is the same file' in r.err, r.err
    assert [digest(f) for f in files] == before
    assert sorted(set(os.listdir(tmp)) - {'key'}) == [n for n in names if n != 'key']


@pytest.mark.parametrize('what', ['target', 'map'])
@pytest.mark.parametrize('how', ['hard link', 'symbolic link', 'descriptor', 'other mount'])
def test_a_file_by_another_name(tmp, mounted, what, how):
    image = standard(tmp, 'luks')[1]
    link = tmp / 'link'
    fd = os.open(image, os.O_RDONLY)
    if how == 'hard link':
        os.link(image, link)
    elif how == 'symbolic link':
        link.symlink_to('image')
    elif how == 'descriptor':
        link = '/proc/%d/fd/%d' % (os.getpid(), fd)
    else:
        link = mounted('--bind', tmp) / 'image'
    argv = [link] if what == 'target' else ['--salvage', '--map', link, tmp / 'out']
    refused(tmp, image, *argv, files=[image])
    os.close(fd)


@pytest.mark.parametrize('what', ['target', 'map', 'default map'])
def test_a_file_of_keys_by_another_name(tmp, what):
    image = standard(tmp, 'luks')[1]
    key = tmp / 'my key'
    key.write_bytes(b'secret')
    link = tmp / ('out.map' if what == 'default map' else 'link')
    os.link(key, link)
    argv = {'target': [link], 'map': ['--salvage', '--map', link, tmp / 'out'],
            'default map': ['--salvage', tmp / 'out']}[what]
    refused(tmp, '--key-file', key, image, *argv, files=[key, image])


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
@pytest.mark.parametrize('argv', [['--list'], ['--json'], ['--json', '--list'], []])
def test_nothing_is_printed_into_the_source(tmp, stream, argv):
    image = standard(tmp, 'luks')[1]
    (tmp / 'key').write_text(PASSWORD)
    before = digest(image)
    target = [] if '--list' in argv else [tmp / 'out']
    with open(image, 'ab') as f:
        p = subprocess.run([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', *argv, image, *target],
                           env=quoin.environment(tmp), timeout=quoin.LIMIT,
                           **{'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, stream: f})
    assert p.returncode == 1
    assert digest(image) == before and not os.path.exists(tmp / 'out')
    if stream == 'stdout':
        assert b'Standard output is the same file as' in p.stderr


@LOOKS_IN
def test_descriptors_that_are_closed_are_no_file_s(tmp):
    """What is said would be written into whatever has the number."""
    image = standard(tmp, 'luks')[1]
    os.mkfifo(tmp / 'fifo')
    p = subprocess.Popen(['sh', '-c', 'exec "$0" "$@" <&- >&- 2>&-', quoin.QUOIN, 'rescue',
                          '--key-file', tmp / 'fifo', image, tmp / 'out'],
                         env=quoin.environment(tmp))
    with open(tmp / 'fifo', 'w') as f:      # it has opened the other end now
        held = [os.readlink('/proc/%d/fd/%d' % (p.pid, n)) for n in range(3)]
        f.write(PASSWORD)
    assert p.wait(quoin.LIMIT) == 0
    assert held == ['/dev/null'] * 3
    assert same(content(tmp / 'out'), content(tmp / 'plain'))


@pytest.mark.parametrize('argv', [['--help'], ['--list'], ['--list', '--json']])
def test_what_cannot_be_printed_is_no_success(tmp, argv):
    image = standard(tmp, 'luks')[1]
    with open('/dev/full', 'w') as f:
        p = subprocess.run([quoin.QUOIN, 'rescue', *argv, image], stdout=f, stderr=subprocess.PIPE,
                           env=quoin.environment(tmp), timeout=quoin.LIMIT)
    assert p.returncode == 1 and b'could not be written' in p.stderr


def change(image):
    """As somebody does who asks no lock."""
    with open(image, 'r+b') as f:
        f.seek(-512, os.SEEK_END)
        f.write(b'x')


def test_a_source_that_changes_meanwhile_makes_no_target(tmp):
    image = standard(tmp, 'luks')[1]
    t = Terminal(tmp, 'rescue', image, tmp / 'out')
    t.expect('Password for')
    t.wait_for_silence()
    change(image)
    t.send(PASSWORD + '\n')
    t.expect("'%s' was changed while it was read" % image)
    assert t.end() == 1
    assert sorted(os.listdir(tmp)) == ['image', 'plain']


def test_a_source_that_changes_after_it_was_read_in_part(tmp):
    image = standard(tmp, 'luks')[1]
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, '-'],
                         env=quoin.environment(tmp), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout.read(1)         # all of it does not fit into a pipe
    change(image)
    err = p.communicate(timeout=quoin.LIMIT)[1]
    assert p.returncode == 1 and b'was changed while it was read' in err, err


@pytest.mark.parametrize('hidden', ['.out.rescue', '.out.rescue-state', '.out.rescue-state.new'])
def test_a_file_that_a_resumable_run_would_write(tmp, hidden):
    image = standard(tmp, 'luks')[1]
    os.link(image, tmp / hidden)
    refused(tmp, image, '--resume', tmp / 'out', files=[image])


@pytest.mark.parametrize('what', ['target', 'map', 'resume'])
def test_the_file_that_a_loop_device_shows(tmp, loop, what):
    image = standard(tmp, 'luks')[1]
    argv = {'target': [image], 'map': ['--salvage', '--map', image, tmp / 'out'],
            'resume': ['--resume', tmp / 'out']}[what]
    if what == 'resume':
        os.link(image, tmp / '.out.rescue')
    refused(tmp, loop(image), *argv, files=[image])


def other_node(tmp, device):
    made = tmp / 'node'
    try:
        os.mknod(made, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
        os.close(os.open(made, os.O_RDONLY))
    except PermissionError:
        pytest.skip('device nodes cannot be made here')
    return made


@pytest.mark.parametrize('source', ['device', 'file'])
def test_a_device_by_another_node(tmp, loop, source):
    image = standard(tmp, 'luks')[1]
    device = loop(image)
    node = other_node(tmp, device)
    refused(tmp, device if source == 'device' else image, node, files=[image])


def test_a_data_file_through_a_device(tmp, loop):
    fmt, options = create_options('qcow2')
    with open(tmp / 'plain', 'wb') as f:
        f.write(b'text ' * 1000000)
        f.truncate(8 * MIB)
    qemu_img(tmp, 'convert', '-f', 'raw', '-O', fmt, *secret(), '-o',
             '%s,data_file=%s' % (options, tmp / 'data'), tmp / 'plain', tmp / 'image')
    refused(tmp, tmp / 'image', loop(tmp / 'data'), files=[tmp / 'data', tmp / 'image'])


@pytest.mark.parametrize('source', ['device', 'file'])
def test_standard_output_that_is_the_device(tmp, loop, source):
    image = standard(tmp, 'luks')[1]
    device = loop(image)
    node = other_node(tmp, device)
    before = digest(image)
    (tmp / 'key').write_text(PASSWORD)
    with open(node, 'r+b') as out:
        p = subprocess.run([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key',
                            device if source == 'device' else image, '-'], stdout=out,
                           stderr=subprocess.PIPE, env=quoin.environment(tmp), text=True)
    assert p.returncode == 1 and 'Standard output is the same file' in p.stderr
    assert digest(image) == before
