# SPDX-License-Identifier: Apache-2.0
"""Nodes over QMP: locks against a real QEMU, atomicity, the refusal on every road."""
import os
import subprocess

import pytest

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


@pytest.fixture
def encrypted(tmp, img):
    """A function that makes an encrypted qcow2."""
    def make(name, kind='aes', *more):
        img('-f', 'qcow2', '--object', 'secret,id=s,data=geheim', '-o',
            'encrypt.format=%s,encrypt.key-secret=s' % kind
            + (',encrypt.iter-time=10' if kind == 'luks' else ''), *more, name, '4M')
        return tmp / name
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


# ---- the refusal ----

def check_refusal(daemon, text, *needles):
    for needle in ('Quoin serves no encrypted images', *needles):
        assert needle in text, text
    assert not [f for f in open_files(daemon) if f.endswith('.qcow2')]


def test_an_encrypted_image_is_refused(start, tmp, encrypted):
    path = encrypted('geheim.qcow2')
    d = start()
    before = path.read_bytes()
    for _ in range(2):
        text = fails(d, "Node 'n'", 'blockdev-add', **qcow2(path))
        check_refusal(d, text, "'geheim.qcow2'", 'qcow2 AES-CBC')
        assert text.endswith('quoin rescue %s %s/geheim.raw' % (path, tmp)), text
        assert nodes(d) == set()
    assert path.read_bytes() == before


def test_luks_in_qcow2_is_refused(start, tmp, encrypted):
    path = encrypted('l.qcow2', 'luks')
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add', **qcow2(path))
    check_refusal(d, text, 'qcow2 LUKS', 'quoin rescue %s' % path)


def test_a_luks_volume_is_refused(start, tmp, img):
    img('-f', 'luks', '--object', 'secret,id=s,data=geheim', '-o', 'key-secret=s,iter-time=10',
        'v.luks', '1M')
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add', **{
        'driver': 'luks', 'node-name': 'n',
        'file': {'driver': 'file', 'filename': str(tmp / 'v.luks')}})
    check_refusal(d, text, "'v.luks'", 'LUKS', 'quoin rescue %s %s' % (
        tmp / 'v.luks', tmp / 'v.raw'))
    fails(d, 'Volume is not in LUKS format', 'blockdev-add', **{
        'driver': 'luks', 'node-name': 'n', 'file': {'driver': 'null-co'}})


def test_an_encrypted_backing_file_is_refused_at_any_depth(start, tmp, img, encrypted):
    encrypted('geheim.qcow2')
    below = 'geheim.qcow2'
    for name in ('one.qcow2', 'two.qcow2', 'three.qcow2'):
        img('-u', '-f', 'qcow2', '-b', below, '-F', 'qcow2', name, '4M')
        below = name
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add', **qcow2(tmp / 'three.qcow2'))
    check_refusal(d, text, "'geheim.qcow2' (backing file of 'one.qcow2')")
    assert text.endswith('quoin rescue %s/geheim.qcow2 %s/geheim.raw' % (tmp, tmp)), text
    assert nodes(d) == set()


def test_all_encrypted_layers_are_named(start, tmp, img, encrypted):
    encrypted('bottom.qcow2')
    img('-u', '-f', 'qcow2', '-b', 'bottom.qcow2', '-F', 'qcow2', 'plain.qcow2', '4M')
    encrypted('top.qcow2', 'luks', '-u', '-b', 'plain.qcow2', '-F', 'qcow2')
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add', **qcow2(tmp / 'top.qcow2'))
    check_refusal(d, text, "'top.qcow2' is encrypted (qcow2 LUKS)",
                  "'bottom.qcow2' (backing file of 'plain.qcow2') is encrypted (qcow2 AES-CBC)",
                  'quoin rescue %s/top.qcow2' % tmp)


def test_another_error_does_not_hide_the_refusal(start, tmp, img, encrypted):
    encrypted('geheim.qcow2', 'aes', '-u', '-b', 'none.qcow2', '-F', 'qcow2')
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add', **qcow2(tmp / 'geheim.qcow2'))
    check_refusal(d, text, 'qcow2 AES-CBC')


def test_an_encrypted_backing_option_is_refused(start, tmp, img, encrypted):
    encrypted('geheim.qcow2')
    img('-f', 'qcow2', 'plain.qcow2', '4M')
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add',
                 **qcow2(tmp / 'plain.qcow2', backing=qcow2(tmp / 'geheim.qcow2', 'b')))
    check_refusal(d, text, "'geheim.qcow2' (backing file of 'plain.qcow2')")
    assert nodes(d) == set()


def test_a_key_changes_nothing(start, tmp, encrypted):
    path = encrypted('geheim.qcow2')
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add',
                 **qcow2(path, encrypt={'format': 'aes', 'key-secret': 's'}))
    check_refusal(d, text, 'qcow2 AES-CBC')


def test_the_command_line_refuses_too(run, tmp, encrypted):
    from quoin import QUOIND
    path = encrypted('geheim.qcow2')
    r = run(QUOIND, '--blockdev', 'qcow2,node-name=n,file.driver=file,file.filename=%s' % path)
    assert r.status == 1
    assert 'Quoin serves no encrypted images' in r.err
    assert r.err.rstrip().endswith('quoin rescue %s %s/geheim.raw' % (path, tmp)), r.err


def test_paths_are_quoted_for_a_shell(start, tmp, encrypted):
    (tmp / "it's").mkdir()
    path = encrypted("it's/a b.qcow2")
    d = start()
    text = fails(d, "Node 'n'", 'blockdev-add', **qcow2(path))
    shell = text[text.index('quoin rescue') + len('quoin rescue'):]
    words = subprocess.run(['sh', '-c', 'printf "%s\\n" ' + shell], capture_output=True,
                           text=True, check=True).stdout.splitlines()
    assert words == [str(path), "%s/it's/a b.raw" % tmp]


def test_raw_over_an_encrypted_image_is_just_bytes(start, tmp, encrypted):
    path = encrypted('geheim.qcow2')
    d = start()
    d.cmd('blockdev-add', {'driver': 'raw', 'node-name': 'n',
                           'file': {'driver': 'file', 'filename': str(path)}})


def test_create_makes_no_encrypted_image(start, tmp):
    d = start()
    fails(d, 'Quoin makes no encrypted images', 'blockdev-create', **{
        'job-id': 'j', 'options': {
            'driver': 'qcow2', 'file': 'nope', 'size': 1 << 20,
            'encrypt': {'format': 'luks'}}})
    assert d.cmd('query-jobs') == []


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
