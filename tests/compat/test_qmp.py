# SPDX-License-Identifier: Apache-2.0
"""The same bytes to quoind and to qemu-storage-daemon: what both make of them.

Every input is sent to a session of its own; then comes a request with an id of
its own, so that all answers up to its reply belong to the input.
"""
import subprocess

import pytest

import images
import peers
import quoin

END = 'the end'

VERSION = '{"execute":"query-version"}'

REQUESTS = [
    '{"execute":"foo"}', '{"execute":"qmp_capabilities"}', '[]', '"x"', '1', '{}',
    '{"execute":1}', '{"execute":"quit","foo":1}', '{"exec-oob":"query-version"}',
    '{"execute":"query-version","arguments":[]}',
    '{"execute":"query-version","arguments":{"a":1}}',
    '{"execute":"query-version","arguments":null}',
    '{"execute":"query-version","exec-oob":"query-version"}',
    '{"id":{"a":[1,2.50,null]},"execute":"xx"}', '{"id":7}', '{"arguments":{}}',
    '{"execute":"query-version","execute":"a"}',
    '{"execute":"a","arguments":{},"arguments":{}}',
    "{'execute':'query-\\'x'}", "{'execute':\"a'b\"}",
    '{"execute":"a\\u00e4\\ud83d\\ude00"}', '{"execute":"a\\ud83d"}',
    '{"execute":"a\\u0000b"}', '{"execute":"a\\x"}', '{"execute":"a\\u12"}',
    '{"execute":"a\tb"}', '{"execute":"a\\/b\\f\\n"}', '{"execute":"a\\ud83d\\u0041"}',
    b'{"execute":"\xff"}', b'\xff', b'{"execute":"\xc0\x80"}',
    b'{"execute":"\xed\xa0\x80"}', b'{"execute":"\xef\xbf\xbf"}',
    b'{"execute":"\xf4\x90\x80\x80"}', b'{"execute":"\xc3"}', b'{"execute":"\x01"}',
    b'{"execute":"\xc3\xa4"}', b'\x00', b'{"a":\x00}', b'\xfe{}',
    '{"execute" "x"}', '{"execute":"query-version",}', '[1 2]', '[1,]', '[,]', '{,}',
    '{"a":}', '{"a"}', '{1:2}', '{null:2}', '{[]:2}', '{"a":1 "b":2}', '{"a":tru}', 'nul',
    'true', 'TRUE', '{"a":+1}', '{"a":-}', '{"a":01}', '{"a":1.}', '{"a":1e}', '{"a":.5}',
    '{"a":1e+}', '{"a":-01}', '@', '}', ']', '{}}', '[1,2}', '"%d"', '%d',
    '{"a":%d}', '# x', '{"a":infinity}', '// x', '{"a":1}{"b":2}', '}{"b":2}', '[}{"b":2}',
    '{"id":18446744073709551615,"execute":"x"}',
    '{"id":18446744073709551616,"execute":"x"}', '{"id":-9223372036854775809,"execute":"x"}',
    '{"id":1.0,"execute":"x"}', '{"id":0.1,"execute":"x"}', '{"id":1e20,"execute":"x"}',
    '{"id":"a\\u00e4\\u0001\\"\\\\/\\u007f\\b\\f\\n\\r\\t","execute":"x"}',
    '{"id":"\\uffff","execute":"x"}', '{"id":-0,"execute":"x"}', '{"id":1.5e-7,"execute":"x"}',
    '[' * 1024 + ']' * 1024, '[' * 1025 + '\n' + '{"id":1}',
    '{"execute":"x","id":' + '[' * 900 + ']' * 900 + '}',
]


def arguments(command, *texts):
    return ['{"execute":"%s","arguments":%s}' % (command, t) for t in texts]


