# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --keep-chain: a plain copy of each layer, and the links between them."""
import atexit
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, break_entry, content, create, disk, encrypt, image_opts,
                       noise, peer_content, qemu_img, rescue, same, secret, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


_made = []


def chain(tmp):
    """As build_chain(), which is done once; the files are copied."""
    if not _made:
        folder = pathlib.Path(tempfile.mkdtemp(prefix='q-chain-'))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _made.extend([folder, *build_chain(folder)])
    folder, names, opts = _made
    for n in names:
        shutil.copy(folder / n, tmp / n)
    return [tmp / n for n in names], opts.replace(str(folder), str(tmp))


def build_chain(tmp):
    """Three encrypted layers with data, holes and zeroes of their own; the names of the
    files, the topmost first, and the --image-opts that open them."""
    backing = ',backing_file=%s,backing_fmt=%s'     # relative: the chain is copied
    b = standard(tmp, 'qcow2-luks')[1].rename(tmp / 'base')
    m = create(tmp, 'qcow', tmp / 'middle', '8M', more=backing % ('base', 'qcow2'))
    t = create(tmp, 'qcow2', tmp / 'top', '8M', more=backing % ('middle', 'qcow'))
    write(tmp, '%s,%s' % (image_opts('qcow', m), image_opts('qcow2-luks', b, 's', 'backing.')),
          'write -P 65 1M 100k', 'write -P 66 7M 512k')
    opts = '%s,%s,%s' % (image_opts('qcow2', t), image_opts('qcow', m, 's', 'backing.'),
                         image_opts('qcow2-luks', b, 's', 'backing.backing.'))
    write(tmp, opts, 'write -P 67 1M 4k', 'write -z 2M 1M', 'write -P 0 3M 200k')
    return ['top', 'middle', 'base'], opts


def info(tmp, path):
    return json.loads(qemu_img(tmp, 'info', '--output=json', path).out)


def allocation(tmp, opts, more=()):
    """What one image has of its own: {cluster: is it zero?}."""
    r = qemu_img(tmp, 'map', '--output=json', *more, '--image-opts', opts)
    return {at // 65536: e['zero'] for e in json.loads(r.out) if e['present'] and not e['depth']
            for at in range(e['start'], e['start'] + e['length'], 65536)}


@pytest.mark.io
@pytest.mark.parametrize('target', ['raw', 'qcow2'])
def test_each_layer_is_copied_and_the_chain_kept(tmp, target):
    names, opts = chain(tmp)
    r = rescue(tmp, '--keep-chain', '--verify', '--target-format', target, names[0], tmp / 'out')
    assert r.status == 0, r.err
    assert sorted(os.listdir(tmp / 'out')) == ['base', 'middle', 'top']
    assert os.stat(tmp / 'out').st_mode & 0o7777 == 0o700
    for name, below in (('top', 'middle'), ('middle', 'base'), ('base', None)):
        i = info(tmp, tmp / 'out' / name)
        assert i['format'] == 'qcow2' and not i.get('encrypted')
        assert i.get('backing-filename') == below
        assert i.get('backing-filename-format') == (below and 'qcow2')
        assert os.stat(tmp / 'out' / name).st_mode & 0o7777 == 0o600
        qemu_img(tmp, 'check', '-f', 'qcow2', tmp / 'out' / name)
    qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'out' / 'top', tmp / 'flat')
    assert same(content(tmp / 'flat'), peer_content(tmp, opts))


def test_each_layer_has_its_own_clusters_holes_and_zeroes(tmp):
    names, _ = chain(tmp)
    assert rescue(tmp, '--keep-chain', names[0], tmp / 'out').status == 0
    plain = 'driver=qcow2,file.driver=file,file.filename=%s,backing=' % (tmp / 'out' / 'top')
    want = allocation(tmp, image_opts('qcow2', names[0]) + ',backing=', secret())
    got = allocation(tmp, plain)
    assert got.keys() == want.keys()
    assert [c for c in want if want[c]] == list(range(32, 48))
    # Where zeroes were stored as data, there are zero clusters now.
    assert [c for c in got if got[c]] == list(range(32, 52))


