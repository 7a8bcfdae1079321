# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --compress: qcow2 targets of compressed clusters."""
import json
import os
import signal

import images
import peers
import pytest
import quoin
from rescuekit import (MIB, content, create, encrypt, image_opts, noise, qemu_img, rescue, same,
                       small_file_system, standard, write)
from test_rescue_chain import chain
from test_rescue_resume import cut_short, sample

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

KINDS = ['zlib', pytest.param('zstd', marks=pytest.mark.skipif(
    b'libzstd' not in images.content(quoin.QUOIN), reason='built without zstd'))]
COMPRESS = ['--target-format', 'qcow2', '--compress']


def clusters(tmp, path):
    """(all, compressed) clusters that the peer's check counts; it finds nothing wrong."""
    c = json.loads(qemu_img(tmp, 'check', '-f', 'qcow2', '--output=json', path).out)
    assert not c.get('corruptions') and not c.get('leaks')
    return c['allocated-clusters'], c.get('compressed-clusters', 0)


def flat(tmp, path):
    qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', path, tmp / 'flat')
    return content(tmp / 'flat')


@pytest.mark.io
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('source', ['qcow', 'qcow2', 'luks'])
def test_it_is_as_compact_as_what_the_peer_makes(tmp, kind, source):
    plain, image = standard(tmp, source)
    r = rescue(tmp, '--verify', *COMPRESS, kind, image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(flat(tmp, tmp / 'out'), content(plain))
    info = json.loads(qemu_img(tmp, 'info', '--output=json', tmp / 'out').out)
    assert info['format-specific']['data']['compression-type'] == kind
    qemu_img(tmp, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', 'compression_type=' + kind,
             plain, tmp / 'peer')
    mine, theirs = (clusters(tmp, tmp / x) for x in ('out', 'peer'))
    assert mine == theirs and mine[1]
    # Each compresses at a level of its own; what is saved must be about the same.
    assert os.path.getsize(tmp / 'out') <= 1.1 * os.path.getsize(tmp / 'peer') + 65536


def test_extents_that_are_smaller_than_a_cluster(tmp):
    """Holes, zeroes and data of an image with small clusters, over one with others."""
    base = standard(tmp, 'qcow2-luks')[1].rename(tmp / 'base')
    image = create(tmp, 'qcow2', tmp / 'image', str(5 * MIB + 1024),
                   more=',cluster_size=512,backing_file=%s,backing_fmt=qcow2' % base)
    opts = '%s,%s' % (image_opts('qcow2', image), image_opts('qcow2-luks', base, 's', 'backing.'))
    write(tmp, opts, *['write -P %d %d 512' % (65 + i, i * 99 * 512) for i in range(60)],
          *['write -z %d 1k' % (i * 77 * 1024) for i in range(60)], 'write -P 9 5M 1k')
    assert rescue(tmp, image, tmp / 'raw').status == 0
    r = rescue(tmp, '--verify', *COMPRESS, 'zlib', image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(flat(tmp, tmp / 'out'), content(tmp / 'raw'))
    assert clusters(tmp, tmp / 'out')[1]


@pytest.mark.io
def test_a_kept_chain(tmp):
    names, _ = chain(tmp)
    assert rescue(tmp, names[0], tmp / 'raw').status == 0
    r = rescue(tmp, '--keep-chain', '--verify', '--compress', 'zlib', names[0], tmp / 'out')
    assert r.status == 0, r.err
    for n in names:
        assert clusters(tmp, tmp / 'out' / n.name)[1], n
    assert same(flat(tmp, tmp / 'out' / 'top'), content(tmp / 'raw'))


@pytest.mark.parametrize('size', ['2M', '1M'])
def test_large_clusters_of_a_layer(tmp, size):
    plain = standard(tmp, 'qcow2')[0]
    image = encrypt(tmp, 'qcow2', plain, tmp / 'large', more=',cluster_size=' + size)
    r = rescue(tmp, '--keep-chain', '--verify', '--compress', 'zlib', image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(flat(tmp, tmp / 'out' / 'large'), content(plain))


@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on(tmp, sig):
    plain, image = sample(tmp, 'qcow')
    options = [*COMPRESS, 'zlib']
    cut_short(tmp, image, *options, sig=sig)
    r = rescue(tmp, '--resume', *COMPRESS[:2], image, tmp / 'out')
    assert r.status == 1 and 'the options were changed since it was begun' in r.err
    r = rescue(tmp, '--resume', '--verify', *options, image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(flat(tmp, tmp / 'out'), content(plain))
    assert clusters(tmp, tmp / 'out')[1]


@pytest.fixture
def small_disk(tmp):
    """A folder on a file system of 4 MiB."""
    yield from small_file_system(tmp, '4m')


@pytest.mark.parametrize('fits', [True, False])
def test_room_that_may_not_do_is_a_note(tmp, small_disk, fits):
    """How far it can be compressed shows when it is."""
    data = b'text ' * (8 * MIB // 5) if fits else b'text ' * 4096 + noise(tmp / 'n', 8 * MIB).read_bytes()
    (tmp / 'plain').write_bytes(data)
    image = encrypt(tmp, 'qcow2', tmp / 'plain', tmp / 'image')
    r = rescue(tmp, *COMPRESS, 'zlib', image, small_disk / 'out')
    assert 'note: There is not enough room for ' in r.err and 'compressed it takes less' in r.err
    assert r.status == (0 if fits else 1), r.err
    if fits:
        assert same(flat(tmp, small_disk / 'out'), content(tmp / 'plain') + bytes(-len(data) % 512))
    else:
        assert 'No space left on device' in r.err and not os.listdir(small_disk)


def test_what_stays_raw_beside_it_must_have_room(tmp, small_disk):
    image = encrypt(tmp, 'luks', noise(tmp / 'plain', 8 * MIB), tmp / 'base')
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', image, '-F', 'luks', tmp / 'top', '8M')
    r = rescue(tmp, '--keep-chain', '--compress', 'zlib', tmp / 'top', small_disk / 'out')
    assert r.status == 1 and 'There is not enough room' in r.err, r.err
    assert not os.listdir(small_disk)


def test_bad_usage(tmp):
    image = standard(tmp, 'qcow2')[1]
    for argv, text in ((['--compress', 'zlib'], 'only what becomes qcow2 is compressed'),
                       ([*COMPRESS, 'lzma'], 'what compresses is zlib or zstd, not lzma')):
        r = rescue(tmp, *argv, image, tmp / 'out')
        assert r.status == 2 and text in r.err
