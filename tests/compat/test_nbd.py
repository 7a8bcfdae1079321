# SPDX-License-Identifier: Apache-2.0
"""The same questions to quoind's and to qemu-storage-daemon's NBD server.

COMMANDS go over QMP, WIRE asks by raw bytes.  Answers must be equal, but for
what DIFFERENT names, each with the reason; and those must differ.
"""
import json

import nbdraw as nbd
import peers
import pytest
from nbdraw import Conn, connect

MIB = 1 << 20
SIZE = 64 * MIB

RIGHT_ERROR = "the protocol's own error: QEMU 10.0 replaces it by EINVAL when it checks a request"
PAYLOAD_FLAG = ('QEMU offers BLOCK_STATUS_PAYLOAD in answer to INFO also where no contexts were set,'
                ' and then not in answer to GO')
DIFFERENT = {
    'trailing data after queries': 'QEMU does not look at it, and takes it for the next option',
    'write to a read-only export': RIGHT_ERROR,
    'zero a read-only export': RIGHT_ERROR,
    'trim a read-only export': RIGHT_ERROR,
    'write beyond the end': RIGHT_ERROR,
    'zero beyond the end': RIGHT_ERROR,
    'wrong magic': 'QEMU answers the junk before it hangs up',
    'extended, info': PAYLOAD_FLAG,
    'extended, contexts of another export': PAYLOAD_FLAG,
    'extended, contexts listed': PAYLOAD_FLAG,
    'nul in an export name': 'QEMU takes what stands before it',
}

UNIX = {'type': 'unix', 'data': {'path': '@nbd2'}}


def export(**more):
    return dict({'type': 'nbd', 'id': 'e', 'node-name': 'f'},
                **{k.replace('_', '-'): v for k, v in more.items()})


