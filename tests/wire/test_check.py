# SPDX-License-Identifier: Apache-2.0
"""quoin check: is an image sound, and repairing it."""
import json
import os
import struct

import broken
import images
import peers
import pytest
import quoin

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


@pytest.fixture
def check(run):
    return lambda *argv: run(quoin.QUOIN, 'check', *argv)


def patch(path, off, fmt, value):
    with open(path, 'r+b') as f:
        f.seek(off)
        f.write(struct.pack(fmt, value))


def read(path, off, fmt):
    with open(path, 'rb') as f:
        f.seek(off)
        return struct.unpack(fmt, f.read(struct.calcsize(fmt)))[0]


def first_block(path):
    return read(path, read(path, 48, '>Q'), '>Q')


@pytest.fixture
def sample(tmp):
    path = tmp / 'image'
    images.qcow2(path)
    images.tool(peers.QEMU_IO, '-f', 'qcow2', '-c', 'write -P 1 0 200k', path)
    return path


def test_a_sound_image(check, sample):
    r = check(sample)
    assert r.status == 0 and not r.err
    assert r.out == ('No errors were found on the image.\n'
                     '4/64 = 6.25% allocated, 0.00% fragmented, 0.00% compressed clusters\n'
                     'Image end offset: 589824\n')
    assert check('-q', sample).out == ''


def test_leaks_alone_have_a_status_of_their_own(check, sample):
    os.truncate(sample, os.path.getsize(sample) + 65536)
    patch(sample, first_block(sample) + 2 * 9, '>H', 1)
    r = check(sample)
    assert r.status == 3
    assert r.err == 'Leaked cluster 9 refcount=1 reference=0\n'
    r = check('-r', 'leaks', sample)
    assert r.status == 0
    assert 'The following inconsistencies were found and repaired:\n\n    1 leaked clusters\n' in r.out
    images.check(sample)


def test_corruption_has_another(check, sample):
    patch(sample, first_block(sample) + 2 * 8, '>H', 0)
    r = check('--output', 'json', sample)
    assert r.status == 2
    assert json.loads(r.out)['corruptions'] == 2
    assert check('--repair=leaks', sample).status == 1
    assert check('--repair=all', sample).status == 0
    images.check(sample)


def test_an_image_marked_corrupt_is_checked_and_unmarked(check, sample):
    patch(sample, 72, '>Q', 3)
    assert check(sample).status == 0
    assert read(sample, 72, '>Q') == 3
    assert check('-r', 'all', sample).status == 0
    assert read(sample, 72, '>Q') == 0


def test_counts_that_are_gone_altogether_come_back(check, sample):
    patch(sample, read(sample, 48, '>Q'), '>Q', 0)
    assert check('-r', 'all', sample).status == 0
    patch(sample, 56, '>I', 0)
    r = check('-r', 'all', sample)
    assert r.status == 0 and 'Rebuilding refcount structure' in r.err
    images.check(sample)
    assert images.tool(peers.QEMU_IO, '-f', 'qcow2', '-c', 'read -P 1 0 200k', sample)


def test_a_backing_file_that_is_gone_is_not_missed(check, tmp):
    images.raw(tmp / 'base', b'x' * 65536)
    images.qcow2(tmp / 'top', '1M', (tmp / 'base', 'raw'))
    os.unlink(tmp / 'base')
    assert check(tmp / 'top').status == 0


def test_an_encrypted_image_needs_no_key(check, tmp):
    for kind in ('qcow2-aes', 'qcow2-luks'):
        images.ENCRYPTED[kind](tmp / kind, 'secret')
        images.write_encrypted(kind, tmp / kind, 'secret', 'write -P 7 0 300k')
        patch(tmp / kind, first_block(tmp / kind) + 2, '>H', 2)
        assert check(tmp / kind).status == 3    # of the refcount table: it has no flag
        assert check('-r', 'all', tmp / kind).status == 0
        images.decrypt(kind, tmp / kind, 'secret', tmp / 'plain')
        assert (tmp / 'plain').read_bytes()[:300 << 10] == b'\7' * (300 << 10)


def test_formats_without_a_check(check, tmp):
    images.raw(tmp / 'raw', b'QFI' * 1000)
    images.img('create', '-q', '-f', 'qcow', tmp / 'qcow', '1M')
    for argv in ((tmp / 'raw',), (tmp / 'qcow',), ('-f', 'raw', tmp / 'qcow'), (os.devnull,)):
        r = check(*argv)
        assert (r.status, r.out) == (63, '')
        assert r.err == 'quoin check: This image format does not support checks\n'


def test_what_cannot_be_checked(check, sample):
    for argv, text in (((sample, sample), 'Expecting one image file name'),
                       (('-r', 'some', sample), "--repair (-r) expects 'leaks' or 'all' not 'some'"),
                       (('--output', 'x', sample), "--output expects 'human' or 'json' not 'x'"),
                       (('-f', 'x', sample), "Could not open '%s': Unknown driver 'x'" % sample),
                       (('-r', 'all', '-U', sample), 'force-share=on can only be used'),
                       (('/nonexistent',), "Could not open '/nonexistent': No such file"),
                       (('-f', 'qcow', sample), 'qcow (v1) does not support qcow version 3')):
        r = check(*argv)
        assert r.status == 1 and text in r.err, r.err


def test_a_daemons_image_is_refused(check, start, sample):
    d = start('--blockdev', 'qcow2,node-name=n,file.driver=file,file.filename=%s' % sample)
    r = check(sample)
    assert r.status == 1
    assert r.err == ('quoin check: Could not open \'%s\': Failed to get shared "write" lock\n'
                     'Is another process using the image [%s]?\n' % (sample, sample))
    assert check('-r', 'all', sample).status == 1
    assert check('-U', sample).status == 0
    d.stop()
    assert check(sample).status == 0


