# SPDX-License-Identifier: Apache-2.0
"""quoin rescue: where keys come from, which of them fits which layer, and what is said of it."""
import json
import os
import shutil

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, Terminal, content, create, create_options, disk, encrypt,
                       image_opts, mkfs, noise, qemu_img, rescue, same, secret, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')


def keys_of(tmp, *argv, **kw):
    """What --json says of each layer's key, and the Result."""
    r = rescue(tmp, '--json', '--list', *argv, **kw)
    return [layer.get('key') for layer in json.loads(r.out)['layers']], r


# ---- sources of keys ----

def test_a_credential_of_systemd(tmp):
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'credentials').mkdir()
    (tmp / 'credentials' / 'disk').write_text(PASSWORD + '\n')
    r = rescue(tmp, '--key-credential', 'disk', image, tmp / 'out', key=None,
               env={'CREDENTIALS_DIRECTORY': str(tmp / 'credentials')})
    assert r.status == 0, r.err
    assert 'the credential disk fits' in r.err
    assert same(content(tmp / 'out'), content(plain))


@pytest.mark.parametrize('name, said', [
    ('none', 'Cannot open the credential none: No such file'),
    ('../key', "'../key' is not the name of a credential")])
def test_a_credential_that_is_not_there(tmp, name, said):
    r = rescue(tmp, '--key-credential', name, 'a', 'b', key=None,
               env={'CREDENTIALS_DIRECTORY': str(tmp)})
    assert r.status == 1 and said in r.err


def test_without_systemd_there_are_no_credentials(tmp):
    r = rescue(tmp, '--key-credential', 'disk', 'a', 'b', key=None)
    assert r.status == 1 and '$CREDENTIALS_DIRECTORY is not set' in r.err


@pytest.mark.parametrize('argv', [
    ('--password', PASSWORD), ('--password=' + PASSWORD,), ('--key=' + PASSWORD,),
    ('--passphrase', PASSWORD), ('--secret=' + PASSWORD,),
    ('--object', 'secret,id=s,data=' + PASSWORD)])
def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp, argv):
    r = rescue(tmp, *argv, 'a', 'b', key=None)
    assert r.status == 2
    assert 'never taken from the command line' in r.err and '--key-file' in r.err
    assert PASSWORD not in r.err + r.out


def test_an_empty_key_file_is_an_error(tmp):
    r = rescue(tmp, 'a', 'b', key='')
    assert r.status == 1 and 'it is empty' in r.err


def test_a_key_may_hold_any_byte(tmp):
    """Also those that end a string: LUKS takes all, and AES the first 16."""
    plain = disk(tmp / 'plain', 4)
    (tmp / 'bytes').write_bytes(b'abc')
    image = encrypt(tmp, 'qcow2', plain, tmp / 'image', password='abc')
    for tail, status in ((b'', 0), (b'\0\0', 0), (b'\0x', 3)):
        (tmp / 'bytes').write_bytes(b'abc' + tail)
        r = rescue(tmp, '--list', '--key-file', tmp / 'bytes', image, key=None)
        assert r.status == status, (tail, r.err)


def test_there_is_a_limit_to_keys(tmp):
    (tmp / 'key').write_text(PASSWORD)
    r = rescue(tmp, *['--key-file', tmp / 'key'] * 257, 'a', 'b', key=None)
    assert r.status == 1 and 'More than 256 keys were given' in r.err


@pytest.mark.skipif(not shutil.which('setpriv'), reason='no setpriv is installed')
@pytest.mark.skipif('san' in quoin.QUOIN, reason='a sanitizer stands in for mlock()')
@pytest.mark.parametrize('limit, said', [(0, True), (1 << 20, False)])
def test_a_limit_on_locked_memory_that_is_too_low_is_said(tmp, limit, said):
    image = standard(tmp, 'qcow2')[1]
    (tmp / 'key').write_text(PASSWORD)
    root = ['setpriv', '--bounding-set', '-ipc_lock', '--inh-caps', '-ipc_lock']
    r = quoin.run(*(root if os.geteuid() == 0 else []), 'prlimit', '--memlock=%d:%d' % (limit, limit),
                  quoin.QUOIN, 'rescue', '--list', '--key-file', tmp / 'key', image, tmp=tmp)
    assert r.status == 0, r.err
    assert ('too low to keep keys out of swap' in r.err) == said


# ---- ends of lines ----

