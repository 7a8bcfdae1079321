# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --mixed-encryption: clusters that old programs stored with another IV, or as
plain text.  Ciphertext with a given IV is taken from a second image with the same key, at the
place on whose disk that IV is the usual one."""
import json
import signal
import subprocess

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, content, create, disk, encrypt, host_offset, image_opts,
                       noise, peer_content, rescue, same, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

KIB = 1024
CLUSTER = 64 * KIB


def ciphertext(tmp, at, data):
    """A cluster of data as AES images store it, with the IV of this place on a disk."""
    (tmp / 'data').write_bytes(data)
    image = create(tmp, 'qcow2', tmp / 'scratch', str(at + len(data)))
    write(tmp, image_opts('qcow2', image), 'write -s %s %d %d' % (tmp / 'data', at, len(data)))
    host = host_offset(image, at)
    image_bytes = content(image)[host:host + len(data)]
    image.unlink()
    return image_bytes


def patch(path, at, data):
    with open(path, 'r+b') as f:
        f.seek(at)
        f.write(data)


def fill_up_wrongly(tmp, image, guest, data, written):
    """Make a cluster of image one that QEMU 2.7 filled up around what a guest wrote: data with
    the IV of its place in the file, but for the range written of it."""
    host = host_offset(image, guest)
    wrong = ciphertext(tmp, host, data)
    start, end = written
    patch(image, host, wrong[:start])
    patch(image, host + end, wrong[end:])


def mixed_of(tmp, image, *argv):
    """What was found, and the Result."""
    r = rescue(tmp, '--json', '--list', '--mixed-encryption', *argv, image)
    assert r.status == 0, r.err
    return [layer.get('mixed') for layer in json.loads(r.out)['layers']], r


@pytest.fixture
def filled(tmp):
    """An image with a cluster that was filled up wrongly; and what its disk should hold."""
    image = create(tmp, 'qcow2', tmp / 'image', '4M')
    write(tmp, image_opts('qcow2', image), 'write -P 66 2M 1M',
          'write -P 65 %d 4k' % (3 * CLUSTER + 16 * KIB))
    fill_up_wrongly(tmp, image, 3 * CLUSTER, bytes(CLUSTER), (16 * KIB, 20 * KIB))
    want = bytearray(4 * MIB)
    want[2 * MIB:3 * MIB] = b'B' * MIB
    want[3 * CLUSTER + 16 * KIB:3 * CLUSTER + 20 * KIB] = b'A' * 4096
    return image, bytes(want)


@pytest.mark.io
def test_a_cluster_filled_up_with_the_iv_of_the_file(tmp, filled):
    image, want = filled
    peer = peer_content(tmp, image_opts('qcow2', image))
    assert peer != want and peer[3 * CLUSTER + 8:3 * CLUSTER + 512] == bytes(504)
    r = rescue(tmp, '--mixed-encryption', '--verify', image, tmp / 'out')
    assert r.status == 0, r.err
    assert '0 B are not encrypted, and 60 KiB with the IV of their place in the file' in r.err
    assert 'bytes %d to %d of the disk: file-iv' % (3 * CLUSTER, 3 * CLUSTER + 16 * KIB - 1) in r.err
    assert same(content(tmp / 'out'), want)


def test_the_report_has_every_range(tmp, filled):
    found, _ = mixed_of(tmp, filled[0])
    assert found == [[
        {'offset': 3 * CLUSTER, 'length': 16 * KIB, 'reading': 'file-iv'},
        {'offset': 3 * CLUSTER + 20 * KIB, 'length': 44 * KIB, 'reading': 'file-iv'}]]


def test_without_the_option_it_is_read_as_the_peer_reads_it_and_said(tmp, filled):
    image, _ = filled
    patch(image, host_offset(image, 2 * MIB), (b'some text ' * 409)[:7 * 512])
    r = rescue(tmp, '--json', '--verify', image, tmp / 'out')
    assert r.status == 0
    assert same(content(tmp / 'out'), peer_content(tmp, image_opts('qcow2', image)))
    assert ('%s: 127 sectors look as if they were stored otherwise, the first at byte %d of the '
            'disk; --mixed-encryption looks closer' % (image, 3 * CLUSTER)) in r.err
    assert json.loads(r.out)['layers'][0]['suspect-sectors'] == 127


def test_what_was_copied_from_a_base(tmp):
    """Text, filled up around noise that a guest wrote."""
    text = b''.join(b'line %d of a file that is in the base\n' % i for i in range(3000))
    base = (text * 50)[:4 * MIB]
    (tmp / 'base').write_bytes(base)
    noise(tmp / 'noise', 8 * KIB)
    image = create(tmp, 'qcow2', tmp / 'image', '4M',
                   more=',backing_file=%s,backing_fmt=raw' % (tmp / 'base'))
    opts = image_opts('qcow2', image)
    write(tmp, opts, 'write -s %s %d 8k' % (tmp / 'noise', 5 * CLUSTER + 24 * KIB),
          'write -P 65 1M 64k')
    fill_up_wrongly(tmp, image, 5 * CLUSTER, base[5 * CLUSTER:6 * CLUSTER],
                    (24 * KIB, 32 * KIB))
    want = bytearray(base + bytes(4 * MIB - len(base)))
    want[5 * CLUSTER + 24 * KIB:5 * CLUSTER + 32 * KIB] = content(tmp / 'noise')
    want[MIB:MIB + CLUSTER] = b'A' * CLUSTER
    r = rescue(tmp, '--mixed-encryption', image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), bytes(want))


@pytest.mark.parametrize('kind', ['qcow', 'qcow2'])
def test_clusters_left_as_plain_text(tmp, kind):
    """With noise in one of them, as a backup leaves them that knows no key."""
    cluster = 4096 if kind == 'qcow' else CLUSTER
    plain, image = standard(tmp, kind)
    want = bytearray(content(plain))
    noise(tmp / 'noise', cluster)
    data = (b'a line of text\n' * cluster)[:cluster // 2] + content(tmp / 'noise')[:cluster // 2]
    at = 12 * 65536
    write(tmp, image_opts(kind, image), 'write -P 65 %d %d' % (at, 2 * cluster))
    for i in range(2):
        patch(image, host_offset(image, at + i * cluster), data)
        want[at + i * cluster:at + (i + 1) * cluster] = data
    found, _ = mixed_of(tmp, image)
    assert found == [[{'offset': at, 'length': 2 * cluster, 'reading': 'plain-text'}]]
    r = rescue(tmp, '--mixed-encryption', '--verify', image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), bytes(want))


def test_space_that_was_allocated_and_never_written(tmp):
    image = create(tmp, 'qcow2', tmp / 'image', '8M', more=',preallocation=metadata')
    write(tmp, image_opts('qcow2', image), 'write -P 65 1M 1M')
    r = rescue(tmp, '--mixed-encryption', image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), bytes(MIB) + b'A' * MIB + bytes(6 * MIB))


@pytest.mark.parametrize('kind', ['qcow', 'qcow2', 'qcow2-luks', 'luks'])
def test_good_images_are_not_disturbed(tmp, kind):
    plain = disk(tmp / 'plain', 16, seed=7)
    image = encrypt(tmp, kind, plain, tmp / 'image')
    found, r = mixed_of(tmp, image)
    assert found == [[] if kind in ('qcow', 'qcow2') else None]
    assert rescue(tmp, '--mixed-encryption', image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))
    assert 'look as if' not in rescue(tmp, '--force', image, tmp / 'out').err
    assert same(content(tmp / 'out'), content(plain))


def test_each_layer_of_a_chain_is_looked_at(tmp, filled):
    base, want = filled
    base = base.rename(tmp / 'base')
    top = create(tmp, 'qcow2', tmp / 'top', '4M',
                 more=',backing_file=%s,backing_fmt=qcow2' % base)
    write(tmp, '%s,%s' % (image_opts('qcow2', top), image_opts('qcow2', base, 's', 'backing.')),
          'write -P 67 1M 128k')
    patch(top, host_offset(top, MIB), b'C' * CLUSTER)
    found, r = mixed_of(tmp, top)
    assert [len(f) for f in found] == [1, 2]
    r = rescue(tmp, '--mixed-encryption', '--keep-chain', '--verify', top, tmp / 'out')
    assert r.status == 0, r.err
    peers_view = peer_content(tmp, 'driver=qcow2,file.driver=file,file.filename=%s' % (
        tmp / 'out' / 'top'))
    assert same(peers_view, want[:MIB] + b'C' * 2 * CLUSTER + want[MIB + 2 * CLUSTER:])


def test_damaged_places_are_passed_over(tmp, filled):
    image, _ = filled
    with open(image, 'r+b') as f:
        f.truncate(host_offset(image, 3 * CLUSTER) + 32 * KIB)
    r = rescue(tmp, '--mixed-encryption', '--salvage', image, tmp / 'out')
    assert r.status == 5, r.err
    assert content(tmp / 'out')[3 * CLUSTER:3 * CLUSTER + 16 * KIB] == bytes(16 * KIB)


def test_a_signal_ends_the_look(tmp):
    """By the same way out as any other: what runs first is not the copy."""
    image = encrypt(tmp, 'qcow2', noise(tmp / 'plain', 64 * MIB), tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--accept-unverified-key', '--mixed-encryption',
                          '--key-file', tmp / 'key', image, tmp / 'out'], stderr=subprocess.PIPE,
                         env=quoin.environment(tmp), text=True)
    first = p.stderr.readline()     # the key is taken; the look begins
    p.send_signal(signal.SIGTERM)
    err = first + p.communicate(timeout=quoin.LIMIT)[1]
    if p.returncode == 0:
        pytest.skip('it had ended before the signal could be sent')
    assert p.returncode == -signal.SIGTERM, err
    assert not (tmp / 'out').exists()
