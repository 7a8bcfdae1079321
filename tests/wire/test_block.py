# SPDX-License-Identifier: Apache-2.0
"""Nodes over QMP: locks against a real QEMU, atomicity, the refusal on every road."""
import os
import subprocess

import pytest

import nbdraw
import peers
from quoin import QmpError


def need(tool):
    if not tool:
        pytest.skip('there is no qemu tool to try it with')
    return tool


@pytest.fixture
def img(tmp):
    def make(*argv):
        subprocess.run([need(peers.QEMU_IMG), 'create', '-q', *map(str, argv)], cwd=tmp,
                       check=True, stdin=subprocess.DEVNULL, timeout=20)
    return make


def fails(daemon, text, name, **args):
    with pytest.raises(QmpError) as e:
        daemon.cmd(name, args)
    assert e.value.error_class == 'GenericError'
    assert text in e.value.desc, e.value.desc
    return e.value.desc


def nodes(daemon):
    return {n['node-name'] for n in daemon.cmd('query-named-block-nodes')}


def open_files(daemon):
    """Paths of the files that the daemon holds open."""
    d = '/proc/%d/fd' % daemon.pid
    return {os.readlink('%s/%s' % (d, fd)) for fd in os.listdir(d)}


def qcow2(path, node='n', **more):
    return {'driver': 'qcow2', 'node-name': node,
            'file': {'driver': 'file', 'filename': str(path)}, **more}


# ---- locks, in both directions ----

def qemu_io(tmp, image, *commands, readonly=False):
    argv = [need(peers.QEMU_IO), '-f', 'qcow2']
    if readonly:
        argv.append('-r')
    for c in commands:
        argv += ['-c', c]
    return subprocess.run(argv + [str(image)], capture_output=True, text=True, timeout=20,
                          stdin=subprocess.DEVNULL, cwd=tmp)


def test_qemu_refuses_what_we_write(start, tmp, img):
    img('-f', 'qcow2', 'a.qcow2', '1M')
    d = start()
    d.cmd('blockdev-add', qcow2(tmp / 'a.qcow2'))
    p = qemu_io(tmp, 'a.qcow2', 'write 0 4k')
    assert p.returncode and 'Failed to get "write" lock' in p.stderr, p.stderr
    p = qemu_io(tmp, 'a.qcow2', 'read 0 4k', readonly=True)
    assert p.returncode and 'Failed to get shared "write" lock' in p.stderr, p.stderr
    d.cmd('blockdev-del', {'node-name': 'n'})
    assert qemu_io(tmp, 'a.qcow2', 'write 0 4k').returncode == 0


def test_qemu_reads_beside_us_what_we_read(start, tmp, img):
    img('-f', 'qcow2', 'a.qcow2', '1M')
    d = start()
    d.cmd('blockdev-add', qcow2(tmp / 'a.qcow2', **{'read-only': True}))
    assert qemu_io(tmp, 'a.qcow2', 'read 0 4k', readonly=True).returncode == 0
    p = qemu_io(tmp, 'a.qcow2', 'write 0 4k')
    assert p.returncode and 'lock' in p.stderr, p.stderr


def test_we_refuse_what_qemu_writes(start, start_peer, tmp, img):
    img('-f', 'qcow2', 'a.qcow2', '1M')
    peer, d = start_peer(), start()
    peer.cmd('blockdev-add', qcow2(tmp / 'a.qcow2'))
    for _ in range(2):
        fails(d, 'Failed to get "write" lock', 'blockdev-add', **qcow2(tmp / 'a.qcow2'))
        assert nodes(d) == set()
        assert str(tmp / 'a.qcow2') not in open_files(d)
    fails(d, 'Failed to get shared "write" lock', 'blockdev-add',
          **qcow2(tmp / 'a.qcow2', **{'read-only': True}))
    d.cmd('blockdev-add', qcow2(tmp / 'a.qcow2', **{'read-only': True, 'force-share': True}))
    d.cmd('blockdev-del', {'node-name': 'n'})
    peer.cmd('blockdev-del', {'node-name': 'n'})
    d.cmd('blockdev-add', qcow2(tmp / 'a.qcow2'))


