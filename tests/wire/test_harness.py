# SPDX-License-Identifier: Apache-2.0
"""The harness itself, driven against the peer: it must see what went wrong."""
import signal

import pytest

import quoin


def test_a_daemon_starts_answers_and_ends(start_peer):
    d = start_peer('--blockdev', 'null-co,node-name=n,size=1048576')
    assert d.cmd('query-named-block-nodes')[0]['node-name'] == 'n'
    d.stop()
    assert d.ended


def test_an_error_reply_raises(start_peer):
    d = start_peer()
    with pytest.raises(quoin.QmpError) as e:
        d.cmd('blockdev-del', node_name='nope')
    assert e.value.error_class == 'GenericError'


def test_a_failed_start_tells_status_and_stderr(start_peer):
    with pytest.raises(AssertionError, match='status 1 before its greeting') as e:
        start_peer('--blockdev', 'driver=nope,node-name=n')
    assert 'nope' in str(e.value)


def test_a_wrong_exit_status_is_seen(start_peer):
    d = start_peer()
    d.send_signal(signal.SIGKILL)
    with pytest.raises(AssertionError, match='status -9, not 0'):
        d.wait()


def test_a_sanitizer_report_is_seen(start_peer, tmp):
    d = start_peer()
    log = tmp / 'sanitizer.1'
    log.write_text('ERROR: AddressSanitizer: planted')
    with pytest.raises(AssertionError, match='planted'):
        d.stop()
    log.unlink()


def test_an_event_is_waited_for(start_peer, tmp):
    d = start_peer('--blockdev', 'null-co,node-name=a,size=1048576,read-zeroes=on',
                   '--blockdev', 'null-co,node-name=b,size=1048576')
    d.cmd('blockdev-backup', job_id='j', device='a', target='b', sync='full')
    e = d.wait_event('BLOCK_JOB_COMPLETED', device='j')
    assert e['data']['type'] == 'backup'


def test_a_reply_that_is_not_in_the_schema_is_seen(start_peer):
    d = start_peer('--blockdev', 'null-co,node-name=a,size=1048576')
    nodes = d.cmd('query-named-block-nodes')
    del nodes[0]['drv']
    nodes[0]['ro'] = 'yes'
    nodes[0]['surplus'] = 1
    said = '\n'.join(d.qmp.schema.reply('query-named-block-nodes', nodes))
    for word in ('drv is missing', "'yes' is not of type boolean", 'surplus is not in the schema'):
        assert word in said
