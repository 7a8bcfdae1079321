# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps of a whole daemon."""
import errno
import os
import random
import resource
import signal

import pytest

import images
import peers

SIZE = 8 << 20


@pytest.fixture
def daemon(start, tmp):
    images.raw(tmp / 'disk.raw', bytes(SIZE))
    d = start('--blockdev', f'file,node-name=file,filename={tmp}/disk.raw',
              '--blockdev', 'raw,node-name=disk,file=file')
    d.sock = tmp / 'nbd'
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(d.sock)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'writable': True})
    return d


def act(daemon, verb, **args):
    daemon.cmd('block-dirty-bitmap-' + verb, args)


def write(daemon, *commands):
    images.io('nbd+unix:///disk?socket=%s' % daemon.sock, *commands)


def bitmaps(daemon, node='disk'):
    nodes = daemon.cmd('query-named-block-nodes', flat=True)
    return {b['name']: b for n in nodes if n['node-name'] == node
            for b in n.get('dirty-bitmaps', [])}


def increment(daemon, tmp, name, below, **how):
    """A backup of what the bitmap marks to a new overlay over the last one."""
    path = tmp / (name + '.qcow2')
    images.qcow2(path, SIZE, below and (below, 'qcow2'))
    daemon.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': name, 'backing': None,
                                'file': {'driver': 'file', 'filename': str(path)}})
    daemon.cmd('blockdev-backup', dict({'job-id': name, 'device': 'disk', 'target': name,
                                        'bitmap': 'b'}, **how))
    daemon.wait_event('JOB_STATUS_CHANGE', id=name, status='null')
    daemon.cmd('blockdev-del', node_name=name)
    return path


@pytest.mark.io
def test_a_node_below_marks_what_comes_from_above(daemon):
    act(daemon, 'add', node='disk', name='a', granularity=4096)
    act(daemon, 'add', node='file', name='a', granularity=512)
    write(daemon, 'write 1000 1', 'write -z 1M 4k')
    assert bitmaps(daemon)['a']['count'] == 8192
    assert bitmaps(daemon, 'file')['a']['count'] == 512 + 4096


def test_merging_nothing_does_nothing(daemon):
    """The peer does not outlive this one."""
    act(daemon, 'add', node='disk', name='a')
    act(daemon, 'merge', node='disk', target='a', bitmaps=[])
    assert bitmaps(daemon)['a']['count'] == 0


def test_merging_is_all_or_nothing(daemon):
    act(daemon, 'add', node='disk', name='a')
    write(daemon, 'write 0 1')
    act(daemon, 'add', node='disk', name='b')
    reply = daemon.ask('block-dirty-bitmap-merge', {'node': 'disk', 'target': 'b',
                                                    'bitmaps': ['a', 'none']})
    assert reply['error']['desc'] == "Dirty bitmap 'none' not found"
    assert bitmaps(daemon)['b']['count'] == 0


@pytest.mark.io
def test_a_chain_of_incremental_backups_restores_the_disk(daemon, tmp):
    """The full one, then overlays, each with what was written since the last; at
    every step the chain shows the disk as it is."""
    rng = random.Random(20261127)
    below = None
    act(daemon, 'add', node='disk', name='b', granularity=4096)
    for step in range(6):
        for _ in range(10):
            off, length = rng.randrange(SIZE - 70000), rng.randrange(1, 70000)
            verb = rng.choice(['write -P %d' % rng.randrange(256), 'write -z', 'discard'])
            write(daemon, '%s %d %d' % (verb, off, length))
        how = {'sync': 'bitmap' if below else 'full', 'bitmap-mode': 'on-success'}
        below = increment(daemon, tmp, 'inc%d' % step, below, **how)
        images.check(below)
        images.tool(peers.QEMU_IMG, 'compare', '-U', '-f', 'raw', '-F', 'qcow2',
                    tmp / 'disk.raw', below)
    assert bitmaps(daemon)['b']['count'] == 0


# ---- persistent ones ----

@pytest.fixture
def image(tmp):
    path = tmp / 'disk.qcow2'
    images.qcow2(path, SIZE)
    return path


def start_on(start, image, **more):
    d = start(**more)
    open_image(d, image)
    d.sock = image.parent / 'nbd'
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(d.sock)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'writable': True})
    return d


def open_image(daemon, image, **more):
    daemon.cmd('blockdev-add', dict({'driver': 'qcow2', 'node-name': 'disk', 'file': {
        'driver': 'file', 'filename': str(image)}}, **more))


