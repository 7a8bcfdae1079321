# SPDX-License-Identifier: Apache-2.0
"""The same to quoind and to qemu-storage-daemon, and what they answer compared.

    def test_del(pair):
        pair.ask('blockdev-del', {'node-name': 'x'})        # equal, or it fails
        pair.ask('query-version', differ='version: each says who it is')

Each program works in a folder of its own; `DIR` in an argument stands for it, and
in answers it stands for the folder again.  `differ` is the reason why answers may
differ here: then only success or failure and the error class are compared.
"""
import json
import os

import peers
import pytest
import quoin


def place(value, folder):
    """value with DIR as this folder."""
    return json.loads(json.dumps(value).replace('DIR', str(folder)))


def unplace(value, folder):
    text = json.dumps(value)
    return json.loads(text.replace(str(folder), 'DIR'))


class Side:
    def __init__(self, name, folder, daemon):
        self.name, self.folder, self.daemon = name, folder, daemon

    def ask(self, command, arguments=None):
        reply = self.daemon.ask(command, place(arguments, self.folder) if arguments else None)
        reply.pop('id', None)
        return unplace(reply, self.folder)

    def events(self):
        """Events so far, without their times; they are taken."""
        seen, self.daemon.qmp.events = self.daemon.qmp.events, []
        return [unplace({k: v for k, v in e.items() if k != 'timestamp'}, self.folder)
                for e in seen]


class Pair:
    def __init__(self, ours, peer):
        self.sides = (ours, peer)

    def prepare(self, make):
        """make(folder) on both sides."""
        for s in self.sides:
            make(s.folder)

    def each(self, fn):
        """What fn(side) gives, ours and theirs, equal."""
        ours, theirs = (fn(s) for s in self.sides)
        assert ours == theirs, '\n  ours:   %r\n  theirs: %r' % (ours, theirs)
        return ours

    def ask(self, command, arguments=None, differ=None):
        ours, theirs = (s.ask(command, arguments) for s in self.sides)
        if differ:
            assert ours.keys() == theirs.keys(), (differ, ours, theirs)
            if 'error' in ours:
                assert ours['error']['class'] == theirs['error']['class']
        else:
            assert ours == theirs, '%s %r\n  ours:   %s\n  theirs: %s' % (
                command, arguments, json.dumps(ours), json.dumps(theirs))
        return ours

    def raw(self, data):
        """Send these bytes; both answer with equal messages, up to a marker that
        is sent behind them."""
        def talk(side):
            qmp = side.daemon.qmp
            qmp.send_raw(data)
            qmp.send_raw(b'\n{"execute":"query-jobs","id":"marker"}\n')
            got = []
            while True:
                msg = qmp.recv()
                if msg.get('id') == 'marker':
                    return got
                msg.pop('timestamp', None)
                got.append(msg)
        return self.each(talk)


def make_pair(tmp, start, start_peer, options=()):
    if peers.version(peers.QSD) < (10, 0):
        pytest.skip('answers are compared with QEMU 10.0; here is %s'
                    % (peers.version(peers.QSD),))
    sides = []
    for name, starter in (('quoind', start), ('qsd', start_peer)):
        folder = tmp / name
        os.mkdir(folder)
        sides.append(Side(name, folder, starter(*[o.replace('DIR', str(folder))
                                                  for o in options])))
    return Pair(*sides)


def failing_start(tmp, *options):
    """stderr of a start that fails, ours and theirs, without the program's name."""
    texts = []
    for name, program in (('quoind', quoin.QUOIND), ('qsd', peers.QSD)):
        folder = tmp / name
        folder.mkdir(exist_ok=True)
        r = quoin.run(program, *[o.replace('DIR', str(folder)) for o in options], tmp=tmp)
        assert r.status == 1, r
        texts.append(r.err.split(': ', 1)[1].replace(str(folder), 'DIR').strip())
    return texts
