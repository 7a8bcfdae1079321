# SPDX-License-Identifier: Apache-2.0
"""Strangers as clients of the NBD server: libnbd's tools, QEMU's, fio, nbdkit."""
import json
import os
import random
import shutil

import images
import peers
import pytest

nbd = pytest.importorskip('nbd', reason='no python3-libnbd')

MIB = 1 << 20
SIZE = 32 * MIB


def need(name):
    path = shutil.which(name)
    if not path:
        pytest.skip(name + ' is not installed')
    return path


def content(seed=1):
    """4 MiB of data, holes, data: what the disks below hold."""
    rng = random.Random(seed)
    return (rng.randbytes(4 * MIB) + bytes(12 * MIB) + rng.randbytes(3 * MIB)).ljust(SIZE, b'\0')


@pytest.fixture(params=['raw', 'qcow2'])
def disk(request, tmp):
    fmt = request.param
    raw = tmp / 'content'
    raw.write_bytes(content())
    path = tmp / ('disk.' + fmt)
    images.img('convert', '-f', 'raw', '-O', fmt, raw, path)
    return fmt, path


@pytest.fixture
def served(start, tmp, disk):
    """The URI of a writable export of 32 MiB."""
    fmt, path = disk
    start('--blockdev', json.dumps({'driver': fmt, 'node-name': 'd',
                                    'file': {'driver': 'file', 'filename': str(path)}}),
          '--nbd-server', f'addr.type=unix,addr.path={tmp}/nbd',
          '--export', 'nbd,id=e,node-name=d,name=disk,writable=on,description=for strangers')
    return f'nbd+unix:///disk?socket={tmp}/nbd'


@pytest.fixture
def handle(served):
    h = nbd.NBD()
    h.add_meta_context('base:allocation')
    h.connect_uri(served)
    yield h
    h.shutdown()


def test_nbdinfo_knows_what_is_offered(served, run):
    out = json.loads(run(need('nbdinfo'), '--json', served, check=True).out)
    assert out['structured'] and out['protocol'] == 'newstyle-fixed'
    e, = out['exports']
    assert (e['export-name'], e['description'], e['export-size']) == (
        'disk', 'for strangers', SIZE)
    assert e['contexts'] == ['base:allocation']
    assert not e['is_read_only']
    for can in ('cache', 'df', 'fast_zero', 'flush', 'fua', 'multi_conn', 'trim', 'zero'):
        assert e['can_' + can], can
    assert (e['block_size_minimum'], e['block_size_preferred'], e['block_size_maximum']) == (
        1, 4096, 32 * MIB)


def test_nbdinfo_lists_and_maps(served, run):
    assert 'export="disk"' in run(need('nbdinfo'), '--list', served.replace('disk', ''),
                                  check=True).out
    extents = json.loads(run('nbdinfo', '--map', '--json', served, check=True).out)
    assert [(e['offset'], e['length'], e['type']) for e in extents] == [
        (0, 4 * MIB, 0), (4 * MIB, 12 * MIB, 3), (16 * MIB, 3 * MIB, 0),
        (19 * MIB, 13 * MIB, 3)]


@pytest.mark.io
@pytest.mark.parametrize('more', [(), ('--connections=4', '--requests=32'),
                                  ('--synchronous',), ('--no-extents', '--request-size=65536')])
def test_nbdcopy_reads_all(served, run, tmp, more):
    run(need('nbdcopy'), *more, served, tmp / 'copy', check=True)
    assert (tmp / 'copy').read_bytes() == content()


@pytest.mark.io
def test_nbdcopy_writes_all(served, run, tmp):
    (tmp / 'new').write_bytes(content(2))
    run(need('nbdcopy'), '--flush', tmp / 'new', served, check=True)
    run(need('nbdcopy'), served, tmp / 'copy', check=True)
    assert (tmp / 'copy').read_bytes() == content(2)