def test_the_report_has_a_digest_of_each_layer_by_itself(tmp):
    names, _ = chain(tmp)
    kinds = {'top': 'qcow2', 'middle': 'qcow', 'base': 'qcow2-luks'}
    r = rescue(tmp, '--keep-chain', '--json', names[0], tmp / 'out')
    assert r.status == 0, r.err
    copies = json.loads(r.out)['copies']
    assert [os.path.basename(c['target']) for c in copies] == ['base', 'middle', 'top']
    for c in copies:
        name = os.path.basename(c['target'])
        alone = '' if name == 'base' else ',backing='
        plain = 'driver=qcow2,file.driver=file,file.filename=%s%s' % (c['target'], alone)
        for opts in (plain, image_opts(kinds[name], tmp / name) + alone):
            got = hashlib.sha256(peer_content(tmp, opts)).hexdigest()
            assert got == c['sha256'], name
    r = rescue(tmp, '--keep-chain', '--json', '--no-digest', names[0], tmp / 'out2')
    assert not any('sha256' in c for c in json.loads(r.out)['copies'])


def test_raw_and_luks_bases_stay_raw(tmp):
    plain, image = standard(tmp, 'luks')
    base = image.rename(tmp / 'base')
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', *secret(), '-o',
             'encrypt.format=aes,encrypt.key-secret=s', '-b', base, '-F', 'luks', image, '4M')
    r = rescue(tmp, '--keep-chain', image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out' / 'base'), content(plain))
    assert info(tmp, tmp / 'out' / 'image')['backing-filename-format'] == 'raw'


def test_subclusters_that_are_not_stored_show_the_base(tmp):
    plain, base = standard(tmp, 'qcow2')
    base = base.rename(tmp / 'base')
    image = create(tmp, 'qcow2', tmp / 'top', '4M',
                   more=',extended_l2=on,backing_file=%s,backing_fmt=qcow2' % base)
    write(tmp, '%s,%s' % (image_opts('qcow2', image), image_opts('qcow2', base, 's', 'backing.')),
          'write -P 65 1M 2k')
    r = rescue(tmp, '--keep-chain', '--verify', image, tmp / 'out')
    assert r.status == 0, r.err
    want = bytearray(content(plain))
    want[MIB:MIB + 2048] = b'A' * 2048
    qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'out' / 'top', tmp / 'flat')
    assert same(content(tmp / 'flat'), bytes(want))


@pytest.mark.parametrize('more', [(), ('--target-format', 'qcow2', '--compress', 'zstd'),
                                  ('--salvage', '--resume')])
def test_a_large_disk_has_larger_clusters_and_the_same_data(tmp, more):
    """20 GiB in clusters of 512 bytes, of which a layer has single ones."""
    base = create(tmp, 'qcow2', tmp / 'base', '20G', more=',cluster_size=512')
    write(tmp, image_opts('qcow2', base), 'write -P 65 0 64k', 'write -P 66 10M 64k',
          'write -P 67 19G 64k')
    top = create(tmp, 'qcow2', tmp / 'top', '20G', more=',cluster_size=512,backing_file=base,'
                 'backing_fmt=qcow2')
    opts = image_opts('qcow2', top) + ',' + image_opts('qcow2', base, prefix='backing.')
    write(tmp, opts, 'write -P 68 512 512', 'write -P 69 3072 512', 'write -z 10486272 512',
          'write -z 11M 512', 'write -P 70 20401095168 512', 'write -P 71 15G 1k')
    r = rescue(tmp, '--keep-chain', '--verify', '--accept-unverified-key', *more, top, tmp / 'out')
    assert r.status == 0, r.err
    for name, shown in (('top', opts), ('base', image_opts('qcow2', base))):
        out = tmp / 'out' / name
        assert info(tmp, out)['cluster-size'] == 1024
        qemu_img(tmp, 'check', '-f', 'qcow2', out)
        r = qemu_img(tmp, 'compare', *secret(), '--image-opts', shown,
                     'driver=qcow2,file.filename=%s' % out)
        assert 'identical' in r.out
    assert allocation(tmp, 'driver=qcow2,backing=,file.filename=%s' % (tmp / 'out/top')) \
        .keys() == {at >> 16 for at in (0, 10485760, 11 << 20, 15 << 30, 19 << 30)}


def test_namesakes_are_told_apart_and_colons_are_no_protocol(tmp):
    (tmp / 'a').mkdir()
    (tmp / 'b').mkdir()
    base = encrypt(tmp, 'qcow2', disk(tmp / 'plain', 4), tmp / 'a' / 'nbd:disk')
    middle = create(tmp, 'qcow2', tmp / 'b' / 'disk', '4M')
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', './nbd:disk', '-F', 'qcow2',
             tmp / 'a' / 'disk', '4M')
    os.unlink(middle)
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', tmp / 'a' / 'disk', '-F', 'qcow2',
             middle, '4M')
    r = rescue(tmp, '--keep-chain', middle, tmp / 'out')
    assert r.status == 0, r.err
    assert sorted(os.listdir(tmp / 'out')) == ['0-disk', '1-disk', '2-nbd:disk']
    assert info(tmp, tmp / 'out' / '1-disk')['backing-filename'] == './2-nbd:disk'
    qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'out' / '0-disk', tmp / 'flat')
    assert same(content(tmp / 'flat'), content(tmp / 'plain'))
    assert base


