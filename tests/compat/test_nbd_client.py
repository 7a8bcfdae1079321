# SPDX-License-Identifier: Apache-2.0
"""The driver nbd beside QEMU's: texts, and what is shown."""
import json
import socket
import subprocess
import time

import images
import peers
import pytest
import quoin


@pytest.fixture
def kits(tmp):
    """Read-write and read-only servers of one MiB, and one with an export by name."""
    started = []
    for name, argv in (('rw', ['memory', '1M']), ('ro', ['-r', 'memory', '1M']),
                       ('named', ['-e', 'exp', '--filter=exportname', 'memory', '1M',
                                  'exportname=exp', 'exportname-strict=true'])):
        pid = tmp / (name + '.pid')
        p = subprocess.Popen(['nbdkit', '-f', '-P', str(pid), '-U', str(tmp / (name + '.s')), *argv],
                             stderr=subprocess.DEVNULL)
        started.append(p)
        end = time.monotonic() + quoin.LIMIT
        while not pid.exists():
            assert p.poll() is None and time.monotonic() < end
    yield lambda name: {'type': 'unix', 'path': str(tmp / (name + '.s'))}
    for p in started:
        p.kill()
        p.wait()


def options(server, **more):
    return dict({'driver': 'nbd', 'node-name': 'n', 'server': server},
                **{k.replace('_', '-'): v for k, v in more.items()})


def test_texts_of_what_cannot_be_opened(pair, kits):
    for o in (options({'type': 'unix', 'path': '/nonexistent'}),
              options({'type': 'inet', 'host': '127.0.0.1', 'port': '1'}),
              options(kits('ro')),
              options(kits('named'), export='other'),
              options(kits('rw'), export='x' * 5000),
              options(kits('rw'), x_dirty_bitmap='x' * 5000),
              {'driver': 'nbd', 'node-name': 'n'},
              options(kits('rw'), reconnect_delay=-1),
              options({'type': 'unix', 'path': '/nonexistent'}, open_timeout=1)):
        assert 'error' in pair.ask('blockdev-add', o)
    pair.ask('blockdev-add', options(kits('rw'), x_dirty_bitmap='qemu:dirty-bitmap:none'),
             differ='QEMU loses its own text and says "Invalid argument"')


def test_the_text_of_a_server_that_does_not_greet_in_time(pair, tmp):
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp / 'silent'))
    silent.listen()
    assert 'error' in pair.ask('blockdev-add', options(
        {'type': 'unix', 'path': str(tmp / 'silent')}, open_timeout=1))
    silent.close()


def test_what_is_shown(pair, kits):
    def shown(side):
        node = side.ask('query-named-block-nodes')['return'][0]
        return {k: node[k] for k in ('file', 'ro', 'drv', 'image', 'cache')}

    for o in (options(kits('rw')), options(kits('named'), export='exp'),
              options(kits('ro'), auto_read_only=True), options(kits('ro'), read_only=True)):
        pair.ask('blockdev-add', o)
        pair.each(shown)
        pair.ask('blockdev-del', {'node-name': 'n'})


def test_a_bitmap_of_the_server_in_place_of_its_holes(pair, start, tmp):
    """How a client without block dirty bitmaps gets at one: dirty reads as "no data"."""
    d = start()
    image = tmp / 'image.qcow2'
    images.qcow2(image)
    d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'disk',
                           'file': {'driver': 'file', 'filename': str(image)}})
    d.cmd('block-dirty-bitmap-add', {'node': 'disk', 'name': 'b', 'granularity': 65536})
    d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(tmp / 'server')}})
    d.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'disk', 'name': 'e',
                               'writable': True, 'bitmaps': ['b']})
    subprocess.run([peers.QEMU_IO, '-f', 'raw', '-c', 'write 64k 128k', '-c', 'write 1M 1000',
                    '-c', 'write 4032k 64k', f'nbd+unix:///e?socket={tmp}/server'],
                   check=True, stdout=subprocess.DEVNULL, timeout=quoin.LIMIT)
    pair.ask('blockdev-add', options({'type': 'unix', 'path': str(tmp / 'server')}, export='e',
                                     x_dirty_bitmap='qemu:dirty-bitmap:b', read_only=True))
    pair.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/nbd'}}})
    pair.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n', 'name': 'e'})

    def dirty(side):
        r = subprocess.run([peers.QEMU_IMG, 'map', '--output=json', '-f', 'raw',
                            f'nbd+unix:///e?socket={side.folder}/nbd'], check=True,
                           stdout=subprocess.PIPE, timeout=quoin.LIMIT)
        return [(x['start'], x['length']) for x in json.loads(r.stdout) if not x['data']]
    assert pair.each(dirty) == [(65536, 131072), (1 << 20, 65536), (4032 << 10, 65536)]


def test_resizing(pair, kits):
    pair.ask('blockdev-add', options(kits('rw')))
    for size in (1 << 21, 1 << 20, 1 << 19):
        pair.ask('block_resize', {'node-name': 'n', 'size': size})
    pair.ask('blockdev-del', {'node-name': 'n'})
