# SPDX-License-Identifier: Apache-2.0
"""quoin rescue on what other programs than QEMU make and read: cryptsetup's LUKS volumes, and
libqcow's view of qcow images.

cryptsetup only makes the volumes: to write into one it would need the kernel.  QEMU writes
what is in them, and reads it again to compare; openssl does where QEMU cannot.
"""
import os
import shutil
import subprocess

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, content, create, disk, image_opts, peer_content, qemu_img,
                       rescue, same, secret, standard, write)

CRYPTSETUP = shutil.which('cryptsetup', path=os.environ['PATH'] + ':/sbin:/usr/sbin')

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')
needs_cryptsetup = pytest.mark.skipif(not CRYPTSETUP, reason='no cryptsetup is installed')

SIZE = 8 * MIB


def cryptsetup(tmp, *argv, key=PASSWORD):
    """cryptsetup to its end; a key goes to its standard input."""
    r = quoin.run(CRYPTSETUP, '-q', *argv, tmp=tmp, stdin=key)
    if 'device-mapper' in r.err:
        pytest.skip('cryptsetup needs the kernel for it: ' + ' '.join(map(str, argv)))
    assert r.status == 0, (argv, r)
    return r


def volume(tmp, *options, kind='luks1', key=PASSWORD):
    """An empty volume."""
    path = tmp / 'image'
    with open(path, 'wb') as f:
        f.truncate(SIZE)
    cryptsetup(tmp, 'luksFormat', '--type', kind, '--pbkdf-force-iterations', 1000, *options, path,
               '-', key=key)
    return path


def fill(tmp, path, mib=4):
    """A disk, encrypted by QEMU into a volume of any make, from its start on; what comes behind it
    stays as it is."""
    plain = disk(tmp / 'plain', mib)
    write(tmp, image_opts('luks', path), 'write -q -s %s 0 %dM' % (plain, mib))
    return content(plain)


def rescued(tmp, path):
    r = rescue(tmp, path, tmp / 'out')
    assert r.status == 0, r.err
    return content(tmp / 'out')


# ---- cryptsetup's volumes ----

VOLUMES = [('aes-cbc-plain', 128, 'sha1'), ('aes-cbc-plain', 256, 'sha256'),
           ('aes-cbc-plain64', 256, 'sha512'), ('aes-cbc-essiv:sha256', 128, 'ripemd160'),
           ('aes-cbc-essiv:sha256', 256, 'sha1'), ('aes-xts-plain', 256, 'sha384'),
           ('aes-xts-plain64', 256, 'sha224'), ('aes-xts-plain64', 512, 'sha512'),
           ('aes-xts-essiv:sha256', 512, 'sha256'), ('aes-ctr-plain64', 256, 'sha256')]
KERNEL_VOLUMES = [
    ('serpent-cbc-essiv:sha256', 256, 'sha1'), ('serpent-xts-plain64', 512, 'sha256'),
    ('twofish-cbc-plain', 256, 'ripemd160'), ('twofish-xts-plain64', 512, 'sha512')]


def assert_volume_is_rescued(tmp, cipher, bits, hash_name):
    path = volume(tmp, '--cipher', cipher, '--key-size', bits, '--hash', hash_name)
    plain = fill(tmp, path)
    got = rescued(tmp, path)
    assert same(got[:len(plain)], plain)
    assert same(got, peer_content(tmp, image_opts('luks', path)))


@needs_cryptsetup
@pytest.mark.parametrize('cipher, bits, hash_name', VOLUMES)
def test_volumes_that_cryptsetup_made(tmp, cipher, bits, hash_name):
    assert_volume_is_rescued(tmp, cipher, bits, hash_name)


@needs_cryptsetup
def test_volumes_that_cryptsetup_made_with_the_kernel(tmp):
    for n, how in enumerate(KERNEL_VOLUMES):
        (tmp / str(n)).mkdir()
        assert_volume_is_rescued(tmp / str(n), *how)


