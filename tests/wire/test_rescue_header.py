# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --header: LUKS volumes whose header is in a file of its own."""
import json
import os
import struct

import peers
import pytest
from rescuekit import (MIB, content, disk, encrypt, noise, qemu_img, rescue, same, secret, standard)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

PAYLOAD_AT = 104        # in the header: where the data starts, in sectors


def payload_of(path):
    return struct.unpack_from('>I', content(path), PAYLOAD_AT)[0] * 512


def set_payload(path, sectors):
    with open(path, 'r+b') as f:
        f.seek(PAYLOAD_AT)
        f.write(struct.pack('>I', sectors))


def detach(tmp, image, header='header', volume='volume'):
    """Part a volume in its header, which says that its data starts at 0, and its data."""
    data, at = content(image), payload_of(image)
    (tmp / header).write_bytes(data[:at])
    (tmp / volume).write_bytes(data[at:])
    set_payload(tmp / header, 0)
    return tmp / header, tmp / volume


def peer(tmp, header, volume, prefix=''):
    """What qemu-img convert makes of it; opened as QEMU's own detached headers are."""
    opts = 'driver=luks,key-secret=s,file.driver=file,file.filename=%s,' \
           'header.driver=file,header.filename=%s' % (volume, header)
    qemu_img(tmp, 'convert', *secret(), '--image-opts', opts, '-O', 'raw', tmp / 'peer')
    return content(tmp / 'peer')


@pytest.mark.parametrize('options', [[], ['--verify', '--target-format', 'qcow2'],
                                     ['--resume', '--salvage']])
def test_a_detached_header(tmp, options):
    plain, image = standard(tmp, 'luks')
    header, volume = detach(tmp, image)
    r = rescue(tmp, *options, '--header', header, volume, tmp / 'out')
    assert r.status == 0, r.err
    assert 'the header in %s fits: ' % header in r.err
    qemu_img(tmp, 'convert', '-f', 'qcow2' if 'qcow2' in options else 'raw', '-O', 'raw',
             tmp / 'out', tmp / 'flat')
    assert same(content(tmp / 'flat'), content(plain))
    assert same(content(tmp / 'flat'), peer(tmp, header, volume))


def test_a_backup_of_a_header_that_is_lost(tmp):
    plain, image = standard(tmp, 'luks')
    (tmp / 'backup').write_bytes(content(image)[:payload_of(image)])
    with open(image, 'r+b') as f:
        f.write(noise(tmp / 'noise', MIB // 2).read_bytes())
    assert rescue(tmp, image, tmp / 'out').status == 1
    r = rescue(tmp, '--header', tmp / 'backup', image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), content(plain))
    assert same(content(tmp / 'out'), peer(tmp, tmp / 'backup', image))


def test_a_backup_of_a_header_that_is_still_there(tmp):
    plain, image = standard(tmp, 'luks')
    (tmp / 'backup').write_bytes(content(image)[:payload_of(image)])
    assert rescue(tmp, '--header', tmp / 'backup', image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))


@pytest.mark.parametrize('options', [[], ['--keep-chain']])
def test_the_lowest_of_a_chain(tmp, options):
    plain, image = standard(tmp, 'luks')
    header, volume = detach(tmp, image)
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', volume, '-F', 'luks', tmp / 'top',
             '4M')
    r = rescue(tmp, *options, '--header', header, tmp / 'top', tmp / 'out')
    assert r.status == 0, r.err
    got = tmp / 'out' / 'volume' if options else tmp / 'out'
    assert same(content(got), content(plain))


def test_the_list_and_the_report_name_it(tmp):
    header, volume = detach(tmp, standard(tmp, 'luks')[1])
    r = rescue(tmp, '--list', '--header', header, volume)
    assert r.status == 0, r.err
    assert '\n    luks, 4 MiB, encrypted: LUKS (aes-xts-plain64, ' in r.out
    assert '\n    its LUKS header in %s\n' % header in r.out
    assert '\nto decrypt it: quoin rescue --key-file %s --header %s %s %s.raw\n' % (
        tmp / 'key', header, volume, volume) in r.out
    layer, = json.loads(rescue(tmp, '--list', '--json', '--header', header, volume).out)['layers']
    assert layer['header'] == str(header) and layer['key']['state'] == 'fits'
    assert layer['key']['evidence']['verdict'] == 'plausible'


