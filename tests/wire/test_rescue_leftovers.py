# SPDX-License-Identifier: Apache-2.0
"""quoin rescue: what a run leaves that is killed while it gives names is named by the next one."""
import os
import shutil
import subprocess
import sys

import peers
import pytest
import quoin
from rescuekit import PASSWORD, content, rescue, same, standard

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


def dead_process():
    p = subprocess.Popen([sys.executable, '-ISc', ''])
    p.wait(quoin.LIMIT)
    return p.pid


def told(r):
    """The names in notes of leftovers."""
    return sorted(line.split("'")[1] for line in r.err.splitlines()
                  if 'seems to be left from a run that was killed' in line)


@pytest.mark.skipif(not shutil.which('strace'), reason='no strace is installed')
@pytest.mark.skipif('san' in quoin.QUOIN, reason='a sanitizer looks for leaks as strace does')
@pytest.mark.parametrize('options, call', [
    (['--force'], 'renameat'), (['--keep-chain'], 'renameat2'),
    (['--salvage', '--force'], 'renameat')])
def test_a_kill_at_the_moment_of_naming_is_told_by_the_next_run(tmp, options, call):
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'key').write_text(PASSWORD)
    before = set(os.listdir(tmp))
    r = quoin.run('strace', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=' + call, '-e',
                  'inject=%s:signal=SIGKILL' % call, quoin.QUOIN, 'rescue', '--key-file',
                  tmp / 'key', *options, image, tmp / 'out', tmp=tmp)
    assert r.status not in (0, 1), r.err
    left, = set(os.listdir(tmp)) - before
    r = rescue(tmp, *options, image, tmp / 'out')
    assert r.status == 0, r.err
    assert told(r) == [str(tmp / left)]
    assert os.path.exists(tmp / left)
    out = tmp / 'out' if '--keep-chain' not in options else None
    assert not out or same(content(out), content(plain))


def test_only_what_a_killed_run_can_have_left_is_named(tmp):
    image = standard(tmp, 'qcow2')[1]
    pid = dead_process()
    ours = '.out.%d-0' % pid, '.out.%d-17' % pid, '.out.map.%d-0' % pid
    others = ['.out.%d-0' % os.getpid(), '.out.rescue', '.out.%d' % pid, '.out.%d-0x' % pid,
              '.out.-%d-0' % pid, '.out.%d-' % pid, '.outer.%d-0' % pid, 'out.%d-0' % pid,
              '.other.%d-0' % pid]
    for name in (*ours, *others):
        (tmp / name).touch()
    os.symlink('key', tmp / ('.out.%d-2' % pid))
    r = rescue(tmp, '--salvage', image, tmp / 'out')
    assert r.status == 0, r.err
    assert told(r) == sorted(str(tmp / n) for n in ours)


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give files away')
def test_another_user_s_file_is_none_of_ours(tmp):
    image = standard(tmp, 'qcow2')[1]
    path = tmp / ('.out.%d-0' % dead_process())
    path.touch()
    os.chown(path, 65534, 65534)
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 0 and told(r) == [], r.err


def test_leftovers_beside_a_target_without_a_folder(tmp):
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'key').write_text(PASSWORD)
    name = '.out.%d-0' % dead_process()
    (tmp / name).touch()
    r = quoin.run(quoin.QUOIN, 'rescue', '--key-file', 'key', image.name, 'out', tmp=tmp, cwd=tmp)
    assert r.status == 0 and told(r) == [name], r.err