@needs_cryptsetup
@pytest.mark.skipif(not shutil.which('openssl'), reason='no openssl is installed')
@pytest.mark.parametrize('cipher, bits', [('aes-cbc-plain64', 192), ('aes-ecb', 256)])
def test_volumes_that_qemu_cannot_read(tmp, cipher, bits):
    """Its key material is no whole number of sectors, or the mode has no generator."""
    master = bytes(range(bits // 8))
    (tmp / 'master').write_bytes(master)
    path = volume(tmp, '--cipher', cipher, '--key-size', bits, '--volume-key-file', tmp / 'master',
                  '--offset', 4096)
    plain = b'a sector, and what is in it.....' * 16
    sector = 5
    argv = ['openssl', 'enc', '-%s-%d-%s' % ('aes', bits, cipher.split('-')[1]), '-nopad', '-K',
            master.hex()]
    if 'plain' in cipher:
        argv += ['-iv', sector.to_bytes(16, 'little').hex()]
    stored = subprocess.run(argv, input=plain, capture_output=True, check=True).stdout
    with open(path, 'r+b') as f:
        f.seek((4096 + sector) * 512)
        f.write(stored)
    assert same(rescued(tmp, path)[sector * 512:][:512], plain)


@needs_cryptsetup
@pytest.mark.parametrize('cipher, text', [
    ('aes-cbc-benbi', 'aes-cbc-benbi'), ('aes-cbc-plain64be', 'aes-cbc-plain64be'),
    ('aes-cbc-null', 'aes-cbc-null')])
def test_generators_that_are_not_known_are_refused_by_name(tmp, cipher, text):
    r = rescue(tmp, volume(tmp, '--cipher', cipher, '--key-size', 256), tmp / 'out')
    assert r.status == 1 and text in r.err and 'is not supported' in r.err, r.err


@needs_cryptsetup
def test_every_key_slot_opens_it_until_it_is_killed(tmp):
    words = ['password number %d' % i for i in range(8)]
    path = volume(tmp, '--key-slot', 5, key=words[5])
    plain = None
    for i in (0, 1, 2, 3, 4, 6, 7):
        (tmp / 'new').write_text(words[i])
        cryptsetup(tmp, 'luksAddKey', '--pbkdf-force-iterations', 1000 + i, '--key-slot', i, path,
                   tmp / 'new', key=words[5])
    write(tmp, image_opts('luks', path), 'write -q -P 65 0 2M', password=words[7])
    plain = peer_content(tmp, image_opts('luks', path), password=words[0])
    for killed in (5, 0):
        cryptsetup(tmp, 'luksKillSlot', path, killed, key=words[7])
    for i, word in enumerate(words):
        r = rescue(tmp, '--list', path, key=word)
        if i in (5, 0):
            assert r.status == 3, r.err
        else:
            assert r.status == 0 and 'it opens key slot %d' % i in r.err, r.err
    assert rescue(tmp, path, tmp / 'out', key=words[3]).status == 0
    assert same(content(tmp / 'out'), plain)


@needs_cryptsetup
@pytest.mark.parametrize('options', [('--offset', 4104), ('--offset', 12288),
                                     ('--align-payload', 8192)])
def test_the_data_begins_where_the_header_says(tmp, options):
    path = volume(tmp, *options)
    plain = fill(tmp, path, 2)
    got = rescued(tmp, path)
    assert same(got[:len(plain)], plain)
    assert same(got, peer_content(tmp, image_opts('luks', path)))


@needs_cryptsetup
def test_a_password_that_was_changed(tmp):
    path = volume(tmp, key='old')
    (tmp / 'new').write_text(PASSWORD)
    cryptsetup(tmp, 'luksChangeKey', '--pbkdf-force-iterations', 1000, path, tmp / 'new', key='old')
    assert rescue(tmp, '--list', path, key='old').status == 3
    assert rescue(tmp, '--list', path).status == 0


@needs_cryptsetup
def test_version_2_is_named_with_what_opens_it(tmp):
    path = volume(tmp, '--pbkdf', 'pbkdf2', kind='luks2')
    for argv in ((path, tmp / 'out'), ('--list', path)):
        r = rescue(tmp, *argv)
        assert r.status == 1, r.err
        assert '%s is a LUKS volume of version 2, which only cryptsetup decrypts' % path in r.err
    assert not os.path.exists(tmp / 'out')


# ---- libqcow ----

@pytest.fixture
def libqcow(tmp):
    """libqcow(image) -> the disk as qcowmount shows it."""
    if not shutil.which('qcowmount'):
        pytest.skip('no qcowmount is installed')
    mounted = []

    def view(image):
        folder = tmp / ('mounted%d' % len(mounted))
        folder.mkdir()
        r = quoin.run('qcowmount', '-p', PASSWORD[:16], image, folder, tmp=tmp)
        if not os.path.exists(folder / 'qcow1'):
            pytest.skip('qcowmount cannot be used here: ' + (r.out + r.err).strip())
        mounted.append(folder)
        return content(folder / 'qcow1')
    yield view
    for folder in mounted:
        subprocess.run(['umount', folder], check=True)


@pytest.mark.parametrize('kind', ['qcow', 'qcow2'])
def test_libqcow_reads_the_same(tmp, libqcow, kind):
    plain, image = standard(tmp, kind)
    assert same(rescued(tmp, image), libqcow(image))
    assert same(content(tmp / 'out'), content(plain))


def test_libqcow_reads_the_same_of_mixed_clusters(tmp, libqcow):
    """Holes, small clusters, and an internal snapshot."""
    image = create(tmp, 'qcow2', tmp / 'image', '4M', more=',cluster_size=4k')
    opts = image_opts('qcow2', image)
    write(tmp, opts, 'write -P 65 0 100k', 'write -P 66 1M 300k')
    qemu_img(tmp, 'snapshot', *secret(), '-c', 'before', '--image-opts', opts)
    write(tmp, opts, 'write -P 67 50k 100k', 'write -P 68 3M 5000')
    assert same(rescued(tmp, image), libqcow(image))
