# SPDX-License-Identifier: Apache-2.0
"""An image that contradicts itself is found out when it is used: nothing is ruined,
the event says what it was, the image is marked, and nothing more is done with it."""
import struct

import pytest

import images
import peers

COPIED = 1 << 63
CLUSTER = 65536


class Image:
    """A qcow2 file of one L2 table and one refcount block, to be broken."""
    def __init__(self, path):
        images.qcow2(path, '8M')
        images.io(path, 'write -P 1 0 1M', fmt='qcow2')
        self.path = path
        self.data = bytearray(path.read_bytes())
        self.l1, self.reftable = self.u64(40), self.u64(48)
        self.l2 = self.u64(self.l1) & ~COPIED
        self.refblock = self.u64(self.reftable)

    def u64(self, off):
        return struct.unpack_from('>Q', self.data, off)[0]

    def put(self, off, value):
        struct.pack_into('>Q', self.data, off, value)

    def uncount(self, host):
        struct.pack_into('>H', self.data, self.refblock + 2 * (host // CLUSTER), 0)


# What to break, and the request that finds it.
WAYS = {
    'data in a refcount block': (lambda i: i.put(i.l2, i.refblock | COPIED), 'write 0 64k'),
    'data in an L2 table': (lambda i: i.put(i.l2, i.l2 | COPIED), 'write 0 64k'),
    'data in the L1 table': (lambda i: i.put(i.l2, i.l1 | COPIED), 'write 0 64k'),
    'data in the refcount table': (lambda i: i.put(i.l2, i.reftable | COPIED), 'write 0 64k'),
    'a free L2 table': (lambda i: i.uncount(i.l2), 'write 4M 64k'),
    'a free refcount block': (lambda i: i.uncount(i.refblock), 'write 4M 64k'),
    'a free L1 table': (lambda i: i.uncount(i.l1), 'write 4M 64k'),
    'a free header': (lambda i: i.uncount(0), 'write 4M 64k'),
    'an odd data cluster': (lambda i: i.put(i.l2, (i.l2 + CLUSTER + 512) | COPIED), 'read 0 64k'),
    'an odd L2 table': (lambda i: i.put(i.l1, (i.l2 + 512) | COPIED), 'read 0 64k'),
    'an odd refcount block': (lambda i: i.put(i.reftable, i.refblock + 512), 'write 4M 64k'),
}


def broken(pair, how, **options):
    def make(folder):
        image = Image(folder / 'disk.qcow2')
        how(image)
        image.path.write_bytes(image.data)
    pair.prepare(make)
    pair.ask('blockdev-add', dict({
        'driver': 'qcow2', 'node-name': 'q',
        'file': {'driver': 'file', 'filename': 'DIR/disk.qcow2'}}, **options))

    def export(side):
        side.ask('nbd-server-start', {'addr': {'type': 'unix',
                                               'data': {'path': '%s/nbd' % side.folder}}})
        return side.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'q',
                                             'writable': not options.get('read-only')})
    pair.each(export)


def use(pair, *commands):
    """What qemu-io says to each; only failures are compared."""
    def go(side):
        uri = 'nbd+unix:///q?socket=%s/nbd' % side.folder
        said = [images.tool(peers.QEMU_IO, '-f', 'raw', uri, '-c', c, check=False)
                for c in commands]
        return [[line for line in text.splitlines() if 'failed' in line] for text in said]
    return pair.each(go)


def events(pair):
    pair.ask('query-jobs')  # what was raised before is read with the answer
    return pair.each(lambda side: [e for e in side.events() if 'CORRUPT' in e['event']])


def end(pair):
    """Ours says by its exit status that the image could not be stored; the peer does
    not."""
    pair.sides[0].daemon.stop(status=1)


def reopen(pair, **options):
    pair.ask('block-export-del', {'id': 'e', 'mode': 'hard'})
    pair.ask('blockdev-del', {'node-name': 'q'})
    return pair.ask('blockdev-add', dict({
        'driver': 'qcow2', 'node-name': 'q',
        'file': {'driver': 'file', 'filename': 'DIR/disk.qcow2'}}, **options))


@pytest.mark.parametrize('way', WAYS)
def test_what_cannot_be_is_found_and_ruins_nothing(pair, way):
    how, first = WAYS[way]
    broken(pair, how)
    assert use(pair, first, 'read 0 512', 'write 512k 64k')[0]
    assert len(events(pair)) == 1
    assert 'error' in reopen(pair)
    pair.ask('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'read-only': True,
                              'file': {'driver': 'file', 'filename': 'DIR/disk.qcow2'}})
    end(pair)


def test_a_marked_node_is_still_listed(pair):
    """The peer refuses the whole list from then on, other nodes included."""
    broken(pair, WAYS['data in an L2 table'][0])
    use(pair, 'write 0 64k')
    ours = pair.sides[0].ask('query-named-block-nodes')['return']
    assert [n['image']['format-specific']['data']['corrupt'] for n in ours
            if n['node-name'] == 'q'] == [True]
    end(pair)


OPTIONS = [
    'none', 'constant', 'cached', 'all', {'template': 'none', 'refcount-block': True},
    {'template': 'all', 'refcount-block': False}, {'refcount-block': False}, {},
    {'template': 'constant'},
]


@pytest.mark.parametrize('option', OPTIONS, ids=str)
def test_the_option_says_what_is_checked(pair, option):
    broken(pair, WAYS['data in a refcount block'][0], **{'overlap-check': option})
    use(pair, 'write 0 64k')
    if events(pair):
        end(pair)


@pytest.mark.parametrize('option', ['cached', 'all'])
def test_the_tables_of_snapshots_are_guarded(pair, option):
    def in_snapshot(image):
        image.path.write_bytes(image.data)
        images.img('snapshot', '-c', 's', image.path)
        images.io(image.path, 'write -P 2 0 1M', fmt='qcow2')
        old = image.l2
        image.data = bytearray(image.path.read_bytes())
        l2 = image.u64(image.u64(40)) & ~COPIED
        assert l2 != old
        image.put(l2, old | COPIED)
    broken(pair, in_snapshot, **{'overlap-check': option})
    use(pair, 'write 0 64k')
    if events(pair):
        end(pair)


@pytest.mark.parametrize('option', ['x', 1, {'template': 'x'}, {'main-header': 1}, {'x': True}],
                         ids=str)
def test_options_that_are_refused(pair, option):
    pair.prepare(lambda folder: images.qcow2(folder / 'disk.qcow2', '1M'))
    reply = pair.ask('blockdev-add', {
        'driver': 'qcow2', 'node-name': 'q', 'overlap-check': option,
        'file': {'driver': 'file', 'filename': 'DIR/disk.qcow2'}})
    assert 'error' in reply
