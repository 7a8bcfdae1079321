#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""seeds.py FOLDER: small sound images for the fuzz targets of formats to start from,
one folder for each target, made by QEMU's tools; and sound replies of a server."""
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import images    # noqa: E402
import peers     # noqa: E402

SIZE = '64k'
WRITES = ['write -P 1 0 3k', 'write -P 2 20k 700', 'write -z 8k 2k', 'discard 21k 1k']
QCOW2 = {
    'plain': 'cluster_size=512',
    'v2': 'cluster_size=512,compat=0.10',
    'one-bit': 'cluster_size=512,refcount_bits=1',
    'wide': 'cluster_size=512,refcount_bits=64',
    'lazy': 'cluster_size=512,lazy_refcounts=on',
    'zstd': 'cluster_size=512,compression_type=zstd',
    'subclusters': 'cluster_size=16k,extended_l2=on',
}


def io(path, fmt, *commands):
    images.tool(peers.QEMU_IO, '-f', fmt, *[x for c in commands for x in ('-c', c)], path)


def qcow2(folder):
    for name, options in QCOW2.items():
        path = os.path.join(folder, name)
        images.img('create', '-q', '-f', 'qcow2', '-o', options, path, SIZE)
        io(path, 'qcow2', *WRITES)
    path = os.path.join(folder, 'more')
    images.img('create', '-q', '-f', 'qcow2', '-o', QCOW2['plain'], path, SIZE)
    io(path, 'qcow2', 'write -c -P 9 32k 16k')
    images.img('snapshot', '-c', 'one', path)
    io(path, 'qcow2', *WRITES)
    images.img('bitmap', '--add', '-g', '512', path, 'b')
    io(path, 'qcow2', 'write -P 3 1k 600')


def qcow(folder):
    path = os.path.join(folder, 'plain')
    images.img('create', '-q', '-f', 'qcow', path, SIZE)
    io(path, 'qcow', 'write -c -P 5 4k 4k', *WRITES[:2])
    images.img('create', '-q', '-f', 'qcow', '-u', '-b', 'base', '-F', 'raw',
               os.path.join(folder, 'overlay'), SIZE)


# ---- encrypted ----

KEY = 'geheim'
CIPHERS = {'cbc': 'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha256',
           'essiv': 'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,'
                    'hash-alg=sha1',
           'ctr': 'cipher-alg=twofish-128,cipher-mode=ctr,ivgen-alg=plain,hash-alg=ripemd160',
           'cast5': 'cipher-alg=cast5-128,cipher-mode=ecb,hash-alg=sha512'}
MATERIAL_AT, MATERIAL, PAYLOAD_FIELD, SECTOR = 4096, 64000, 104, 512


def write_encrypted(path, opts, *commands):
    images.tool(peers.QEMU_IO, '--object', 'secret,id=s,data=' + KEY, '--image-opts',
                '%s,file.filename=%s' % (opts, path), *[x for c in commands for x in ('-c', c)])


def create_encrypted(fmt, options, path):
    images.img('create', '-q', '-f', fmt, '--object', 'secret,id=s,data=' + KEY, '-o', options,
               path, SIZE)


