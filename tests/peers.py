# SPDX-License-Identifier: Apache-2.0
"""Which QEMU tools the tests and benchmarks compare with.

QSD, QEMU_IMG, QEMU_IO and QEMU_NBD are the paths of the peers, or None where
one is missing.  In order of preference: an environment variable of the same
name, a file below $QUOIN_PEERS (default: build/peers/bin, where `./dev peers`
puts version 10.0), the installed program.

As a program it prints shell assignments:  eval "$(python3 tests/peers.py)"
"""
import os
import re
import shutil
import subprocess

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DIR = os.environ.get('QUOIN_PEERS', os.path.join(TOP, 'build', 'peers', 'bin'))


def find(name, variable):
    """Path of the tool `name`, or None."""
    if os.environ.get(variable):
        return os.environ[variable]
    own = os.path.join(DIR, name)
    return own if os.access(own, os.X_OK) else shutil.which(name)


def version(path):
    """(major, minor) of a QEMU tool; (0, 0) where there is none."""
    if not path:
        return (0, 0)
    out = subprocess.run([path, '--version'], stdin=subprocess.DEVNULL,
                         capture_output=True, text=True, timeout=20).stdout
    m = re.search(r' (\d+)\.(\d+)', out)
    return (int(m[1]), int(m[2])) if m else (0, 0)


QSD = find('qemu-storage-daemon', 'QSD')
QEMU_IMG = find('qemu-img', 'QEMU_IMG')
QEMU_IO = find('qemu-io', 'QEMU_IO')
QEMU_NBD = find('qemu-nbd', 'QEMU_NBD')


def describe():
    """One line for a person: which version, from where."""
    if not QSD:
        return 'peers: no qemu-storage-daemon here'
    text = 'peers: QEMU %d.%d (%s)' % (*version(QSD), os.path.dirname(QSD))
    if version(QSD) < (10, 0):
        text += ', not 10.0: answers that changed since then are not compared'
    return text


if __name__ == '__main__':
    import shlex
    for var in ('QSD', 'QEMU_IMG', 'QEMU_IO', 'QEMU_NBD'):
        print('export %s=%s' % (var, shlex.quote(globals()[var] or '')))
