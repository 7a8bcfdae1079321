# SPDX-License-Identifier: Apache-2.0
"""Jobs of a whole daemon: their end when it ends, several clients, what is left."""
import os
import signal

import pytest

import images
import nbdraw

SIZE = 8 << 20
SLOW = 65536


@pytest.fixture
def disk(tmp):
    """A raw disk with data, an empty qcow2 target."""
    images.raw(tmp / 'disk.raw', os.urandom(SIZE))
    images.img('create', '-q', '-f', 'qcow2', tmp / 'target.qcow2', SIZE)
    return tmp / 'disk.raw'


@pytest.fixture
def daemon(start, tmp, disk):
    return start('--blockdev', f'raw,node-name=disk,file.driver=file,file.filename={disk}',
                 '--blockdev', 'qcow2,node-name=target,file.driver=file,'
                 f'file.filename={tmp}/target.qcow2',
                 '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd')


def backup(daemon, job='j', **more):
    args = {'device': 'disk', 'target': 'target', 'sync': 'full', 'job-id': job}
    args.update(more)
    daemon.cmd('blockdev-backup', args)


def wait_for(client, status, job='j'):
    client.wait_event('JOB_STATUS_CHANGE', id=job, status=status)


@pytest.mark.parametrize('how', ['quit', 'SIGTERM'])
@pytest.mark.parametrize('state', ['running', 'paused', 'pending', 'concluded'])
def test_the_daemon_ends_whatever_a_job_does(daemon, how, state):
    backup(daemon, **{'speed': SLOW if state in ('running', 'paused') else 0,
                      'auto-finalize': state != 'pending', 'auto-dismiss': False})
    if state == 'paused':
        daemon.cmd('job-pause', id='j')
    wait_for(daemon.qmp, state)
    if how == 'SIGTERM':
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(0)
    else:
        daemon.stop()


def test_every_client_hears_of_a_job_and_may_end_it(daemon):
    other = daemon.connect()
    backup(daemon, speed=SLOW)
    wait_for(other, 'running')
    other.cmd('block-job-cancel', device='j')
    for client in (daemon.qmp, other):
        client.wait_event('BLOCK_JOB_CANCELLED', device='j', type='backup')
        wait_for(client, 'null')


def test_a_job_that_dismissed_itself_is_remembered(daemon):
    backup(daemon)
    wait_for(daemon.qmp, 'null')
    backup(daemon, job='k', speed=SLOW)
    daemon.cmd('job-cancel', id='k')
    wait_for(daemon.qmp, 'null', 'k')
    assert daemon.cmd('query-jobs') == []
    latest, before = daemon.cmd('x-quoin-query-job-history')
    assert (latest['id'], latest['error']) == ('k', 'Operation canceled')
    assert (before['id'], before['type']) == ('j', 'backup')
    assert 'error' not in before
    assert before['current-progress'] == before['total-progress'] == SIZE


@pytest.mark.io
def test_a_backup_shows_the_disk_as_it_was_when_it_began(daemon, tmp, disk):
    before = disk.read_bytes()
    daemon.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk',
                                    'name': 'disk', 'writable': True})
    with nbdraw.connect(tmp / 'nbd', 'disk') as c:
        backup(daemon, speed=16 * SLOW)
        for off in range(0, SIZE, 100000):
            c.request(nbdraw.WRITE, off, 5000, data=b'new' + b'!' * 4997)
            assert not c.simple()[0]
        daemon.cmd('block-job-set-speed', device='j', speed=0)
        wait_for(daemon.qmp, 'null')
    daemon.stop()
    images.img('convert', '-f', 'qcow2', '-O', 'raw', tmp / 'target.qcow2', tmp / 'copy.raw')
    assert (tmp / 'copy.raw').read_bytes() == before
    assert disk.read_bytes() != before
    images.img('check', '-q', tmp / 'target.qcow2')


@pytest.mark.io
def test_a_full_target_stops_the_job_until_there_is_room(start, tmp, disk, run):
    """on-target-error=enospc; the target is a file that may not grow: ulimit."""
    limit = 'ulimit -S -f 2048; trap "" XFSZ; exec "$@"'
    d = start('--blockdev', f'raw,node-name=disk,file.driver=file,file.filename={disk}',
              '--blockdev', 'qcow2,node-name=target,file.driver=file,'
              f'file.filename={tmp}/target.qcow2', wrap=('sh', '-c', limit, 'sh'))
    backup(d, **{'on-target-error': 'stop', 'auto-dismiss': False})
    d.wait_event('BLOCK_JOB_ERROR', device='j', operation='write', action='stop')
    wait_for(d.qmp, 'paused')
    job, = d.cmd('query-block-jobs')
    assert (job['io-status'], job['paused'], job['status']) == ('failed', True, 'paused')
    run('prlimit', '--pid', d.pid, '--fsize=unlimited:', check=True)
    d.cmd('block-job-resume', device='j')
    wait_for(d.qmp, 'concluded')
    job, = d.cmd('query-block-jobs')
    assert job['io-status'] == 'ok' and 'error' not in job
    d.cmd('job-dismiss', id='j')
    d.stop()
    images.img('compare', '-f', 'raw', '-F', 'qcow2', disk, tmp / 'target.qcow2')


