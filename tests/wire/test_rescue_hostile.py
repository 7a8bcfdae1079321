# SPDX-License-Identifier: Apache-2.0
"""quoin rescue on headers that lie: each field of a LUKS header, and of the crypto header of
qcow2, at its edges.  The answer is a clear error that names what is wrong; most of all, it ends.
"""
import os
import signal
import subprocess

import peers
import pytest
import quoin
from rescuekit import PASSWORD, Terminal, content, qemu_img, rescue, same, standard

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

# Offsets in the header of version 1; slots are 48 bytes each.
VERSION, CIPHER, MODE, HASH, PAYLOAD, KEY_BYTES, ITERATIONS = 6, 8, 40, 72, 104, 108, 164
SLOT, SLOT_ITERATIONS, SLOT_MATERIAL, SLOT_STRIPES = 208, 212, 248, 252
USED, UNUSED = 0x00ac71f3, 0x0000dead
MOST = 50000000


def be16(n):
    return n.to_bytes(2, 'big')


def be32(n):
    return n.to_bytes(4, 'big')


def name(text):
    return text.encode().ljust(32, b'\0')


def patch(path, *changes):
    with open(path, 'r+b') as f:
        for at, data in changes:
            f.seek(at)
            f.write(data)


def refused(tmp, original, *changes):
    """What quoin rescue --list says of an image with these changes."""
    path = tmp / 'broken'
    path.write_bytes(original)
    patch(path, *changes)
    r = rescue(tmp, '--list', path)
    assert r.status == 1, (changes, r)
    assert str(path) in r.err, r.err
    return r.err


NAMES = [
    (CIPHER, '', 'no cipher is named'), (CIPHER, 'a\nb', 'the cipher is no name'),
    (CIPHER, 'a' * 32, 'The cipher %s-xts-plain64' % ('a' * 32)),
    (CIPHER, 'des', 'The cipher des-xts-plain64 with a key of 512 bits is not supported'),
    (CIPHER, 'AES', 'The cipher AES-xts-plain64'),
    (CIPHER, 'cipher_null', 'The cipher cipher_null-xts'),
    (CIPHER, 'cast5', 'The cipher cast5-xts'),
    (MODE, '', "no cipher's mode is named"), (MODE, 'xts', 'The cipher aes-xts with'),
    (MODE, 'xts-', 'The cipher aes-xts with'), (MODE, 'lrw-benbi', 'aes-lrw-benbi'),
    (MODE, 'cbc-essiv', 'aes-cbc-essiv'), (MODE, 'xts-essiv:', 'aes-xts-essiv'),
    (MODE, 'xts-essiv:whirlpool', 'aes-xts-essiv:whirlpool'), (MODE, 'xts-null', 'aes-xts-null'),
    (MODE, 'x' * 32, 'aes-' + 'x' * 32),
    (HASH, '', 'no hash is named'), (HASH, 'whirlpool', 'The hash whirlpool is not supported'),
    (HASH, '\x7f', 'the hash is no name')]


def test_names_at_their_edges(tmp):
    original = content(standard(tmp, 'luks')[1])
    for at, value, text in NAMES:
        err = refused(tmp, original, (at, name(value)))
        assert text in err, (at, value, err)


