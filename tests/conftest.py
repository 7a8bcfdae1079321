# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all pytest folders; tests/wire/quoin.py tells how to use them."""
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE] + [os.path.join(HERE, d) for d in ('wire', 'compat', 'clients', 'hygiene')]

import peers  # noqa: E402
import quoin  # noqa: E402


def pytest_configure(config):
    # In a shell's background it is ignored, and would be so in all that is started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line('markers', 'limit(seconds): more time than the usual 60')
    config.addinivalue_line('markers', 'patient: waits for a time limit; not again with ASan')
    config.addinivalue_line('markers', 'io: moves data; also run under ThreadSanitizer')


def pytest_report_header(config):
    return [peers.describe(), 'quoind: ' + quoin.QUOIND]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """No test runs for ever."""
    mark = item.get_closest_marker('limit')
    limit = int((mark.args[0] if mark else 60) * quoin.SLOW)

    def too_late(signum, frame):
        raise TimeoutError('the test took more than %d s' % limit)

    old = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(limit)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def tmp():
    path = pathlib.Path(tempfile.mkdtemp(prefix='q-'))
    yield path
    report = quoin.sanitizer_reports(path)
    shutil.rmtree(path, ignore_errors=True)
    assert not report, report


@pytest.fixture
def run(tmp):
    def run_it(*argv, **kw):
        return quoin.run(*argv, tmp=tmp, **kw)
    return run_it


def _starter(tmp, program):
    started = []

    def start_it(*options, **kw):
        d = quoin.Daemon(*options, tmp=tmp, program=kw.pop('program', program), **kw)
        started.append(d)
        return d
    return start_it, started


def _finish(started):
    problems = []
    for d in reversed(started):
        try:
            d.stop()
        except (AssertionError, OSError) as e:
            problems.append(str(e))
        d.destroy()
    return problems


@pytest.fixture
def start(tmp):
    """start(*options) -> quoin.Daemon; ended, and its end judged, after the test."""
    start_it, started = _starter(tmp, quoin.QUOIND)
    yield start_it
    problems = _finish(started)
    assert not problems, '\n'.join(problems)


@pytest.fixture
def start_peer(tmp):
    """start_peer(*options) -> quoin.Daemon running qemu-storage-daemon."""
    if not peers.QSD:
        pytest.skip('no qemu-storage-daemon is installed')
    start_it, started = _starter(tmp, peers.QSD)
    yield start_it
    # Seldom the peer misses its `quit`; how it ends is not what these tests judge.
    _finish(started)