@pytest.mark.io
def test_libnbd_against_a_model(handle):
    """Random commands, each checked; then the whole disk."""
    rng = random.Random(5)
    model = bytearray(content())
    for _ in range(400):
        length = rng.choice((1, 512, 4096, 65536, 65537, 200000))
        offset = rng.randrange(SIZE - length)
        kind = rng.randrange(6)
        flags = rng.choice((0, nbd.CMD_FLAG_FUA))
        if kind == 0:
            data = rng.randbytes(length)
            handle.pwrite(data, offset, flags)
            model[offset:offset + length] = data
        elif kind == 1:
            handle.zero(length, offset, flags | rng.choice((0, nbd.CMD_FLAG_NO_HOLE)))
            model[offset:offset + length] = bytes(length)
        elif kind == 2:
            handle.flush()
        elif kind == 3:
            handle.cache(length, offset)
        elif kind == 4:
            got = bytearray(length)

            def chunk(data, at, status, error):
                if status != nbd.READ_HOLE:
                    got[at - offset:at - offset + len(data)] = data
            handle.pread_structured(length, offset, chunk)
            assert got == model[offset:offset + length]
        else:
            assert handle.pread(length, offset) == model[offset:offset + length]
    whole = b''.join(bytes(handle.pread(MIB, i * MIB)) for i in range(SIZE // MIB))
    assert whole == model


@pytest.mark.io
def test_block_status_never_calls_data_zero(handle):
    rng = random.Random(6)
    model = bytearray(content())
    for _ in range(60):
        length, offset = rng.randrange(1, 3 * MIB), rng.randrange(SIZE - 3 * MIB)
        if rng.randrange(2):
            handle.zero(length, offset)
            model[offset:offset + length] = bytes(length)
        else:
            handle.trim(length, offset)
            model[offset:offset + length] = handle.pread(length, offset)
    at = 0

    def extents(context, offset, entries, error):
        nonlocal at
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & nbd.STATE_ZERO:
                assert not any(model[offset:offset + length])
            offset += length
        at = offset
    while at < SIZE:
        handle.block_status(SIZE - at, at, extents)


def test_errors_reach_the_caller(served, handle):
    handle.set_strict_mode(0)
    for call, errno in ((lambda: handle.pread(512, SIZE), 'EINVAL'),
                        (lambda: handle.pwrite(b'x' * 512, SIZE), 'ENOSPC'),
                        (lambda: handle.zero(512, SIZE), 'ENOSPC'),
                        (lambda: handle.trim(512, SIZE), 'EINVAL'),
                        (lambda: handle.pread(512, 0, nbd.CMD_FLAG_REQ_ONE), 'EINVAL')):
        with pytest.raises(nbd.Error) as e:
            call()
        assert e.value.errno == errno
    assert handle.pread(512, 0) == content()[:512]
    with pytest.raises(nbd.Error):
        nbd.NBD().connect_uri(served.replace('disk', 'none'))


@pytest.mark.io
def test_flush_on_one_connection_covers_the_others(served):
    assert served
    a, b = nbd.NBD(), nbd.NBD()
    for h in (a, b):
        h.connect_uri(served)
    assert a.can_multi_conn()
    a.pwrite(b'm' * 4096, 0)
    b.flush()
    assert b.pread(4096, 0) == b'm' * 4096
    for h in (a, b):
        h.shutdown()


@pytest.mark.io
def test_qemu_img_compares_converts_and_maps(served, disk, tmp):
    (tmp / 'content').write_bytes(content())
    images.img('compare', '-f', 'raw', '-F', 'raw', served, tmp / 'content')
    images.img('convert', '-f', 'raw', '-O', 'qcow2', served, tmp / 'copy.qcow2')
    images.img('compare', '-f', 'qcow2', '-F', 'raw', tmp / 'copy.qcow2', tmp / 'content')
    out = json.loads(images.img('map', '--output=json', '-f', 'raw', served))
    assert [(e['start'], e['length'], e['zero']) for e in out] == [
        (0, 4 * MIB, False), (4 * MIB, 12 * MIB, True), (16 * MIB, 3 * MIB, False),
        (19 * MIB, 13 * MIB, True)]
    info = json.loads(images.img('info', '--output=json', '-f', 'raw', served))
    assert info['virtual-size'] == SIZE


@pytest.mark.io
def test_qemu_img_writes_through_the_server(served, tmp, disk, start):
    (tmp / 'new').write_bytes(content(3))
    images.img('convert', '-n', '-f', 'raw', '-O', 'raw', tmp / 'new', served)
    images.img('compare', '-f', 'raw', '-F', 'raw', served, tmp / 'new')


@pytest.mark.io
def test_qemu_io_reads_what_it_wrote(served):
    out = images.tool(peers.QEMU_IO, '-f', 'raw', served,
                      '-c', 'write -P 7 1000 70000', '-c', 'write -f -P 8 65536 512',
                      '-c', 'write -z 3000 5000', '-c', 'discard 1M 1M', '-c', 'flush',
                      '-c', 'read -P 7 1000 2000', '-c', 'read -P 0 3000 5000',
                      '-c', 'read -P 8 65536 512', '-c', 'read -P 7 66048 4000',
                      '-c', 'aio_write -P 9 2M 3M', '-c', 'aio_flush', '-c', 'read -P 9 2M 3M')
    assert 'failed' not in out and 'Pattern' not in out, out


@pytest.mark.io
def test_fio_verifies_its_own_writes(served, run, tmp):
    need('fio')
    r = run('fio', '--name=t', '--ioengine=nbd', '--uri=' + served, '--rw=randrw', '--bs=4k',
            '--size=8M', '--iodepth=16', '--verify=crc32c', '--output-format=json', cwd=tmp)
    if 'engine nbd not loadable' in r.err + r.out or 'failed to load engine' in r.err + r.out:
        pytest.skip('fio here has no nbd engine')
    assert r.status == 0, r.out + r.err
    assert json.loads(r.out[r.out.index('{'):])['jobs'][0]['error'] == 0


@pytest.mark.io
def test_nbdkit_as_a_client(served, run, tmp):
    """nbdkit's nbd plugin in between: whatever it asks for works."""
    need('nbdkit')
    run('nbdkit', '-U', '-', 'nbd', 'uri=' + served, '--run',
        f'nbdcopy "$uri" {tmp}/copy', check=True)
    assert (tmp / 'copy').read_bytes() == content()


def test_the_image_is_whole_afterwards(served, disk, handle, tmp):
    fmt, path = disk
    handle.pwrite(b'z' * 300000, 5 * MIB)
    handle.flush()
    if fmt == 'qcow2':
        images.img('check', '-U', path)
    assert os.path.getsize(path)