NUMBERS = [
    (VERSION, be16(0), 'version 0'), (VERSION, be16(2), 'version 2'),
    (VERSION, be16(0xffff), 'version 65535'),
    (PAYLOAD, be32(0), 'a LUKS header by itself'), (PAYLOAD, be32(1), 'where the header still is'),
    (PAYLOAD, be32(0xffffffff), 'beyond the end of the file'),
    (KEY_BYTES, be32(0), 'keys of 0 bytes'), (KEY_BYTES, be32(1), 'a key of 8 bits'),
    (KEY_BYTES, be32(63), 'a key of 504 bits'), (KEY_BYTES, be32(65), 'keys of 65 bytes'),
    (KEY_BYTES, be32(0x80000000), 'keys of 2147483648 bytes'),
    (KEY_BYTES, be32(0xffffffff), 'keys of 4294967295 bytes'),
    (ITERATIONS, be32(0), '0 iterations'), (ITERATIONS, be32(MOST + 1), '50000001 iterations'),
    (ITERATIONS, be32(0xffffffff), '4294967295 iterations'),
    (SLOT, be32(0), 'key slot 0 is in no legal state'),
    (SLOT, be32(0xffffffff), 'key slot 0 is in no legal state'),
    (SLOT, be32(UNUSED), 'No key slot'),
    (SLOT_ITERATIONS, be32(0), 'key slot 0 wants 0 iterations'),
    (SLOT_ITERATIONS, be32(MOST + 1), 'key slot 0 wants 50000001 iterations'),
    (SLOT_STRIPES, be32(0), 'key slot 0 has 0 stripes'),
    (SLOT_STRIPES, be32(3999), 'key slot 0 has 3999 stripes'),
    (SLOT_STRIPES, be32(0xffffffff), 'key slot 0 has 4294967295 stripes'),
    (SLOT_MATERIAL, be32(0), 'key slot 0 lies outside'),
    (SLOT_MATERIAL, be32(1), 'key slot 0 lies outside'),
    (SLOT_MATERIAL, be32(0x7fffffff), 'key slot 0 lies outside'),
    (SLOT_MATERIAL, be32(0xffffffff), 'key slot 0 lies outside')]


def test_numbers_at_their_edges(tmp):
    original = content(standard(tmp, 'luks')[1])
    for at, value, text in NUMBERS:
        err = refused(tmp, original, (at, value))
        assert text in err, (at, value, err)


def test_key_material_in_the_data(tmp):
    """The last place that fits in front of it, and the next."""
    original = content(standard(tmp, 'luks')[1])
    payload = int.from_bytes(original[PAYLOAD:PAYLOAD + 4], 'big')
    path = tmp / 'broken'
    path.write_bytes(original)
    patch(path, (SLOT_MATERIAL, be32(payload - 500)))
    assert rescue(tmp, '--list', path).status == 3      # it is read, and no key is in it
    err = refused(tmp, original, (SLOT_MATERIAL, be32(payload - 499)))
    assert 'key slot 0 lies outside' in err


def test_one_bad_slot_is_no_reason_to_give_up(tmp):
    plain, image = standard(tmp, 'luks')
    second = SLOT + 48
    patch(image, (second, be32(1)))
    r = rescue(tmp, '--list', image, key='wrong')
    assert r.status == 3
    assert 'the header is damaged: key slot 1 is in no legal state' in r.err
    # The same material under a slot that is used: whoever has the key gets in.
    patch(image, (second, be32(USED) + be32(1000) + bytes(32) + content(image)[248:256]))
    r = rescue(tmp, '--list', image, key='wrong')
    assert r.status == 3 and 'key slot 1 overlaps key slot 0' in r.err
    assert rescue(tmp, image, tmp / 'out').status == 0
    assert same(content(tmp / 'out'), content(plain))


def test_a_volume_that_is_cut_off(tmp):
    original = content(standard(tmp, 'luks')[1])
    for length, text in ((591, 'it is too short'), (592, 'beyond the end of the file'),
                         (4096 + 256000 - 1, 'beyond the end of the file')):
        path = tmp / 'broken'
        path.write_bytes(original[:length])
        r = rescue(tmp, '--list', path)
        assert r.status == 1 and text in r.err, (length, r.err)


def test_wrong_digests_are_wrong_keys(tmp):
    original = content(standard(tmp, 'luks')[1])
    for at in (112, 132, SLOT + 8, 4096, 4096 + 255999):
        path = tmp / 'broken'
        path.write_bytes(original)
        patch(path, (at, bytes([original[at] ^ 1])))
        assert rescue(tmp, '--list', path).status == 3, at


def crypto_extension(data):
    """Where the offset and the length of the LUKS header stand in a qcow2 image."""
    at = int.from_bytes(data[100:104], 'big')
    while data[at:at + 4] != be32(0x0537be77):
        at += 8 + (int.from_bytes(data[at + 4:at + 8], 'big') + 7) // 8 * 8
    return at + 8


