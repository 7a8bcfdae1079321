# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots of a whole daemon, under clients that write."""
import subprocess

import pytest

import images
import peers

MB = 1 << 20
SIZE = 32 * MB


def start_with_image(start, tmp, *options):
    images.qcow2(tmp / 'disk.qcow2', SIZE, None, *options)
    d = start('--blockdev', f'file,node-name=file,filename={tmp}/disk.qcow2',
              '--blockdev', 'qcow2,node-name=disk,file=file')
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(tmp / 'nbd')}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'writable': True})
    d.uri = 'nbd+unix:///disk?socket=%s/nbd' % tmp
    return d


def take(d, name):
    d.cmd('blockdev-snapshot-internal-sync', {'device': 'disk', 'name': name})


def drop(d, name):
    return d.cmd('blockdev-snapshot-delete-internal-sync', {'device': 'disk', 'name': name})


def shown(tmp, name=None):
    """The bytes of a snapshot, or of the disk, as qemu-img reads them."""
    which = ['-l', 'snapshot.name=' + name] if name else []
    images.img('convert', *which, '-O', 'raw', tmp / 'disk.qcow2', tmp / 'raw')
    return (tmp / 'raw').read_bytes()


def test_what_is_written_behind_a_snapshot_does_not_show_in_it(start, tmp):
    d = start_with_image(start, tmp)
    images.io(d.uri, 'write -P 1 0 2M')
    take(d, 'one')
    images.io(d.uri, 'write -P 2 1M 2M', 'write -z 0 64k')
    take(d, 'two')
    images.io(d.uri, 'write -P 3 0 4M', 'discard 4M 1M')
    d.stop()
    images.check(tmp / 'disk.qcow2')
    assert shown(tmp, 'one')[:4 * MB] == bytes([1]) * 2 * MB + bytes(2 * MB)
    assert shown(tmp, 'two')[:4 * MB] == (
        bytes(65536) + bytes([1]) * (MB - 65536) + bytes([2]) * 2 * MB + bytes(MB))
    assert shown(tmp)[:4 * MB] == bytes([3]) * 4 * MB


@pytest.mark.io
@pytest.mark.parametrize('options', [(), ('cluster_size=4k', 'refcount_bits=32'),
                                     ('extended_l2=on',)])
def test_snapshots_come_and_go_while_clients_write(start, tmp, options):
    """Each client writes ever larger numbers upwards through its part, so that every
    snapshot must hold a number, and behind some place the one before it."""
    d = start_with_image(start, tmp, *options)
    rounds, block, part = 4, 256 << 10, 8 * MB
    clients = []
    for k in range(4):
        argv = [peers.QEMU_IO, '-f', 'raw', d.uri]
        for n in range(1, rounds + 1):
            for off in range(k * part, (k + 1) * part, block):
                argv += ['-c', 'write -q -P %d %d %d' % (n, off, block)]
        clients.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL))
    taken = 0
    while any(c.poll() is None for c in clients):
        take(d, 's%d' % taken)
        if taken >= 3:
            drop(d, 's%d' % (taken - 3))
        taken += 1
    assert [c.wait() for c in clients] == [0] * 4
    last = taken
    d.stop()
    images.check(tmp / 'disk.qcow2')
    for n in range(max(0, last - 3), last):
        data = shown(tmp, 's%d' % n)
        for k in range(4):
            values = [data[off] for off in range(k * part, (k + 1) * part, block)]
            assert values == sorted(values, reverse=True), n
            assert values[0] - values[-1] <= 1
            for off in range(k * part, (k + 1) * part, block):
                assert len(set(data[off:off + block])) <= 2
    assert shown(tmp) == bytes([rounds]) * SIZE


def test_a_snapshot_survives_a_daemon_that_is_killed(start, tmp):
    d = start_with_image(start, tmp)
    images.io(d.uri, 'write -P 1 0 2M')
    take(d, 'kept')
    d.kill()
    images.check(tmp / 'disk.qcow2')
    assert shown(tmp, 'kept')[:2 * MB] == bytes([1]) * 2 * MB


def test_a_refused_snapshot_leaves_nothing(start, tmp):
    d = start_with_image(start, tmp, 'refcount_bits=1')
    images.io(d.uri, 'write -P 1 0 2M')
    reply = d.ask('blockdev-snapshot-internal-sync', {'device': 'disk', 'name': 'x'})
    assert reply['error']['desc'] == ("Failed to create snapshot 'x' on device 'disk': "
                                      'Invalid argument')
    images.io(d.uri, 'write -P 2 0 2M')
    d.stop()
    images.check(tmp / 'disk.qcow2')
    assert shown(tmp)[:2 * MB] == bytes([2]) * 2 * MB


def test_a_node_that_a_job_uses_takes_none(start, tmp):
    d = start_with_image(start, tmp)
    images.io(d.uri, 'write -P 1 0 2M')
    images.qcow2(tmp / 'target.qcow2', SIZE)
    d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'target',
                           'file': {'driver': 'file', 'filename': str(tmp / 'target.qcow2')}})
    d.cmd('blockdev-backup', {'job-id': 'b', 'device': 'disk', 'target': 'target',
                              'sync': 'full', 'speed': 65536})
    reply = d.ask('blockdev-snapshot-internal-sync', {'device': 'disk', 'name': 'x'})
    assert 'error' in reply
    d.cmd('job-cancel', id='b')
    d.wait_event('JOB_STATUS_CHANGE', id='b', status='null')
    take(d, 'x')