def test_two_may_check_at_once(check, start, sample):
    start('--blockdev', 'qcow2,node-name=n,read-only=on,file.driver=file,file.filename=%s' % sample)
    assert check(sample).status == 0
    r = check('-r', 'all', sample)
    assert r.status == 1 and 'lock' in r.err


def test_a_large_hole_costs_no_memory(run, sample):
    """A terabyte that holds nothing, in clusters of 64 KiB: 16 million of them."""
    os.truncate(sample, 1 << 40)
    limit = '' if 'asan' in quoin.QUOIN or 'tsan' in quoin.QUOIN else 'ulimit -v 200000;'
    r = run('sh', '-c', limit + ' exec "$0" check "$1"', quoin.QUOIN, sample)
    assert r.status == 0, r.err


def test_more_clusters_than_can_be_counted_are_an_error(check, tmp):
    images.qcow2(tmp / 'image', '1M', None, 'cluster_size=512')
    with open(tmp / 'image', 'r+b') as f:
        try:
            f.truncate(513 << 31)
        except OSError as e:
            pytest.skip('no file of a terabyte here: %s' % e)
    r = check(tmp / 'image')
    assert r.status == 1
    assert r.err == 'quoin check: Check failed: File too large\n'


def test_a_full_disk_is_said(run, sample):
    """The repair has to write beyond what the file may have."""
    patch(sample, read(sample, 48, '>Q'), '>Q', 0)
    size = os.path.getsize(sample)

    before = sample.read_bytes()
    r = run('sh', '-c', 'ulimit -f %d; exec "$0" check -r all "$1"' % (size // 512), quoin.QUOIN,
            sample)
    assert r.status == 1 and 'File too large' in r.err, r
    after = sample.read_bytes()
    block = slice(2 << 16, 3 << 16)     # the old block: nothing refers to it any more
    assert after.replace(after[block], before[block]) == before
    assert run(quoin.QUOIN, 'check', '-r', 'all', sample).status == 0


# ---- scenarios that QEMU's own tests guard ----

@pytest.mark.parametrize('options', [
    'cluster_size=512', 'cluster_size=512,refcount_bits=1', 'cluster_size=512,refcount_bits=64',
    'cluster_size=2M', 'compat=0.10,cluster_size=4k'])
def test_all_counts_are_made_anew_for_any_width(check, tmp, options):
    """So many clusters, where they are small, that the table has to be larger."""
    path = tmp / 'image'
    images.qcow2(path, '8M', None, *options.split(','))
    images.tool(peers.QEMU_IO, '-f', 'qcow2', '-c', 'write -P 5 1M 6M', path)
    table = read(path, 48, '>Q')
    with open(path, 'r+b') as f:
        f.seek(table)
        f.write(bytes(512))
    r = check('-r', 'all', path)
    assert r.status == 0 and 'Rebuilding refcount structure' in r.err
    images.check(path)
    out = images.tool(peers.QEMU_IO, '-f', 'qcow2', '-c', 'read -P 5 1M 6M', '-c', 'read -P 0 0 1M',
                      path)
    assert 'failed' not in out


def test_guest_data_on_a_refcount_block_is_found_and_parted(check, sample):
    """What the guest would write there would be counts."""
    im = broken.Image(sample.read_bytes())
    entry, _ = im.l2_entries()[1]
    patch(sample, entry, '>Q', im.blocks()[0] | 1 << 63)
    r = check(sample)
    assert r.status == 2 and 'ERROR refcount block 0 refcount=2' in r.err
    assert check('-r', 'all', sample).status == 0
    images.check(sample)
    im = broken.Image(sample.read_bytes())
    assert not set(im.blocks()) & {h for _, h in im.l2_entries()}


@pytest.mark.parametrize('what', ['L1 table', 'L2 table', 'refcount table'])
def test_guest_data_on_a_table_is_found(check, sample, what):
    im = broken.Image(sample.read_bytes())
    place = {'L1 table': im.l1, 'L2 table': im.l2_tables()[0], 'refcount table': im.reftable}[what]
    patch(sample, im.l2_entries()[1][0], '>Q', place | 1 << 63)
    r = check(sample)
    assert r.status == 2
    assert 'ERROR cluster %d refcount=1 reference=2' % (place // im.cluster) in r.err
    # Not ours alone any more: the guest's next write goes elsewhere.
    assert check('-r', 'all', sample).status == 0
    images.tool(peers.QEMU_IO, '-f', 'qcow2', '-c', 'write -P 9 64k 64k', sample)
    images.check(sample)


def test_a_cluster_beyond_all_bounds_is_found_soon(check, sample):
    im = broken.Image(sample.read_bytes())
    patch(sample, im.l2_entries()[0][0], '>Q', 1 << 55)
    r = check(sample)
    assert r.status == 2 and 'exceeding the end of the file' in r.err
    assert check('-r', 'all', sample).status == 2


def test_a_repair_takes_no_place_that_a_table_is_missing_from(check, sample):
    """The L1 table is where the file does not reach: nothing else must come there."""
    im = broken.Image(sample.read_bytes())
    l1 = len(im.data) + im.cluster
    patch(sample, 40, '>Q', l1)
    patch(sample, im.reftable, '>Q', 0)
    assert check('-r', 'all', sample).status == 2
    with open(sample, 'rb') as f:
        f.seek(l1)
        assert not any(f.read(8))
