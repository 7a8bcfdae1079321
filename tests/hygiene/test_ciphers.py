# SPDX-License-Identifier: Apache-2.0
"""The daemon can decrypt no image: nothing in it is a cipher.

GnuTLS guards the wire, and only aio/tls*.c call it, by its sessions and
certificates; its functions for ciphers and hashes are as forbidden as any.
"""
import os
import re

import house

CIPHER = re.compile(r'nettle|hogweed|gcry|EVP_|mbedtls|(^|_)(aes|twofish|serpent|cast128|'
                    r'des3?|camellia|pbkdf2?|argon2i?d?|xts|cbc)(_|\d|$)|'
                    r'gnutls_(?!cipher_suite)(cipher|aead|hash|hmac|mac|pbkdf|hkdf|rnd|pubkey|privkey)',
                    re.I)


def symbols(program):
    return [line.split()[-1].split('@')[0] for line in house.output(
        'nm', os.path.join(house.BUILD, program)).splitlines()]


def needed(program):
    return re.findall(r'NEEDED.*\[(.*)\]', house.output(
        'readelf', '-d', os.path.join(house.BUILD, program)))


def test_the_daemon_holds_no_cipher_symbol():
    names = symbols('quoind')
    assert 'main' in names
    assert not [n for n in names if CIPHER.search(n)]


def test_the_daemon_needs_no_cipher_library():
    assert not [n for n in needed('quoind') if re.search('nettle|hogweed|gcrypt|crypto', n)]


def test_the_daemons_objects_reference_no_cipher():
    bad = []
    for src, obj in house.objects():
        if src.split('/')[0] in ('rescue', 'cli'):
            continue
        bad += ['%s: %s' % (src, line.split()[-1])
                for line in house.output('nm', obj).splitlines()
                if CIPHER.search(line.split()[-1])]
    assert not bad, '\n'.join(bad)


def test_gnutls_is_for_the_wire_only():
    objects = {obj: src for src, obj in house.objects()}
    users = {objects[line.split(':')[0]] for line in house.output(
        'nm', '-A', *objects).splitlines() if ' gnutls_' in line}
    assert all(re.match('aio/tls', src) for src in users), users
    assert not [n for n in needed('quoin') if 'gnutls' in n]


def test_the_search_would_find_one():
    assert all(CIPHER.search(n) for n in (
        'nettle_aes128_decrypt', 'xts_aes256_decrypt_message', 'EVP_EncryptInit', 'aes_decrypt',
        'gnutls_cipher_decrypt', 'gnutls_aead_cipher_init', 'gnutls_pbkdf2'))
    assert not any(CIPHER.search(n) for n in ('nodes', 'describe', 'error_aesthetic', 'co_wake',
                                             'gnutls_record_send', 'gnutls_handshake'))