def test_the_crypto_header_of_qcow2_at_its_edges(tmp):
    image = standard(tmp, 'qcow2-luks')[1]
    original = content(image)
    at = crypto_extension(original)
    where = int.from_bytes(original[at:at + 8], 'big')
    for offset, length, text in (
            (1, 4096, 'not a multiple of cluster size'), (1 << 63, 4096, 'header'),
            (1 << 62, 4096, 'header'), (0, 4096, 'no LUKS header'),
            (len(original) + 65535 & ~65535, 4096, 'LUKS header'), (where, 0, 'LUKS header'),
            (where, 591, 'LUKS header'), (where, 592, 'lies outside'),
            (where, 4096 + 255999, 'lies outside'), (where, (1 << 64) - 1, 'is invalid')):
        err = refused(tmp, original, (at, offset.to_bytes(8, 'big') + length.to_bytes(8, 'big')))
        assert text in err, (offset, length, err)
    patch(image, (at + 8, (4096 + 256000).to_bytes(8, 'big')))
    assert rescue(tmp, '--list', image).status == 0


def test_an_interrupt_ends_an_absurd_key_derivation(tmp):
    """The most iterations that are allowed take half a minute for each key and slot."""
    image = standard(tmp, 'luks')[1]
    patch(image, (SLOT_ITERATIONS, be32(MOST)))
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--key-file', tmp / 'key', image, tmp / 'out'],
                         stderr=subprocess.PIPE, env=quoin.environment(tmp))

    def cpu():
        with open('/proc/%d/stat' % p.pid) as f:
            return int(f.read().rsplit(')', 1)[1].split()[11])
    while cpu() < 20:
        assert p.poll() is None, p.stderr.read()
    p.send_signal(signal.SIGINT)
    assert p.wait(5 * quoin.SLOW) == -signal.SIGINT
    p.stderr.close()
    assert not os.path.exists(tmp / 'out')


ESCAPES = 'a\x1b[31mb\x07c\rd\x9be'     # the last as UTF-8 has it


def test_the_key_of_a_disk_with_no_end(tmp):
    """Pebibytes of clusters, none of which can be looked up: sectors are looked for in so
    many of them and no more."""
    size, l2_bits, cluster_bits = 1 << 51, 13, 16
    tables = size >> (l2_bits + cluster_bits)
    path = tmp / 'disk.qcow'
    path.write_bytes(b'QFI\xfb' + be32(1) + bytes(12) + be32(0) + size.to_bytes(8, 'big')
                     + bytes([cluster_bits, l2_bits, 0, 0]) + be32(1) + (48).to_bytes(8, 'big')
                     + b'\xff' * 8 * tables)
    (tmp / 'key').write_text(PASSWORD)
    r = rescue(tmp, '--list', '--key-file', tmp / 'key', path)
    assert r.status == 4 and 'cannot be judged' in r.err, r


@pytest.mark.parametrize('argv, status', [([], 0), (['--list'], 0), (['wrong'], 3), (['gone'], 1)])
def test_names_in_images_do_nothing_to_a_terminal(tmp, argv, status):
    """In errors, in what is said of keys, and in the list."""
    base = standard(tmp, 'qcow2')[1].rename(tmp / ESCAPES)
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', tmp / 'image')
    if argv == ['gone']:
        base.unlink()
    r = rescue(tmp, *(a for a in argv if a == '--list'), tmp / 'image',
               *([] if argv == ['--list'] else [tmp / 'out']),
               key='wrong' if argv == ['wrong'] else PASSWORD)
    assert r.status == status and '/a?[31mb?c?d?e' in r.err + r.out, r
    assert not {'\x1b', '\x07', '\r', '\x9b'} & set(r.err + r.out), r


def test_the_question_does_nothing_to_a_terminal_either(tmp):
    base = standard(tmp, 'qcow2')[1].rename(tmp / ESCAPES)
    qemu_img(tmp, 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', tmp / 'image')
    t = Terminal(tmp, 'rescue', tmp / 'image', tmp / 'out')
    t.expect('a?[31mb?c?d?e (qcow2 AES-CBC): ')
    t.wait_for_silence()
    t.send(PASSWORD + '\n')
    assert t.end() == 0
