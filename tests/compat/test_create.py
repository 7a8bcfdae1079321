# SPDX-License-Identifier: Apache-2.0
"""blockdev-create: the peer's texts in the peer's order, and the peer's images."""
import itertools
import json
import os
import random

import pytest

import images

SIZE = 3 << 20


def create(side, options):
    """The job's error, or None, or the command's own error."""
    reply = side.ask('blockdev-create', {'job-id': 'j', 'options': options})
    if 'error' in reply:
        return reply['error']
    while True:
        jobs = side.ask('query-jobs')['return']
        if jobs[0]['status'] == 'concluded':
            break
        side.daemon.wait_event('JOB_STATUS_CHANGE', id='j')
    side.ask('job-dismiss', {'id': 'j'})
    return jobs[0].get('error')


def on_nodes(pair, *names):
    """Empty files as nodes of these names."""
    pair.prepare(lambda folder: [images.raw(folder / name, b'') for name in names])
    for name in names:
        pair.ask('blockdev-add', {'driver': 'file', 'node-name': name,
                                  'filename': 'DIR/%s' % name})


WRONG = {
    'size': (SIZE + 1,), 'version': ('v2',), 'cluster-size': (3, 256, 4 << 20),
    'refcount-bits': (0, 3, 128, 8), 'lazy-refcounts': (True,), 'extended-l2': (True,),
    'compression-type': ('zstd',), 'preallocation': ('metadata', 'full'),
    'backing-file': ('x',), 'backing-fmt': ('raw',), 'data-file': ('d', 'none'),
    'data-file-raw': (True,),
}
LARGE = [(1 << 63) - (1 << 10), (1 << 63), (1 << 64) - 512, (1 << 63) - (1 << 30),
         (1 << 63) - (1 << 29), 1 << 60]


def test_what_is_wrong_is_said_in_the_same_order(pair):
    """All pairs of options, and many larger sets of them."""
    on_nodes(pair, 'f', 'd')
    rng = random.Random(7)
    each = [(k, v) for k, values in WRONG.items() for v in values]
    sets = [dict(s) for s in itertools.combinations(each, 2)]
    sets += [dict(rng.sample(each, rng.randrange(3, 7))) for _ in range(150)]
    sets += [{'size': s, 'cluster-size': c} for s in LARGE for c in (512, 65536, 2 << 20)]
    for more in sets:
        options = dict({'driver': 'qcow2', 'file': 'f', 'size': SIZE}, **more)
        pair.each(lambda side, o=options: create(side, o))