COMMANDS = {
    'without a server': [
        ('nbd-server-stop', {}), ('block-export-add', export()),
        ('nbd-server-add', {'device': 'f'}), ('nbd-server-remove', {'name': 'f'}),
        ('query-block-exports', {}), ('block-export-del', {'id': 'e'})],
    'starting': [
        ('nbd-server-start', {}), ('nbd-server-start', {'addr': {}}),
        ('nbd-server-start', {'addr': {'type': 'unix', 'data': {}}}),
        ('nbd-server-start', {'addr': UNIX, 'tls-creds': 'none'}),
        ('nbd-server-start', {'addr': UNIX, 'max-connections': -1}),
        ('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': '@no/such'}}}),
        ('nbd-server-start', {'addr': {'type': 'inet', 'data': {'host': '1.2.3.4', 'port': '9'}}}),
        ('nbd-server-start', {'addr': {'type': 'inet', 'data': {'host': 'none.invalid', 'port': '9'}}}),
        ('nbd-server-start', {'addr': UNIX, 'max-connections': 3, 'handshake-max-seconds': 0}),
        ('nbd-server-start', {'addr': UNIX}),
        ('nbd-server-stop', {}), ('nbd-server-stop', {}), ('nbd-server-start', {'addr': UNIX})],
    'exports': [
        ('nbd-server-start', {'addr': UNIX}),
        ('block-export-add', {}), ('block-export-add', export(id='1x')),
        ('block-export-add', export(id='')), ('block-export-add', export(id='a b')),
        ('block-export-add', export(node_name='none')),
        ('block-export-add', export(node_name='r', writable=True)),
        ('block-export-add', export(iothread='none')),
        ('block-export-add', export(iothread='none', fixed_iothread=True)),
        ('block-export-add', export(name='n' * 300)), ('block-export-del', {'id': 'e'}),
        ('block-export-add', export(bitmaps=['b'])),
        ('block-export-add', export(bitmaps=[])), ('block-export-del', {'id': 'e'}),
        ('block-export-add', export(type='nonsense')),
        ('block-export-add', export(writable='yes')),
        ('block-export-add', export(name='x', writable=True, writethrough=True)),
        ('block-export-add', export()), ('block-export-add', export(id='e2', name='x')),
        ('block-export-add', export(id='e2')), ('query-block-exports', {}),
        ('blockdev-del', {'node-name': 'f'}),
        ('block_resize', {'node-name': 'f', 'size': 2 * SIZE}),
        ('block-export-del', {'id': 'none'}), ('block-export-del', {'id': 'e', 'mode': 'soft'}),
        ('block-export-del', {'id': 'e'}), ('block-export-del', {'id': 'e'}),
        ('block-export-del', {'id': 'e2', 'mode': 'hard'}), ('query-block-exports', {}),
        ('block-export-add', export()), ('nbd-server-stop', {}), ('query-block-exports', {}),
        ('blockdev-del', {'node-name': 'f'})],
    'bitmaps': [
        ('nbd-server-start', {'addr': UNIX}),
        ('block-dirty-bitmap-add', {'node': 'f', 'name': 'on'}),
        ('block-dirty-bitmap-add', {'node': 'f', 'name': 'off', 'disabled': True}),
        ('block-export-add', export(bitmaps=['none'])),
        ('block-export-add', export(bitmaps=['on'])),
        ('block-export-add', export(bitmaps=['off', 'on'])),
        ('block-export-add', export(bitmaps=[{'node': 'none', 'name': 'on'}])),
        ('block-export-add', export(bitmaps=[{'node': 'f', 'name': 'none'}])),
        ('block-export-add', export(node_name='r', bitmaps=[{'node': 'f', 'name': 'on'}])),
        ('block-dirty-bitmap-clear', {'node': 'f', 'name': 'on'}),
        ('block-dirty-bitmap-remove', {'node': 'f', 'name': 'on'}),
        ('block-export-del', {'id': 'e'}),
        ('block-export-add', export(bitmaps=['off'])),
        ('block-export-add', export(id='e2', name='e2', writable=True, bitmaps=['on'])),
        ('block-dirty-bitmap-remove', {'node': 'f', 'name': 'off'}),
        ('nbd-server-stop', {}),
        ('nbd-server-start', {'addr': UNIX}),
        ('nbd-server-add', {'device': 'f', 'bitmap': 'none'}),
        ('nbd-server-add', {'device': 'f', 'bitmap': 'on'}),
        ('nbd-server-add', {'device': 'f', 'bitmap': 'on', 'writable': True}),
        ('nbd-server-remove', {'name': 'f'}),
        ('block-dirty-bitmap-remove', {'node': 'f', 'name': 'on'}),
        ('block-dirty-bitmap-remove', {'node': 'f', 'name': 'off'})],
    'the old commands': [
        ('nbd-server-start', {'addr': UNIX}),
        ('nbd-server-add', {'device': 'none'}), ('nbd-server-add', {'device': 'f', 'name': 'a/b'}),
        ('nbd-server-add', {'device': 'f', 'bitmap': 'b'}),
        ('nbd-server-add', {'device': 'r', 'writable': True}),
        ('nbd-server-add', {'device': 'f', 'name': 'r'}), ('nbd-server-add', {'device': 'f'}),
        ('query-block-exports', {}), ('nbd-server-remove', {'name': 'none'}),
        ('nbd-server-remove', {'name': 'f', 'mode': 'hard'}),
        ('block-export-del', {'id': 'r'}), ('query-block-exports', {})],
}


def opt(option, data=b'', before=(), **how):
    """The replies to an option, after others if they are wanted."""
    def ask(path):
        with Conn(path, flags=how.get('flags', 3)) as c:
            for args in before:
                c.option(*args)
            if how.get('structured'):
                c.option(nbd.OPT_STRUCTURED)
            try:
                replies = c.option(option, data, how.get('length'))
            except nbd.Closed:
                return 'closed'
            try:
                return replies, c.option(nbd.OPT_LIST)
            except nbd.Closed:
                return replies, 'closed'
    return ask


def cmd(kind, *, name='rw', meta=('base:allocation',), **args):
    """The answer to a request, with extended headers, structured and simple replies."""
    def ask(path):
        answers = []
        with connect(path, name, extended=True, meta=meta) as c:
            flags = args.get('flags', 0) | (nbd.PAYLOAD_LEN if args.get('data') else 0)
            c.request(kind, **{**args, 'flags': flags})
            answers += [c.chunks(), c.offset, c.transmission]
        with connect(path, name, structured=True, meta=meta) as c:
            c.request(kind, **args)
            answers.append(c.chunks())
            answers.append(c.transmission)
        if kind == nbd.BLOCK_STATUS:
            return answers
        with connect(path, name) as c:
            c.request(kind, **args)
            answers.append(c.simple(args.get('length', 0) if kind == nbd.READ else 0))
        return answers
    return ask


