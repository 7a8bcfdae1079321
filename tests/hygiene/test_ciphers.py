# SPDX-License-Identifier: Apache-2.0
"""The daemon can decrypt nothing: nothing in it is a cipher."""
import os
import re

import house

CIPHER = re.compile(r'nettle|hogweed|gcry|gnutls|EVP_|mbedtls|(^|_)(aes|twofish|serpent|cast128|'
                    r'des3?|camellia|pbkdf2?|argon2i?d?|xts|cbc)(_|\d|$)', re.I)


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
    assert not [n for n in needed('quoind') if re.search('nettle|hogweed|gcrypt|crypto|gnutls', n)]


def test_the_daemons_objects_reference_no_cipher():
    bad = []
    for src, obj in house.objects():
        if src.split('/')[0] in ('rescue', 'cli'):
            continue
        bad += ['%s: %s' % (src, line.split()[-1])
                for line in house.output('nm', obj).splitlines()
                if CIPHER.search(line.split()[-1])]
    assert not bad, '\n'.join(bad)


def test_the_search_would_find_one():
    assert all(CIPHER.search(n) for n in (
        'nettle_aes128_decrypt', 'xts_aes256_decrypt_message', 'EVP_EncryptInit', 'aes_decrypt'))
    assert not any(CIPHER.search(n) for n in ('nodes', 'describe', 'error_aesthetic', 'co_wake'))
