# SPDX-License-Identifier: Apache-2.0
"""The story that started this project, from its beginning to a good end.

A plain backing.img, an encrypted geheim.qcow2 over it, and a normal.qcow2 over it.
Once, a daemon opened geheim.qcow2 without its key, and a commit wrote ciphertext
into backing.img.  Here a client keeps writing to normal.qcow2 while geheim.qcow2
is refused on every road, the plain chain is committed and backed up, and the
secret comes out by `quoin rescue`.
"""
import os
import threading

import pytest

import images
import nbdraw
import quoin

KEY = 'geheim'
SIZE = 4 << 20
CHUNK = 64 << 10
CHUNKS = SIZE // CHUNK


def pattern(i, generation):
    """A chunk that tells where and when it was written."""
    return (b'chunk %04d of generation %06d\n' % (i, generation)).ljust(512, b'.') * (CHUNK // 512)


class Writer(threading.Thread):
    """A client that writes chunk after chunk, and knows what it wrote."""

    def __init__(self, path, name):
        super().__init__()
        self.conn = nbdraw.connect(path, name)
        self.model = {}
        self.generation = 0
        self.error = None
        self.stopping = threading.Event()
        self.written = threading.Condition()

    def run(self):
        try:
            while not self.stopping.is_set():
                self.generation += 1
                i = self.generation * 7 % (CHUNKS // 2)
                data = pattern(i, self.generation)
                self.conn.request(nbdraw.WRITE, i * CHUNK, CHUNK, data=data)
                error, _, _ = self.conn.simple()
                assert not error, error
                with self.written:
                    self.model[i] = data
                    self.written.notify_all()
        except Exception as e:  # noqa: BLE001 - told to the test
            self.error = e
            with self.written:
                self.written.notify_all()

    def wait_for_more(self, n=20):
        """Until n more writes were answered: the client is alive."""
        with self.written:
            goal = self.generation + n
            assert self.written.wait_for(lambda: self.error or self.generation >= goal,
                                         quoin.LIMIT)
        assert self.error is None, self.error

    def stop(self):
        self.stopping.set()
        self.join(quoin.LIMIT)
        assert not self.is_alive() and self.error is None, self.error
        self.conn.sock.close()


def make_images(tmp):
    """backing.img of text; geheim.qcow2 with a secret; normal.qcow2, empty."""
    backing, geheim, normal = (tmp / n for n in ('backing.img', 'geheim.qcow2', 'normal.qcow2'))
    images.raw(backing, b''.join(pattern(i, 0) for i in range(CHUNKS)))
    images.qcow2_aes(geheim, KEY, backing=(backing, 'raw'))
    images.write_encrypted('qcow2-aes', geheim, KEY, 'write -P 0x53 1M 512k', 'write -P 0x54 3M 64k')
    images.qcow2(normal, '4M', (backing, 'raw'))
    return backing, geheim, normal


def assert_plain(data):
    """Each chunk is text that this test wrote: not a byte of ciphertext."""
    for i in range(0, len(data), CHUNK):
        chunk = data[i:i + CHUNK]
        assert chunk.startswith(b'chunk %04d of generation ' % (i // CHUNK)), i
        assert chunk == chunk[:512] * (CHUNK // 512), i


def node_names(d):
    return {n['node-name'] for n in d.cmd('query-named-block-nodes')}


def refuse_on_every_road(d, tmp, backing, geheim):
    """Each try fails with the rescue command, and leaves no node."""
    before = node_names(d)
    over = tmp / 'over.qcow2'
    if not over.exists():
        images.img('create', '-q', '-u', '-f', 'qcow2', '-b', geheim, '-F', 'qcow2', over, '4M')

    def file(path):
        return {'driver': 'file', 'filename': str(path)}
    for options in (
            {'driver': 'qcow2', 'file': file(geheim)},
            {'driver': 'qcow2', 'file': file(geheim), 'backing': None},
            {'driver': 'qcow2', 'file': file(geheim), 'read-only': True},
            {'driver': 'qcow2', 'file': file(over)},
            {'driver': 'qcow2', 'file': file(over),
             'backing': {'driver': 'qcow2', 'file': file(geheim)}},
            {'driver': 'raw', 'file': {'driver': 'qcow2', 'file': file(geheim)}}):
        reply = d.ask('blockdev-add', dict(options, **{'node-name': 'evil'}))
        assert 'quoin rescue %s' % geheim in reply['error']['desc'], reply
    for command, arguments in (
            ('blockdev-backup', {'job-id': 'j', 'device': 'normal', 'target': 'evil',
                                 'sync': 'full'}),
            ('block-commit', {'job-id': 'j', 'device': 'evil'})):
        assert 'error' in d.ask(command, arguments)
    # A job that ends meanwhile takes its filter along; nothing has come.
    assert node_names(d) <= before


def wait_job(d, job):
    """The job's good end."""
    event = d.wait_event('BLOCK_JOB_COMPLETED', device=job)
    assert 'error' not in event['data'], event


@pytest.mark.io
@pytest.mark.limit(180)
def test_story(start, run, tmp):
    backing, geheim, normal = make_images(tmp)
    images.qcow2(tmp / 'copy.qcow2')
    sock = tmp / 'nbd.sock'
    d = start('--blockdev', 'driver=qcow2,node-name=normal,file.driver=file,file.filename=%s'
              % normal,
              '--nbd-server', 'addr.type=unix,addr.path=%s' % sock,
              '--export', 'nbd,id=e,node-name=normal,writable=on')
    writer = Writer(str(sock), 'normal')
    writer.start()
    writer.wait_for_more()
    refuse_on_every_road(d, tmp, backing, geheim)
    writer.wait_for_more()

    # A backup of the plain chain, while the client writes and tries go on.
    d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'copy',
                           'file': {'driver': 'file', 'filename': str(tmp / 'copy.qcow2')}})
    d.cmd('blockdev-backup', {'job-id': 'backup', 'device': 'normal', 'target': 'copy',
                              'sync': 'full'})
    refuse_on_every_road(d, tmp, backing, geheim)
    wait_job(d, 'backup')
    writer.wait_for_more()

    # The active layer is committed into backing.img, again under way.
    d.cmd('block-commit', {'job-id': 'commit', 'device': 'normal'})
    refuse_on_every_road(d, tmp, backing, geheim)
    d.wait_event('BLOCK_JOB_READY', device='commit')
    writer.wait_for_more()
    d.cmd('job-complete', {'id': 'commit'})
    wait_job(d, 'commit')
    writer.wait_for_more()
    refuse_on_every_road(d, tmp, backing, geheim)
    writer.stop()
    d.stop()

    data = images.content(backing)
    assert_plain(data)
    for i, chunk in writer.model.items():
        assert data[i * CHUNK:(i + 1) * CHUNK] == chunk
    images.check(tmp / 'copy.qcow2')
    images.check(normal)
    images.img('convert', '-O', 'raw', tmp / 'copy.qcow2', tmp / 'copy.raw')
    assert_plain(images.content(tmp / 'copy.raw'))
    rescue(run, tmp, geheim)


def rescue(run, tmp, geheim):
    """What comes out equals what qemu-img gets, byte for byte."""
    keyfile = tmp / 'key'
    keyfile.write_text(KEY)
    images.decrypt('qcow2-aes', geheim, KEY, tmp / 'judge.raw')
    run(quoin.QUOIN, 'rescue', '--key-file', keyfile, geheim, tmp / 'geheim.raw', check=True)
    assert images.content(tmp / 'geheim.raw') == images.content(tmp / 'judge.raw')
    assert images.content(tmp / 'geheim.raw')[1 << 20:3 << 19] == b'\x53' * (512 << 10)
    run(quoin.QUOIN, 'rescue', '--target-format', 'qcow2', '--key-file', keyfile, geheim,
        tmp / 'geheim.plain.qcow2', check=True)
    images.check(tmp / 'geheim.plain.qcow2')
    images.compare(tmp / 'geheim.plain.qcow2', 'qcow2', tmp / 'judge.raw', 'raw')
    assert os.stat(tmp / 'geheim.raw').st_mode & 0o777 == 0o600