def extended(kind, *, name='ro', meta=('base:allocation', 'qemu:allocation-depth'), **args):
    """The answer to an extended request, and to the one behind it."""
    def ask(path):
        answers = []
        with connect(path, name, extended=True, meta=meta) as c:
            c.request(kind, **args)
            try:
                answers.append((c.chunks(), c.offset))
                c.request(nbd.READ, 0, 4)
                answers.append(c.chunks())
            except nbd.Closed:
                answers.append('closed')
        return answers
    return ask


def status(data, length=None, flags=0, **args):
    return extended(nbd.BLOCK_STATUS, length=len(data) if length is None else length, data=data,
                    flags=nbd.PAYLOAD_LEN | flags, **args)


def export_name(name, flags=3, structured=False):
    def ask(path):
        with Conn(path, flags=flags) as c:
            if structured:
                c.option(nbd.OPT_STRUCTURED)
            c.option_send(nbd.OPT_EXPORT_NAME, name)
            try:
                return c.recv(10 if flags & 2 else 134)
            except nbd.Closed:
                return 'closed'
    return ask


def greeting(path):
    with Conn(path, greet=False) as c:
        return c.recv(18)


def junk(path):
    with connect(path, 'rw') as c:
        c.send(b'\1' * 28)
        return c.closed()


