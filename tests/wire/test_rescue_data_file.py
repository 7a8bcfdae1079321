# SPDX-License-Identifier: Apache-2.0
"""quoin rescue of images that keep their data in another file."""
import json
import os
import shutil

import peers
import pytest
from rescuekit import (MIB, content, create_options, disk, image_opts, peer_content,
                       qemu_img, rescue, same, secret, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


def external(tmp, kind, name, raw=False):
    """A disk of 4 MiB, encrypted, with a data file of this name; what is in it."""
    fmt, options = create_options(kind)
    with open(disk(tmp / 'plain', 4), 'r+b') as f:
        f.seek(-65536, os.SEEK_END)
        f.write(b'the end ' * 8192)
    qemu_img(tmp, 'convert', '-q', '-f', 'raw', '-O', fmt, *secret(), '-o',
             '%s,data_file=%s%s' % (options, name, ',data_file_raw=on' if raw else ''),
             tmp / 'plain', tmp / 'image', cwd=tmp)
    return content(tmp / 'plain')


@pytest.mark.parametrize('kind', ['qcow2', 'qcow2-luks'])
@pytest.mark.parametrize('raw', [False, True])
def test_what_comes_out_is_what_the_peer_gets(tmp, kind, raw):
    plain = external(tmp, kind, tmp / 'data', raw)
    r = rescue(tmp, '--verify', tmp / 'image', tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), plain)
    assert same(content(tmp / 'out'), peer_content(tmp, image_opts(kind, tmp / 'image')))


def test_a_kept_chain_needs_no_data_files(tmp):
    """An encrypted overlay with a data file over a plain image with a raw one."""
    qemu_img(tmp, 'convert', '-q', '-f', 'raw', '-O', 'qcow2', '-o',
             'data_file=%s,data_file_raw=on' % (tmp / 'base-data'), disk(tmp / 'plain', 4),
             tmp / 'base')
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', *secret(), '-o',
             'encrypt.format=aes,encrypt.key-secret=s,data_file=%s' % (tmp / 'data'), '-b',
             tmp / 'base', '-F', 'qcow2', tmp / 'image', '4M')
    write(tmp, image_opts('qcow2', tmp / 'image'), 'write -P 65 1M 300k', 'write -z 2M 1M')
    want = peer_content(tmp, image_opts('qcow2', tmp / 'image'))
    r = rescue(tmp, '--keep-chain', '--verify', tmp / 'image', tmp / 'out')
    assert r.status == 0, r.err
    assert sorted(os.listdir(tmp / 'out')) == ['base', 'image']
    qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'out' / 'image', tmp / 'flat')
    assert same(content(tmp / 'flat'), want)
    assert rescue(tmp, tmp / 'image', tmp / 'flat2').status == 0
    assert same(content(tmp / 'flat2'), want)


def test_a_data_file_is_raw_whatever_its_guest_wrote(tmp):
    external(tmp, 'qcow2', tmp / 'data')
    with open(tmp / 'data', 'r+b') as f:
        f.write(b'QFI\xfb\0\0\0\3' + b'\xff' * 100)
    want = peer_content(tmp, image_opts('qcow2', tmp / 'image'))
    assert rescue(tmp, tmp / 'image', tmp / 'out').status == 0
    assert same(content(tmp / 'out'), want)


def test_a_relative_name_is_found_from_other_folders_too(tmp):
    (tmp / 'a').mkdir()
    plain = external(tmp, 'qcow2', 'data')
    shutil.move(tmp / 'data', tmp / 'a' / 'data')
    shutil.move(tmp / 'image', tmp / 'a' / 'image')
    assert rescue(tmp, tmp / 'a' / 'image', tmp / 'out').status == 0
    assert same(content(tmp / 'out'), plain)
    # Which one is meant?
    (tmp / 'data').write_bytes(bytes(4 * MIB))
    r = rescue(tmp, tmp / 'a' / 'image', tmp / 'out2', cwd=tmp)
    assert r.status == 1
    assert "'data' may be that of the current folder or '%s'" % (tmp / 'a' / 'data') in r.err
    assert not os.path.exists(tmp / 'out2')