def test_nodes_that_are_not_there_or_taken(pair):
    on_nodes(pair, 'f', 'd', 'g')
    for options in ({'file': 'none'}, {'file': 'none', 'size': 1}, {'data-file': 'none'},
                    {'file': {'driver': 'file', 'filename': 'DIR/missing'}}):
        pair.each(lambda side, o=options: create(side, dict(
            {'driver': 'qcow2', 'file': 'f', 'size': SIZE}, **o)))
    pair.each(lambda side: create(side, {'driver': 'qcow2', 'file': 'f', 'size': SIZE}))
    pair.ask('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'file': 'f'})
    for options in ({'file': 'f'}, {'file': 'd', 'data-file': 'f'}, {'file': 'g', 'data-file': 'g'}):
        ours, theirs = (create(side, dict({'driver': 'qcow2', 'size': SIZE}, **options))
                        for side in pair.sides)
        # The peer's user is a node that it makes up a name for, ours a root.
        assert ours.split("'")[:3] == theirs.split("'")[:3]
        assert ours.startswith('Permission conflict on node')


IMAGES = {
    'default': {},
    'v2': {'version': 'v2'},
    'lazy': {'lazy-refcounts': True},
    'zstd': {'compression-type': 'zstd'},
    'subclusters': {'extended-l2': True},
    'backing': {'backing-file': 'base', 'backing-fmt': 'raw'},
    'backing without a format': {'backing-file': 'base'},
    'v2 with backing': {'version': 'v2', 'backing-file': 'b' * 200, 'backing-fmt': 'qcow2'},
    'empty': {'size': 0},
    'large': {'size': 1 << 44},
    'data file': {'data-file': 'd'},
    'raw data file': {'data-file': 'd', 'data-file-raw': True},
    'all at once': {'lazy-refcounts': True, 'compression-type': 'zstd', 'extended-l2': True,
                    'refcount-bits': 64, 'data-file': 'd', 'backing-file': 'base',
                    'backing-fmt': 'raw'},
    **{'cluster %d' % (1 << b): {'cluster-size': 1 << b} for b in range(9, 22)},
    **{'refcount %d' % (1 << b): {'refcount-bits': 1 << b} for b in range(7)},
    **{'preallocation %s' % p: {'preallocation': p} for p in ('metadata', 'falloc', 'full')},
    **{'small clusters, %s' % p: {'preallocation': p, 'cluster-size': 4096, 'refcount-bits': 64}
       for p in ('metadata', 'falloc', 'full')},
    **{'subclusters, %s' % p: {'preallocation': p, 'extended-l2': True}
       for p in ('metadata', 'falloc', 'full')},
    **{'data file, %s' % p: {'preallocation': p, 'data-file': 'd'}
       for p in ('metadata', 'falloc', 'full')},
}


def told(side, name):
    """What qemu-img says of the image, without what the folder's name is part of."""
    path = side.folder / name
    images.check(path)
    info = json.loads(images.img('info', '-U', '--output=json', path))
    for key in ('filename', 'actual-size', 'full-backing-filename', 'children'):
        info.pop(key, None)
    info['format-specific']['data'].pop('data-file', None)
    # Not where in the file, and so not where it goes on elsewhere.
    found = []
    for e in json.loads(images.img('map', '-U', '--output=json', path)):
        kind = tuple(e[k] for k in ('present', 'zero', 'data'))
        if not found or found[-1][1] != kind:
            found.append((e['start'], kind))
    return info, found


@pytest.mark.parametrize('kind', IMAGES)
def test_images(pair, kind):
    """The same to qemu-img; and without a data file's name, the same bytes, but that the
    peer cuts the file behind the last entry of a table."""
    options = dict({'driver': 'qcow2', 'file': 'f', 'size': SIZE}, **IMAGES[kind])
    on_nodes(pair, 'f', 'd')
    pair.prepare(lambda folder: images.raw(folder / 'base', b''))
    pair.prepare(lambda folder: images.qcow2(folder / ('b' * 200), '1M'))
    pair.each(lambda side: create(side, options))
    for name in ('f', 'd'):
        pair.ask('blockdev-del', {'node-name': name})
    if kind != 'large':     # qemu-img takes long to look through that
        pair.each(lambda side: told(side, 'f'))
    pair.each(lambda side: os.stat(side.folder / 'd').st_size)
    if 'data-file' not in options and 'preallocation' not in options:
        pair.each(lambda side: images.content(side.folder / 'f').rstrip(b'\0'))


@pytest.mark.parametrize('mode', ['off', 'metadata', 'falloc', 'full'])
@pytest.mark.parametrize('before', [1 << 20, 5 << 20])
def test_what_a_data_file_holds(pair, mode, before):
    """Its bytes within the disk stay; its size is the peer's."""
    on_nodes(pair, 'f')
    pair.prepare(lambda folder: images.raw(folder / 'd', b'd' * before))
    pair.ask('blockdev-add', {'driver': 'file', 'node-name': 'd', 'filename': 'DIR/d'})
    pair.each(lambda side: create(side, {
        'driver': 'qcow2', 'file': 'f', 'size': SIZE, 'data-file': 'd', 'preallocation': mode}))
    pair.each(lambda side: images.content(side.folder / 'd'))
    for name in ('f', 'd'):
        pair.ask('blockdev-del', {'node-name': name})
    pair.each(lambda side: told(side, 'f'))


def test_plain_files(pair):
    pair.prepare(lambda folder: os.mkdir(folder / 'dir'))

    def make(side, options):
        error = create(side, dict({'driver': 'file'}, **options))
        path = side.folder / 'f'
        return error, error is None and (os.stat(path).st_size, os.stat(path).st_mode)
    for options in (
            {}, {'size': 1000}, {'size': 0}, {'preallocation': 'falloc'}, {'preallocation': 'full'},
            {'preallocation': 'metadata'}, {'preallocation': 'off', 'nocow': True},
            {'extent-size-hint': 0}, {'extent-size-hint': 1 << 20}, {'extent-size-hint': 12345},
            {'extent-size-hint': (1 << 32) - 1}, {'extent-size-hint': 1 << 32},
            {'size': 1 << 63}, {'size': (1 << 64) - 1}, {'filename': 'DIR/none/f'},
            {'filename': 'DIR/dir'}, {'filename': ''}):
        pair.each(lambda side, o=options: make(side, dict(
            {'filename': 'DIR/f', 'size': 65536}, **o)))