META = nbd.meta_data('rw', 'base:allocation')
EXTENDED, STRUCTURED = (nbd.OPT_EXTENDED,), (nbd.OPT_STRUCTURED,)
WIRE = {
    'greeting': greeting,
    'unknown client flag': opt(nbd.OPT_LIST, flags=7),
    'list from an old client': opt(nbd.OPT_LIST, flags=0),
    'go from an old client': opt(nbd.OPT_GO, nbd.go_data('rw'), flags=0),
    'export name': export_name(b'ro'), 'export name, old client': export_name(b'ro', 0),
    'export name, old client, no zeroes': export_name(b'ro', 2),
    'export name, zeroes': export_name(b'rw', 1),
    'export name, structured': export_name(b'rw', structured=True),
    'unknown export name': export_name(b'none'), 'nul in an export name': export_name(b'ro\0'),
    'no export name': export_name(b''), 'long export name': export_name(b'n' * 5000),
    'list': opt(nbd.OPT_LIST), 'list with data': opt(nbd.OPT_LIST, b'x'),
    'starttls': opt(nbd.OPT_STARTTLS), 'starttls with data': opt(nbd.OPT_STARTTLS, b'x'),
    'structured twice': opt(nbd.OPT_STRUCTURED, structured=True),
    'structured with data': opt(nbd.OPT_STRUCTURED, b'x'),
    'extended headers': opt(nbd.OPT_EXTENDED),
    'extended with data': opt(nbd.OPT_EXTENDED, b'x'),
    'extended twice': opt(nbd.OPT_EXTENDED, before=[EXTENDED]),
    'extended, then structured': opt(nbd.OPT_STRUCTURED, before=[EXTENDED]),
    'structured, then extended': opt(nbd.OPT_EXTENDED, before=[STRUCTURED]),
    'extended, export name': opt(nbd.OPT_EXPORT_NAME, b'rw', before=[EXTENDED]),
    'extended, info': opt(nbd.OPT_INFO, nbd.go_data('rw'), before=[EXTENDED]),
    'extended, info with contexts': opt(nbd.OPT_INFO, nbd.go_data('rw'),
                                        before=[EXTENDED, (nbd.OPT_SET_META, META)]),
    'extended, contexts of another export': opt(nbd.OPT_INFO, nbd.go_data('ro'),
                                                before=[EXTENDED, (nbd.OPT_SET_META, META)]),
    'extended, contexts listed': opt(nbd.OPT_INFO, nbd.go_data('rw'),
                                     before=[EXTENDED, (nbd.OPT_LIST_META, META)]),
    'withdrawn option': opt(4), 'unknown option': opt(77, b'data'), 'option 0': opt(0),
    'too long an option': opt(nbd.OPT_LIST, length=(32 << 20) + 1),
    'info': opt(nbd.OPT_INFO, nbd.go_data('rw')),
    'info on a description': opt(nbd.OPT_INFO, nbd.go_data('ro', [0, 1, 2, 3, 99, 1])),
    'info, structured': opt(nbd.OPT_INFO, nbd.go_data('rw'), structured=True),
    'info on nothing': opt(nbd.OPT_INFO, nbd.go_data('none')),
    'info on the empty name': opt(nbd.OPT_INFO, nbd.go_data('')),
    'info on 79 bytes': opt(nbd.OPT_INFO, nbd.go_data('n' * 79)),
    'info on 80 bytes': opt(nbd.OPT_INFO, nbd.go_data('n' * 80)),
    'info on 4096 bytes': opt(nbd.OPT_INFO, nbd.go_data('n' * 4096)),
    'info on 4097 bytes': opt(nbd.OPT_INFO, nbd.go_data('n' * 4097)),
    'info on 4 GiB': opt(nbd.OPT_INFO, b'\xff' * 8),
    'info on a nul': opt(nbd.OPT_INFO, nbd.go_data('r\0w')),
    'info without data': opt(nbd.OPT_INFO), 'info cut in the name': opt(nbd.OPT_INFO, b'\0\0\0\3a'),
    'info without requests': opt(nbd.OPT_INFO, b'\0\0\0\2rw'),
    'info with too few requests': opt(nbd.OPT_INFO, b'\0\0\0\2rw\0\2\0\1'),
    'info with too many bytes': opt(nbd.OPT_INFO, nbd.go_data('rw') + b'x'),
    'go on nothing': opt(nbd.OPT_GO, nbd.go_data('none')),
    'contexts without structured replies': opt(nbd.OPT_SET_META, META),
    'list contexts without structured replies': opt(nbd.OPT_LIST_META, META),
    'trailing data after queries': opt(nbd.OPT_SET_META, META + b'x', structured=True),
    **{f'set contexts {q}': opt(nbd.OPT_SET_META, nbd.meta_data('rw', *q), structured=True)
       for q in ((), ('base:allocation',), ('base:',), ('qemu:',), ('qemu:allocation-depth',),
                 ('x:', 'base:allocation'), ('qemu:dirty-bitmap:b',), ('base',), ('',))},
    **{f'list contexts {q}': opt(nbd.OPT_LIST_META, nbd.meta_data('rw', *q), structured=True)
       for q in ((), ('base:allocation',), ('base:',), ('qemu:',), ('qemu:dirty-bitmap:',),
                 ('base:a',), ('',))},
    'contexts with depth': opt(nbd.OPT_LIST_META, nbd.meta_data('ro'), structured=True),
    'contexts of nothing': opt(nbd.OPT_SET_META, nbd.meta_data('none', 'base:'), structured=True),
    'contexts, long name': opt(nbd.OPT_SET_META, nbd.meta_data('n' * 4097), structured=True),
    'contexts, long query': opt(nbd.OPT_SET_META, nbd.meta_data('rw', 'q' * 5000), structured=True),
    'contexts, cut': opt(nbd.OPT_SET_META, META[:-3], structured=True),
    'contexts, no count': opt(nbd.OPT_SET_META, b'\0\0\0\2rw', structured=True),
    'contexts, nul': opt(nbd.OPT_SET_META, nbd.meta_data('rw', 'a\0b'), structured=True),
    'abort': opt(nbd.OPT_ABORT), 'abort with data': opt(nbd.OPT_ABORT, b'xyz'),

    'read': cmd(nbd.READ, offset=512, length=4096), 'read nothing': cmd(nbd.READ),
    'read with df': cmd(nbd.READ, offset=512, length=4096, flags=nbd.DF),
    'read with fua': cmd(nbd.READ, length=512, flags=nbd.FUA),
    'read with req_one': cmd(nbd.READ, length=512, flags=nbd.REQ_ONE),
    'read data and hole': cmd(nbd.READ, offset=MIB - 65536, length=MIB),
    'read a hole': cmd(nbd.READ, offset=2 * MIB, length=4096),
    'read at the end': cmd(nbd.READ, offset=SIZE - 512, length=512),
    'read beyond the end': cmd(nbd.READ, offset=SIZE - 511, length=512),
    'read far beyond the end': cmd(nbd.READ, offset=(1 << 64) - 1, length=1),
    'read too much': cmd(nbd.READ, length=33 * MIB),
    'write': cmd(nbd.WRITE, offset=8 * MIB, length=512, data=b'w' * 512),
    'write nothing': cmd(nbd.WRITE, offset=8 * MIB),
    'write with fua': cmd(nbd.WRITE, offset=8 * MIB, length=512, data=b'v' * 512, flags=nbd.FUA),
    'write with no_hole': cmd(nbd.WRITE, length=2, data=b'xx', flags=nbd.NO_HOLE),
    'write beyond the end': cmd(nbd.WRITE, offset=SIZE, length=2, data=b'xx'),
    'write to a read-only export': cmd(nbd.WRITE, name='ro', length=2, data=b'xx'),
    'zero': cmd(nbd.WRITE_ZEROES, offset=8 * MIB, length=4096),
    'zero, no hole': cmd(nbd.WRITE_ZEROES, offset=8 * MIB, length=4096, flags=nbd.NO_HOLE),
    'zero fast': cmd(nbd.WRITE_ZEROES, offset=8 * MIB, length=4096, flags=nbd.FAST_ZERO),
    'zero with fua': cmd(nbd.WRITE_ZEROES, offset=8 * MIB, length=4096, flags=nbd.FUA),
    'zero with df': cmd(nbd.WRITE_ZEROES, length=512, flags=nbd.DF),
    'zero beyond the end': cmd(nbd.WRITE_ZEROES, offset=SIZE, length=2),
    'zero a read-only export': cmd(nbd.WRITE_ZEROES, name='ro', length=2),
    'trim': cmd(nbd.TRIM, offset=8 * MIB, length=4096),
    'trim with fua': cmd(nbd.TRIM, offset=8 * MIB, length=4096, flags=nbd.FUA),
    'trim beyond the end': cmd(nbd.TRIM, offset=SIZE, length=2),
    'trim a read-only export': cmd(nbd.TRIM, name='ro', length=2),
    'flush': cmd(nbd.FLUSH), 'flush with an offset': cmd(nbd.FLUSH, offset=3, length=4),
    'flush with df': cmd(nbd.FLUSH, flags=nbd.DF),
    'cache': cmd(nbd.CACHE, length=MIB), 'cache too much': cmd(nbd.CACHE, length=33 * MIB),
    'status': cmd(nbd.BLOCK_STATUS, name='ro', length=SIZE),
    'status of one': cmd(nbd.BLOCK_STATUS, name='ro', length=SIZE, flags=nbd.REQ_ONE),
    'status of nothing': cmd(nbd.BLOCK_STATUS, length=0),
    'status beyond the end': cmd(nbd.BLOCK_STATUS, offset=SIZE - 1, length=2),
    'status, no context': cmd(nbd.BLOCK_STATUS, length=512, meta=('base:',)),
    'status, no context, nothing': cmd(nbd.BLOCK_STATUS, length=0, meta=()),
    'status by depth': cmd(nbd.BLOCK_STATUS, name='ro', length=SIZE,
                           meta=('base:allocation', 'qemu:allocation-depth')),
    'extended read of 8 GiB': extended(nbd.READ, length=1 << 33),
    'extended read of everything': extended(nbd.READ, length=(1 << 64) - 1),
    'extended read with a payload': extended(nbd.READ, length=4, data=b'abcd',
                                             flags=nbd.PAYLOAD_LEN),
    'extended read with a long payload': extended(nbd.READ, length=MIB, data=bytes(MIB),
                                                  flags=nbd.PAYLOAD_LEN),
    'extended read with too long a payload': extended(nbd.READ, length=(32 << 20) + 1,
                                                      flags=nbd.PAYLOAD_LEN),
    'extended write without the flag': extended(nbd.WRITE, name='rw', offset=8 * MIB, length=512,
                                                data=bytes(512)),
    'extended write of nothing': extended(nbd.WRITE, name='rw'),
    'extended write of nothing, flag': extended(nbd.WRITE, name='rw', flags=nbd.PAYLOAD_LEN),
    'extended write, too long': extended(nbd.WRITE, name='rw', length=33 * MIB,
                                         flags=nbd.PAYLOAD_LEN),
    'extended flush with a payload': extended(nbd.FLUSH, length=3, data=b'abc',
                                              flags=nbd.PAYLOAD_LEN),
    'extended trim of 8 EiB': extended(nbd.TRIM, name='rw', length=1 << 63),
    'extended cache of 1 TiB': extended(nbd.CACHE, length=1 << 40),
    'extended unknown command with a payload': extended(99, length=4, data=b'abcd',
                                                        flags=nbd.PAYLOAD_LEN),
    'extended disconnect': extended(nbd.DISC),
    'extended disconnect with a payload': extended(nbd.DISC, length=4, data=b'abcd',
                                                   flags=nbd.PAYLOAD_LEN),
    'status of one context': status(nbd.status_data(SIZE, 0)),
    'status of the other context': status(nbd.status_data(SIZE, 1)),
    'status of one extent of one context': status(nbd.status_data(SIZE, 1), flags=nbd.REQ_ONE),
    'status of both contexts': status(nbd.status_data(SIZE, 1, 0)),
    'status of a context twice': status(nbd.status_data(SIZE, 0, 0)),
    'status of an unknown context': status(nbd.status_data(SIZE, 5)),
    'status of a context not asked for': status(nbd.status_data(SIZE, 1),
                                                meta=('base:allocation',)),
    'status of no context': status(nbd.status_data(SIZE)),
    'status, payload cut': status(b'abcd'),
    'status, payload odd': status(nbd.status_data(SIZE, 0) + b'x'),
    'status, payload long': status(nbd.status_data(SIZE, *range(100))),
    'status, payload longer': status(nbd.status_data(SIZE, *range(10000))),
    'status, payload too long': status(b'', length=(32 << 20) + 1),
    'status, payload beyond the end': status(nbd.status_data(SIZE + 1, 0)),
    'status, payload of nothing': status(nbd.status_data(0, 0)),
    'unknown command': cmd(99), 'unknown command and flag': cmd(99, flags=64),
    'wrong magic': junk,
}


