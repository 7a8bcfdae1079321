# SPDX-License-Identifier: Apache-2.0
"""Each command of quoin-rescue's manual page, run by a shell as it stands there."""
import os
import re
import shutil

import peers
import pytest
import quoin
from rescuekit import (PASSWORD, Terminal, break_entry, content, encrypt, qemu_img, same,
                       standard)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

WORD = 'word42'


def page():
    with open(os.path.join(peers.TOP, 'docs', 'quoin-rescue.1')) as f:
        return f.read()


def plain(text):
    return text.replace('\\-', '-').replace('\\e', '\\')


def examples():
    block = re.search(r'^\.SH EXAMPLES\n\.nf\n(.*?)^\.fi', page(), re.M | re.S)[1]
    return plain(block).splitlines()


@pytest.fixture
def folder(tmp):
    """With all that the examples name, and commands that they use."""
    disk, image = standard(tmp, 'qcow2')
    disk.rename(tmp / 'disk')
    image.rename(tmp / 'geheim.qcow2')
    shutil.copy(tmp / 'geheim.qcow2', tmp / 'broken.qcow2')
    break_entry(tmp / 'broken.qcow2', 0)
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-b', 'geheim.qcow2', '-F', 'qcow2',
             tmp / 'top.qcow2')
    (tmp / 'key').write_text(PASSWORD + '\n')
    (tmp / 'words').write_text('no\n%s\n' % PASSWORD)
    (tmp / 'bin').mkdir()
    (tmp / 'bin' / 'quoin').symlink_to(os.path.abspath(quoin.QUOIN))
    (tmp / 'bin' / 'ssh').write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp / 'bin' / 'ssh').chmod(0o755)
    return tmp


def shell(folder, command):
    """On a terminal, whose user knows the password."""
    path = '%s/bin:%s' % (folder, os.environ['PATH'])
    t = Terminal(folder, '-c', 'cd %s && PATH=%s && %s; echo "status $?"' % (folder, path, command),
                 program='/bin/sh')
    if '--key' not in command and 'rescue' in command and '--list' not in command:
        t.expect('Password for geheim.qcow2')
        t.wait_for_silence()
        t.send(PASSWORD + '\n')
    t.expect('status ')
    t.expect('\n')
    assert t.end() == 0
    if 'without zstd' in t.text:
        pytest.skip('this program was built without zstd')
    return t.text


@pytest.mark.parametrize('command', examples())
def test_each_example_works(folder, command):
    before = content(folder / 'geheim.qcow2')
    text = shell(folder, command)
    assert 'status %d\r\n' % (5 if '--salvage' in command else 0) in text, text
    assert content(folder / 'geheim.qcow2') == before
    target = command.split('of=')[-1].split()[-1]
    if 'info' in command or '--list' in command:
        assert 'geheim.qcow2' in text and 'to decrypt it: quoin rescue ' in text
    elif '--salvage' in command:
        assert (folder / 'out.raw').exists() and (folder / 'out.raw.map').exists()
    else:
        out = folder / target / 'top.qcow2' if '--keep-chain' in command else folder / target
        fmt = 'raw' if target.endswith('.raw') else 'qcow2'
        qemu_img(folder, 'convert', '-f', fmt, '-O', 'raw', out, folder / 'flat')
        assert same(content(folder / 'flat'), content(folder / 'disk'))


def test_there_are_examples_for_each_way():
    text = '\n'.join(examples())
    assert all(o in text for o in ('--list', '--key-file', '--try-keys', '--salvage', '--resume',
                                   '--keep-chain', '--compress', ' info ', ' - | ')), text


def test_the_list_of_words_that_the_shell_makes(folder):
    """And the line of it that fits is found."""
    command = re.search(r'^(\(umask .*)$', plain(page()), re.M)[1]
    (folder / 'words').unlink()
    assert 'status 0' in shell(folder, command)
    assert os.stat(folder / 'words').st_mode & 0o777 == 0o600
    assert (folder / 'words').read_text().splitlines()[42] == WORD
    encrypt(folder, 'qcow2', folder / 'disk', folder / 'other', password=WORD)
    text = shell(folder, 'quoin rescue --list --try-keys words other')
    assert 'status 0' in text and 'line 43' in text, text
