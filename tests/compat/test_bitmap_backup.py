# SPDX-License-Identifier: Apache-2.0
"""Backups that a bitmap guides: every pair of modes, good ends and bad ones, what
becomes of the bitmap and what is on the target.

The peer lists the bitmaps that its filter keeps for itself as the filter's; quoind's
filter has none to show, so filters are not looked at."""
import itertools
import json

import pytest

import images

SIZE = 8 << 20
SYNCS = ('full', 'top', 'none', 'incremental', 'bitmap')
MODES = (None, 'on-success', 'never', 'always')


def make_disks(folder):
    images.qcow2(folder / 'base.qcow2', SIZE)
    images.io(folder / 'base.qcow2', 'write -P 1 0 8M', fmt='qcow2')
    images.qcow2(folder / 'disk.qcow2', SIZE, ('base.qcow2', 'qcow2'))
    images.io(folder / 'disk.qcow2', 'write -P 2 1M 1M', fmt='qcow2')
    images.qcow2(folder / 'target.qcow2', SIZE)
    images.qcow2(folder / 'small.qcow2', SIZE // 2)


@pytest.fixture
def disks(pair):
    pair.prepare(make_disks)
    for name in ('disk', 'target', 'small'):
        pair.ask('blockdev-add', {
            'driver': 'qcow2', 'node-name': name, 'discard': 'unmap',
            'file': {'driver': 'file', 'filename': 'DIR/%s.qcow2' % name}})
    pair.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/nbd'}}})
    pair.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk',
                                  'writable': True})
    pair.ask('block-dirty-bitmap-add', {'node': 'disk', 'name': 'b', 'granularity': 65536})
    return pair


def write(pair, *commands):
    for s in pair.sides:
        images.io('nbd+unix:///disk?socket=%s/nbd' % s.folder, *commands)


def bitmaps(pair):
    def look(side):
        nodes = side.ask('query-named-block-nodes', {'flat': True})['return']
        return {n['node-name']: n.get('dirty-bitmaps') for n in nodes
                if n['node-name'] in ('disk', 'target')}
    return pair.each(look)


def backup(pair, **more):
    args = {'job-id': 'j', 'device': 'disk', 'target': 'target', 'sync': 'bitmap',
            'bitmap': 'b', 'bitmap-mode': 'on-success'}
    args.update(more)
    return pair.ask('blockdev-backup', {k: v for k, v in args.items() if v is not None})


def wait_for(pair, status):
    for s in pair.sides:
        s.daemon.wait_event('JOB_STATUS_CHANGE', id='j', status=status)


def same_target(pair):
    """The targets, and what of them is allocated, are equal."""
    for s in pair.sides:
        s.ask('blockdev-del', {'node-name': 'target'})
        images.check(s.folder / 'target.qcow2')
    a, b = (s.folder / 'target.qcow2' for s in pair.sides)
    images.compare(a, 'qcow2', b, 'qcow2')
    maps = [images.img('map', '--output=json', '-f', 'qcow2', p) for p in (a, b)]
    assert strip(maps[0]) == strip(maps[1])


def strip(text):
    """Where a map changes from one kind of data to another; not where it lies."""
    kinds = [(e['start'], e['data'], e['zero']) for e in json.loads(text)]
    return [k for k, before in zip(kinds, [None] + kinds) if not before or k[1:] != before[1:]]


@pytest.mark.parametrize('sync', SYNCS)
@pytest.mark.parametrize('bitmap', [None, 'none', 'b'])
@pytest.mark.parametrize('mode', MODES)
def test_words_for_wrong_modes(disks, sync, bitmap, mode):
    """Right ones are refused for the target's size."""
    assert 'error' in backup(disks, target='small', sync=sync, bitmap=bitmap,
                             **{'bitmap-mode': mode})
    bitmaps(disks)


GOOD = [(s, m) for s, m in itertools.product(SYNCS, MODES)
        if s != 'none' and (m != 'never' or s == 'bitmap')
        and (m == 'on-success' or s != 'incremental') and m]


@pytest.mark.parametrize('sync, mode', GOOD)
def test_a_backup_that_ends_well(disks, sync, mode):
    write(disks, 'write -P 3 100k 1', 'write -P 4 5M 200k')
    backup(disks, sync=sync, **{'bitmap-mode': mode, 'auto-finalize': False})
    wait_for(disks, 'pending')
    write(disks, 'write -P 5 7M 64k', 'write -z 100k 64k')
    bitmaps(disks)
    for verb in ('remove', 'clear', 'enable', 'disable'):
        disks.ask('block-dirty-bitmap-' + verb, {'node': 'disk', 'name': 'b'})
    backup(disks, **{'job-id': 'k', 'target': 'small'})
    disks.ask('job-finalize', {'id': 'j'})
    wait_for(disks, 'null')
    bitmaps(disks)
    same_target(disks)


