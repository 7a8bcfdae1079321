# SPDX-License-Identifier: Apache-2.0
"""quoin info: what an image is, by its header alone."""
import json
import os
import shutil

import peers
import pytest
import quoin
from rescuekit import qemu_img, standard

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


def info(run, path):
    r = run(quoin.QUOIN, 'info', '--json', path)
    assert r.status == 0, r.err
    return json.loads(r.out)


@pytest.mark.parametrize('kind, encryption', [
    ('qcow', 'qcow AES-CBC'), ('qcow2', 'qcow2 AES-CBC'), ('qcow2-luks', 'qcow2 LUKS'),
    ('luks', 'LUKS')])
def test_every_encryption_has_its_name_and_its_command(tmp, run, kind, encryption):
    image = standard(tmp, kind)[1]
    got = info(run, image)
    assert got['encrypted'] is True
    assert got['encryption'] == encryption
    assert got['virtual-size'] == 4 << 20
    assert got['rescue-command'].split() == ['quoin', 'rescue', str(image), str(image) + '.raw']
    text = run(quoin.QUOIN, 'info', image).out
    assert 'encryption: ' + encryption in text
    assert 'to decrypt it: quoin rescue ' in text


def test_it_agrees_with_qemu_img(tmp, run):
    qemu_img(tmp, 'create', '-q', '-f', 'raw', tmp / 'base "quoted" \\', '3M')
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', '-F', 'raw', '-b',
             'base "quoted" \\', tmp / 'image', '5M')
    peer = json.loads(qemu_img(tmp, 'info', '--output=json', tmp / 'image').out)
    mine = info(run, tmp / 'image')
    for name in ('filename', 'format', 'virtual-size', 'cluster-size', 'backing-filename',
                 'backing-filename-format', 'dirty-flag'):
        assert mine[name] == peer[name]
    assert mine['encrypted'] is False
    assert 'rescue-command' not in mine


def test_what_an_image_names_is_not_opened(tmp, run):
    if not shutil.which('strace'):
        pytest.skip('no strace is installed')
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-u', '-F', 'raw', '-b', '/etc/hostname',
             tmp / 'image', '1M')
    r = run('strace', '-f', '-o', tmp / 'trace', '-e', 'trace=open,openat', quoin.QUOIN, 'info',
            tmp / 'image', env={'ASAN_OPTIONS': 'detect_leaks=0'})
    if 'Operation not permitted' in r.err:
        pytest.skip('strace may not trace here')
    assert r.status == 0, r.err
    assert '/etc/hostname' in r.out
    trace = (tmp / 'trace').read_text()
    assert str(tmp / 'image') in trace
    assert '/etc/hostname' not in trace


def test_the_text_says_how_it_is_encrypted(tmp, run):
    text = run(quoin.QUOIN, 'info', standard(tmp, 'luks')[1]).out
    assert '\ncipher: aes-256, mode: xts, IV: plain64, hash: sha256\n' in text
    assert '\nkey slots: 1 of 8 are used\n' in text
    assert '\ndata starts at: ' in text
    text = run(quoin.QUOIN, 'info', standard(tmp, 'qcow2')[1]).out
    assert '\ncipher: aes-128, mode: cbc, IV: plain64\n' in text
    assert '\ncompat: 1.1\ncompression: zlib\nrefcounts: 16 bits\n' in text


def test_the_text_shows_bitmaps(tmp, run):
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', tmp / 'image', '5M')
    qemu_img(tmp, 'bitmap', '--add', '-g', '64k', tmp / 'image', 'one')
    qemu_img(tmp, 'bitmap', '--add', '--disable', tmp / 'image', 'two')
    text = run(quoin.QUOIN, 'info', tmp / 'image').out
    assert '\nbitmaps:\n        one  granularity 65536, recording\n' in text
    assert '\n        two  granularity 65536\n' in text


def test_a_damaged_bitmap_directory_is_no_obstacle(tmp, run):
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', tmp / 'image', '5M')
    qemu_img(tmp, 'bitmap', '--add', tmp / 'image', 'one')
    data = bytearray((tmp / 'image').read_bytes())
    at = data.index(b'\x23\x85\x28\x75')
    for where, value in ((at + 24, 1 << 40), (at + 8, 0xffffffff << 32), (at + 24, 0)):
        broken = bytearray(data)
        broken[where:where + 8] = value.to_bytes(8, 'big')
        (tmp / 'broken').write_bytes(broken)
        r = run(quoin.QUOIN, 'info', tmp / 'broken')
        assert r.status == 0 and 'bitmaps, whose directory is damaged' in r.out, r


def test_broken_and_missing_images(tmp, run):
    (tmp / 'broken').write_bytes(b'QFI\xfb\0\0\0\3' + b'\xff' * 200)
    r = run(quoin.QUOIN, 'info', tmp / 'broken')
    assert r.status == 1 and 'not a sound qcow2 image' in r.err
    r = run(quoin.QUOIN, 'info', tmp / 'missing')
    assert r.status == 1 and 'No such file' in r.err
    assert run(quoin.QUOIN, 'info').status == 2
    os.mkfifo(tmp / 'fifo')
    assert run(quoin.QUOIN, 'info', tmp / 'fifo').status == 1
