# SPDX-License-Identifier: Apache-2.0
"""Every cipher, mode, generator of initialization vectors and hash that qemu-img writes LUKS with:
quoin rescue gets what qemu-img gets.

By default each algorithm meets each mode, and the generators and hashes take turns;
QUOIN_MATRIX=full runs every generator with each of them.
"""
import atexit
import os
import pathlib
import shutil
import tempfile

import images
import peers
import pytest
import quoin
from rescuekit import (PASSWORD, content, create_options, disk, image_opts, peer_content, rescue,
                       same, secret)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

FULL = os.environ.get('QUOIN_MATRIX') == 'full'
ALGORITHMS = ['aes-128', 'aes-192', 'aes-256', 'cast5-128', 'serpent-128', 'serpent-192',
              'serpent-256', 'twofish-128', 'twofish-192', 'twofish-256', 'sm4']
MODES = ['cbc', 'xts', 'ctr', 'ecb']
# A hash that makes no key of the algorithm's, as SHA-1, is refused by QEMU too.
GENERATORS = ['plain', 'plain64', 'essiv:sha256', 'essiv:md5', 'essiv:sm3']
HASHES = ['sha1', 'sha256', 'ripemd160', 'sha512', 'md5', 'sha224', 'sm3', 'sha384']


def is_possible(algorithm, mode, generator):
    if algorithm == 'cast5-128':
        return mode != 'xts' and generator not in ('essiv:sha256', 'essiv:sm3')
    if algorithm == 'sm4':
        return (mode, generator) == ('xts', 'plain64')
    # QEMU aborts where the key material is no whole number of sectors;
    # test_rescue_foreign.py has one of cryptsetup's.
    return mode == 'xts' or not algorithm.endswith('192')


def table():
    n = 0
    for algorithm in ALGORITHMS:
        for mode in MODES:
            generators = [g for g in GENERATORS if is_possible(algorithm, mode, g)]
            for i, generator in enumerate(generators):
                if FULL or i == n % len(generators):
                    hash_name = HASHES[(n + i) % len(HASHES)]
                    kind = 'qcow2-luks' if n % 4 == 3 else 'luks'
                    yield pytest.param(kind, algorithm, mode, generator, hash_name, id='-'.join(
                        [kind, algorithm, mode, generator.replace(':', '-'), hash_name]))
            n += 1


_plain = []


def plain_disk():
    """A disk of 1 MiB; made once."""
    if not _plain:
        folder = pathlib.Path(tempfile.mkdtemp(prefix='q-ciphers-'))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _plain.append(disk(folder / 'plain', 1))
    return _plain[0]


@pytest.mark.parametrize('kind, algorithm, mode, generator, hash_name', table())
def test_every_cipher_of_luks(tmp, kind, algorithm, mode, generator, hash_name):
    ivgen, _, ivhash = generator.partition(':')
    prefix = 'encrypt.' if kind == 'qcow2-luks' else ''
    fmt, options = create_options(kind)
    for name, value in (('cipher-alg', algorithm), ('cipher-mode', mode), ('ivgen-alg', ivgen),
                        ('ivgen-hash-alg', ivhash), ('hash-alg', hash_name)):
        if value:
            options += ',%s%s=%s' % (prefix, name, value)
    image = tmp / 'image'
    r = quoin.run(peers.QEMU_IMG, 'convert', '-f', 'raw', '-O', fmt, *secret(PASSWORD), '-o',
                  options, plain_disk(), image, tmp=tmp, env=images.quick_luks())
    if 'not supported' in r.err or 'does not accept value' in r.err:
        pytest.skip('this qemu-img was built without it: ' + options)
    assert r.status == 0, r.err
    r = rescue(tmp, image, tmp / 'out')
    assert r.status == 0, r.err
    assert same(content(tmp / 'out'), content(plain_disk()))
    assert same(content(tmp / 'out'), peer_content(tmp, image_opts(kind, image)))