def test_locking_can_be_switched_off(start, start_peer, tmp, img):
    img('-f', 'qcow2', 'a.qcow2', '1M')
    peer, d = start_peer(), start()
    peer.cmd('blockdev-add', qcow2(tmp / 'a.qcow2'))
    opts = qcow2(tmp / 'a.qcow2', **{'read-only': True})
    opts['file']['locking'] = 'off'
    d.cmd('blockdev-add', opts)


# ---- atomic ----

def test_a_failed_add_leaves_nothing(start, tmp, img):
    img('-f', 'qcow2', 'base.qcow2', '1M')
    img('-u', '-f', 'qcow2', '-b', 'none.qcow2', '-F', 'qcow2', 'lost.qcow2', '1M')
    d = start()
    before = open_files(d)
    fails(d, 'Could not open backing file: Could not open', 'blockdev-add',
          **qcow2(tmp / 'lost.qcow2'))
    fails(d, "Duplicate nodes with node-name='n'", 'blockdev-add',
          **qcow2(tmp / 'base.qcow2', backing={'driver': 'null-co', 'node-name': 'n'}))
    assert nodes(d) == set()
    assert open_files(d) == before
    assert qemu_io(tmp, 'base.qcow2', 'write 0 4k').returncode == 0


def test_a_chain_that_is_a_ring_ends(start, tmp, img):
    img('-u', '-f', 'qcow2', '-b', 'b.qcow2', '-F', 'qcow2', 'a.qcow2', '1M')
    img('-u', '-f', 'qcow2', '-b', 'a.qcow2', '-F', 'qcow2', 'b.qcow2', '1M')
    d = start()
    before = open_files(d)
    fails(d, 'lock', 'blockdev-add', **qcow2(tmp / 'a.qcow2'))
    fails(d, 'The backing chain has more than 200 layers', 'blockdev-add',
          **qcow2(tmp / 'a.qcow2', **{'read-only': True}))
    assert nodes(d) == set()
    assert open_files(d) == before


# ---- what images name ----

def test_images_may_name_files_in_their_folders_only(start, tmp, img):
    for d in ('images', 'images-not', 'other'):
        (tmp / d).mkdir()
        img('-f', 'raw', '%s/base.raw' % d, '1M')
    os.symlink('../other/base.raw', tmp / 'images' / 'link.raw')
    names = {'in': 'base.raw', 'up': '../other/base.raw', 'link': 'link.raw',
             'like': '../images-not/base.raw', 'abs': str(tmp / 'other' / 'base.raw')}
    for name, base in names.items():
        img('-f', 'qcow2', '-b', base, '-F', 'raw', 'images/%s.qcow2' % name)
    d = start('--image-dir', tmp / 'images', '--image-dir', tmp / 'nothing')
    d.cmd('blockdev-add', qcow2(tmp / 'images' / 'in.qcow2'))
    for name in ('up', 'link', 'like', 'abs'):
        fails(d, 'lies outside of the folders for images', 'blockdev-add',
              **qcow2(tmp / 'images' / (name + '.qcow2'), 'x'))
    assert not [f for f in open_files(d) if f.startswith(str(tmp / 'other'))]
    # What the client names himself is his affair.
    d.cmd('blockdev-add', qcow2(tmp / 'images' / 'up.qcow2', 'x', backing={
        'driver': 'raw', 'file': {'driver': 'file',
                                  'filename': str(tmp / 'other' / 'base.raw')}}))


def test_names_in_images_can_be_left_alone(start, tmp, img):
    img('-f', 'raw', 'base.raw', '1M')
    img('-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', 'top.qcow2')
    d = start('--no-follow')
    fails(d, "names the backing file '%s/base.raw'" % tmp, 'blockdev-add',
          **qcow2(tmp / 'top.qcow2'))
    assert nodes(d) == set()
    d.cmd('blockdev-add', qcow2(tmp / 'top.qcow2', backing=None))


