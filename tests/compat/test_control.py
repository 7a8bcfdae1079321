# SPDX-License-Identifier: Apache-2.0
"""The protocol itself: requests good and bad, answered as the peer answers."""
import pytest

BROKEN = [
    b'}', b']', b'{]', b'"abc"', b'1', b'null', b'{}', b'[]', b'{"execute":1}',
    b'{"execute":"nope"}', b'{"execute":"query-jobs","arguments":1}',
    b'{"execute":"query-jobs","arguments":{"x":1}}', b'{"execute":"query-jobs","bad":1}',
    b'{"arguments":{}}', b"{'execute':'query-jobs'}", b"{'execute':'query-jobs','id':'\\u00e4'}",
    b'{"execute":"query-jobs","id":[1,{"a":null}]}', b'{"execute":"query-jobs","id":1.5}',
    b'{"execute":"query-jobs","execute":"query-jobs"}', b'{"execute":"query-jobs",}',
    b'{"execute" "query-jobs"}', b'{execute:"query-jobs"}', b'{"execute":tru}',
    b'{"execute":"\\q"}', b'{"execute":"\xff"}', b'{"execute":"\\ud800"}', b'{"execute":"a\tb"}',
    b'{"exec-oob":"query-jobs"}', b'{"execute":"query-jobs","exec-oob":"query-jobs"}',
    b'{"execute":"qmp_capabilities"}', b'{"execute":"query-jobs"}{"execute":"nope"}',
    b'{"execute":\n\n"query-jobs"\r\n\t}', b'# comment', b'{"execute":"query-jobs"} junk',
    b'{"execute":"query-jobs","id":18446744073709551615}', b'{"execute":"query-jobs","id":-0}',
    b'{"execute":"query-jobs","id":01}',
    b'{"execute":"query-jobs","id":+1}', b'{"execute":"query-jobs","id":.5}',
    b'\xff\xfe', b'{"execute":"query-jobs","id":"%d"}', b'{"execute":"query-jobs","id":"\\u0000"}',
]


@pytest.mark.parametrize('data', BROKEN, ids=lambda b: ascii(b)[2:-1])
def test_request(pair, data):
    pair.raw(data)


def test_nesting(pair):
    def first_answer(side):
        side.daemon.qmp.send_raw(b'[' * 1030)
        return side.daemon.qmp.recv()
    pair.each(first_answer)
    # What both make of the rest is not compared: new connections are.
    for s in pair.sides:
        s.daemon.kill()


def test_nothing_before_negotiation(start, start_peer):
    def talk(starter):
        client = starter(negotiate=False).qmp
        replies = [client.ask('query-jobs'), client.ask('nope'),
                   client.ask('qmp_capabilities', {'enable': ['nope']}),
                   client.ask('qmp_capabilities', {'enable': ['oob']}),
                   client.ask('qmp_capabilities')]
        for r in replies:
            r.pop('id')
        return replies
    assert talk(start) == talk(start_peer)


def test_objects(pair):
    pair.ask('object-add', {'qom-type': 'iothread', 'id': 'a'})
    pair.ask('object-add', {'qom-type': 'iothread', 'id': 'a'})
    pair.ask('object-add', {'qom-type': 'iothread', 'id': '1'})
    pair.ask('object-add', {'qom-type': 'iothread', 'id': 'b', 'poll-max-ns': -1})
    pair.ask('object-add', {'qom-type': 'iothread', 'id': 'b', 'nope': 1})
    pair.ask('object-add', {'qom-type': 'iothread'})
    pair.ask('object-add', {'id': 'x'})
    pair.ask('object-add', {'qom-type': 'nope', 'id': 'x'})
    pair.ask('object-del', {'id': 'b'})
    pair.ask('object-del', {'id': 'a'})
    pair.ask('object-del', {'id': 'a'})
    pair.ask('object-del')
