# SPDX-License-Identifier: Apache-2.0
"""What quoin rescue shows on a terminal while it works: a bar with the rate and the time left."""
import fcntl
import re
import signal
import struct
import termios

import nbdserver
import peers
import pytest
from rescuekit import MIB, PASSWORD, Terminal, content, encrypt, need_libnbd, noise, same, standard

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

CLEAR = '\x1b[K'


def resize(t, columns):
    fcntl.ioctl(t.master, termios.TIOCSWINSZ, struct.pack('HHHH', 25, columns, 0, 0))


@pytest.fixture
def half(tmp):
    """A terminal where half of a disk is copied, and the other half takes for ever."""
    need_libnbd()
    image = encrypt(tmp, 'qcow2', noise(tmp / 'plain', 8 * MIB), tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    with nbdserver.Server(tmp / 'sock', bytes(8 * MIB)) as server:
        def lie(kind, cookie, at, length):
            written = sum(n for kind, _, n, _ in server.requests if kind == nbdserver.WRITE)
            server.silent = written >= 4 * MIB
        server.lie = lie
        t = Terminal(tmp, 'rescue', '--force', '--accept-unverified-key', '--key-file', tmp / 'key',
                     image, 'nbd+unix:///?socket=%s' % (tmp / 'sock'))
        resize(t, 100)
        t.expect('taken unverified')
        t.expect('\n')
        yield t
        t.p.kill()


def test_a_bar_fits_the_terminal(half):
    half.expect('%  4 MiB of 8 MiB, ')
    half.expect(CLEAR)
    bar = half.text[half.text.rindex('\r'):half.text.rindex(CLEAR)]
    m = re.fullmatch(r'\r\[(#+)(\.+)\]  50%  4 MiB of 8 MiB, [\d.]+ .iB/s, \d+:\d\d left', bar)
    assert m and len(bar) == 100 and abs(len(m[1]) - len(m[2])) < 2, bar
    resize(half, 20)
    half.expect('\r 50%' + CLEAR)
    resize(half, 60)
    half.expect('%  4 MiB of 8 MiB')
    half.expect(CLEAR)
    assert len(half.text) - half.text.rindex('\r') - len(CLEAR) <= 60


def test_what_is_said_meanwhile_has_lines_of_its_own(half):
    half.expect('%  4 MiB of 8 MiB')
    half.p.send_signal(signal.SIGUSR1)
    half.expect('\r' + CLEAR + '50% (4 MiB of 8 MiB, ')
    half.expect(' left)\r\n')
    half.expect('] ')               # and the bar goes on
    half.send('\x03')
    half.expect('\r' + CLEAR)
    half.expect('quoin rescue: interrupted, the target is half written\r\n')
    assert half.end() == -signal.SIGINT


def test_the_bar_is_whole_in_the_end(tmp):
    plain, image = standard(tmp, 'qcow2')
    (tmp / 'key').write_text(PASSWORD)
    t = Terminal(tmp, 'rescue', '--key-file', tmp / 'key', image, tmp / 'out')
    t.expect('#] 100%  ')
    t.expect('\r\n')
    t.expect('is whole and on disk\r\n')
    assert t.end() == 0 and '.' not in t.text[t.text.index('\r['):t.text.index('] 100%')]
    assert same(content(tmp / 'out'), content(plain))
