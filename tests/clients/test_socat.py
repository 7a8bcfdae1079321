# SPDX-License-Identifier: Apache-2.0
"""An operator with socat: requests from a pipe, several in one write or in pieces."""
import json
import shutil
import subprocess

import pytest

import quoin

needs_socat = pytest.mark.skipif(not shutil.which('socat'), reason='socat is not installed')


def converse(path, text):
    """What the daemon says to this input; socat ends when the daemon has answered
    all and sees the end."""
    p = subprocess.run(['socat', '-t', '10', '-', 'UNIX-CONNECT:%s' % path], input=text.encode(),
                       stdout=subprocess.PIPE, timeout=quoin.LIMIT)
    assert p.returncode == 0
    return [json.loads(line) for line in p.stdout.splitlines()]


@needs_socat
def test_requests_over_several_lines(start, tmp):
    path = tmp / 'q.sock'
    start('--qmp', path, '--blockdev', 'null-co,node-name=n,size=65536')
    greeting, *replies = converse(path, """
        {'execute': 'qmp_capabilities'}
        {"execute": "query-named-block-nodes",
         "id": 1}  {"execute": "blockdev-del", "arguments": {
            "node-name": "n" }, "id": 2}
        """)
    assert 'QMP' in greeting
    assert replies[0] == {'return': {}}
    assert replies[1]['id'] == 1 and replies[1]['return'][0]['node-name'] == 'n'
    assert replies[2] == {'return': {}, 'id': 2}


@needs_socat
def test_quit_is_answered(start, tmp):
    path = tmp / 'q.sock'
    d = start('--qmp', path, qmp=False)
    d.connect(path=path)
    replies = converse(path, '{"execute":"qmp_capabilities"}{"execute":"quit"}')
    assert replies[1:] == [{'return': {}}, {'return': {}}]
    d.wait()


@needs_socat
def test_two_operators_at_once(start, tmp):
    """A second session neither waits for the first nor disturbs it."""
    path = tmp / 'q.sock'
    d = start('--qmp', path)
    first = subprocess.Popen(['socat', '-', 'UNIX-CONNECT:%s' % path], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    try:
        assert b'"QMP"' in first.stdout.readline()
        assert len(converse(path, '{"execute":"qmp_capabilities"}')) == 2
        first.stdin.write(b'{"execute":"qmp_capabilities"}')
        first.stdin.flush()
        assert json.loads(first.stdout.readline()) == {'return': {}}
    finally:
        first.kill()
        first.communicate()
    d.cmd('query-jobs')