ARGUMENTS = [
    *arguments(
        'blockdev-add', '{}', '{"driver":1}', '{"driver":"foo"}', '{"driver":"file"}',
        '{"driver":"file","filename":1}', '{"driver":"file","filename":"x","foo":1}',
        '{"driver":"raw","file":1}', '{"driver":"raw","file":{"driver":"file"}}',
        '{"driver":"raw","file":{"driver":"file","filename":"/x","aio":"foo"}}',
        '{"driver":"raw","file":{"driver":"file","filename":"/x","z":1}}',
        '{"driver":"raw","file":{"driver":"file","filename":null}}',
        '{"driver":"raw","file":{"driver":"file","filename":"/","cache":{"direct":"on"}}}',
        '{"driver":"raw","file":{"driver":"file","filename":"/x","cache":1}}',
        '{"driver":"raw","offset":"1","file":"x"}', '{"driver":"raw","offset":1.5,"file":"x"}',
        '{"driver":"raw","offset":18446744073709551615,"file":"x"}',
        '{"driver":"null-co","latency-ns":1.5}', '{"driver":"null-co","latency-ns":"1"}',
        '{"driver":"copy-before-write","file":"a","target":"b","cbw-timeout":4294967296}',
        '{"driver":"copy-before-write","file":"a","target":"b","cbw-timeout":-1}',
        '{"driver":"qcow2","file":"x","overlap-check":1}',
        '{"driver":"qcow2","file":"x","overlap-check":"zz"}',
        '{"driver":"qcow2","file":"x","overlap-check":{"template":"zz"}}',
        '{"driver":"qcow2","file":"x","backing":1}', '{"driver":"qcow2","file":"x","backing":[]}',
        '{"driver":"qcow2","file":"x","encrypt":{}}',
        '{"driver":"qcow2","file":"x","encrypt":{"format":"q"}}'),
    *arguments(
        'block-export-add',
        '{"type":"nbd","id":"a","node-name":"x","bitmaps":[1]}',
        '{"type":"nbd","id":"a","node-name":"x","bitmaps":["a",{"node":1}]}',
        '{"type":"nbd","id":"a","node-name":"x","bitmaps":{}}',
        '{"type":"nbd","id":"a","node-name":"x","bitmaps":[{"node":"x","name":"n","q":1}]}',
        '{"type":"nope"}', '{"type":"nbd","id":"a"}'),
    *arguments(
        'nbd-server-start',
        '{"addr":{"type":"inet","data":{"host":"x","port":1}}}',
        '{"addr":{"type":"inet","data":{"host":"x","port":"1","to":70000}}}',
        '{"addr":{"type":"inet"}}', '{"addr":{"type":"unix","data":{"path":"x"},"u":1}}',
        '{"addr":{"type":"unix","data":{"path":"x"}},"max-connections":-1}'),
    *arguments(
        'qmp_capabilities', '{"enable":["foo"]}', '{"enable":"oob"}', '{"enable":[1]}',
        '{"enable":[]}'),
    *arguments(
        'blockdev-backup', '{"device":"x","sync":"full"}',
        '{"device":"x","sync":"fuller","target":"y"}',
        '{"x-perf":{"max-chunk":"a"},"device":"x","sync":"full","target":"x"}'),
    *arguments(
        'blockdev-create',
        '{"job-id":"x","options":{"driver":"qcow2","file":"x","size":"1G"}}',
        '{"job-id":"x","options":[]}', '{"job-id":"x"}'),
    *arguments('block_resize', '{"node-name":""}', '{"size":1,"node-name":"x","bar":1}'),
    *arguments('query-named-block-nodes', '{"flat":1}'),
    *arguments(
        'object-add', '{"qom-type":"iothread"}', '{"id":"i"}',
        '{"qom-type":"iothread","id":"i","poll-max-ns":"x"}', '{"qom-type":"nope","id":"i"}'),
    *arguments('block-job-set-speed', '{"device":"x"}', '{"device":"x","speed":"1"}'),
    *arguments('block-job-change', '{"id":"x","type":"mirror"}', '{"id":"x","type":"m"}',
               '{"id":"x","type":"mirror","copy-mode":"x"}'),
]


def answers(daemon, data, negotiate=True):
    """What comes back for these bytes, on a session of their own."""
    q = daemon.connect(negotiate=negotiate)
    q.schema = None
    q.send_raw(data + b'\n{"execute":"%s","id":"the end"}\n'
               % (b'query-version' if negotiate else b'qmp_capabilities'))
    found = []
    while True:
        msg = q.recv()
        if msg.get('id') == END:
            q.close()
            return found
        if 'return' in msg and 'package' in msg['return']:
            msg['return'] = 'a version'
        found.append(msg)


