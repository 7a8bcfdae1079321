# SPDX-License-Identifier: Apache-2.0
"""No encrypted image becomes a node, by whatever road it comes."""
import json
import os
import shlex

import pytest

import images
import quoin

KEY = 'geheim'
KINDS = sorted(images.ENCRYPTED)
IN_CHAIN = [k for k in KINDS if k != 'luks']
CIPHER_WORD = {'qcow-aes': 'AES', 'qcow2-aes': 'AES', 'qcow2-luks': 'LUKS', 'luks': 'LUKS'}


def file_ref(path):
    return {'driver': 'file', 'filename': str(path)}


def options_for(kind, path, **more):
    return dict({'driver': images.DRIVER[kind], 'node-name': 'secret',
                 'file': file_ref(path)}, **more)


def state_of(d):
    """What a refusal must not change: nodes, open files, locks on files."""
    fds = sorted(os.readlink('/proc/%d/fd/%s' % (d.pid, f))
                 for f in os.listdir('/proc/%d/fd' % d.pid))
    files = [f for f in fds if f.startswith('/') and not f.startswith('/dev/')]
    return [n['node-name'] for n in d.cmd('query-named-block-nodes')], files


def refused(d, command, arguments, *paths):
    """The command fails with the refusal, twice alike, and leaves nothing."""
    before = state_of(d)
    texts = []
    for _ in range(2):
        reply = d.ask(command, arguments)
        assert 'error' in reply, reply
        assert reply['error']['class'] == 'GenericError'
        texts.append(reply['error']['desc'])
        assert state_of(d) == before
    assert texts[0] == texts[1]
    check_text(texts[0], *paths)
    return texts[0]


def check_text(text, *paths):
    assert '\n' not in text
    assert 'encrypted' in text, text
    for p in paths:
        assert str(p) in text, text
    assert 'quoin rescue ' in text, text
    words = shlex.split(text[text.rindex('quoin rescue '):])
    assert words[2] in [str(p) for p in paths], text


@pytest.mark.parametrize('kind', KINDS)
def test_itself(start, tmp, kind):
    path = tmp / 'disk.img'
    images.ENCRYPTED[kind](path, KEY)
    d = start()
    text = refused(d, 'blockdev-add', options_for(kind, path), path)
    assert "'secret'" in text
    assert CIPHER_WORD[kind] in text


@pytest.mark.parametrize('kind', KINDS)
def test_read_only_and_force_share_make_no_difference(start, tmp, kind):
    path = tmp / 'disk.img'
    images.ENCRYPTED[kind](path, KEY)
    d = start()
    refused(d, 'blockdev-add',
            options_for(kind, path, **{'read-only': True, 'force-share': True}), path)


@pytest.mark.parametrize('kind', IN_CHAIN)
def test_over_a_named_file_node(start, tmp, kind):
    path = tmp / 'disk.img'
    images.ENCRYPTED[kind](path, KEY)
    d = start()
    d.cmd('blockdev-add', dict(file_ref(path), **{'node-name': 'proto'}))
    refused(d, 'blockdev-add', {'driver': images.DRIVER[kind], 'node-name': 'secret',
                                'file': 'proto'}, path)
    d.cmd('blockdev-del', node_name='proto')


@pytest.mark.parametrize('kind', IN_CHAIN)
@pytest.mark.parametrize('depth', [1, 2, 4])
def test_as_backing_file_named_by_the_image(start, tmp, kind, depth):
    base = tmp / 'base.img'
    images.ENCRYPTED[kind](base, KEY)
    below, fmt = base, images.DRIVER[kind]
    for i in range(depth):
        top = tmp / ('layer%d.qcow2' % i)
        images.img('create', '-q', '-u', '-f', 'qcow2', '-b', below, '-F', fmt, top, '4M')
        below, fmt = top, 'qcow2'
    d = start()
    refused(d, 'blockdev-add', {'driver': 'qcow2', 'node-name': 'top', 'file': file_ref(below)},
            base)