def test_the_header_of_another_volume_is_caught(tmp):
    """With the same password, by which its key slot opens."""
    header = detach(tmp, standard(tmp, 'luks')[1])[0]
    encrypt(tmp, 'luks', disk(tmp / 'plain2', 4, 2), tmp / 'image2')
    volume = detach(tmp, tmp / 'image2', 'header2', 'volume2')[1]
    r = rescue(tmp, '--header', header, volume, tmp / 'out')
    assert r.status == 3
    assert '%s: the header in %s may be that of another volume: ' % (volume, header) in r.err
    assert not os.path.exists(tmp / 'out')
    assert rescue(tmp, '--list', '--header', header, volume).status == 3
    r = rescue(tmp, '--header', header, '--accept-unverified-key', volume, tmp / 'out')
    assert r.status == 0 and 'is taken unverified' in r.err


@pytest.mark.parametrize('sectors, status, text', [
    (8, 3, 'may be that of another volume'),
    (2 ** 31, 1, 'its LUKS header says that the data begins at byte 1099511627776, which is '
                 'beyond the end of the file')])
def test_a_payload_offset_that_is_wrong(tmp, sectors, status, text):
    header, volume = detach(tmp, standard(tmp, 'luks')[1])
    set_payload(header, sectors)
    r = rescue(tmp, '--header', header, volume, tmp / 'out')
    assert r.status == status and text in r.err, r.err
    assert not os.path.exists(tmp / 'out')


def test_a_volume_that_says_that_its_data_is_elsewhere(tmp):
    image = standard(tmp, 'luks')[1]
    for sectors, text in (
            (0, 'is a LUKS header by itself; give the file that has the data, and this one by '
                '--header'),
            (1, 'the data begins at byte 512, where the header still is'),
            (2 ** 32 - 1, 'which is beyond the end of the file')):
        set_payload(image, sectors)
        r = rescue(tmp, image, tmp / 'out')
        assert r.status == 1 and text in r.err, r.err


def test_what_is_no_header(tmp):
    header, volume = detach(tmp, standard(tmp, 'luks')[1])
    r = rescue(tmp, '--header', tmp / 'missing', volume, tmp / 'out')
    assert r.status == 1 and "Could not open '%s': No such file" % (tmp / 'missing') in r.err
    r = rescue(tmp, '--header', volume, volume, tmp / 'out')
    assert r.status == 1 and "'%s' is no LUKS header" % volume in r.err
    with open(header, 'r+b') as f:
        f.seek(6)
        f.write(b'\0\2')
    r = rescue(tmp, '--header', header, volume, tmp / 'out')
    assert r.status == 1 and 'is a LUKS header of version 2, which only cryptsetup knows' in r.err
    (tmp / 'short').write_bytes(b'LUKS\xba\xbe\0\1')
    r = rescue(tmp, '--header', tmp / 'short', volume, tmp / 'out')
    assert r.status == 1 and 'not a sound luks image: it is too short' in r.err
    qcow2 = standard(tmp, 'qcow2')[1]
    r = rescue(tmp, '--header', header, qcow2, tmp / 'out')
    assert r.status == 1 and 'is a qcow2 image, and not what a LUKS header is to be' in r.err


@pytest.mark.parametrize('how', ['target', 'map'])
def test_the_header_is_never_overwritten(tmp, how):
    header, volume = detach(tmp, standard(tmp, 'luks')[1])
    os.link(header, tmp / 'link')
    before = content(header)
    argv = [tmp / 'link'] if how == 'target' else ['--salvage', '--map', tmp / 'link', tmp / 'out']
    r = rescue(tmp, '--force', '--header', header, volume, *argv)
    assert r.status == 1 and 'is never overwritten' in r.err
    assert same(content(header), before)
