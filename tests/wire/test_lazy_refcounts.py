# SPDX-License-Identifier: Apache-2.0
"""Lazy refcounts, and a daemon that is killed with them."""
import pytest

import images

MB = 1 << 20


def start_it(start, tmp, *more):
    d = start('--blockdev', f'file,node-name=file,filename={tmp}/disk.qcow2',
              '--blockdev', ','.join(['qcow2,node-name=disk,file=file', *more]))
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(tmp / 'nbd')}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'writable': True})
    d.uri = 'nbd+unix:///disk?socket=%s/nbd' % tmp
    return d


def is_marked(tmp):
    return (tmp / 'disk.qcow2').read_bytes()[79] & 1


@pytest.mark.parametrize('image, option', [('on', None), ('off', 'on')])
def test_a_killed_daemons_image_is_repaired_by_the_next(start, tmp, image, option):
    images.qcow2(tmp / 'disk.qcow2', 8 * MB, None, 'lazy_refcounts=' + image)
    d = start_it(start, tmp, *(['lazy-refcounts=' + option] if option else []))
    assert not is_marked(tmp)
    images.io(d.uri, 'write -P 1 0 2M', 'flush', 'write -P 2 1M 2M', 'flush')
    assert is_marked(tmp)
    d.kill()
    assert 'refcount=0' in images.img('check', tmp / 'disk.qcow2', check=False)
    d = start_it(start, tmp)
    images.io(d.uri, 'read -P 1 0 1M', 'read -P 2 1M 2M')
    d.stop()
    assert not is_marked(tmp)
    images.check(tmp / 'disk.qcow2')


def test_an_image_that_is_closed_is_not_marked(start, tmp):
    images.qcow2(tmp / 'disk.qcow2', 8 * MB, None, 'lazy_refcounts=on')
    d = start_it(start, tmp)
    images.io(d.uri, 'write -P 1 0 2M', 'flush', 'discard 0 1M')
    d.stop()
    assert not is_marked(tmp)
    images.check(tmp / 'disk.qcow2')


def test_the_option_turns_it_off(start, tmp):
    images.qcow2(tmp / 'disk.qcow2', 8 * MB, None, 'lazy_refcounts=on')
    d = start_it(start, tmp, 'lazy-refcounts=off')
    images.io(d.uri, 'write -P 1 0 2M', 'flush')
    assert not is_marked(tmp)
    d.kill()
    images.check(tmp / 'disk.qcow2')
