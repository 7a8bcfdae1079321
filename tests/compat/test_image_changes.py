# SPDX-License-Identifier: Apache-2.0
"""Commands that change an open image: block_resize, change-backing-file,
x-blockdev-amend."""
import pytest

import images

MB = 1 << 20


def make_disks(folder):
    images.qcow2(folder / 'base.qcow2', '8M')
    images.io(folder / 'base.qcow2', 'write -P 1 0 8M', fmt='qcow2')
    images.qcow2(folder / 'over.qcow2', '8M', (folder / 'base.qcow2', 'qcow2'))
    images.io(folder / 'over.qcow2', 'write -P 2 7M 1M', fmt='qcow2')
    images.qcow2(folder / 'v2.qcow2', '8M', None, 'compat=0.10')
    images.img('snapshot', '-c', 's', folder / 'v2.qcow2')
    images.qcow2(folder / 'snap.qcow2', '8M')
    images.io(folder / 'snap.qcow2', 'write -P 3 0 8M', fmt='qcow2')
    images.img('snapshot', '-c', 's', folder / 'snap.qcow2')
    images.raw(folder / 'disk.raw', bytes(MB))


def add(pair, name, driver, filename, **more):
    return pair.ask('blockdev-add', dict({
        'driver': driver, 'node-name': name,
        'file': {'driver': 'file', 'node-name': name + '-file', 'filename': 'DIR/' + filename}},
        **more))


@pytest.fixture
def disks(pair):
    pair.prepare(make_disks)
    add(pair, 'base', 'qcow2', 'base.qcow2')
    add(pair, 'raw', 'raw', 'disk.raw')
    return pair


def end(pair, *nodes):
    """Close them; all images are sound, and show the same on both sides."""
    for n in nodes:
        pair.ask('blockdev-del', {'node-name': n})

    def look(side):
        shown = {}
        for path in sorted(side.folder.glob('*.qcow2')):
            images.check(path)
            raw = side.folder / 'shown'
            images.img('convert', '-O', 'raw', path, raw)
            shown[path.name] = hash(raw.read_bytes())
        return shown
    pair.each(look)


# ---- block_resize ----

def resize(pair, node, size):
    return pair.ask('block_resize', {'node-name': node, 'size': size})


def test_resizing_both_ways(disks):
    for size in (16 * MB, 5 * MB, 5 * MB + 512, 5 * MB + 100, 7 * MB, 0, MB):
        resize(disks, 'base', size)
    for size in (2 * MB, 1000, 3 * MB + 1):
        resize(disks, 'raw', size)
    disks.ask('block_resize', {'node-name': 'raw-file', 'size': 1000})
    end(disks, 'base')
    disks.each(lambda side: (side.folder / 'disk.raw').stat().st_size)


def test_sizes_and_nodes_that_are_refused(disks):
    for size in (-1, 1 << 62, (1 << 63) - 512, 1.5, '1'):
        assert 'error' in resize(disks, 'base', size)
    for args in ({}, {'size': 1}, {'device': 'base', 'size': 512}, {'device': 'x', 'size': 512},
                 {'device': 'x', 'node-name': 'base', 'size': 513},
                 {'node-name': 'none', 'size': 512}, {'node-name': 'base-file', 'size': 512}):
        assert 'error' in disks.ask('block_resize', args)


def test_resizing_images_with_snapshots(disks):
    add(disks, 'v2', 'qcow2', 'v2.qcow2')
    add(disks, 'snap', 'qcow2', 'snap.qcow2')
    resize(disks, 'v2', 16 * MB)
    resize(disks, 'snap', 3 * MB)
    resize(disks, 'snap', 12 * MB)
    end(disks, 'v2', 'snap', 'base')

    def look(side):
        images.img('snapshot', '-a', 's', side.folder / 'snap.qcow2')
        return images.io(side.folder / 'snap.qcow2', 'read -P 3 0 8M', fmt='qcow2')[:10]
    disks.each(look)


