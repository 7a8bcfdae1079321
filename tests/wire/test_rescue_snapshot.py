# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --snapshot: the disk as an internal snapshot has it."""
import atexit
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, content, create, image_opts, qemu_img, rescue, same, secret,
                       standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

NAMES = ['one', '1', 'a,b', 'one']          # the IDs are 1, 2, 3, 4
_made = {}


def snapshots(tmp, kind):
    """An image with snapshots, before each of which something was written; the disk grew
    after the second."""
    if kind not in _made:
        folder = pathlib.Path(tempfile.mkdtemp(prefix='q-snapshots-'))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        image = standard(folder, kind)[1]
        opts = image_opts(kind, image)
        for i, name in enumerate(NAMES):
            write(folder, opts, 'write -P %d %dk 200k' % (65 + i, 300 * i), 'write -z 2M 1M')
            qemu_img(folder, 'snapshot', *secret(), '-c', name, '--image-opts', opts)
            if i == 1:
                qemu_img(folder, 'resize', '-q', *secret(), '--image-opts', opts, '6M')
        write(folder, opts, 'write -P 80 0 5M')
        _made[kind] = image
    shutil.copy(_made[kind], tmp / 'image')
    return tmp / 'image'


def peer(tmp, opts, name):
    qemu_img(tmp, 'convert', *secret(), '-l', name, '--image-opts', opts, '-O', 'raw',
             tmp / 'peer')
    return content(tmp / 'peer')


@pytest.mark.parametrize('kind', ['qcow2', 'qcow2-luks'])
@pytest.mark.parametrize('name, size', [
    ('1', 4), ('one', 4), ('snapshot.id=1', 4), ('2', 4), ('snapshot.name=1', 4), ('3', 6),
    ('a,b', 6), ('snapshot.name=a,,b', 6), ('snapshot.id=4,snapshot.name=one', 6)])
def test_what_comes_out_is_what_the_peer_gets(tmp, kind, name, size):
    image = snapshots(tmp, kind)
    r = rescue(tmp, '--snapshot', name, image, tmp / 'out')
    assert r.status == 0, r.err
    want = peer(tmp, image_opts(kind, image), name)
    got = content(tmp / 'out')
    # The peer fills up to the size that the disk has now; the snapshot has its own.
    assert len(want) == 6 * MIB and len(got) == size * MIB
    assert same(got + bytes(len(want) - len(got)), want)


@pytest.mark.parametrize('options', [['--verify', '--target-format', 'qcow2'], ['--resume'],
                                     ['--json', '-q'], ['--salvage', '--verify']])
def test_it_goes_with_the_other_options(tmp, options):
    image = snapshots(tmp, 'qcow2-luks')
    r = rescue(tmp, *options, '--snapshot', 'a,b', image, tmp / 'out')
    assert r.status == 0, r.err
    fmt = 'qcow2' if 'qcow2' in options else 'raw'
    qemu_img(tmp, 'convert', '-f', fmt, '-O', 'raw', tmp / 'out', tmp / 'flat')
    assert same(content(tmp / 'flat'), peer(tmp, image_opts('qcow2-luks', image), 'a,b'))
    if '--json' in options:
        layer = json.loads(r.out)['layers'][0]
        assert layer['snapshot'] == 2 and layer['virtual-size'] == 6 * MIB
        assert [s['name'] for s in layer['snapshots']] == NAMES


@pytest.mark.parametrize('options', [[], ['--keep-chain', '--verify']])
def test_a_snapshot_over_a_backing_file(tmp, options):
    base = standard(tmp, 'qcow2-luks')[1].rename(tmp / 'base')
    image = create(tmp, 'qcow2', tmp / 'top', '8M',
                   more=',backing_file=%s,backing_fmt=qcow2' % base)
    opts = '%s,%s' % (image_opts('qcow2', image), image_opts('qcow2-luks', base, 's', 'backing.'))
    write(tmp, opts, 'write -P 65 1M 100k', 'write -P 66 7M 64k')
    qemu_img(tmp, 'snapshot', *secret(), '-c', 'old', '--image-opts', opts)
    write(tmp, opts, 'write -P 67 1M 2M')
    r = rescue(tmp, *options, '--snapshot', 'old', image, tmp / 'out')
    assert r.status == 0, r.err
    got = tmp / 'out'
    if options:
        qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'out' / 'top', tmp / 'flat')
        got = tmp / 'flat'
    assert same(content(got), peer(tmp, opts, 'old'))


def test_another_snapshot_is_no_reason_to_go_on(tmp):
    image = snapshots(tmp, 'qcow2')
    (tmp / 'key').write_text(PASSWORD)
    # A target that may not become as large as it must.
    p = subprocess.run(['prlimit', '--fsize=600000', quoin.QUOIN, 'rescue', '--key-file',
                        tmp / 'key', '--resume', '--target-format', 'qcow2', '--snapshot', '1',
                        image, tmp / 'out'], env=quoin.environment(tmp), stderr=subprocess.PIPE)
    assert p.returncode == 1 and os.path.exists(tmp / '.out.rescue-state'), p.stderr
    for argv in (['--snapshot', '2'], []):
        r = rescue(tmp, '--resume', '--target-format', 'qcow2', *argv, image, tmp / 'out')
        assert 'the options were changed since it was begun' in r.err
    r = rescue(tmp, '--resume', '--target-format', 'qcow2', '--snapshot', '1', image, tmp / 'out')
    assert r.status == 0, r.err


