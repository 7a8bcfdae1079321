# SPDX-License-Identifier: Apache-2.0
"""Nodes: adding, looking, removing, resizing, creating, and every wrong way of it."""
import images
import pair as pair_module
import pytest

FILE = {'driver': 'file', 'filename': 'DIR/disk.raw'}
QCOW2 = {'driver': 'file', 'filename': 'DIR/disk.qcow2'}


def make_disks(folder):
    images.raw(folder / 'disk.raw', b'\1' * (1 << 20))
    images.qcow2(folder / 'disk.qcow2', '8M', ('disk.raw', 'raw'))


ADD = [
    {}, {'driver': 'nope', 'node-name': 'n'}, {'driver': 'file', 'node-name': 'n'},
    {'driver': 'file', 'filename': 'DIR/disk.raw'},
    {'driver': 'file', 'filename': 'DIR/none', 'node-name': 'n'},
    {'driver': 'file', 'filename': 'DIR', 'node-name': 'n'},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': '1bad'},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'x' * 31},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'x' * 32},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': ''},
    {'driver': 'file', 'filename': 1, 'node-name': 'n'},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'n', 'nope': 1},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'n', 'aio': 'nope'},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'n', 'read-only': 'yes'},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'n', 'cache': {'direct': 1}},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'n', 'cache': {'nope': True}},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'n', 'detect-zeroes': 'unmap'},
    {'driver': 'file', 'filename': 'DIR/disk.raw', 'node-name': 'n', 'aio': 'native'},
    {'driver': 'host_device', 'filename': 'DIR/disk.raw', 'node-name': 'n'},
    {'driver': 'raw', 'node-name': 'n'},
    {'driver': 'raw', 'node-name': 'n', 'file': 'none'},
    {'driver': 'raw', 'node-name': 'n', 'file': 1},
    {'driver': 'raw', 'node-name': 'n', 'file': FILE, 'offset': 512},
    {'driver': 'raw', 'node-name': 'n', 'file': FILE, 'offset': 2 << 20},
    {'driver': 'raw', 'node-name': 'n', 'file': FILE, 'offset': 512, 'size': 1 << 20},
    {'driver': 'raw', 'node-name': 'n', 'file': FILE, 'size': 1000},
    {'driver': 'raw', 'node-name': 'n', 'file': FILE, 'size': -1},
    {'driver': 'qcow2', 'node-name': 'n', 'file': FILE},
    {'driver': 'qcow2', 'node-name': 'n', 'file': dict(QCOW2, filename='DIR/none')},
    {'driver': 'qcow2', 'node-name': 'n', 'file': QCOW2},
    {'driver': 'qcow2', 'node-name': 'n', 'file': QCOW2, 'backing': None},
    {'driver': 'qcow2', 'node-name': 'n', 'file': QCOW2, 'backing': 'none'},
    {'driver': 'qcow2', 'node-name': 'n', 'file': QCOW2, 'l2-cache-size': 'x'},
    {'driver': 'null-co', 'node-name': 'n', 'size': 1 << 20},
    {'driver': 'null-co', 'node-name': 'n', 'size': 1 << 20, 'latency-ns': -1},
    {'driver': 'null-co', 'node-name': 'n', 'read-zeroes': 1},
]


@pytest.mark.parametrize('options', ADD, ids=lambda o: ','.join('%s' % v for v in o.values())[:60])
def test_add(pair, options):
    pair.prepare(make_disks)
    reply = pair.ask('blockdev-add', options)
    if 'return' in reply:
        pair.ask('blockdev-del', {'node-name': options['node-name']})