@pytest.mark.io
def test_copy_before_write_as_a_node(start, tmp, disk):
    """What is overwritten is at the target: a snapshot without a job."""
    before = disk.read_bytes()
    d = start('--blockdev', f'raw,node-name=disk,file.driver=file,file.filename={disk}',
              '--blockdev', 'qcow2,node-name=target,backing=disk,file.driver=file,'
              f'file.filename={tmp}/target.qcow2',
              '--blockdev', 'copy-before-write,node-name=cbw,file=disk,target=target',
              '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
              '--export', 'nbd,id=new,node-name=cbw,name=new,writable=on',
              '--export', 'nbd,id=old,node-name=target,name=old')
    with nbdraw.connect(tmp / 'nbd', 'new') as new, nbdraw.connect(tmp / 'nbd', 'old') as old:
        for off in (0, 70000, SIZE - 5000):
            new.request(nbdraw.WRITE, off, 5000, data=b'x' * 5000)
            assert not new.simple()[0]
        for off in range(0, SIZE, 1 << 20):
            old.request(nbdraw.READ, off, 1 << 20)
            error, _, data = old.simple(1 << 20)
            assert not error and data == before[off:off + (1 << 20)]
    d.stop()


@pytest.mark.io
def test_an_active_commit_takes_along_what_a_client_writes(start, tmp, disk):
    """Before, while and after the job is ready, and after the switch."""
    images.img('create', '-q', '-f', 'qcow2', '-b', disk, '-F', 'raw', tmp / 'top.qcow2')
    d = start('--blockdev', f'qcow2,node-name=top,file.driver=file,file.filename={tmp}/top.qcow2',
              '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
              '--export', 'nbd,id=e,node-name=top,name=top,writable=on')
    model = bytearray(disk.read_bytes())
    with nbdraw.connect(tmp / 'nbd', 'top') as c:
        def write(generation):
            for off in range(generation * 1000, SIZE - 9000, 300000):
                data = bytes([generation]) * 9000
                c.request(nbdraw.WRITE, off, 9000, data=data)
                assert not c.simple()[0]
                model[off:off + 9000] = data

        def same():
            c.request(nbdraw.READ, 0, SIZE)
            error, _, data = c.simple(SIZE)
            assert not error and data == bytes(model)

        write(1)
        d.cmd('block-commit', device='top', job_id='j', speed=SLOW)
        write(2)
        same()
        d.cmd('block-job-set-speed', device='j', speed=0)
        d.wait_event('BLOCK_JOB_READY', device='j', type='commit')
        write(3)
        same()
        d.cmd('job-complete', id='j')
        write(4)
        wait_for(d.qmp, 'null')
        write(5)
        same()
    d.stop()
    assert disk.read_bytes() == bytes(model)


@pytest.mark.io
@pytest.mark.parametrize('until', [0, 1 << 20, 5 << 20, 'pending'], ids=str)
def test_a_commit_that_is_killed_loses_nothing(start, tmp, until):
    """Whatever the moment, the chain shows what it showed, and can be committed."""
    base, mid, top = (tmp / n for n in ('base.qcow2', 'mid.qcow2', 'top.qcow2'))
    images.img('create', '-q', '-f', 'qcow2', base, SIZE)
    images.img('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', mid)
    images.img('create', '-q', '-f', 'qcow2', '-b', mid, '-F', 'qcow2', top)
    for n, (path, off, size) in enumerate(((base, 0, '5M'), (mid, '1M', '6M'), (top, '3M', '1M'))):
        images.tool(images.peers.QEMU_IO, '-f', 'qcow2', '-c',
                    'write -P %d %s %s' % (n + 1, off, size), path)
    images.img('convert', '-f', 'qcow2', '-O', 'raw', top, tmp / 'before.raw')

    def run_it(speed):
        d = start('--blockdev', f'qcow2,node-name=top,file.driver=file,file.filename={top}')
        d.cmd('block-commit', device='top', top=str(mid), job_id='j', speed=speed)
        return d

    d = run_it(0 if until == 'pending' else 1 << 20)
    if until == 'pending':
        wait_for(d.qmp, until)
    while until != 'pending' and until > sum(j['offset'] for j in d.cmd('query-block-jobs')):
        pass
    d.kill()
    for attempt in range(2):
        images.img('compare', '-f', 'raw', '-F', 'qcow2', tmp / 'before.raw', top)
        for path in (base, mid, top):
            assert 'ERROR' not in images.img('check', path, check=False)
        if attempt == 0 and images.img('info', top).count('mid.qcow2'):
            d = run_it(0)
            wait_for(d.qmp, 'null')
            d.stop()
    assert 'base.qcow2' in images.img('info', top)