@pytest.fixture
def both(start, start_peer):
    if peers.version(peers.QSD) < (10, 0):
        pytest.skip('the peer is not version 10.0: some texts differ')
    pair = start(), start_peer()
    for d in pair:              # the peer takes one client at a time
        d.qmp.close()
        d.qmp = None            # ended by a signal
    return pair


def compare(both, inputs, negotiate=True):
    bad = []
    for text in inputs:
        data = text if isinstance(text, bytes) else text.encode()
        ours, theirs = (answers(d, data, negotiate) for d in both)
        if ours != theirs:
            bad.append('%.200r\n  here  %s\n  peer  %s' % (text, ours, theirs))
    assert not bad, '\n'.join(bad)


def test_requests(both):
    compare(both, REQUESTS)


def test_arguments(both):
    compare(both, ARGUMENTS)


def test_before_negotiation(both):
    compare(both, [VERSION, '{"execute":"foo"}', '{}', '[}', '{"exec-oob":"qmp_capabilities"}',
                   '{"execute":"qmp_capabilities","arguments":{"x":1}}'], negotiate=False)


def test_out_of_band(both):
    enable = b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'
    found = []
    for d in both:
        q = d.connect(negotiate=False)
        replies = []
        for r in (enable, b'{"exec-oob":"query-version"}', b'{"exec-oob":"foo","id":3}',
                  b'{"exec-oob":1}', b'{"exec-oob":"a","execute":"b"}',
                  b'{"execute":"b","exec-oob":"a"}', b'{"exec-oob":"query-version","z":1}'):
            q.send_raw(r)
            replies.append(q.recv())
        q.close()
        found.append(replies)
    assert found[0] == found[1]


def greeting(d):
    q = d.connect(negotiate=False)
    q.close()
    return q.greeting


def test_the_greeting_has_the_same_members(both):
    ours, theirs = (greeting(d) for d in both)
    assert ours['QMP']['capabilities'] == theirs['QMP']['capabilities']
    assert ours['QMP']['version']['qemu']['major'] == 10
    assert ours['QMP'].keys() == theirs['QMP'].keys()
    assert ours['QMP']['version'].keys() == theirs['QMP']['version'].keys()
    assert ours['QMP']['version']['package'].startswith('Quoin ')


def test_lines_end_alike(both):
    ends = []
    for d in both:
        q = d.connect()
        q.send_raw(VERSION.encode())
        data = b''
        while not data.endswith(b'\n'):
            data += q.sock.recv(4096)
        ends.append(data[-3:])
        q.close()
    assert ends[0] == ends[1] == b'}\r\n'


# ---- options of the command line ---------------------------------------------

