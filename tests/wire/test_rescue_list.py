# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --list ends in a command, which works as it is when it is pasted."""
import os
import shlex
import subprocess

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, content, create, disk, encrypt, image_opts, noise,
                       qemu_img, rescue, same, secret, standard, write)
from test_rescue_header import detach

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


def command_of(r):
    return r.out[r.out.rindex('to decrypt it: ') + 15:].rstrip('\n')


def pasted(tmp, *argv, status=0, **kw):
    """List, and let a shell run what the list says, in the same folder; the target."""
    r = rescue(tmp, '--list', *argv, **kw)
    assert r.status == status, r
    (tmp / 'bin').mkdir(exist_ok=True)
    if not (tmp / 'bin' / 'quoin').exists():
        (tmp / 'bin' / 'quoin').symlink_to(os.path.abspath(quoin.QUOIN))
    p = subprocess.run(['sh', '-c', command_of(r)], capture_output=True, text=True, cwd=os.getcwd(),
                       timeout=quoin.LIMIT, env={**quoin.environment(tmp),
                                                 'PATH': '%s/bin:%s' % (tmp, os.environ['PATH'])})
    assert p.returncode == 0, (command_of(r), p.stderr)
    return shlex.split(command_of(r))[-1]


@pytest.mark.parametrize('name', ['image', "it's mine.qcow2", '-f', 'a b;c', '$(x)', 'ä.img'])
def test_any_name(tmp, name):
    plain, image = standard(tmp, 'qcow2')
    image = image.rename(tmp / name)
    target = pasted(tmp, image)
    assert os.path.dirname(target) == str(tmp)
    assert same(content(target), content(plain))


def test_a_name_in_the_current_folder(tmp, monkeypatch):
    plain, image = standard(tmp, 'qcow2')
    monkeypatch.chdir(tmp)
    assert same(content(pasted(tmp, 'image')), content(plain))
    (tmp / 'below').mkdir()
    monkeypatch.chdir(tmp / 'below')
    assert same(content(pasted(tmp, '../image')), content(plain))


def test_what_is_there_already_is_no_target(tmp):
    plain, image = standard(tmp, 'qcow2')
    for name in ('image.raw', 'image-2.raw'):
        (tmp / name).write_text('precious')
    assert pasted(tmp, image) == str(tmp / 'image-3.raw')
    assert (tmp / 'image.raw').read_text() == 'precious'


def test_a_link_whose_folder_has_the_rest(tmp):
    """Names begin where the link is, and not where the file is."""
    plain, image = standard(tmp, 'qcow2')
    image.rename(tmp / 'base')
    (tmp / 'store').mkdir()
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2',
             tmp / 'store' / 'object', '4M')
    (tmp / 'top').symlink_to('store/object')
    assert same(content(pasted(tmp, tmp / 'top')), content(plain))


def test_a_snapshot(tmp):
    image = create(tmp, 'qcow2', tmp / 'image', '2M')
    opts = image_opts('qcow2', image)
    write(tmp, opts, 'write -P 65 0 2M')
    qemu_img(tmp, 'snapshot', *secret(), '-c', "before it's late", '--image-opts', opts)
    write(tmp, opts, 'write -P 66 0 2M')
    assert same(content(pasted(tmp, '--snapshot', "before it's late", image)), b'A' * 2 * MIB)
    assert same(content(pasted(tmp, image)), b'B' * 2 * MIB)


def test_a_header_that_is_apart(tmp, monkeypatch):
    plain, image = standard(tmp, 'luks')
    detach(tmp, image)
    monkeypatch.chdir(tmp)
    assert same(content(pasted(tmp, '--header', 'header', 'volume')), content(plain))


def test_keys_of_several_layers(tmp):
    """The overlay holds noise, so that only --layer tells whose key is whose."""
    plain = disk(tmp / 'plain', 4)
    base = encrypt(tmp, 'qcow2', plain, tmp / 'base', password='first')
    image = create(tmp, 'qcow2', tmp / 'image', '4M', password='second',
                   more=',backing_file=%s,backing_fmt=qcow2' % base)
    noise(tmp / 'noise', MIB)
    write(tmp, '%s,%s' % (image_opts('qcow2', image), image_opts('qcow2', base, 'b', 'backing.')),
          'write -s %s 1M 1M' % (tmp / 'noise'), password='second', more=secret('first', 'b'))
    for word in ('first', 'second'):
        (tmp / word).write_text(word)
    target = pasted(tmp, '--accept-unverified-key', '--layer', '1', '--key-file', tmp / 'first',
                    '--layer', '0', '--key-file', tmp / 'second', image, key=None)
    want = bytearray(content(plain))
    want[MIB:2 * MIB] = content(tmp / 'noise')
    assert same(content(target), bytes(want))


def test_the_line_of_a_list(tmp):
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'words').write_text('no\n%s\n' % PASSWORD)
    assert same(content(pasted(tmp, '--try-keys', tmp / 'words', image, key=None)), content(plain))


def test_keys_that_are_no_use_to_another_run_are_asked_for(tmp):
    image = standard(tmp, 'qcow2')[1]
    r = rescue(tmp, '--list', image, key='wrong')
    assert r.status == 3 and command_of(r) == 'quoin rescue %s %s.raw' % (image, image)
    r = rescue(tmp, '--list', '--mixed-encryption', '--key-fd', '0', image, stdin=PASSWORD)
    assert r.status == 0, r.err
    assert command_of(r) == 'quoin rescue --mixed-encryption %s %s.raw' % (image, image)


def test_a_source_whose_folder_takes_no_files(tmp, monkeypatch):
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'medium').mkdir()
    (tmp / 'here').mkdir()
    image.rename(tmp / 'medium' / 'disk.qcow2')
    if subprocess.run(['mount', '--bind', '-r', tmp / 'medium', tmp / 'medium'],
                      capture_output=True).returncode:
        pytest.skip('nothing can be mounted here')
    try:
        monkeypatch.chdir(tmp / 'here')
        assert pasted(tmp, tmp / 'medium' / 'disk.qcow2') == 'disk.raw'
    finally:
        subprocess.run(['umount', tmp / 'medium'], check=True)
    assert same(content(tmp / 'here' / 'disk.raw'), content(plain))