@pytest.mark.parametrize('kind', ['qcow2', 'luks'])
@pytest.mark.parametrize('have, give, form, said', [
    ('short', 'short', 'exact', ''),
    ('short', 'short\n', 'without-line-end', ' (without the newline at its end)'),
    ('short', 'short\r\n', 'without-line-end', ' (without the CR LF at its end)'),
    ('short\n', 'short', 'with-lf', ' (with a newline added)'),
    ('short\r\n', 'short', 'with-crlf', ' (with CR LF added)'),
    ('short\r\n', 'short\n', 'with-crlf', ' (with CR LF at its end instead)'),
    ('short\n', 'short\r\n', 'with-lf', ' (with a newline at its end instead)')])
def test_which_end_of_the_line_fits_is_said(tmp, kind, have, give, form, said):
    plain = mkfs(tmp / 'plain', 4)
    (tmp / 'secret').write_bytes(have.encode())
    out, options = create_options(kind)
    qemu_img(tmp, 'convert', '-f', 'raw', '-O', out, '--object',
             'secret,id=s,file=%s' % (tmp / 'secret'), '-o', options, plain, tmp / 'image')
    (tmp / 'given').write_bytes(give.encode())
    (key,), r = keys_of(tmp, '--key-file', tmp / 'given', tmp / 'image', key=None)
    assert r.status == 0, r.err
    assert key['state'] == 'fits' and key['form'] == form
    assert key['origin'] == 'the key file %s%s' % (tmp / 'given', said)


def test_the_exact_bytes_come_first(tmp):
    """One disk could be read with either; what was given is what counts."""
    image = create(tmp, 'qcow2', tmp / 'image', '1M', password='short\n')
    write(tmp, image_opts('qcow2', image), 'write -P 65 0 1M', password='short\n')
    (key,), r = keys_of(tmp, image, key='short\n')
    assert r.status == 0 and key['form'] == 'exact', r.err


# ---- a key for each layer ----

def chain(tmp, passwords, data=None):
    """Layers with one password each, the topmost first, and data of their own."""
    below, opts, more = None, '', ()
    for i in reversed(range(len(passwords))):
        path = create(tmp, 'qcow2', tmp / ('layer%d' % i), '4M', passwords[i],
                      ',backing_file=%s,backing_fmt=qcow2' % below if below else '')
        mine = image_opts('qcow2', path, 'k%d' % i)
        more = (*secret(passwords[i], 'k%d' % i), *more)
        if below:
            opts = ','.join('backing.' + o for o in opts.split(','))
            mine += ',' + opts
        opts = mine
        command = 'write %s %dM 1M' % ('-P %d' % (65 + i) if data is None else '-s %s' % data, i)
        write(tmp, opts, command, password='unused', more=more)
        below = path
    return tmp / 'layer0'


def test_the_list_tells_every_layer_s_key(tmp):
    top = chain(tmp, ['first', 'second', 'third'])
    for word in ('first', 'third'):
        (tmp / word).write_text(word)
    argv = ('--key-file', tmp / 'first', '--key-file', tmp / 'third', top)
    keys, r = keys_of(tmp, *argv, key=None)
    assert r.status == 3
    assert [k['state'] for k in keys] == ['fits', 'wrong', 'fits']
    assert keys[2]['origin'] == 'the key file %s' % (tmp / 'third')
    assert keys[1]['evidence']['verdict'] == 'implausible'
    lines = rescue(tmp, '--list', *argv, key=None).out.splitlines()
    shown = [line.strip() for line in lines if line.startswith('    key: ')]
    assert [s.split()[1].rstrip(',') for s in shown] == ['fits', 'wrong', 'fits']
    assert 'key: none was tried' in rescue(tmp, '--list', top, key=None).out


def test_a_key_can_be_for_one_layer_only(tmp):
    """Two layers that hold only noise: nothing tells which key is whose, so it is said."""
    noise(tmp / 'noise', MIB)
    top = chain(tmp, ['first', 'second'], tmp / 'noise')
    for word in ('first', 'second'):
        (tmp / word).write_text(word)
    argv = ('--accept-unverified-key', '--layer', '1', '--key-file', tmp / 'second', '--layer', '0',
            '--key-file', tmp / 'first')
    r = rescue(tmp, *argv, top, tmp / 'out', key=None)
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), content(tmp / 'noise') * 2 + bytes(2 * MIB))
    keys, _ = keys_of(tmp, *argv, top, key=None)
    assert [(k['state'], os.path.basename(k['origin'])) for k in keys] == [
        ('unverified', 'first'), ('unverified', 'second')]


def test_a_layer_without_a_key_is_named(tmp):
    top = chain(tmp, ['same', 'same'])
    (tmp / 'key').write_text('same')
    r = rescue(tmp, '--layer', '0', '--key-file', tmp / 'key', top, tmp / 'out', key=None)
    assert r.status == 1
    assert '%s: no key was given for it, which is layer 1' % (tmp / 'layer1') in r.err
    r = rescue(tmp, '--layer', '0', '--key-file', tmp / 'key', '--layer', 'all', '--key-file',
               tmp / 'key', top, tmp / 'out', key=None)
    assert r.status == 0, r.err


