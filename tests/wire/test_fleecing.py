# SPDX-License-Identifier: Apache-2.0
"""Fleecing: a reader of a point in time while the guest goes on writing."""
import random
import subprocess

import pytest

import peers

MIB = 1 << 20
SIZE = 8 * MIB


def nbd(tmp, name):
    return 'nbd+unix:///%s?socket=%s/nbd' % (name, tmp)


def io(tmp, name, commands, readonly=False):
    argv = [peers.QEMU_IO, '-f', 'raw'] + (['-r'] if readonly else [])
    return subprocess.Popen(argv + [nbd(tmp, name)], stdin=subprocess.PIPE, cwd=tmp,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True), '\n'.join(commands) + '\nquit\n'


@pytest.mark.io
def test_a_reader_sees_the_point_in_time(start, tmp):
    if not peers.QEMU_IO or not peers.QEMU_IMG:
        pytest.skip('there is no qemu-io to write and read with')
    (tmp / 'disk.raw').write_bytes(b'\x01' * SIZE)
    subprocess.run([peers.QEMU_IMG, 'create', '-q', '-f', 'qcow2', str(tmp / 'old.qcow2'),
                    str(SIZE)], check=True, timeout=20)
    d = start('--object', 'iothread,id=t0', '--object', 'iothread,id=t1')
    d.cmd('blockdev-add', {'driver': 'raw', 'node-name': 'disk', 'file': {
        'driver': 'file', 'filename': str(tmp / 'disk.raw')}})
    d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'old', 'backing': 'disk', 'file': {
        'driver': 'file', 'filename': str(tmp / 'old.qcow2')}})
    d.cmd('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': str(tmp / 'nbd')}}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'disk', 'node-name': 'disk', 'name': 'disk',
                               'writable': True, 'iothread': 't0'})
    d.cmd('blockdev-backup', {'job-id': 'b', 'device': 'disk', 'target': 'old', 'sync': 'none'})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'old', 'node-name': 'old', 'name': 'old',
                               'iothread': 't1'})
    rng = random.Random(7)
    writes = ['aio_write -P 2 %d 4k' % (rng.randrange(SIZE // 4096) * 4096)
              for _ in range(600)]
    reads = ['read -P 1 %d 64k' % (rng.randrange(SIZE // 65536) * 65536) for _ in range(600)]
    programs = [io(tmp, 'disk', writes + ['aio_flush']), io(tmp, 'old', reads, True)]
    for p, text in programs:
        p.stdin.write(text)
        p.stdin.close()
    outs = [p.stdout.read() for p, _ in programs]
    assert [p.wait(60) for p, _ in programs] == [0, 0], outs
    assert 'verification failed' not in outs[1], outs[1]
    assert outs[1].count('read 65536/65536') == 600
    d.cmd('block-export-del', {'id': 'old', 'mode': 'hard'})
    d.cmd('block-job-cancel', {'device': 'b'})
    d.wait_event('JOB_STATUS_CHANGE', id='b', status='null')
    p, _ = io(tmp, 'disk', [])
    out, _ = p.communicate('read -P 2 %s\nquit\n' % writes[0].split(' ', 3)[3])
    assert 'verification failed' not in out, out


@pytest.mark.io
def test_snapshot_access_shows_the_point_in_time(start, tmp):
    """copy-before-write, snapshot-access and two exports; then a copy of all of it."""
    if not peers.QEMU_IO or not peers.QEMU_IMG:
        pytest.skip('there is no qemu-io to write and read with')
    before = random.Random(3).randbytes(SIZE // 2) + bytes(SIZE // 2)
    (tmp / 'disk.raw').write_bytes(before)
    (tmp / 'before.raw').write_bytes(before)
    subprocess.run([peers.QEMU_IMG, 'create', '-q', '-f', 'qcow2', str(tmp / 'kept.qcow2'),
                    str(SIZE)], check=True, timeout=20)
    d = start('--object', 'iothread,id=t0', '--object', 'iothread,id=t1',
              '--blockdev', f'raw,node-name=disk,file.driver=file,file.filename={tmp}/disk.raw',
              '--blockdev', 'qcow2,node-name=kept,file.driver=file,'
              f'file.filename={tmp}/kept.qcow2',
              '--blockdev', 'copy-before-write,node-name=cbw,file=disk,target=kept',
              '--blockdev', 'snapshot-access,node-name=old,file=cbw',
              '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
              '--export', 'nbd,id=disk,node-name=cbw,name=disk,writable=on,iothread=t0',
              '--export', 'nbd,id=old,node-name=old,name=old,iothread=t1')
    rng = random.Random(8)
    writes = ['aio_write -P 2 %d 4k' % (rng.randrange(SIZE // 4096) * 4096)
              for _ in range(1500)]
    guest, text = io(tmp, 'disk', writes + ['aio_flush'])
    guest.stdin.write(text)
    guest.stdin.close()
    for i in range(4):
        subprocess.run([peers.QEMU_IMG, 'convert', '-f', 'raw', '-O', 'raw', nbd(tmp, 'old'),
                        str(tmp / 'copy.raw')], check=True, timeout=60)
        assert (tmp / 'copy.raw').read_bytes() == before, i
    out = guest.stdout.read()
    assert guest.wait(60) == 0, out
    assert (tmp / 'disk.raw').read_bytes() != before
    subprocess.run([peers.QEMU_IMG, 'compare', '-f', 'raw', '-F', 'raw', nbd(tmp, 'old'),
                    str(tmp / 'before.raw')], check=True, timeout=60,
                   stdout=subprocess.DEVNULL)
    d.stop()