@pytest.mark.parametrize('kind', KINDS)
def test_as_backing_file_named_by_the_client(start, tmp, kind):
    base, top = tmp / 'base.img', tmp / 'top.qcow2'
    images.ENCRYPTED[kind](base, KEY)
    images.qcow2(top)
    d = start()
    refused(d, 'blockdev-add',
            {'driver': 'qcow2', 'node-name': 'top', 'file': file_ref(top),
             'backing': {'driver': images.DRIVER[kind], 'file': file_ref(base)}}, base)


@pytest.mark.parametrize('kind', IN_CHAIN)
def test_as_data_file(start, tmp, kind):
    """Neither where the image wants one nor where it does not."""
    data, outer, plain = tmp / 'data.img', tmp / 'outer.qcow2', tmp / 'plain.qcow2'
    images.qcow2(outer, '4M', None, 'data_file=%s' % data)
    data.unlink()
    images.ENCRYPTED[kind](data, KEY)
    images.qcow2(plain)
    d = start()
    before = state_of(d)
    for path in (outer, plain):
        for more in ({}, {'data-file': {'driver': images.DRIVER[kind], 'file': file_ref(data)}}):
            if path == plain and not more:
                continue
            reply = d.ask('blockdev-add', dict({'driver': 'qcow2', 'node-name': 'n',
                                                'file': file_ref(path)}, **more))
            assert reply['error']['class'] == 'GenericError'
            assert 'data' in reply['error']['desc']
            assert state_of(d) == before


def test_every_encrypted_layer_is_named(start, tmp):
    low, mid, top = tmp / 'low.qcow2', tmp / 'mid.qcow2', tmp / 'top.qcow2'
    images.qcow2_aes(low, KEY)
    images.qcow2_luks(mid, KEY)
    images.img('rebase', '-u', '-b', low, '-F', 'qcow2', '--image-opts', '--object',
               'secret,id=key,data=' + KEY, images.encrypted_opts('qcow2-luks', mid))
    images.img('create', '-q', '-u', '-f', 'qcow2', '-b', mid, '-F', 'qcow2', top, '4M')
    d = start()
    text = refused(d, 'blockdev-add', {'driver': 'qcow2', 'node-name': 'top',
                                       'file': file_ref(top)}, low, mid)
    assert str(top) not in text[text.rindex('quoin rescue'):].split()[2]


def test_another_fault_below_does_not_hide_it(start, tmp):
    path = tmp / 'disk.qcow2'
    images.qcow2_aes(path, KEY)
    images.img('rebase', '-u', '-b', tmp / 'gone.img', '-F', 'raw', '--image-opts', '--object',
               'secret,id=key,data=' + KEY, images.encrypted_opts('qcow2-aes', path))
    d = start()
    refused(d, 'blockdev-add', options_for('qcow2-aes', path), path)


@pytest.mark.parametrize('kind', IN_CHAIN)
def test_under_a_filter_and_under_raw(start, tmp, kind):
    path = tmp / 'disk.img'
    images.ENCRYPTED[kind](path, KEY)
    inner = {'driver': images.DRIVER[kind], 'file': file_ref(path)}
    d = start()
    refused(d, 'blockdev-add', {'driver': 'raw', 'node-name': 'r', 'file': inner}, path)
    refused(d, 'blockdev-add', {'driver': 'copy-before-write', 'node-name': 'c', 'file': inner,
                                'target': {'driver': 'null-co', 'size': 4 << 20}}, path)


@pytest.mark.parametrize('kind', IN_CHAIN)
def test_a_key_is_not_taken_either(start, tmp, kind):
    path = tmp / 'disk.img'
    images.ENCRYPTED[kind](path, KEY)
    d = start()
    reply = d.ask('object-add', {'qom-type': 'secret', 'id': 'key', 'data': KEY})
    assert 'quoin rescue' in reply['error']['desc']
    refused(d, 'blockdev-add', options_for(
        kind, path, encrypt={'format': 'luks' if 'luks' in kind else 'aes',
                             'key-secret': 'key'}), path)