@pytest.mark.parametrize('layer, status, said', [
    ('2', 1, 'There is no layer 2'), ('-1', 2, 'a layer is a number'), ('top', 2, 'a layer is'),
    ('99999999999', 2, 'a layer is')])
def test_layers_that_are_not_there(tmp, layer, status, said):
    top = chain(tmp, ['same', 'same'])
    (tmp / 'key').write_text('same')
    r = rescue(tmp, '--layer', layer, '--key-file', tmp / 'key', top, tmp / 'out', key=None)
    assert r.status == status and said in r.err


# ---- the evidence ----

def test_the_evidence_is_in_the_report(tmp):
    image = encrypt(tmp, 'qcow2', mkfs(tmp / 'plain'), tmp / 'image')
    (key,), r = keys_of(tmp, image)
    assert r.status == 0
    e = key['evidence']
    assert e['verdict'] == 'plausible'
    assert e['sampled-sectors'] == e['noise-sectors'] + e['odd-sectors'] > 64
    assert e['odd-sectors'] >= e['clear-sectors'] >= e['zero-sectors'] + e['text-sectors'] > 0
    (key,), r = keys_of(tmp, image, key='wrong')
    e = key['evidence']
    assert r.status == 3 and key['state'] == 'wrong' and e['verdict'] == 'implausible'
    assert e['noise-sectors'] == e['sampled-sectors'] and not e['structures']


def test_a_structure_s_offset_is_in_the_report(tmp):
    mkfs(tmp / 'fs', 4)
    (tmp / 'plain').write_bytes(bytes(MIB) + content(tmp / 'fs'))
    image = encrypt(tmp, 'qcow2', tmp / 'plain', tmp / 'image')
    (key,), r = keys_of(tmp, image)
    if b'\x53\xef' not in content(tmp / 'fs')[1080:1082]:
        pytest.skip('no mkfs.ext4 is installed')
    assert {'name': 'ext4 file system', 'offset': MIB} in key['evidence']['structures']


def test_the_slot_of_luks_is_in_the_report(tmp):
    (key,), r = keys_of(tmp, standard(tmp, 'luks')[1])
    assert r.status == 0 and (key['state'], key['slot']) == ('fits', 0)
    assert 'evidence' not in key


def test_a_layer_that_needs_no_key(tmp):
    (key,), r = keys_of(tmp, create(tmp, 'qcow2', tmp / 'image', '4M'))
    assert r.status == 0 and key == {'state': 'not-needed', 'tried': 0}


# ---- lists of candidates ----

def word_list(tmp, *words, end='\n'):
    (tmp / 'words').write_text(end.join(words) + end)
    return '--try-keys', tmp / 'words'


@pytest.mark.parametrize('kind', ['qcow', 'qcow2', 'luks'])
def test_the_line_that_fits_is_named_and_not_printed(tmp, kind):
    plain = disk(tmp / 'plain', 4)
    image = encrypt(tmp, kind, plain, tmp / 'image', password='hunter3')
    words = word_list(tmp, 'hunter1', '', 'hunter2', 'hunter3', 'hunter4', end='\r\n')
    r = rescue(tmp, *words, image, tmp / 'out', key=None)
    assert r.status == 0, r.err
    assert 'line 4 of %s fits' % (tmp / 'words') in r.err
    assert 'hunter' not in r.err + r.out
    assert same(content(tmp / 'out'), content(plain))
    (key,), r = keys_of(tmp, *words, image, key=None)
    assert key['tried'] == 3 and key['origin'] == 'line 4 of %s' % (tmp / 'words')


def test_a_candidate_may_be_right_with_an_end_of_its_line(tmp):
    image = encrypt(tmp, 'qcow2', mkfs(tmp / 'plain', 4), tmp / 'image', password='short\n')
    (key,), r = keys_of(tmp, *word_list(tmp, 'long', 'short'), image, key=None)
    assert r.status == 0, r.err
    assert key['form'] == 'with-lf' and key['origin'].startswith('line 2 of ')


def test_each_layer_takes_its_line(tmp):
    top = chain(tmp, ['first', 'second', 'third'])
    keys, r = keys_of(tmp, *word_list(tmp, 'third', 'second', 'first'), top, key=None)
    assert r.status == 0, r.err
    assert [k['origin'].split()[1] for k in keys] == ['3', '2', '1']