def test_names(pair):
    pair.prepare(make_disks)
    pair.ask('blockdev-add', dict(FILE, **{'node-name': 'f'}))
    pair.ask('blockdev-add', dict(FILE, **{'node-name': 'f'}))
    pair.ask('blockdev-add', {'driver': 'raw', 'node-name': 'r', 'file': 'f'})
    pair.ask('blockdev-add', {'driver': 'raw', 'node-name': 'r2', 'file': 'f'})
    pair.ask('blockdev-add', {'driver': 'raw', 'node-name': 'r', 'file': 'f'})
    pair.ask('blockdev-del', {'node-name': 'f'})
    pair.ask('blockdev-del', {'node-name': 'none'})
    pair.ask('blockdev-del')
    pair.ask('blockdev-del', {'node-name': 'r'})
    pair.ask('blockdev-del', {'node-name': 'f'})


def without_volatile(node):
    """What depends on the machine's file system is not compared."""
    def strip(image):
        image.pop('actual-size', None)
        image.pop('dirty-flag', None)
        for child in image.get('children', []):
            strip(child['info'])
        if 'backing-image' in image:
            strip(image['backing-image'])
        if 'format-specific' in image and image['format-specific']['type'] == 'file':
            image.pop('format-specific')
    strip(node['image'])
    return node


def auto_names(nodes):
    """Names that a program made up are its own; nodes by what they are."""
    names = {}
    for n in sorted(nodes, key=lambda n: (n['drv'], n['file'])):
        if n['node-name'].startswith('#block'):
            names[n['node-name']] = '#%s:%s' % (n['drv'], n['file'])
    def rename(v):
        if isinstance(v, dict):
            return {k: rename(x) for k, x in v.items()}
        if isinstance(v, list):
            return [rename(x) for x in v]
        return names.get(v, v) if isinstance(v, str) else v
    return sorted((rename(n) for n in nodes), key=lambda n: n['node-name'])


