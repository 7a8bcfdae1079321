# SPDX-License-Identifier: Apache-2.0
"""Compressed writing: the same answers as the peer's, and the same image by content."""
import json

import pytest

import images


def qcow2(name='i.qcow2', node='q', **more):
    return dict({'driver': 'qcow2', 'node-name': node, 'discard': 'unmap',
                 'file': {'driver': 'file', 'filename': 'DIR/%s' % name}}, **more)


def compress(file, node='c', **more):
    return dict({'driver': 'compress', 'node-name': node, 'file': file}, **more)


def test_what_can_be_compressed(pair):
    def make(folder):
        images.qcow2(folder / 'i.qcow2', '1M')
        images.qcow2(folder / 'odd.qcow2', 1000448)
        images.raw(folder / 'raw', bytes(1 << 20))
    pair.prepare(make)
    ask = pair.ask
    raw = {'driver': 'file', 'filename': 'DIR/raw'}
    ask('blockdev-add', compress(raw))
    ask('blockdev-add', compress({'driver': 'raw', 'file': raw}))
    ask('blockdev-add', compress('nothing'))
    ask('blockdev-add', {'driver': 'compress', 'node-name': 'c'})
    ask('blockdev-add', compress(qcow2()))
    ask('blockdev-add', compress('c', 'twice'))
    ask('blockdev-add', compress(qcow2('odd.qcow2', 'odd'), 'o'))

    def shown(side):
        nodes = side.ask('query-named-block-nodes', {'flat': True})['return']
        images = [n['image'] for n in nodes if n['node-name'] in 'co']
        # Neither promises an order of keys in a name.
        return [dict({k: v for k, v in i.items() if k != 'actual-size'},
                     filename=json.loads(i['filename'].removeprefix('json:')))
                for i in images]
    pair.each(shown)
    ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/s'}}})
    # Its last block is not whole, and an export lets nothing change the size.
    ask('block-export-add', {'type': 'nbd', 'id': 'o', 'node-name': 'o', 'writable': True})
    ask('block-export-add', {'type': 'nbd', 'id': 'o', 'node-name': 'o'})
    ask('block-export-add', {'type': 'nbd', 'id': 'c', 'node-name': 'c', 'writable': True})
    ask('blockdev-del', {'node-name': 'c'})


@pytest.mark.parametrize('options', [
    [], ['compression_type=zstd'], ['cluster_size=4096'], ['extended_l2=on'],
    ['data_file=DIR/data.raw']], ids=','.join)
def test_requests(pair, options):
    """qemu-io over NBD says the same of both, and both images hold the same."""
    more = {}
    if any('data_file' in o for o in options):
        more['data-file'] = {'driver': 'file', 'filename': 'DIR/data.raw'}
    pair.prepare(lambda folder: images.qcow2(
        folder / 'i.qcow2', '1M', None, *[o.replace('DIR', str(folder)) for o in options]))
    pair.ask('blockdev-add', compress(qcow2(**more)))
    pair.ask('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': 'DIR/s'}}})
    pair.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'c', 'writable': True})

    def run(side, command):
        out = images.tool(images.peers.QEMU_IO, '-f', 'raw', '-d', 'unmap', '-c', command,
                          'nbd+unix:///c?socket=%s' % (side.folder / 's'), check=False)
        return out.split('\n')[0].partition(' (')[0]
    for command in ('write -P 1 0 64k', 'write -P 2 4k 4k', 'write -P 3 128k 128k',
                    'write -P 4 130k 100k', 'write -z 0 64k', 'read -P 3 128k 2k',
                    'write -z -u 128k 64k', 'write -P 9 128k 64k', 'write -P 8 512k 64k',
                    'discard 512k 64k', 'write -P 7 512k 64k', 'write -P 6 1000k 24k'):
        pair.each(lambda side, c=command: run(side, c))
    pair.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
    for side in pair.sides:
        side.daemon.wait_event('BLOCK_EXPORT_DELETED', id='e')
    pair.ask('blockdev-del', {'node-name': 'c'})

    def kinds(side):
        images.check(side.folder / 'i.qcow2')
        return [(e['start'], e['length'], e['zero'], e['data'], e['compressed'])
                for e in json.loads(images.img('map', '--output=json',
                                               side.folder / 'i.qcow2'))]
    pair.each(kinds)
    images.compare(pair.sides[0].folder / 'i.qcow2', 'qcow2',
                   pair.sides[1].folder / 'i.qcow2', 'qcow2')
