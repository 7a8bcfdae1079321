# SPDX-License-Identifier: Apache-2.0
"""quoin info --json beside qemu-img info --output=json: what both tell of an image is the same.

quoin info has no nested format-specific object: those members stand at the top, and what is
in format-specific.data of a LUKS volume stands in "encrypt".  Known differences:

- filename, format and the sizes are compared as they are; of a raw file that LUKS is in, the
  peer's virtual size is the payload's too.
- children: the peer opens the file below and tells of it; quoin info opens nothing else.
- A snapshot's virtual-size, and whatever else the peer has no name for, is only here.
- bitmaps and snapshots are there even if there are none; the peer leaves them out.
"""
import json
import os

import pytest

import images
import peers
import quoin

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

TOP = ['filename', 'format', 'virtual-size', 'actual-size', 'cluster-size', 'backing-filename',
       'full-backing-filename', 'backing-filename-format', 'dirty-flag', 'encrypted']
QCOW2 = ['compat', 'compression-type', 'refcount-bits', 'lazy-refcounts', 'corrupt', 'extended-l2',
         'data-file', 'data-file-raw', 'bitmaps']
ENCRYPT = ['format', 'cipher-alg', 'cipher-mode', 'ivgen-alg', 'ivgen-hash-alg', 'hash-alg', 'uuid',
           'payload-offset', 'master-key-iters', 'detached-header', 'slots']
SECRET = ['--object', 'secret,id=key,data=geheim']


def both(tmp, path):
    """(what quoin info says, what the peer says)"""
    mine = quoin.run(quoin.QUOIN, 'info', '--json', path, tmp=tmp, check=True)
    peer = quoin.run(peers.QEMU_IMG, 'info', '--output=json', path, tmp=tmp, check=True)
    return json.loads(mine.out), json.loads(peer.out)


def agree(tmp, path):
    mine, peer = both(tmp, path)
    data = peer.get('format-specific', {}).get('data', {})
    for name in TOP:
        if name in peer:
            assert mine[name] == peer[name], name
        else:
            assert not mine.get(name) or name == 'actual-size', name
    if peer['format'] == 'qcow2':
        for name in QCOW2:
            if name in data:
                assert mine[name] == data[name], name
        assert bool(mine['bitmaps']) == ('bitmaps' in data)
        assert len(mine['snapshots']) == len(peer.get('snapshots', []))
    encrypt = data if peer['format'] == 'luks' else data.get('encrypt', {})
    for name in ENCRYPT:
        if name in encrypt:
            assert mine['encrypt'][name] == encrypt[name], name
    return mine, peer


@pytest.mark.parametrize('options', [
    '', 'compat=0.10', 'lazy_refcounts=on', 'refcount_bits=1', 'refcount_bits=64',
    'cluster_size=2M', 'cluster_size=512', 'extended_l2=on,cluster_size=128k',
    pytest.param('compression_type=zstd', marks=pytest.mark.skipif(
        b'libzstd' not in images.content(quoin.QUOIN), reason='built without zstd'))])
def test_qcow2(tmp, options):
    images.img('create', '-q', '-f', 'qcow2', *(['-o', options] if options else []),
               tmp / 'image', '5M')
    agree(tmp, tmp / 'image')


@pytest.mark.parametrize('raw', ['on', 'off'])
def test_data_files(tmp, raw):
    images.img('create', '-q', '-f', 'qcow2', '-o', 'data_file=%s,data_file_raw=%s'
               % (tmp / 'data "quoted"', raw), tmp / 'image', '5M')
    mine, peer = agree(tmp, tmp / 'image')
    assert mine['data-file'] and mine['data-file-raw'] is (raw == 'on')


@pytest.mark.parametrize('name', ['base', 'a/base', './b: "x" \\'])
def test_backing_files(tmp, name):
    (tmp / 'a').mkdir()
    images.img('create', '-q', '-f', 'qcow2', '-u', '-F', 'raw', '-b', name, tmp / 'image', '5M')
    agree(tmp, tmp / 'image')


def test_bitmaps_and_snapshots(tmp):
    images.img('create', '-q', '-f', 'qcow2', tmp / 'image', '5M')
    images.img('bitmap', '--add', '-g', '64k', tmp / 'image', 'one')
    images.img('bitmap', '--add', '--disable', '-g', '1M', tmp / 'image', 'two \u00fc')
    for name in ('a', '', 'c d'):
        images.img('snapshot', '-c', name, tmp / 'image')
    mine, peer = agree(tmp, tmp / 'image')
    assert len(mine['bitmaps']) == 2 and len(mine['snapshots']) == 3
    for m, p in zip(mine['snapshots'], peer['snapshots']):
        assert {k: m[k] for k in p} == p
    # One that was in use when its writer died.
    data = bytearray(images.content(tmp / 'image'))
    at = data.rindex(b'one') - 24 + 12
    data[at + 3] |= 1
    (tmp / 'image').write_bytes(data)
    mine, peer = agree(tmp, tmp / 'image')
    assert mine['bitmaps'][0]['flags'] == ['in-use', 'auto']


def test_flags(tmp):
    images.img('create', '-q', '-f', 'qcow2', tmp / 'image', '5M')
    for bit, name in ((1, 'dirty-flag'), (2, 'corrupt')):
        data = bytearray(images.content(tmp / 'image'))
        data[79] = bit
        (tmp / 'flagged').write_bytes(data)
        mine, peer = agree(tmp, tmp / 'flagged')
        assert mine[name] is True


@pytest.mark.parametrize('kind', sorted(images.ENCRYPTED))
def test_encrypted_ones(tmp, kind):
    images.ENCRYPTED[kind](tmp / 'image', 'geheim')
    mine, peer = agree(tmp, tmp / 'image')
    assert mine['encrypted'] is True
    assert mine['encrypt']['format'] == ('luks' if 'luks' in kind else 'aes')
    assert mine['encrypt']['cipher-alg']


@pytest.mark.parametrize('options', [
    'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1',
    'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain', 'cipher-alg=serpent-256,hash-alg=sha512',
    'cipher-alg=twofish-128,cipher-mode=xts', 'cipher-alg=cast5-128,cipher-mode=cbc',
    'cipher-alg=aes-256,cipher-mode=ecb'])
def test_ciphers_of_luks(tmp, options):
    images.img('create', '-q', '-f', 'luks', *SECRET, '-o',
               'key-secret=key,iter-time=10,' + options, tmp / 'image', '1M')
    agree(tmp, tmp / 'image')


def test_raw_ones(tmp):
    images.raw(tmp / 'image', b'x' * 10000)
    mine, peer = both(tmp, tmp / 'image')
    assert (mine['format'], mine['filename'], mine['actual-size']) == (
        peer['format'], peer['filename'], peer['actual-size'])
    # The peer's disks are whole sectors.
    assert mine['virtual-size'] == 10000 and peer['virtual-size'] == 10240
    os.truncate(tmp / 'image', 10240)
    agree(tmp, tmp / 'image')