@pytest.mark.parametrize('flat', [None, True, False])
def test_query(pair, flat):
    pair.prepare(make_disks)
    pair.ask('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'file': QCOW2})
    pair.ask('blockdev-add', dict(FILE, **{'node-name': 'ro', 'read-only': True}))

    def query(side):
        reply = side.ask('query-named-block-nodes', None if flat is None else {'flat': flat})
        return [without_volatile(n) for n in auto_names(reply['return'])]
    pair.each(query)


@pytest.mark.parametrize('flat', [True, False])
def test_query_of_views(pair, flat):
    """Filters, parts, and formats on formats tell of what is below them."""
    pair.prepare(make_disks)
    pair.prepare(lambda folder: images.qcow2(folder / 'top.qcow2', '8M',
                                             (folder / 'disk.qcow2', 'qcow2')))
    top = {'driver': 'file', 'filename': 'DIR/top.qcow2'}
    part = {'driver': 'raw', 'file': FILE, 'read-only': True, 'offset': 512, 'node-name': 'part'}
    for options in (
            part,
            {'driver': 'raw', 'file': {'driver': 'qcow2', 'node-name': 'inner', 'file': QCOW2},
             'node-name': 'whole'},
            {'driver': 'compress', 'node-name': 'compress', 'file': {
                'driver': 'qcow2', 'node-name': 'top', 'backing': 'part', 'file': top}},
            {'driver': 'null-co', 'node-name': 'target', 'size': 8 << 20},
            {'driver': 'copy-before-write', 'node-name': 'cbw', 'file': 'whole',
             'target': 'target'}):
        pair.ask('blockdev-add', options)
    pair.ask('blockdev-snapshot-internal-sync', {'device': 'compress', 'name': 's'})
    pair.ask('change-backing-file', {'device': 'compress', 'image-node-name': 'top',
                                     'backing-file': ''})

    def image(i):
        i.pop('actual-size', None)
        i['filename'] = i['filename'].startswith('json:') or i['filename']
        snapshots = [s['name'] for s in i.pop('snapshots', [])]
        below = image(i['backing-image']) if 'backing-image' in i else None
        return {k: v for k, v in i.items() if k not in ('backing-image', 'format-specific')}, \
            snapshots, below

    def query(side):
        reply = side.ask('query-named-block-nodes', {'flat': flat})['return']
        names = ('part', 'inner', 'whole', 'compress', 'top', 'cbw')
        return [(n['node-name'], n['backing_file_depth'], image(n['image']),
                 n.get('backing_file', '')[:5])
                for n in sorted(reply, key=lambda n: n['node-name']) if n['node-name'] in names]
    pair.each(query)


def test_a_part_from_the_start_to_the_end_is_the_whole(pair):
    """An offset of 0 alone: others may have the file as if it were not there."""
    pair.prepare(make_disks)
    pair.ask('blockdev-add', {'driver': 'raw', 'node-name': 'a', 'file': QCOW2, 'offset': 0})
    pair.ask('blockdev-add', {'driver': 'qcow2', 'node-name': 'b', 'file': QCOW2})
    pair.ask('blockdev-add', {'driver': 'raw', 'node-name': 'c', 'file': QCOW2, 'offset': 512})


RESIZE = [{}, {'node-name': 'none', 'size': 1}, {'node-name': 'q', 'size': -1},
          {'node-name': 'q'}, {'node-name': 'q', 'size': 16 << 20},
          {'node-name': 'q', 'size': 1000}, {'node-name': 'ro', 'size': 2 << 20},
          {'device': 'q', 'node-name': 'q', 'size': 512}, {'device': 'none', 'size': 512},
          {'node-name': 'f', 'size': 2 << 20}]


@pytest.mark.parametrize('arguments', RESIZE, ids=str)
def test_resize(pair, arguments):
    pair.prepare(make_disks)
    pair.prepare(lambda folder: images.raw(folder / 'other.raw', b'\0' * 4096))
    pair.ask('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'file': QCOW2})
    pair.ask('blockdev-add', dict(FILE, **{'node-name': 'ro', 'read-only': True}))
    pair.ask('blockdev-add', {'driver': 'file', 'filename': 'DIR/other.raw', 'node-name': 'f'})
    pair.ask('block_resize', arguments)
    pair.each(lambda s: sorted((n['node-name'], n['image']['virtual-size'])
                               for n in s.ask('query-named-block-nodes')['return']
                               if not n['node-name'].startswith('#')))


@pytest.mark.parametrize('options', [
    ['--blockdev', 'file'], ['--blockdev', 'driver=nope'], ['--blockdev', 'nope,node-name=x'],
    ['--blockdev', 'driver=file,filename=DIR/none,node-name=n'],
    ['--blockdev', 'driver=file,filename=DIR/none,node-name=n,=x'],
    ['--blockdev', 'driver=file,filename=DIR/none,node-name=n,read-only=maybe'],
    ['--blockdev', 'driver=file,filename=DIR/none,node-name=n,cache=x'],
    ['--blockdev', 'driver=file,filename=DIR/none,node-name=n,cache.direct=on,cache.direct=x'],
    ['--blockdev', 'driver=file,filename=DIR/none,node-name=n,nope=x'],
    ['--blockdev', 'driver=raw,node-name=n,size=1x,file.driver=null-co'],
    ['--blockdev', '{"driver": "file"'], ['--blockdev', '{"driver": "file"}'],
    ['--blockdev', '[]'], ['--blockdev', ''], ['--blockdev', 'driver'],
    ['--blockdev', 'driver=raw,file=none,node-name=n'],
    ['--nbd-server', 'addr.type=nope'], ['--nbd-server', 'addr.type=unix'], ['--nbd-server', ''],
    ['--export', 'nbd,id=e,node-name=n'], ['--export', 'nope'], ['--export', 'nbd'],
    ['--object', 'nope,id=x'], ['--object', 'iothread'], ['--object', 'iothread,id=a,x=y'],
    ['--monitor', 'x'], ['--chardev', 'null,id=a', '--monitor', 'a', '--monitor', 'a'],
], ids=lambda o: ' '.join(o))
def test_failing_start(tmp, options):
    ours, theirs = pair_module.failing_start(tmp, *options)
    assert ours == theirs