def test_resizing_within_a_chain(disks):
    add(disks, 'over', 'qcow2', 'over.qcow2', backing='base')
    resize(disks, 'base', 16 * MB)
    for size in (6 * MB, 10 * MB, 3 * MB + 512, 8 * MB):
        resize(disks, 'over', size)
    end(disks, 'over', 'base')


def test_resizing_read_only_nodes(disks):
    add(disks, 'ro', 'qcow2', 'snap.qcow2', **{'read-only': True})
    resize(disks, 'ro', 16 * MB)


# ---- change-backing-file ----

def rename(pair, device, node, name):
    return pair.ask('change-backing-file', {'device': device, 'image-node-name': node,
                                            'backing-file': name})


def named(pair):
    """What the header of over.qcow2 says."""
    def look(side):
        for n in side.ask('query-named-block-nodes', {'flat': True})['return']:
            if n['node-name'] == 'over':
                return {k: v for k, v in n['image'].items() if k.startswith('backing-file')
                        or k.startswith('full-backing')}
    return pair.each(look)


def test_another_backing_file_name(disks):
    add(disks, 'over', 'qcow2', 'over.qcow2', backing='base')
    rename(disks, 'over', 'over', 'base.qcow2')
    assert named(disks)['backing-filename'] == 'base.qcow2'
    rename(disks, 'over', 'over', 'elsewhere/' + 'x' * 300)
    named(disks)
    rename(disks, 'over', 'over', 'base.qcow2')
    named(disks)
    end(disks, 'over', 'base')


def test_backing_file_names_that_are_refused(disks):
    add(disks, 'over', 'qcow2', 'over.qcow2', backing='base')
    for device, node, name in (
            ('over', 'base', 'b'), ('over', 'none', 'b'), ('none', 'over', 'b'),
            ('over', 'raw', 'b'), ('raw', 'raw', 'b'), ('over', 'over-file', 'b'),
            ('base', 'over', 'b'), ('raw', 'over', 'b'), ('over', 'over', 'x' * 1024)):
        assert 'error' in rename(disks, device, node, name), (device, node)
    disks.ask('change-backing-file', {'device': 'over', 'image-node-name': 'over'})
    named(disks)


def test_the_backing_file_name_of_a_read_only_node(disks):
    add(disks, 'over', 'qcow2', 'over.qcow2', backing='base', **{'read-only': True})
    rename(disks, 'over', 'over', 'base.qcow2')
    named(disks)
    end(disks, 'over', 'base')


# ---- x-blockdev-amend ----

def amend(pair, node, options, **more):
    return pair.ask('x-blockdev-amend', dict({'job-id': 'j', 'node-name': node,
                                              'options': options}, **more))


def ended(pair):
    def look(side):
        side.daemon.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded')
        jobs = side.ask('query-jobs')['return']
        side.ask('job-dismiss', {'id': 'j'})
        return jobs, [e['data'] for e in side.events()]
    return pair.each(look)


def test_amending_nothing(disks):
    amend(disks, 'base', {'driver': 'qcow2'})
    ended(disks)
    amend(disks, 'base', {'driver': 'qcow2'}, force=True)
    ended(disks)


def test_amending_an_encryption_that_is_not_there(disks):
    amend(disks, 'base', {'driver': 'qcow2', 'encrypt': {'format': 'luks', 'state': 'active'}})
    ended(disks)


def test_what_cannot_be_amended(disks):
    for node, options in (
            ('none', {'driver': 'qcow2'}), ('raw', {'driver': 'qcow2'}),
            ('raw', {'driver': 'raw'}), ('base', {'driver': 'luks', 'state': 'active'}),
            ('base', {'driver': 'qcow2', 'encrypt': {'format': 'luks'}}), ('base', {}),
            ('base', {'driver': 'qcow2', 'size': 1})):
        assert 'error' in amend(disks, node, options)