def make_disk(folder):
    folder.mkdir()
    with open(folder / 'disk', 'wb') as f:
        f.write(bytes(range(1, 256)) * 4112 + bytes(range(16)))
        f.truncate(MIB)
        f.truncate(SIZE)
    return folder


def nodes(folder):
    return ('--blockdev', f'file,node-name=f,filename={folder}/disk',
            '--blockdev', f'file,node-name=r,filename={folder}/disk,read-only=on')


@pytest.fixture
def both(start, start_peer, tmp):
    """Two daemons over disks of the same content, each with its folder."""
    if peers.version(peers.QSD) < (10, 0):
        pytest.skip('the peer is not 10.0, whose answers are compared')

    def both_it(*options):
        for starter, name in ((start, 'own'), (start_peer, 'peer')):
            folder = make_disk(tmp / name)
            yield starter(*nodes(folder), *(o.replace('@', f'{folder}/') for o in options)), folder
    return both_it


def normal(folder, value):
    return json.loads(json.dumps(value).replace(str(folder) + '/', '@'))


@pytest.mark.parametrize('script', COMMANDS)
def test_commands(both, script):
    answers = []
    for d, folder in both():
        replies = []
        for command, arguments in COMMANDS[script]:
            arguments = json.loads(json.dumps(arguments).replace('@', f'{folder}/'))
            reply = d.ask(command, arguments)
            replies.append((command, {k: reply[k] for k in reply if k in ('return', 'error')}))
        answers.append(normal(folder, replies))
    assert answers[0] == answers[1]