@pytest.mark.parametrize('sync, mode', [g for g in GOOD if g[1] != 'always'])
def test_a_backup_that_is_cancelled(disks, sync, mode):
    write(disks, 'write -P 3 100k 1', 'write -P 4 5M 200k')
    backup(disks, sync=sync, **{'bitmap-mode': mode, 'auto-finalize': False})
    wait_for(disks, 'pending')
    write(disks, 'write -P 5 7M 64k')
    disks.ask('job-cancel', {'id': 'j'})
    wait_for(disks, 'null')
    bitmaps(disks)


def test_always_after_a_cancel_forgets_what_was_copied(disks):
    write(disks, 'write -P 3 100k 1', 'write -P 4 5M 200k')
    backup(disks, **{'bitmap-mode': 'always', 'auto-finalize': False})
    wait_for(disks, 'pending')
    write(disks, 'write -P 5 7M 64k')
    disks.ask('job-cancel', {'id': 'j'})
    wait_for(disks, 'null')
    assert bitmaps(disks)['disk'][0]['count'] == 65536


@pytest.mark.parametrize('granularity', [4096, 65536, 1 << 20])
@pytest.mark.parametrize('tail', [512, 32768, 98304])
def test_the_last_granule_is_short(pair, granularity, tail):
    size = (2 << 20) + tail

    def make(folder):
        images.qcow2(folder / 'disk.qcow2', size)
        images.qcow2(folder / 'target.qcow2', size)
    pair.prepare(make)
    for name in ('disk', 'target'):
        pair.ask('blockdev-add', {
            'driver': 'qcow2', 'node-name': name,
            'file': {'driver': 'file', 'filename': 'DIR/%s.qcow2' % name}})
    pair.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/nbd'}}})
    pair.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk',
                                  'writable': True})
    pair.ask('block-dirty-bitmap-add', {'node': 'disk', 'name': 'b',
                                        'granularity': granularity})
    write(pair, 'write -P 7 %d 1' % (size - 1), 'write -P 8 0 1')
    bitmaps(pair)
    backup(pair)
    wait_for(pair, 'null')
    bitmaps(pair)
    same_target(pair)


# ---- the filter alone ----

@pytest.fixture
def filtered(pair):
    """A filter that keeps what bitmap b marks; nobody uses it yet."""
    pair.prepare(make_disks)
    for name in ('disk', 'target', 'small'):
        pair.ask('blockdev-add', {
            'driver': 'qcow2', 'node-name': name,
            'file': {'driver': 'file', 'filename': 'DIR/%s.qcow2' % name}})
    pair.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/nbd'}}})
    for node in ('disk', 'small'):
        pair.ask('block-dirty-bitmap-add', {'node': node, 'name': 'b', 'granularity': 65536})
    return pair


def add_filter(pair, bitmap):
    return pair.ask('blockdev-add', {
        'driver': 'copy-before-write', 'node-name': 'cbw', 'file': 'disk', 'target': 'target',
        'bitmap': bitmap})


@pytest.mark.parametrize('bitmap', [
    {'node': 'none', 'name': 'b'}, {'node': 'disk', 'name': 'none'},
    {'node': 'small', 'name': 'b'}, {'node': 'disk'}], ids=str)
def test_a_filter_with_a_wrong_bitmap(filtered, bitmap):
    assert 'error' in add_filter(filtered, bitmap)


def test_a_filter_keeps_what_its_bitmap_marks(filtered):
    filtered.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk',
                                      'writable': True})
    write(filtered, 'write -P 3 1M 1', 'write -P 4 5M 64k')
    filtered.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
    for s in filtered.sides:
        s.daemon.wait_event('BLOCK_EXPORT_DELETED')
    add_filter(filtered, {'node': 'disk', 'name': 'b'})
    filtered.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'cbw',
                                      'name': 'disk', 'writable': True})
    write(filtered, 'write -P 9 0 2M', 'write -P 9 5M 100')
    filtered.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
    for s in filtered.sides:
        s.daemon.wait_event('BLOCK_EXPORT_DELETED')
    filtered.ask('blockdev-del', {'node-name': 'cbw'})
    same_target(filtered)
