# SPDX-License-Identifier: Apache-2.0
"""Changing a disk's size."""
import images

MB = 1 << 20


def test_a_disk_made_smaller_gives_the_end_of_its_file_back(start, tmp):
    images.qcow2(tmp / 'disk.qcow2', 32 * MB)
    images.io(tmp / 'disk.qcow2', 'write -P 1 0 32M', fmt='qcow2')
    d = start('--blockdev', f'file,node-name=file,filename={tmp}/disk.qcow2',
              '--blockdev', 'qcow2,node-name=disk,file=file')
    d.cmd('block_resize', {'node-name': 'disk', 'size': 2 * MB})
    assert (tmp / 'disk.qcow2').stat().st_size < 3 * MB
    d.cmd('block_resize', {'node-name': 'disk', 'size': 32 * MB})
    d.stop()
    images.check(tmp / 'disk.qcow2')
    images.img('convert', '-O', 'raw', tmp / 'disk.qcow2', tmp / 'raw')
    assert (tmp / 'raw').read_bytes() == bytes([1]) * 2 * MB + bytes(30 * MB)