def test_events_of_deleting(both):
    """The event comes for each export once, and only by then it is gone."""
    for d, folder in both('--nbd-server', 'addr.type=unix,addr.path=@nbd',
                          '--export', 'nbd,id=a,node-name=f', '--export', 'nbd,id=b,node-name=r'):
        d.cmd('block-export-del', id='a')
        d.wait_event('BLOCK_EXPORT_DELETED', id='a')
        d.cmd('nbd-server-stop')
        d.wait_event('BLOCK_EXPORT_DELETED', id='b')
        assert d.cmd('query-block-exports') == []
        assert not [e for e in d.qmp.events if e['event'] == 'BLOCK_EXPORT_DELETED']


def test_wire(both):
    answers = []
    for d, folder in both(
            '--nbd-server', 'addr.type=unix,addr.path=@nbd',
            '--export', 'nbd,id=rw,node-name=f,name=rw,writable=on',
            '--export', 'nbd,id=ro,node-name=r,name=ro,description=about,allocation-depth=on'):
        answers.append({name: ask(folder / 'nbd') for name, ask in WIRE.items()})
    own, peer = answers
    wrong = [f'{name}: {own[name]} and the peer {peer[name]}' for name in WIRE
             if name not in DIFFERENT and own[name] != peer[name]]
    assert not wrong, '\n'.join(wrong)
    same = [name for name in DIFFERENT if own[name] == peer[name]]
    assert not same, 'not different any more: ' + ', '.join(same)