def test_the_list_shows_them_and_which_is_meant(tmp):
    image = snapshots(tmp, 'qcow2')
    r = rescue(tmp, '--list', '--snapshot', 'a,b', image)
    assert r.status == 0, r.err
    lines = r.out[r.out.index('    internal snapshots:\n'):].splitlines()[1:5]
    assert [x.split()[:2] for x in lines] == [['1', 'one'], ['2', '1'], ['3', 'a,b'],
                                              ['4', 'one']]
    assert [x.endswith('  4 MiB') for x in lines] == [True, True, False, False]
    assert [x.endswith('  6 MiB  <- this one') for x in lines] == [False, False, True, False]
    text = quoin.run(quoin.QUOIN, 'info', image, tmp=tmp).out
    assert '\ninternal snapshots:\n' in text and '  a,b  ' in text


def test_info_says_what_the_peer_says(tmp):
    image = snapshots(tmp, 'qcow2')
    mine = json.loads(quoin.run(quoin.QUOIN, 'info', '--json', image, tmp=tmp).out)['snapshots']
    for s in mine:
        assert s.pop('virtual-size') in (4 * MIB, 6 * MIB)
    assert mine == json.loads(qemu_img(tmp, 'info', '--output=json', image).out)['snapshots']


def test_one_that_is_not_there_is_an_error(tmp):
    image = snapshots(tmp, 'qcow2')
    for name in ('nothing', 'snapshot.id=9', 'snapshot.id=2,snapshot.name=one', ''):
        r = rescue(tmp, '--snapshot', name, image, tmp / 'out')
        assert r.status == 1
        assert "has no internal snapshot '%s'; --list shows those that it has" % name in r.err
    r = rescue(tmp, '--snapshot', 'snapshot.foo=1', image, tmp / 'out')
    assert r.status == 1 and 'not by \'snapshot.foo=1\'' in r.err
    # The list is what one wants to see then.
    r = rescue(tmp, '--list', '--snapshot', 'nothing', image)
    assert r.status == 1 and '  a,b  ' in r.out
    assert not os.path.exists(tmp / 'out')


def test_other_formats_have_none(tmp):
    r = rescue(tmp, '--snapshot', '1', standard(tmp, 'qcow')[1], tmp / 'out')
    assert r.status == 1
    assert 'only qcow2 has internal snapshots' in r.err


def test_a_damaged_table_is_no_obstacle_to_the_active_state(tmp):
    image = snapshots(tmp, 'qcow2')
    with open(image, 'r+b') as f:
        f.seek(60)
        f.write(struct.pack('>IQ', 4, os.path.getsize(image) + MIB & -65536))
    r = rescue(tmp, '--list', image)
    assert r.status == 0 and '    4 internal snapshots, whose table is damaged\n' in r.out, r
    r = rescue(tmp, '--snapshot', '1', image, tmp / 'out')
    assert r.status == 1 and 'table of internal snapshots of %s is damaged' % image in r.err
    assert 'note: it has 4 internal snapshots, whose table is damaged' in quoin.run(
        quoin.QUOIN, 'info', image, tmp=tmp).out
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 0, r.err


def test_a_table_that_was_cut_off_is_no_empty_disk(tmp):
    image = snapshots(tmp, 'qcow2')
    data = content(image)
    at = struct.unpack_from('>Q', data, 64)[0]              # the first snapshot's entry
    with open(image, 'r+b') as f:
        f.seek(at)
        f.write(struct.pack('>Q', len(data) + 65536 & -65536))   # its L1 table
    r = rescue(tmp, '--snapshot', '1', image, tmp / 'out')
    assert r.status == 4 and 'nothing that may be encrypted can be read' in r.err, r.err
    r = rescue(tmp, '--snapshot', '1', '--accept-unverified-key', image, tmp / 'out')
    assert r.status == 1 and 'Could not read' in r.err, r.err
    assert not os.path.exists(tmp / 'out')


def test_a_table_that_cannot_be_one_is_no_empty_disk(tmp):
    image = snapshots(tmp, 'qcow2')
    for place in (0, 512):
        with open(image, 'r+b') as f:
            f.seek(64)
            table = struct.unpack('>Q', f.read(8))[0]
            f.seek(table)       # the first snapshot's L1 table
            f.write(struct.pack('>Q', place))
        r = rescue(tmp, '--salvage', '--snapshot', '1', image, tmp / 'out')
        assert r.status == 1 and 'Snapshot L1 table offset invalid' in r.err, r
        assert not (tmp / 'out').exists()


def test_names_do_nothing_to_a_terminal(tmp):
    image = snapshots(tmp, 'qcow2')
    image.write_bytes(content(image).replace(b'a,b', b'a\x1bb'))    # former tables too
    assert '  a?b  ' in rescue(tmp, '--list', image).out
    assert '  a?b  ' in quoin.run(quoin.QUOIN, 'info', image, tmp=tmp).out
