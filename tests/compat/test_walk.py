# SPDX-License-Identifier: Apache-2.0
"""Random commands to quoind and to the peer: both take or refuse the same ones, and then
have the same nodes, exports and jobs.

Which of several things that are wrong with a command is told may differ, so texts of
refusals are not compared here.  QUOIN_SEED=N walks another way; what is found belongs
into a test of its own.
"""
import os
import random
import re
import time

import images
import pytest
import quoin
from test_nodes import auto_names, without_volatile

# Nodes, and those that come along with them, which no other option of theirs refers to.
NAMES, INNER = ['a', 'b', 'c', 'd', 'e'], ['f', 'g']
RAW, QCOW2 = ['r0', 'r1', 'none'], ['q0', 'q1', 'q2', 'q3', 'none']
STEPS = 80
SEEDS = [int(os.environ['QUOIN_SEED'])] if os.environ.get('QUOIN_SEED') else [*range(10), 2041]
RESTING = ('ready', 'pending', 'concluded', 'paused', 'standby')
# Filters of jobs are each program's own.
JOB_FILTERS = ('mirror_top', 'commit_top', 'copy-before-write')


def make_disks(folder):
    images.raw(folder / 'r0', b'\1\2\3\4' * 262144)
    images.raw(folder / 'r1', bytes(1 << 20))
    images.qcow2(folder / 'q0', '1M')
    images.qcow2(folder / 'q1', '2M', (folder / 'q0', 'qcow2'))
    images.qcow2(folder / 'q2', '1M', (folder / 'q1', 'qcow2'))
    images.qcow2(folder / 'q3', '1M', (folder / 'r0', 'raw'), 'cluster_size=4096')


class Walker:
    """What to ask next."""

    def __init__(self, rng):
        self.rng = rng

    def node(self):
        return self.rng.choice(NAMES)

    def some(self, chance, **options):
        """Each of these options by this chance, with one of its values."""
        return {k.replace('_', '-'): self.rng.choice(v) for k, v in options.items()
                if self.rng.random() < chance}

    def file(self, files):
        if self.rng.random() < .3:
            return self.node()
        return dict({'driver': 'file', 'filename': 'DIR/' + self.rng.choice(files)},
                    **self.some(.15, read_only=[True, False], auto_read_only=[True, False],
                                discard=['unmap', 'ignore'], node_name=INNER))

    def options(self, depth=0):
        rng = self.rng
        driver = rng.choices(['file', 'raw', 'qcow2', 'null-co', 'copy-before-write', 'compress',
                              'snapshot-access'], [4, 4, 9, 2, 2, 2, 1])[0]
        o = {'driver': driver}
        if depth == 0:
            o['node-name'] = self.node()
        o.update(self.some(.12, read_only=[True, True, False], auto_read_only=[True],
                           discard=['unmap', 'ignore'], detect_zeroes=['on', 'off', 'unmap'],
                           force_share=[True]))
        if driver == 'file':
            o['filename'] = 'DIR/' + rng.choice(RAW)
        elif driver == 'null-co':
            o.update(self.some(.7, size=[0, 512, 1 << 20, 1000], read_zeroes=[True, False]))
        elif driver == 'raw':
            o['file'] = self.file(RAW) if depth or rng.random() < .6 else self.options(1)
            o.update(self.some(.2, offset=[0, 512, 4096, 100], size=[512, 65536, 1 << 20, 100]))
        elif driver == 'qcow2':
            o['file'] = self.file(QCOW2)
            o.update(self.some(.3, backing=NAMES + [None]))
            o.update(self.some(.1, lazy_refcounts=[True], overlap_check=['all', 'none']))
        else:
            o['file'] = self.node() if depth or rng.random() < .5 else self.options(1)
            if driver == 'copy-before-write':
                o['target'] = self.node()
        return o

    def job(self, **arguments):
        a = {'job-id': self.rng.choice(['j1', 'j2']), 'device': self.node()}
        a.update((k.replace('_', '-'), v) for k, v in arguments.items())
        a.update(self.some(.3, auto_finalize=[True, False], auto_dismiss=[True, False]))
        return a

    def bitmap(self):
        return {'node': self.node(), 'name': self.rng.choice('xyz')}

    def step(self):
        rng = self.rng
        return rng.choices([
            lambda: ('blockdev-add', self.options()),
            lambda: ('blockdev-del', {'node-name': self.node()}),
            lambda: ('block-export-add', dict(
                {'type': 'nbd', 'id': rng.choice(['e1', 'e2']), 'node-name': self.node()},
                **self.some(.3, writable=[True, False], name=['n1', ''], bitmaps=[['x']],
                            allocation_depth=[True]))),
            lambda: ('block-export-del', dict(id=rng.choice(['e1', 'e2']),
                                              **self.some(.3, mode=['safe', 'hard']))),
            lambda: ('block-dirty-bitmap-add', dict(
                self.bitmap(), **self.some(.3, granularity=[512, 65536, 100, 1 << 31],
                                           disabled=[True]))),
            lambda: ('block-dirty-bitmap-' + rng.choice(['remove', 'clear', 'enable', 'disable']),
                     self.bitmap()),
            lambda: ('block-dirty-bitmap-merge', {
                'node': self.node(), 'target': rng.choice('xyz'),
                'bitmaps': [rng.choice(['x', self.bitmap()]) for _ in range(rng.choice([1, 2]))]}),
            lambda: ('block_resize', {'node-name': self.node(),
                                      'size': rng.choice([1 << 20, 3 << 20, 2000, -1])}),
            lambda: ('change-backing-file', {
                'device': self.node(), 'image-node-name': self.node(),
                'backing-file': rng.choice(['DIR/q0', 'DIR/r0', ''])}),
            lambda: ('block-commit', self.job(**self.some(
                .5, top_node=NAMES, base_node=NAMES))),
            lambda: ('blockdev-backup', self.job(target=self.node(), **self.some(
                1, sync=['full', 'full', 'top', 'incremental']))),
            lambda: ('job-' + rng.choice(['cancel', 'complete', 'dismiss', 'finalize', 'pause',
                                          'resume']), {'id': rng.choice(['j1', 'j2'])}),
            lambda: ('blockdev-snapshot-%sinternal-sync' % rng.choice(['', 'delete-']),
                     {'device': self.node(), 'name': rng.choice(['s1', 's2'])}),
            lambda: ('nbd-server-' + rng.choice(['add', 'remove']), None),
        ], [30, 12, 6, 4, 6, 6, 3, 4, 4, 6, 6, 8, 3, 1])[0]()


