# SPDX-License-Identifier: Apache-2.0
"""The first version of qcow: made, written and read by quoind and by QEMU's tools."""
import os
import random

import images
import peers
import pytest
import quoin

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


def create(d, path, size, **more):
    d.cmd('blockdev-create', {'job-id': 'c', 'options': {
        'driver': 'file', 'filename': str(path), 'size': 0}})
    finish(d)
    d.cmd('blockdev-add', {'driver': 'file', 'node-name': 'f', 'filename': str(path)})
    d.cmd('blockdev-create', {'job-id': 'c', 'options': dict(
        {'driver': 'qcow', 'file': 'f', 'size': size}, **more)})
    error = finish(d)
    d.cmd('blockdev-del', node_name='f')
    return error


def finish(d):
    d.qmp.wait_event('JOB_STATUS_CHANGE', id='c', status='concluded')
    error = d.cmd('query-jobs')[0].get('error')
    d.cmd('job-dismiss', id='c')
    return error


def serve(d, tmp, path, **more):
    """An NBD URI of the image, writable."""
    d.cmd('blockdev-add', dict({'driver': 'qcow', 'node-name': 'q',
                                'file': {'driver': 'file', 'filename': str(path)}}, **more))
    sock = tmp / 'nbd'
    if not os.path.exists(sock):
        d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(sock)}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'q', 'name': 'q',
                               'writable': True})
    return 'nbd+unix:///q?socket=%s' % sock


def drop(d):
    d.cmd('block-export-del', id='e', mode='hard')
    d.qmp.wait_event('BLOCK_EXPORT_DELETED', id='e')
    d.cmd('blockdev-del', node_name='q')


def io(target, fmt, *commands):
    out = images.tool(peers.QEMU_IO, '-f', fmt, *[x for c in commands for x in ('-c', c)], target)
    assert 'failed' not in out, out


def writes(seed, size, n=60):
    """The same qemu-io commands as a list, and what they make of a disk."""
    r = random.Random(seed)
    disk, commands = bytearray(size), []
    for i in range(n):
        length = r.randrange(1, 9000 if i % 5 else 200000)
        off = r.randrange(size - length)
        value = r.randrange(1, 255)
        disk[off:off + length] = bytes([value]) * length
        commands.append('write -P %d %d %d' % (value, off, length))
    return commands, bytes(disk)


def content(tmp, path, fmt='qcow'):
    images.img('convert', '-f', fmt, '-O', 'raw', path, tmp / 'raw')
    return (tmp / 'raw').read_bytes()


@pytest.mark.io
def test_written_by_quoind_read_by_qemu(start, tmp):
    d = start()
    commands, disk = writes(1, 3 << 20)
    assert not create(d, tmp / 'image', 3 << 20)
    io(serve(d, tmp, tmp / 'image'), 'raw', *commands)
    drop(d)
    assert content(tmp, tmp / 'image') == disk


def test_written_by_qemu_read_and_overwritten_by_quoind(start, tmp):
    commands, disk = writes(2, 3 << 20)
    images.img('create', '-q', '-f', 'qcow', tmp / 'image', '3M')
    io(tmp / 'image', 'qcow', *commands[:30])
    d = start()
    uri = serve(d, tmp, tmp / 'image')
    io(uri, 'raw', *commands[30:])
    assert content(tmp, uri, 'raw') == disk
    drop(d)
    assert content(tmp, tmp / 'image') == disk
    io(tmp / 'image', 'qcow', 'write -P 9 1M 64k')
    assert content(tmp, serve(d, tmp, tmp / 'image'), 'raw')[1 << 20] == 9