def test_the_list_and_the_report_name_it(tmp):
    external(tmp, 'qcow2', tmp / 'data')
    r = rescue(tmp, '--list', tmp / 'image')
    assert r.status == 0, r.err
    assert '\n    data in %s\n' % (tmp / 'data') in r.out
    report = json.loads(rescue(tmp, '--list', '--json', tmp / 'image').out)
    assert report['layers'][0]['data-file'] == str(tmp / 'data')


def test_a_missing_data_file_is_named(tmp):
    external(tmp, 'qcow2', tmp / 'data')
    os.unlink(tmp / 'data')
    for argv in (['--list', tmp / 'image'], [tmp / 'image', tmp / 'out']):
        r = rescue(tmp, *argv)
        assert r.status == 1
        assert "The data file of %s: Could not open '%s': No such file" % (
            tmp / 'image', tmp / 'data') in r.err


def test_a_data_file_that_is_too_short_is_damage(tmp):
    plain = external(tmp, 'qcow2', tmp / 'data')
    os.truncate(tmp / 'data', 3 * MIB)
    assert ', which is shorter than the disk: 3 MiB' in rescue(tmp, '--list', tmp / 'image').out
    r = rescue(tmp, tmp / 'image', tmp / 'out')
    assert r.status == 1
    assert '(%s: the image file ends before it)' % (tmp / 'data') in r.err
    assert not os.path.exists(tmp / 'out')
    r = rescue(tmp, '--salvage', '--json', tmp / 'image', tmp / 'out')
    assert r.status == 5, r.err
    assert same(content(tmp / 'out')[:3 * MIB], plain[:3 * MIB])
    lost = json.loads(r.out)['copies'][0]['lost']
    assert lost and all(x['filename'] == str(tmp / 'data') for x in lost)
    assert str(tmp / 'data') in (tmp / 'out.map').read_text()


def test_an_image_that_does_not_name_its_data_file_is_an_error(tmp):
    external(tmp, 'qcow2', tmp / 'data')
    with open(tmp / 'image', 'r+b') as f:
        head = f.read(4096)
        f.seek(head.index(b'\x44\x41\x54\x41'))
        f.write(b'\x12\x34\x56\x78')
    r = rescue(tmp, tmp / 'image', tmp / 'out')
    assert r.status == 1
    assert 'keeps its data in another file, and does not say in which' in r.err


@pytest.mark.parametrize('how', ['itself', 'hard link', 'symbolic link', 'descriptor', 'map',
                                 'partial file'])
def test_a_data_file_is_never_overwritten(tmp, how):
    external(tmp, 'qcow2', tmp / 'data')
    before = content(tmp / 'data')
    argv, target = [], tmp / 'data'
    if how == 'hard link':
        target = tmp / 'link'
        os.link(tmp / 'data', target)
    elif how == 'symbolic link':
        target = tmp / 'link'
        target.symlink_to('data')
    elif how == 'map':
        target, argv = tmp / 'out', ['--salvage', '--map', tmp / 'data']
    elif how == 'partial file':
        target, argv = tmp / 'out', ['--resume']
        os.link(tmp / 'data', tmp / '.out.rescue')
    with open(tmp / 'data', 'rb') as f:
        if how == 'descriptor':
            target = '/proc/%d/fd/%d' % (os.getpid(), f.fileno())
        r = rescue(tmp, '--force', *argv, tmp / 'image', target)
    assert r.status == 1
    assert 'is never overwritten' in r.err
    assert same(content(tmp / 'data'), before)
    assert not os.path.exists(tmp / 'out')


def test_another_data_file_is_no_reason_to_go_on(tmp):
    """A run that was interrupted is bound to the data file too."""
    external(tmp, 'qcow2', tmp / 'data')
    os.truncate(tmp / 'data', 4 * MIB - 4096)
    assert rescue(tmp, '--resume', tmp / 'image', tmp / 'out').status == 1
    assert os.path.exists(tmp / '.out.rescue-state')
    os.utime(tmp / 'data', (1, 1))
    r = rescue(tmp, '--resume', tmp / 'image', tmp / 'out')
    assert r.status == 1
    assert 'the source was changed since it was begun' in r.err