def test_a_restart_keeps_them(start, image):
    """By quit and by SIGTERM, while a client is connected or not."""
    d = start_on(start, image)
    act(d, 'add', node='disk', name='b', persistent=True, granularity=4096)
    write(d, 'write 0 1')
    d.stop()
    images.check(image)
    d = start_on(start, image)
    write(d, 'write 1M 1')
    assert bitmaps(d)['b']['count'] == 8192
    d.send_signal(signal.SIGTERM)
    d.wait(0)
    images.check(image)
    d = start_on(start, image)
    assert bitmaps(d)['b']['count'] == 8192


@pytest.mark.parametrize('written', [False, True])
def test_a_killed_daemon_leaves_them_inconsistent_if_it_wrote(start, image, written):
    d = start_on(start, image)
    act(d, 'add', node='disk', name='b', persistent=True)
    write(d, 'write 0 1')
    d.stop()
    d = start_on(start, image)
    if written:
        write(d, 'write 1M 1')
    d.kill()
    info = images.img('info', image)
    assert ('in-use' in info) == written
    d = start_on(start, image)
    b = bitmaps(d)['b']
    if not written:
        assert b['count'] == 65536 and 'inconsistent' not in b
        return
    assert b['inconsistent'] and 'in use' in b['x-quoin-inconsistent-reason']
    for verb in ('clear', 'enable', 'disable'):
        reply = d.ask('block-dirty-bitmap-' + verb, {'node': 'disk', 'name': 'b'})
        assert reply['error']['desc'] == "Bitmap 'b' is inconsistent and cannot be used"
    act(d, 'remove', node='disk', name='b')
    d.stop()
    images.img('check', '-r', 'leaks', image)   # of the kill
    images.check(image)
    assert 'bitmaps' not in images.img('info', image)


def test_a_new_bitmap_leaves_a_trace_if_the_daemon_is_killed(start, image):
    d = start_on(start, image)
    act(d, 'add', node='disk', name='b', persistent=True)
    d.kill()
    d = start_on(start, image)
    assert bitmaps(d)['b']['inconsistent']


@pytest.mark.parametrize('how', ['blockdev-del', 'quit'])
def test_what_cannot_be_stored_is_told(start, image, how):
    """Writes beyond a file's permitted size fail, as on a broken disk."""
    d = start_on(start, image, wrap=('sh', '-c', "trap '' XFSZ; exec \"$@\"", 'sh'))
    act(d, 'add', node='disk', name='b', persistent=True)
    write(d, 'write 0 1')
    resource.prlimit(d.pid, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    if how == 'quit':
        d.stop(status=1)
    else:
        d.cmd('block-export-del', id='e')
        d.cmd('blockdev-del', node_name='disk')
        lost = d.wait_event('X_QUOIN_BITMAP_LOST', node_name='disk')['data']
        assert (lost['name'], lost['error']) == ('b', os.strerror(errno.EFBIG))
        resource.prlimit(d.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        d.stop(status=1)
    assert "bitmap 'b' of node 'disk' could not be stored" in d.stderr()
    d = start_on(start, image)
    assert bitmaps(d)['b']['inconsistent']


def test_a_bitmap_of_an_empty_disk_keeps_nobody_from_the_image(start, tmp):
    """There is nothing that it could mark, and QEMU takes no bitmap of such a disk."""
    path = tmp / 'empty.qcow2'
    images.qcow2(path, 0)
    d = start()
    open_image(d, path)
    act(d, 'add', node='disk', name='b', persistent=True)
    d.stop(status=1)
    assert "bitmap 'b' of node 'disk' could not be stored" in d.stderr()
    images.check(path)
    d = start()
    open_image(d, path)
    assert bitmaps(d)['b']['inconsistent']
    act(d, 'remove', node='disk', name='b')
    d.cmd('block_resize', node_name='disk', size=SIZE)
    act(d, 'add', node='disk', name='b', persistent=True)
    d.stop()
    images.check(path)
    d = start()
    open_image(d, path)
    assert 'inconsistent' not in bitmaps(d)['b']


def test_a_backup_chain_goes_on_after_each_restart(start, image, tmp):
    rng, below = random.Random(7), None
    for step in range(5):
        d = start_on(start, image)
        how = {'sync': 'incremental'}
        if not below:
            act(d, 'add', node='disk', name='b', persistent=True)
            how = {'sync': 'full', 'bitmap-mode': 'on-success'}
        for _ in range(4):
            write(d, 'write -P %d %d %d' % (rng.randrange(256), rng.randrange(SIZE - 90000),
                                            rng.randrange(1, 90000)))
        below = increment(d, tmp, 'inc%d' % step, below, **how)
        if step < 4:    # for the next one, by way of the image
            write(d, 'write -P 1 %d 10' % rng.randrange(SIZE - 10))
        d.stop()
        images.check(below)
        images.check(image)
    images.compare(image, 'qcow2', below, 'qcow2')