OPTIONS = [
    '--blockdev file', '--blockdev file,filename=/x', '--blockdev null-co,node-name=a,size=1G',
    '--blockdev null-co,node-name=a,size=abc', '--blockdev null-co,node-name=a,size=',
    '--blockdev null-co,node-name=a,size=99999999999999999999',
    '--blockdev null-co,node-name=a,latency-ns=x',
    '--blockdev null-co,node-name=a,read-zeroes=1',
    '--blockdev null-co,node-name=a,read-zeroes', '--blockdev node-name=a',
    '--blockdev driver=null-co,node-name=a,foo=1', '--blockdev driver=foo',
    '--blockdev raw,file=a', '--blockdev raw,file.driver=null-co,file.zz=1,node-name=b',
    '--blockdev raw,file.driver=file,node-name=b',
    '--blockdev raw,file.driver=file,file=x,node-name=b',
    '--blockdev raw,file=x,file.driver=file,node-name=b',
    '--blockdev raw,file.driver=null-co,file.cache.direct=z,node-name=b',
    '--blockdev raw,file.driver=null-co,file.cache=z,node-name=b', '--blockdev raw,file.0=x',
    '--blockdev raw,fi,,le=x', '--blockdev raw,node-name=a,,b,file=x', '--blockdev raw,=x',
    '--blockdev =x', '--blockdev ,', '--blockdev raw,file..x=1', '--blockdev raw,.x=1',
    '--blockdev raw,x.=1', '--blockdev raw,1=1',
    '--blockdev raw,file.driver=null-co,offset=1k,node-name=f',
    '--blockdev {"driver":"null-co"}', '--blockdev {"driver":',
    '--blockdev {"driver":"null-co","node-name":"a","size":"1"}',
    '--blockdev {"driver":"x"}1', '--blockdev {', '--blockdev [1]', '--blockdev {}',
    '--blockdev {"driver":"null-co"}{', '--blockdev {]', '--blockdev {"a":1,"a":2}',
    '--blockdev qcow2,file=x,overlap-check=zz',
    '--blockdev qcow2,file=x,overlap-check.template=zz',
    '--blockdev copy-before-write,file=a,target=b,min-cluster-size=1Z',
    '--blockdev copy-before-write,file=a,target=b,min-cluster-size=0x1k',
    '--blockdev copy-before-write,file=a,target=b,min-cluster-size=-1',
    '--blockdev copy-before-write,file=a,target=b,min-cluster-size=16E',
    '--blockdev copy-before-write,file=a,target=b,min-cluster-size=1.5',
    '--blockdev copy-before-write,file=a,target=b,min-cluster-size=.5k',
    '--blockdev copy-before-write,file=a,target=b,cbw-timeout=99999999999',
    '--blockdev null-co,size.x=1', '--blockdev help',
    '--export nbd,id=a', '--export type=nbd,id=a,node-name=x,bitmaps.1=a',
    '--export type=nbd,id=a,node-name=x,bitmaps=a',
    '--export type=nbd,id=a,node-name=x,bitmaps.x=a',
    '--export type=nbd,id=a,node-name=x,bitmaps.0.node=a',
    '--export type=nbd,id=a,node-name=x,bitmaps.0.node=a,bitmaps.0.name=b,bitmaps.0.z=b',
    '--export nbd,a,node-name=x', '--nbd-server addr.type=inet,addr.host=x', '--nbd-server foo',
    '--nbd-server addr.type=unix,addr.path=/x,max-connections=x',
    '--object iothread', '--object iothread,id=a,poll-max-ns=x', '--object foo,id=a',
    '--monitor foo', '--monitor foo,mode=bla', '--monitor foo,pretty=maybe', '--monitor foo,x=1',
]

# Option: why the text differs.
OPTION_DIFFERENT = {
    '--blockdev raw,node-name=a,,b,file=x': 'names are checked before anything is opened',
}


def complaint(program, option):
    p = subprocess.run([program, *option.split(' ', 1)], stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, timeout=quoin.LIMIT)
    assert p.returncode == 1, (program, option, p.returncode, p.stderr)
    return p.stderr.rstrip().split(': ', 1)[-1]


def test_options(both):
    bad = []
    for option in OPTIONS:
        ours, theirs = complaint(quoin.QUOIND, option), complaint(peers.QSD, option)
        if option in OPTION_DIFFERENT:
            assert ours != theirs, 'not different any more: %s' % option
        elif ours != theirs:
            bad.append('%s\n  here  %s\n  peer  %s' % (option, ours, theirs))
    assert not bad, '\n'.join(bad)


@pytest.mark.parametrize('read_only', ['on', 'off'])
def test_an_image_that_another_process_has(both, start, tmp, read_only):
    """The hint is for the command line; clients of QMP get the error alone."""
    images.qcow2(tmp / 'a.qcow2', '1M')
    d = start('--blockdev', 'qcow2,node-name=a,file.driver=file,file.filename=%s/a.qcow2' % tmp)
    option = '--blockdev qcow2,node-name=b,read-only=%s,file.driver=file,file.filename=%s/a.qcow2' \
        % (read_only, tmp)
    ours, theirs = complaint(quoin.QUOIND, option), complaint(peers.QSD, option)
    assert ours == theirs and 'Is another process using the image' in ours
    d.stop()