def luks(folder):
    """Volumes whose data follows the first key slot, to keep them small."""
    for name, options in CIPHERS.items():
        path = os.path.join(folder, name)
        create_encrypted('luks', 'key-secret=s,iter-time=10,' + options, path)
        write_encrypted(path, 'driver=luks,key-secret=s', 'write -P 1 0 4k')
        with open(path, 'rb') as f:
            data = f.read()
        payload = SECTOR * int.from_bytes(data[PAYLOAD_FIELD:PAYLOAD_FIELD + 4], 'big')
        head = bytearray(data[:MATERIAL_AT + MATERIAL])
        head[PAYLOAD_FIELD:PAYLOAD_FIELD + 4] = (len(head) // SECTOR).to_bytes(4, 'big')
        with open(path, 'wb') as f:
            f.write(head + data[payload:payload + 4096])


def rescue(folder):
    luks(folder)
    for fmt, options in (('qcow', ''), ('qcow2', ',cluster_size=512'),
                         ('qcow2', ',extended_l2=on,cluster_size=16k')):
        path = os.path.join(folder, fmt + options.replace(',', '-'))
        create_encrypted(fmt, 'encrypt.format=aes,encrypt.key-secret=s' + options, path)
        write_encrypted(path, 'driver=%s,encrypt.format=aes,encrypt.key-secret=s' % fmt,
                        *WRITES[:1])
    path = os.path.join(folder, 'qcow2-luks')
    create_encrypted('qcow2', 'cluster_size=512,encrypt.format=luks,encrypt.key-secret=s,'
                     'encrypt.iter-time=10,encrypt.' + CIPHERS['cbc'].replace(',', ',encrypt.'), path)
    write_encrypted(path, 'driver=qcow2,encrypt.format=luks,encrypt.key-secret=s', *WRITES[:1])


def key(folder):
    for name, data in (('plain', b'geheim'), ('newline', b'geheim\n'), ('binary', b'\0\n\r\n')):
        with open(os.path.join(folder, name), 'wb') as f:
            f.write(data)


# The beginnings of disks: what makes them, if it is installed, and how.
DISKS = {'ext4': ('mkfs.ext4', '-q', '-F'), 'fat': ('mkfs.vfat',), 'swap': ('mkswap', '-q'),
         'gpt': ('sgdisk', '-o'), 'ntfs': ('mkfs.ntfs', '-q', '-F')}


def judge(folder):
    for name, (tool, *options) in DISKS.items():
        path = os.path.join(folder, name)
        with open(path, 'wb') as f:
            f.write(b'some text ' * 60)
            f.truncate(4 << 20)
        found = shutil.which(tool, path=os.environ['PATH'] + ':/sbin:/usr/sbin')
        if found:
            images.tool(found, *options, path)
        os.truncate(path, 32 << 10)


# ---- what an NBD server sends ----

def chunk(kind, payload, done=1):
    return struct.pack('>IHHQI', 0x668e33ef, done, kind, 0, len(payload)) + payload


def nbd_client(folder):
    """Replies to a read of 2048 bytes at 4096, a status, a read of the last block."""
    size, last = 1 << 20, (1 << 20) - 512
    simple = struct.pack('>IIQ', 0x67446698, 0, 0)
    data = chunk(1, struct.pack('>Q', 4096) + b'x' * 2048)
    end = chunk(1, struct.pack('>Q', last) + b'x' * 512)
    status = chunk(5, struct.pack('>5I', 1, 65536, 0, size - 65536, 3))
    halves = [chunk(1, struct.pack('>Q', 4096 + at) + b'x' * 1024, done)
              for at, done in ((1024, 0), (0, 1))]
    hole = chunk(2, struct.pack('>QI', 4096, 2048))
    error = chunk(0x8001, struct.pack('>IH', 5, 4) + b'text')
    at = chunk(0x8002, struct.pack('>IHQ', 5, 0, 4096))
    for name, kind, pieces in (
            ('simple', 1, [simple + b'x' * 2048, simple + b'x' * 512]),
            ('data', 2, [data, status, end, status]),
            ('halves', 2, [b''.join(halves), status, end, status]),
            ('hole', 2, [hole, status, end, status]),
            ('errors', 2, [error, error, at, status])):
        for tls in (0, 4):
            with open(os.path.join(folder, f'{name}-{tls}'), 'wb') as f:
                f.write(bytes([kind | tls]) + b''.join(
                    struct.pack('>H', len(piece)) + piece for piece in pieces))


def main():
    folder = os.path.join(sys.argv[1], 'fuzz_nbd_client')
    os.makedirs(folder, exist_ok=True)
    nbd_client(folder)
    for make in (qcow2, qcow, luks, rescue, key, judge):
        folder = os.path.join(sys.argv[1], 'fuzz_' + make.__name__)
        os.makedirs(folder, exist_ok=True)
        make(folder)
        # What quoin info and rescue read by themselves is the same.
        shutil.copytree(folder, os.path.join(sys.argv[1], 'fuzz_image'), dirs_exist_ok=True)


if __name__ == '__main__':
    main()