def test_names_in_images_are_literal(start, tmp, img):
    (tmp / 'canary.raw').write_bytes(b'c' * (1 << 20))
    name = 'json:{"driver":"raw","file":{"driver":"file","filename":"%s/canary.raw"}}' % tmp
    img('-u', '-f', 'qcow2', '-b', name, '-F', 'raw', 'top.qcow2', '1M')
    d = start()
    fails(d, "Could not open backing file: Could not open '%s/json:" % tmp, 'blockdev-add',
          **qcow2(tmp / 'top.qcow2'))


@pytest.mark.parametrize('stated', [True, False], ids=['raw', 'no format'])
def test_a_raw_disk_that_looks_like_an_image_is_none(start, tmp, img, stated):
    """A guest wrote a header into its disk, which is now the backing file."""
    (tmp / 'canary.raw').write_bytes(b'c' * (1 << 20))
    img('-f', 'qcow2', '-b', 'canary.raw', '-F', 'raw', 'disk', '1M')
    header = (tmp / 'disk').read_bytes()
    img('-f', 'qcow2', '-b', 'disk', '-F', 'raw', 'top.qcow2', '1M')
    if not stated:
        top = (tmp / 'top.qcow2').read_bytes()
        extension = b'\xe2\x79\x2a\xca'      # the backing file's format
        assert top.count(extension) == 1
        (tmp / 'top.qcow2').write_bytes(top.replace(extension, b'none'))
    d = start('--nbd-server', 'addr.type=unix,addr.path=%s/nbd' % tmp)
    reply = d.ask('blockdev-add', qcow2(tmp / 'top.qcow2'))
    assert str(tmp / 'canary.raw') not in open_files(d)
    if 'error' in reply:
        assert not stated
        return
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n'})
    with nbdraw.connect(tmp / 'nbd', 'n') as c:
        c.request(nbdraw.READ, 0, len(header))
        assert c.simple(len(header))[2] == header


# ---- making images ----

def finish(d, job):
    d.wait_event('JOB_STATUS_CHANGE', id=job, status='concluded')
    info = [j for j in d.cmd('query-jobs') if j['id'] == job][0]
    d.cmd('job-dismiss', {'id': job})
    return info.get('error')


def test_create_a_file_and_a_qcow2_in_it(start, tmp, run):
    d = start()
    path = str(tmp / 'new.qcow2')
    d.cmd('blockdev-create', {'job-id': 'f', 'options': {
        'driver': 'file', 'filename': path, 'size': 0}})
    assert finish(d, 'f') is None
    d.cmd('blockdev-add', {'driver': 'file', 'node-name': 'f', 'filename': path})
    d.cmd('blockdev-create', {'job-id': 'q', 'options': {
        'driver': 'qcow2', 'file': 'f', 'size': 64 << 20}})
    assert finish(d, 'q') is None
    d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'file': 'f'})
    d.cmd('block_resize', {'node-name': 'q', 'size': 128 << 20})
    d.stop()
    r = run(need(peers.QEMU_IMG), 'check', path)
    assert r.status == 0, r.out + r.err


def test_a_file_in_use_is_not_emptied(start, tmp, img):
    img('-f', 'qcow2', 'a.qcow2', '1M')
    d = start()
    d.cmd('blockdev-add', qcow2(tmp / 'a.qcow2'))
    size = (tmp / 'a.qcow2').stat().st_size
    d.cmd('blockdev-create', {'job-id': 'j', 'options': {
        'driver': 'file', 'filename': str(tmp / 'a.qcow2'), 'size': 0}})
    assert 'lock' in finish(d, 'j')
    assert (tmp / 'a.qcow2').stat().st_size == size


def test_a_file_that_cannot_be_made_leaves_no_file(start, tmp):
    d = start()
    d.cmd('blockdev-create', {'job-id': 'j', 'options': {
        'driver': 'file', 'filename': str(tmp / 'big'), 'size': 1 << 62}})
    assert finish(d, 'j')
    assert not (tmp / 'big').exists()