def quiet(side):
    """Wait until no job gets on by itself; all of them."""
    end = time.monotonic() + quoin.LIMIT
    before = None
    while True:
        jobs = sorted(side.ask('query-jobs')['return'], key=lambda j: j['id'])
        # A job that finalizes by itself is pending for a moment.
        if jobs == before and all(j['status'] in RESTING for j in jobs):
            return jobs
        assert time.monotonic() < end, jobs
        before = jobs
        side.events()
        try:
            if jobs:
                side.daemon.wait_event('JOB_STATUS_CHANGE', .03)
        except TimeoutError:
            pass


def canonical_name(value):
    """"json:" file names have members in any order."""
    if isinstance(value, dict):
        return {k: canonical_name(v) for k, v in value.items()}
    if isinstance(value, list):
        return [canonical_name(v) for v in value]
    if isinstance(value, str) and value.startswith('json:'):
        return 'json:' + ''.join(sorted(value))
    return value


def comparable(node):
    """Snapshots' times, and how long qcow2 files are, differ."""
    def strip(image):
        if image['format'] in ('file', 'raw'):
            image.pop('virtual-size')
        for s in image.get('snapshots', []):
            for k in [k for k in s if k.startswith(('date-', 'vm-clock-'))]:
                del s[k]
        if 'backing-image' in image:
            strip(image['backing-image'])
    strip(node['image'])
    for bitmap in node.get('dirty-bitmaps', []):
        bitmap.pop('count')
    return without_volatile(node)


def nodes(side):
    reply = canonical_name(side.ask('query-named-block-nodes'))['return']
    return [comparable(n) for n in auto_names(reply) if n['drv'] not in JOB_FILTERS]


def exports(side):
    reply = side.ask('query-block-exports')['return']
    for e in reply:
        e.pop('x-quoin-clients', None)
        e['node-name'] = re.sub(r'#block\d+', '#block', e['node-name'])
    return sorted(reply, key=lambda e: e['id'])


@pytest.mark.parametrize('seed', SEEDS)
def test_walk(pair_with, seed):
    pair = pair_with('--nbd-server', 'addr.type=unix,addr.path=DIR/nbd')
    pair.prepare(make_disks)
    walker = Walker(random.Random(seed))
    done = []

    def ask(side, command, arguments):
        reply = side.ask(command, arguments)
        return list(reply)[0], reply.get('error', {}).get('class')
    for _ in range(STEPS):
        command, arguments = walker.step()
        if command.startswith('nbd-server-'):
            arguments = {'device' if command.endswith('add') else 'name': walker.node()}
        done.append((command, arguments))
        try:
            pair.each(lambda side: ask(side, command, arguments))
            pair.each(quiet)
            pair.each(exports)
            ours, theirs = (nodes(side) for side in pair.sides)
            assert [n for n in ours if n not in theirs] == [n for n in theirs if n not in ours]
        except Exception:
            print('\n'.join('%s %r' % d for d in done))
            raise
