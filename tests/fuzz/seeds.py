#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""seeds.py FOLDER: small sound images for the fuzz targets of formats to start from,
one folder for each target, made by QEMU's tools."""
import os
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


def main():
    for make in (qcow2, qcow):
        folder = os.path.join(sys.argv[1], 'fuzz_' + make.__name__)
        os.makedirs(folder, exist_ok=True)
        make(folder)


if __name__ == '__main__':
    main()