def test_created_alike(start, tmp):
    images.raw(tmp / 'base', b'B' * 65536)
    d = start()
    for size, backing in ((65536, None), (1000, None), (5 << 30, None), (65536, 'base')):
        assert not create(d, tmp / 'own', size, **({'backing-file': backing} if backing else {}))
        options = ['-o', 'backing_file=base,backing_fmt=raw'] if backing else []
        images.tool('sh', '-c', 'cd "$0"; exec "$@"', tmp, peers.QEMU_IMG, 'create', '-q', '-f',
                    'qcow', *options, 'peer', (size + 511) // 512 * 512)
        own, peer = (tmp / 'own').read_bytes(), (tmp / 'peer').read_bytes()
        # The peer's size is in whole sectors, by qemu-img.
        assert own[:24] + own[32:] == peer[:24] + peer[32:]
        os.unlink(tmp / 'own')


def test_an_overlay_shows_its_backing_file(start, tmp):
    images.raw(tmp / 'base', bytes(range(256)) * 4096)
    d = start()
    assert not create(d, tmp / 'top', 1 << 20, **{'backing-file': 'base'})
    uri = serve(d, tmp, tmp / 'top', backing={
        'driver': 'raw', 'file': {'driver': 'file', 'filename': str(tmp / 'base')}})
    io(uri, 'raw', 'write -P 7 1000 3000', 'write -P 8 500k 100k')
    want = bytearray((tmp / 'base').read_bytes())
    want[1000:4000] = b'\7' * 3000
    want[500 << 10:600 << 10] = b'\10' * (100 << 10)
    assert content(tmp, uri, 'raw') == want
    drop(d)
    images.tool('sh', '-c', 'cd "$0"; exec "$@"', tmp, peers.QEMU_IMG, 'convert', '--image-opts',
                'driver=qcow,file.filename=top,backing.driver=raw,backing.file.filename=base',
                '-O', 'raw', 'flat')
    assert (tmp / 'flat').read_bytes() == want


def test_compressed_clusters_are_read_and_overwritten(start, tmp):
    images.img('create', '-q', '-f', 'qcow', tmp / 'image', '1M')
    io(tmp / 'image', 'qcow', *['write -c -P %d %dk 4k' % (i + 1, 4 * i) for i in range(200)])
    disk = b''.join(bytes([i + 1]) * 4096 for i in range(200)).ljust(1 << 20, b'\0')
    images.raw(tmp / 'plain', disk)
    assert os.path.getsize(tmp / 'image') < 200 * 2048
    d = start()
    uri = serve(d, tmp, tmp / 'image')
    assert content(tmp, uri, 'raw') == disk
    commands, _ = writes(4, 1 << 20, 20)
    io(uri, 'raw', *commands)
    io(tmp / 'plain', 'raw', *commands)
    drop(d)
    assert content(tmp, tmp / 'image') == (tmp / 'plain').read_bytes()


def test_it_does_not_change_its_size(start, tmp):
    d = start()
    assert not create(d, tmp / 'image', 1 << 20)
    d.cmd('blockdev-add', {'driver': 'qcow', 'node-name': 'q',
                           'file': {'driver': 'file', 'filename': str(tmp / 'image')}})
    with pytest.raises(quoin.QmpError, match='Image format driver does not support resize'):
        d.cmd('block_resize', node_name='q', size=2 << 20)


def test_what_is_not_created(start, tmp):
    d = start()
    assert create(d, tmp / 'image', 0) == 'Image size is too small, cannot be zero length'
    d.cmd('blockdev-add', {'driver': 'file', 'node-name': 'f', 'filename': str(tmp / 'image')})
    with pytest.raises(quoin.QmpError, match='makes no encrypted images'):
        d.cmd('blockdev-create', {'job-id': 'c', 'options': {
            'driver': 'qcow', 'file': 'f', 'size': 1 << 20, 'encrypt': {'format': 'qcow'}}})


def test_an_encrypted_one_stays_refused(start, tmp):
    images.qcow_aes(tmp / 'image', 'secret')
    with pytest.raises(quoin.QmpError, match='quoin rescue'):
        start().cmd('blockdev-add', {'driver': 'qcow', 'node-name': 'q', 'file': {
            'driver': 'file', 'filename': str(tmp / 'image')}})