def test_jobs_find_no_such_target(start, tmp):
    path = tmp / 'disk.img'
    images.qcow2_aes(path, KEY)
    d = start('--blockdev', 'null-co,node-name=src,size=4194304')
    refused(d, 'blockdev-add', options_for('qcow2-aes', path), path)
    reply = d.ask('blockdev-backup', {'job-id': 'b', 'device': 'src', 'target': 'secret',
                                      'sync': 'full'})
    assert reply['error']['desc'] == "Cannot find device='secret' nor node-name='secret'"


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('form', ['json', 'keyval'])
def test_on_the_command_line(run, tmp, kind, form):
    path = tmp / 'disk.img'
    images.ENCRYPTED[kind](path, KEY)
    arg = json.dumps(options_for(kind, path)) if form == 'json' else \
        'driver=%s,node-name=secret,file.driver=file,file.filename=%s' % (
            images.DRIVER[kind], path)
    r = run(quoin.QUOIND, '--qmp', tmp / 'q.sock', '--blockdev', arg)
    assert r.status == 1
    assert r.err.count('\n') == 1, r.err
    check_text(r.err.strip(), path)
    assert not os.path.exists(tmp / 'q.sock')


@pytest.mark.parametrize('format_', ['qcow', 'luks'])
def test_create_with_encrypt_makes_nothing(start, tmp, format_):
    path = tmp / 'new.qcow2'
    images.raw(path, b'x' * 65536)
    d = start('--blockdev', 'driver=file,node-name=proto,filename=%s' % path)
    encrypt = {'format': format_}
    if format_ == 'luks':
        encrypt['key-secret'] = 'key'
    reply = d.ask('blockdev-create', {'job-id': 'c', 'options': {
        'driver': 'qcow2', 'file': 'proto', 'size': 4 << 20, 'encrypt': encrypt}})
    assert reply['error']['class'] == 'GenericError'
    assert 'encrypt' in reply['error']['desc']
    assert d.cmd('query-jobs') == []
    assert images.content(path) == b'x' * 65536


def test_raw_over_the_same_file_stays_allowed(start, tmp):
    path = tmp / 'disk.img'
    images.qcow2_aes(path, KEY)
    d = start()
    d.cmd('blockdev-add', {'driver': 'raw', 'node-name': 'bytes', 'file': file_ref(path)})
    node = [n for n in d.cmd('query-named-block-nodes') if n['node-name'] == 'bytes'][0]
    assert node['image']['virtual-size'] == -(-os.path.getsize(path) // 512) * 512
    assert node['encrypted'] is False
    d.cmd('blockdev-del', node_name='bytes')


def test_a_path_with_blanks_is_quoted_for_the_shell(start, tmp):
    path = tmp / "it's a disk.qcow2"
    images.qcow2_aes(path, KEY)
    d = start()
    refused(d, 'blockdev-add', options_for('qcow2-aes', path), path)


def test_a_file_without_a_luks_header_is_no_luks_volume(start):
    d = start()
    reply = d.ask('blockdev-add', {'driver': 'luks', 'node-name': 'n',
                                   'file': {'driver': 'null-co'}})
    assert 'Volume is not in LUKS format' in reply['error']['desc']


def test_a_luks_header_that_is_apart_is_part_of_the_command(start, tmp):
    images.luks(tmp / 'header', KEY)
    images.raw(tmp / 'volume', bytes(1 << 20))
    d = start()
    reply = d.ask('blockdev-add', {'driver': 'luks', 'node-name': 'n', 'header': file_ref(
        tmp / 'header'), 'file': file_ref(tmp / 'volume')})
    assert "'%s' is encrypted (LUKS)" % (tmp / 'volume') in reply['error']['desc']
    assert reply['error']['desc'].endswith('quoin rescue --header %s %s %s.raw' % (
        tmp / 'header', tmp / 'volume', tmp / 'volume'))
    assert d.cmd('query-named-block-nodes') == []


def test_the_plain_image_is_to_lie_beside_the_source(start, tmp):
    path = tmp / 'geheim.qcow2'
    images.qcow2_aes(path, KEY)
    d = start()
    text = refused(d, 'blockdev-add', options_for('qcow2-aes', path), path)
    assert text.endswith('quoin rescue %s %s/geheim.raw' % (path, tmp))