def test_wrong_candidates_are_counted(tmp):
    image = standard(tmp, 'qcow2')[1]
    words = word_list(tmp, *('wrong%d' % i for i in range(300)))
    (key,), r = keys_of(tmp, *words, image, key=None)
    assert r.status == 3 and key['state'] == 'wrong' and key['tried'] == 300
    assert 'with each of 300 keys' in r.err


def test_a_sector_that_no_glance_hits_is_found(tmp):
    """Noise but for one sector: only all samples tell."""
    data = bytearray(content(noise(tmp / 'noise', MIB)))
    data[777 * 512:778 * 512] = b'text' * 128
    (tmp / 'plain').write_bytes(data)
    image = encrypt(tmp, 'qcow2', tmp / 'plain', tmp / 'image', password='right')
    (key,), r = keys_of(tmp, *word_list(tmp, 'wrong', 'right', 'other'), image, key=None)
    assert r.status == 0, r.err
    assert key['origin'].startswith('line 2 of ') and key['evidence']['text-sectors'] == 1


def test_no_candidate_is_taken_unverified(tmp):
    image = encrypt(tmp, 'qcow2', noise(tmp / 'plain', 4 * MIB), tmp / 'image')
    words = word_list(tmp, PASSWORD)
    assert rescue(tmp, *words, image, tmp / 'out', key=None).status == 3
    r = rescue(tmp, '--accept-unverified-key', *words, image, tmp / 'out', key=None)
    assert r.status == 2 and 'wants one key' in r.err


@pytest.mark.parametrize('text, said', [('', 'it is empty'), ('\n\r\n\n', 'no candidate')])
def test_a_list_without_candidates(tmp, text, said):
    (tmp / 'words').write_text(text)
    r = rescue(tmp, '--try-keys', tmp / 'words', 'a', 'b', key=None)
    assert r.status == 1 and said in r.err


# ---- the terminal ----

def test_an_empty_answer_counts_as_a_wrong_one(tmp):
    image = standard(tmp, 'luks')[1]
    t = Terminal(tmp, 'rescue', image, tmp / 'out')
    for answer in ('', PASSWORD):
        t.expect('Password for %s (LUKS' % image)
        t.wait_for_silence()
        t.send(answer + '\n')
    t.expect('the password fits')
    t.expect('whole and on disk')
    assert t.end() == 0


def test_what_cannot_be_judged_is_asked_for_again(tmp):
    image = encrypt(tmp, 'qcow', noise(tmp / 'plain', 16 * 1024), tmp / 'image')
    t = Terminal(tmp, 'rescue', image, tmp / 'out')
    for answer in ('wrong', PASSWORD, PASSWORD):
        t.expect('Password for')
        t.wait_for_silence()
        t.send(answer + '\n')
        t.expect('It cannot be judged whether this is the password: all of 32 sampled sectors')
    t.expect('--accept-unverified-key')
    assert t.end() == 4
    t = Terminal(tmp, 'rescue', '--accept-unverified-key', image, tmp / 'out')
    t.expect('Password for')
    t.wait_for_silence()
    t.send(PASSWORD + '\n')
    t.expect('the password is taken unverified')
    t.expect('whole and on disk')
    assert t.end() == 0
    assert same(content(tmp / 'out'), content(tmp / 'plain'))


def test_wrong_answers_are_not_kept_for_other_layers(tmp):
    top = chain(tmp, ['first', 'second'])
    t = Terminal(tmp, 'rescue', top, tmp / 'out')
    for answer in ('second', 'first', 'first', 'second'):
        t.expect('Password for')
        t.wait_for_silence()
        t.send(answer + '\n')
    t.expect('whole and on disk')
    assert t.end() == 0


def test_the_prompt_survives_a_stop(tmp):
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'script').write_text('set -m\n%s rescue %s %s\necho stopped: $?\nfg\n' % (
        quoin.QUOIN, image, tmp / 'out'))
    t = Terminal(tmp, tmp / 'script', program='bash')
    t.expect('Password for')
    t.wait_for_silence()
    t.send('\032')      # ctrl-Z
    t.expect('stopped: 148')
    t.expect('Password for')
    t.wait_for_silence()
    t.send(PASSWORD + '\n')
    t.expect('whole and on disk')
    assert t.end() == 0
    assert same(content(tmp / 'out'), content(plain))


def test_layer_wants_a_key_behind_it(tmp):
    image = standard(tmp, 'luks')[1]
    r = rescue(tmp, '--key-file', tmp / 'key', '--layer', '0', image, tmp / 'out')
    assert r.status == 2 and '--layer wants a key option behind it' in r.err
    assert not os.path.exists(tmp / 'out')