@pytest.mark.parametrize('base, top, names', [
    ('1-x', 'x', ['1-x', 'x']),
    ('x', 'x.map', ['0-x.map', '0-x.map.map', '1-x', '1-x.map'])])
def test_names_that_could_meet_are_told_apart(tmp, base, top, names):
    """A layer that is called as another one's number or map makes it."""
    plain, image = standard(tmp, 'qcow2')
    image.rename(tmp / base)
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', tmp / base, '-F', 'qcow2', tmp / top,
             '4M')
    more = ['--salvage'] if 'map' in top else []
    r = rescue(tmp, '--keep-chain', *more, tmp / top, tmp / 'out')
    assert r.status == 0, r.err
    assert sorted(os.listdir(tmp / 'out')) == names
    (tmp / 'deep').mkdir()
    (tmp / base).rename(tmp / 'deep' / top)         # namesakes, and a third with their number
    qemu_img(tmp, 'create', '-q', '-u', '-f', 'qcow2', '-b', tmp / 'deep' / top, '-F', 'qcow2',
             tmp / ('1-' + top), '4M')
    qemu_img(tmp, 'rebase', '-u', '-f', 'qcow2', '-b', tmp / ('1-' + top), '-F', 'qcow2', tmp / top)
    r = rescue(tmp, '--keep-chain', tmp / top, tmp / 'more')
    assert r.status == 0, r.err
    assert sorted(os.listdir(tmp / 'more')) == ['0-' + top, '1-1-' + top, '2-' + top]
    qemu_img(tmp, 'convert', '-f', 'qcow2', '-O', 'raw', tmp / 'more' / ('0-' + top), tmp / 'flat')
    assert same(content(tmp / 'flat'), content(plain))


def test_an_existing_folder_is_never_replaced(tmp):
    image = chain(tmp)[0][0]
    (tmp / 'out').mkdir()
    r = rescue(tmp, '--keep-chain', '--force', image, tmp / 'out')
    assert r.status == 1 and 'exists already' in r.err
    assert os.listdir(tmp / 'out') == []


def test_the_damage_of_a_layer_is_in_its_own_map(tmp):
    names, _ = chain(tmp)
    break_entry(names[2], 0)
    r = rescue(tmp, '--keep-chain', names[0], tmp / 'out')
    assert r.status == 1 and not os.path.exists(tmp / 'out')
    r = rescue(tmp, '--keep-chain', '--salvage', '--verify', names[0], tmp / 'out')
    assert r.status == 5, r.err
    assert sorted(os.listdir(tmp / 'out')) == ['base', 'base.map', 'middle', 'middle.map', 'top',
                                               'top.map']
    assert '-' in (tmp / 'out' / 'base.map').read_text().splitlines()[-2].split()
    assert ' -' not in (tmp / 'out' / 'top.map').read_text()


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_chain(tmp, sig):
    base = encrypt(tmp, 'qcow', noise(tmp / 'plain', 48 * MIB), tmp / 'base')
    top = create(tmp, 'qcow2', tmp / 'top', '48M',
                 more=',backing_file=%s,backing_fmt=qcow' % base)
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--accept-unverified-key', '--keep-chain',
                          '--key-file', tmp / 'key', top, tmp / 'out'], stderr=subprocess.PIPE,
                         env=quoin.environment(tmp))
    while p.poll() is None and not [n for n in os.listdir(tmp) if n.startswith('.out.')]:
        pass
    p.send_signal(sig)
    err = p.communicate(timeout=quoin.LIMIT)[1]
    if p.returncode == 0:
        pytest.skip('it had ended before the signal could be sent')
    assert p.returncode == -sig, err
    assert not os.path.exists(tmp / 'out')
    left = [n for n in os.listdir(tmp) if n.startswith('.out.')]
    if sig == signal.SIGTERM:
        assert not left
    else:   # nothing but an empty folder
        assert len(left) <= 1 and not any(os.listdir(tmp / n) for n in left)
