# SPDX-License-Identifier: Apache-2.0
"""quoin rescue of damaged images: the first bad place is named; --salvage goes on,
puts zeroes there and leaves a map."""
import os
import re
import shutil
import subprocess

import peers
import pytest
import quoin
from rescuekit import (MIB, content, create, disk, encrypt, image_opts, noise, qemu_img, rescue,
                       same, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

CLUSTER = 65536


class Map:
    """A mapfile of ddrescue."""

    def __init__(self, path):
        with open(path) as f:
            lines = f.read().splitlines()
        self.comments = [x[1:].strip() for x in lines if x.startswith('#')]
        rest = [x.split() for x in lines if not x.startswith('#')]
        assert len(rest[0]) == 3 and rest[0][1] == '+'
        self.blocks = [(int(off, 16), int(n, 16), status) for off, n, status in rest[1:]]
        at = 0
        for off, n, status in self.blocks:
            assert off == at and n > 0 and status in '+-'
            at = off + n
        self.size = at
        self.lost = [(off, n) for off, n, status in self.blocks if status == '-']
        self.reasons = [re.sub(r'^0x\S+\s+0x\S+\s+\S+: ', '', c) for c in self.comments
                        if re.match(r'0x\S+\s+0x\S+\s+\S', c)]


def be64(image, at):
    image.seek(at)
    return int.from_bytes(image.read(8), 'big')


def put64(image, at, value):
    image.seek(at)
    image.write(value.to_bytes(8, 'big'))


def l2_entry(image, guest, l1_at=40, cluster=CLUSTER):
    """Where the L2 entry of a guest offset stands."""
    per_table = cluster // 8 * cluster
    table = be64(image, be64(image, l1_at) + 8 * (guest // per_table)) & ((1 << 56) - 512)
    assert table
    return table + 8 * (guest % per_table // cluster)


def assert_salvaged(tmp, image, want, lost, reason):
    """Without --salvage it names the first lost place; with it, all else is there."""
    r = rescue(tmp, image, tmp / 'strict')
    assert r.status == 1, r
    assert re.search(r"Could not read '\S+' at byte %d of the disk" % lost[0][0], r.err), r.err
    assert reason in r.err, r.err
    assert not os.path.exists(tmp / 'strict')
    r = rescue(tmp, '--salvage', '--verify', image, tmp / 'out')
    assert r.status == 5, r
    assert 'some of its data is missing' in r.err
    m = Map(tmp / 'out.map')
    assert m.lost == lost
    assert m.size == len(want)
    assert m.reasons == [reason] * len(lost), m.comments
    want = bytearray(want)
    for off, n in lost:
        want[off:off + n] = bytes(n)
    assert same(content(tmp / 'out'), bytes(want))
    assert os.stat(tmp / 'out.map').st_mode & 0o7777 == 0o600
    if shutil.which('ddrescuelog'):
        p = subprocess.run(['ddrescuelog', '-b1', '--list-blocks=-', tmp / 'out.map'],
                           capture_output=True, text=True, check=True)
        assert len(p.stdout.split()) == sum(n for _, n in lost)
    return r


def full(tmp, kind='qcow2', mib=4):
    """An image without holes: text, a pattern and noise."""
    with open(tmp / 'plain', 'wb') as f:
        f.write(b'text ' * (MIB // 5) + b'x')
        f.write(noise(tmp / 'noise', (mib - 1) * MIB).read_bytes())
    return content(tmp / 'plain'), encrypt(tmp, kind, tmp / 'plain', tmp / 'image')


MAPPING = 'the tables that say where it is are damaged or cannot be read'
PACKED = 'the compressed data there cannot be read or does not unpack'
ENDS = 'the image file ends before it'
UNREADABLE = 'the image file cannot be read there'


@pytest.mark.io
@pytest.mark.parametrize('kind', ['qcow2', 'qcow2-luks'])
def test_a_corrupt_l2_entry_loses_its_cluster(tmp, kind):
    plain, image = full(tmp, kind)
    with open(image, 'r+b') as f:
        entry = l2_entry(f, 2 * MIB)
        put64(f, entry, be64(f, entry) | 0x200)     # no cluster starts there
    assert_salvaged(tmp, image, plain, [(2 * MIB, CLUSTER)], MAPPING)


def test_corrupt_entries_in_several_places(tmp):
    plain, image = full(tmp)
    with open(image, 'r+b') as f:
        for at in (3 * MIB, 3 * MIB + CLUSTER, 2 * MIB):
            entry = l2_entry(f, at)
            put64(f, entry, be64(f, entry) | 0x200)
    assert_salvaged(tmp, image, plain, [(2 * MIB, CLUSTER), (3 * MIB, 2 * CLUSTER)], MAPPING)


def test_a_corrupt_l1_entry_loses_its_table(tmp):
    """With clusters of 4 KiB, each entry maps 2 MiB."""
    plain = disk(tmp / 'plain', 6)
    image = encrypt(tmp, 'qcow2', plain, tmp / 'image', more=',cluster_size=4k')
    with open(image, 'r+b') as f:
        l1 = be64(f, 40)
        put64(f, l1 + 8, be64(f, l1 + 8) | 0x200)
    assert_salvaged(tmp, image, content(plain), [(2 * MIB, 2 * MIB)], MAPPING)


def test_compressed_data_that_does_not_unpack(tmp):
    plain, base = full(tmp)
    want = bytearray(plain)
    want[MIB:2 * MIB] = b'word ' * (MIB // 5) + b'x'
    (tmp / 'changed').write_bytes(want)
    qemu_img(tmp, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', tmp / 'changed', tmp / 'top')
    qemu_img(tmp, 'rebase', '-u', '-f', 'qcow2', '-b', base, '-F', 'qcow2', tmp / 'top')
    at = MIB + 3 * CLUSTER
    with open(tmp / 'top', 'r+b') as f:
        entry = be64(f, l2_entry(f, at))
        assert entry & 1 << 62
        f.seek(entry & ((1 << 54) - 1))
        f.write(b'\xff' * 64)
    assert_salvaged(tmp, tmp / 'top', bytes(want), [(at, CLUSTER)], PACKED)


@pytest.mark.parametrize('kind', ['qcow', 'qcow2', 'qcow2-luks'])
def test_a_file_that_was_cut_off(tmp, kind):
    plain, image = full(tmp, kind)
    cut = os.path.getsize(image) - 512 * 3
    r = rescue(tmp, image, tmp / 'whole')
    assert r.status == 0
    os.truncate(image, cut)
    # What was at the end of the file is found by what has become different.
    r = rescue(tmp, '--salvage', image, tmp / 'out')
    assert r.status == 5, r.err
    (off, n), = Map(tmp / 'out.map').lost
    assert n == 512 * 3
    os.unlink(tmp / 'out')
    os.unlink(tmp / 'out.map')
    assert_salvaged(tmp, image, plain, [(off, n)], ENDS)


def test_a_plain_layer_that_was_cut_off(tmp):
    plain = noise(tmp / 'noise', 4 * MIB).read_bytes()
    qemu_img(tmp, 'convert', '-f', 'raw', '-O', 'qcow2', tmp / 'noise', tmp / 'base')
    image = create(tmp, 'qcow2', tmp / 'top', '4M',
                   more=',backing_file=%s,backing_fmt=qcow2' % (tmp / 'base'))
    write(tmp, image_opts('qcow2', image), 'write -P 65 0 64k')
    with open(tmp / 'base', 'r+b') as f:
        start = be64(f, l2_entry(f, 3 * MIB)) & ((1 << 56) - 512)
        f.truncate(start + 1000)
    # The cluster that is cut is there up to its end; what follows it in the file is not.
    want = b'A' * CLUSTER + plain[CLUSTER:3 * MIB + 1000] + bytes(CLUSTER - 1000)
    r = rescue(tmp, image, tmp / 'strict')
    assert r.status == 1 and ENDS in r.err, r.err
    r = rescue(tmp, '--salvage', image, tmp / 'out')
    assert r.status == 5, r.err
    m = Map(tmp / 'out.map')
    assert m.lost == [(3 * MIB + CLUSTER, MIB - CLUSTER)]
    assert same(content(tmp / 'out'), want + bytes(MIB - CLUSTER))


@pytest.mark.parametrize('kind', ['qcow', 'qcow2'])
def test_tables_behind_the_end_of_the_file_are_no_empty_disk(tmp, kind):
    """A file that was cut off before its tables must not look like zeroes."""
    with open(tmp / 'plain', 'wb') as f:
        f.write(b'text ' * (MIB // 5 * 6))
        f.truncate(6 * MIB)
    more = ',cluster_size=4k' if kind == 'qcow2' else ''
    image = encrypt(tmp, kind, tmp / 'plain', tmp / 'image', more=more)
    span = 2 * MIB                  # of an L2 table, in both
    with open(image, 'r+b') as f:
        tables = [be64(f, be64(f, 40) + 8 * i) & ((1 << 56) - 512) for i in range(3)]
        f.truncate(max(tables))
    r = rescue(tmp, image, tmp / 'strict')
    assert r.status == 1, r
    r = rescue(tmp, '--salvage', image, tmp / 'out')
    assert r.status == 5, r.err
    m = Map(tmp / 'out.map')
    lost = tables.index(max(tables)) * span
    assert (lost, span) in [(off, min(n, span)) for off, n in m.lost], m.blocks
    want = bytearray(content(tmp / 'plain'))
    for off, n in m.lost:
        want[off:off + n] = bytes(n)
    assert same(content(tmp / 'out'), bytes(want))


def test_a_device_with_bad_sectors(tmp):
    """A loop device whose file became shorter fails to read what is gone."""
    plain, image = full(tmp, 'luks')
    size = os.path.getsize(image)
    p = subprocess.run(['losetup', '-r', '-f', '--show', '--direct-io=on', image],
                       capture_output=True, text=True)
    if p.returncode:
        pytest.skip('loop devices cannot be used here: ' + p.stderr.strip())
    device = p.stdout.strip()
    try:
        os.truncate(image, size - MIB)
        with open(device, 'rb') as f:
            f.seek(size - 4096)
            try:
                f.read(512)
                pytest.skip('this kernel gives zeroes for what a loop device has lost')
            except OSError:
                pass
        assert_salvaged(tmp, device, plain, [(3 * MIB, MIB)], UNREADABLE)
    finally:
        subprocess.run(['losetup', '-d', device], check=True)


@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_salvage_of_a_sound_image_leaves_a_map_without_losses(tmp, target):
    plain, image = standard(tmp, 'qcow2')
    r = rescue(tmp, '--salvage', '--map', tmp / 'map', '--target-format', target, image,
               tmp / 'out')
    assert r.status == 0, r.err
    m = Map(tmp / 'map')
    assert m.blocks == [(0, 4 * MIB, '+')]


def test_an_existing_map_is_not_replaced(tmp):
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'out.map').write_text('precious')
    r = rescue(tmp, '--salvage', image, tmp / 'out')
    assert r.status == 1 and '--force' in r.err
    assert (tmp / 'out.map').read_text() == 'precious'
    assert not os.path.exists(tmp / 'out')


@pytest.mark.parametrize('name, more', [
    ('sub/../out', []), ('.out.rescue', ['--resume']), ('.out.rescue-state', ['--resume']),
    ('./.out.rescue-state.new', ['--resume'])])
def test_the_map_is_never_the_target_nor_what_becomes_it(tmp, name, more):
    """By whatever path, and not by force either."""
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'sub').mkdir()
    for force in ([], ['--force']):
        r = rescue(tmp, '--salvage', *force, *more, '--map', '%s/%s' % (tmp, name), image, tmp / 'out')
        assert r.status == 1 and 'The map cannot be ' in r.err, r.err
        assert sorted(os.listdir(tmp)) == ['image', 'key', 'plain', 'sub']


@pytest.mark.parametrize('kind', ['qcow', 'qcow2'])
def test_an_image_of_which_nothing_can_be_read_is_not_said_to_need_no_key(tmp, kind):
    plain, image = full(tmp, kind)
    with open(image, 'r+b') as f:
        table = max(be64(f, be64(f, 40)) & ((1 << 56) - 512), be64(f, 40))
        f.truncate(table + (4096 if kind == 'qcow' else CLUSTER))       # before all data
    r = rescue(tmp, '--list', image)
    assert r.status == 4, r
    assert 'it cannot be judged whether' in r.err
    assert 'nothing that may be encrypted can be read' in r.err
    assert rescue(tmp, '--salvage', image, tmp / 'out').status == 4
    r = rescue(tmp, '--salvage', '--accept-unverified-key', image, tmp / 'out')
    assert r.status == 5, r.err
    assert same(content(tmp / 'out'), bytes(len(plain)))
    assert sum(n for _, n in Map(tmp / 'out.map').lost) == len(plain)


def test_the_damage_goes_to_standard_output_as_zeroes(tmp):
    plain, image = full(tmp)
    with open(image, 'r+b') as f:
        entry = l2_entry(f, 2 * MIB)
        put64(f, entry, be64(f, entry) | 0x200)
    (tmp / 'key').write_text('geheim und lang genug')
    p = subprocess.run([quoin.QUOIN, 'rescue', '--salvage', '--map', tmp / 'map', '--key-file',
                        tmp / 'key', image, '-'], capture_output=True, timeout=quoin.LIMIT,
                       env=quoin.environment(tmp))
    assert p.returncode == 5, p.stderr
    want = plain[:2 * MIB] + bytes(CLUSTER) + plain[2 * MIB + CLUSTER:]
    assert same(p.stdout, want)
    assert Map(tmp / 'map').lost == [(2 * MIB, CLUSTER)]
