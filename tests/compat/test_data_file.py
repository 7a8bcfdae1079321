# SPDX-License-Identifier: Apache-2.0
"""External data files: the same answers, locks and permissions as the peer's."""
import os

import images


def file(name, **more):
    return dict({'driver': 'file', 'filename': 'DIR/%s' % name}, **more)


def image(name='i.qcow2', node='n', **more):
    return dict({'driver': 'qcow2', 'node-name': node, 'file': file(name)}, **more)


def make(folder):
    images.qcow2(folder / 'i.qcow2', '4M', None, 'data_file=%s' % (folder / 'i.raw'))
    images.qcow2(folder / 'r.qcow2', '4M', None, 'data_file=%s' % (folder / 'r.raw'),
                 'data_file_raw=on')
    images.qcow2(folder / 'plain.qcow2', '4M')
    images.qcow2(folder / 'v2.qcow2', '4M', None, 'compat=0.10')
    images.raw(folder / 'spare.raw', bytes(1 << 20))
    # A flag without what it says.
    content = bytearray(images.content(folder / 'plain.qcow2'))
    content[95] |= 2
    images.raw(folder / 'bad.qcow2', content)


def test_options(pair):
    pair.prepare(make)
    ask = pair.ask
    ask('blockdev-add', image('plain.qcow2', **{'data-file': file('spare.raw')}))
    ask('blockdev-add', image('v2.qcow2', **{'data-file': file('spare.raw')}))
    ask('blockdev-add', image('bad.qcow2', **{'data-file': file('spare.raw')}))
    ask('blockdev-add', image('bad.qcow2'))
    ask('blockdev-add', image(**{'data-file': 'nothing'}))
    ask('blockdev-add', image(**{'data-file': file('missing.raw')}))
    ask('blockdev-add', image(**{'data-file': None}))
    ask('blockdev-add', image(**{'data-file': file('i.raw')}))
    ask('blockdev-add', image(node='twice', **{'data-file': file('i.raw')}))
    ask('blockdev-del', {'node-name': 'n'})
    ask('blockdev-add', image(**{'data-file': file('i.raw'), 'read-only': True}))
    ask('blockdev-add', image(node='twice', **{'data-file': file('i.raw'), 'read-only': True}))


def test_what_is_told(pair):
    pair.prepare(make)

    def told(side, name):
        nodes = side.ask('query-named-block-nodes', {'flat': True})['return']
        got = {n['node-name']: n for n in nodes}
        return {k: got[name]['image'][k] for k in (
            'virtual-size', 'format-specific', 'filename', 'cluster-size')}, got['d']['ro']
    for name, data in (('i.qcow2', 'i.raw'), ('r.qcow2', 'r.raw'), ('i.qcow2', 'spare.raw')):
        for mode in ({}, {'read-only': True}):
            pair.ask('blockdev-add', image(
                name, **dict({'data-file': file(data, **{'node-name': 'd'})}, **mode)))
            pair.each(lambda side: told(side, 'n'))
            pair.ask('blockdev-del', {'node-name': 'd'})
            pair.ask('blockdev-del', {'node-name': 'n'})


def locks(side, name):
    inode = os.stat(side.folder / name).st_ino
    with open('/proc/locks') as f:
        rows = [line.split() for line in f]
    return sorted((r[3], r[6], r[7]) for r in rows if r[5].endswith(':%d' % inode))


def test_permissions_and_locks(pair):
    pair.prepare(make)
    ask = pair.ask

    def same_locks():
        pair.each(lambda side: [locks(side, name) for name in ('i.qcow2', 'i.raw')])
    ask('blockdev-add', file('i.raw', **{'node-name': 'd'}))
    ask('blockdev-add', image(**{'data-file': 'd'}))
    same_locks()
    ask('block_resize', {'node-name': 'd', 'size': 8 << 20})
    ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/s'}}})
    ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n'})
    same_locks()
    ask('block-export-add', {'type': 'nbd', 'id': 'w', 'node-name': 'n', 'writable': True})
    same_locks()
    ask('block-export-add', {'type': 'nbd', 'id': 'raw', 'node-name': 'd', 'name': 'raw'})
    ask('blockdev-del', {'node-name': 'd'})


def test_resize(pair):
    pair.prepare(make)

    def sizes(side):
        return [os.stat(side.folder / name).st_size for name in ('i.raw', 'r.raw')]
    for name, data in (('i.qcow2', 'i.raw'), ('r.qcow2', 'r.raw')):
        pair.ask('blockdev-add', image(name, name[0], **{'data-file': file(data)}))
    # The peer dies of an assertion where a raw data file is made smaller.
    for size in (6 << 20, 3 << 20, 7 << 20):
        pair.ask('block_resize', {'node-name': 'i', 'size': size})
        pair.each(sizes)
    pair.ask('block_resize', {'node-name': 'r', 'size': 6 << 20})
    pair.each(sizes)
