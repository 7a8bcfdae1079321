# SPDX-License-Identifier: Apache-2.0
"""Start a storage daemon, talk QMP to it, and see it end cleanly.

What a test asks for (the fixtures stand in tests/conftest.py):

    def test_grow(start, tmp):
        d = start('--blockdev', 'null-co,node-name=n,size=1048576')
        d.cmd('block_resize', node_name='n', size=1 << 21)   # 'return', or QmpError
        assert d.cmd('query-named-block-nodes')[0]['image']['virtual-size'] == 1 << 21

start(*options)       a quoind with these options, greeted and negotiated
start_peer(*options)  the same with qemu-storage-daemon; skips if there is none
tmp                   a folder of the test's own (pathlib.Path, short enough for
                      socket paths); at its end no sanitizer report may lie there
run(*argv)            any program to its end, bounded in time, output captured

Daemon   .qmp (first client)  .cmd(...)  .connect(negotiate=True) -> Qmp
         .stop() ends it by `quit` and asserts that it ended well; .kill(sig)
         .wait(status) asserts the exit status; .stderr() its text so far
Qmp      .cmd(name, arguments=None, **more) -> what 'return' holds; an `_` in a
         keyword becomes `-`; raises QmpError(.error_class, .desc, .reply)
         .ask(name, ...)   the whole reply, good or bad
         .wait_event(name, **data)  next such event whose data has these items
         .events           events seen and not waited for yet
         .send_raw(bytes), .recv()  for tests of the wire itself
         .ended()          True once the daemon has closed the connection

@pytest.mark.io marks a test that moves data (also run under ThreadSanitizer),
@pytest.mark.limit(seconds) one that takes longer than 60 s.

Which programs: $QUOIND, $QUOIN (default build/quoind, build/quoin), peers.py.
Replies and events are checked against the program's own query-qmp-schema.
Every wait ends after LIMIT seconds; $QUOIN_SLOW multiplies it (sanitizers).
"""
import collections
import fcntl
import glob
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time

import introspect

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUOIND = os.environ.get('QUOIND', os.path.join(TOP, 'build', 'quoind'))
QUOIN = os.environ.get('QUOIN', os.path.join(TOP, 'build', 'quoin'))
SLOW = float(os.environ.get('QUOIN_SLOW', '1'))
LIMIT = 20 * SLOW


class QmpError(Exception):
    """A command's error reply."""

    def __init__(self, reply):
        self.reply = reply
        self.error_class = reply['error']['class']
        self.desc = reply['error']['desc']
        super().__init__('%s: %s' % (self.error_class, self.desc))


class Qmp:
    """One client connection.  Replies and events are kept apart."""

    def __init__(self, path, negotiate=True):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        self.sock = sock
        self.buf = b''
        self.events = []
        self.next_id = 0
        self.schema = None      # an introspect.Schema: what arrives is checked
        self.greeting = self.recv()
        assert 'QMP' in self.greeting, self.greeting
        if negotiate:
            self.cmd('qmp_capabilities')

    def close(self):
        self.sock.close()

    def send_raw(self, data):
        self.sock.settimeout(LIMIT)
        self.sock.sendall(data)

    def recv(self, limit=None):
        """The next message, whatever it is."""
        end = time.monotonic() + (LIMIT if limit is None else limit)
        while b'\n' not in self.buf:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError('no message in time; pending: %r' % self.buf)
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(1 << 16)
            except socket.timeout:
                continue
            if not data:
                raise EOFError('connection closed; pending: %r' % self.buf)
            self.buf += data
        line, self.buf = self.buf.split(b'\n', 1)
        msg = json.loads(line)
        if self.schema and 'event' in msg:
            bad = self.schema.event(msg)
            assert not bad, '\n'.join(bad)
        return msg

    def ended(self):
        """Wait until the daemon closes; True if nothing but events came."""
        try:
            while 'event' in self.recv():
                pass
            return False
        except (EOFError, ConnectionResetError):
            return True

    def ask(self, name, arguments=None, limit=None, **more):
        """Send a command; its whole reply.  Events met are kept."""
        args = dict(arguments or {})
        args.update((k.replace('_', '-'), v) for k, v in more.items())
        self.next_id += 1
        request = {'execute': name, 'id': self.next_id}
        if args:
            request['arguments'] = args
        self.send_raw(json.dumps(request).encode() + b'\n')
        while True:
            msg = self.recv(limit)
            if 'event' in msg:
                self.events.append(msg)
                continue
            assert msg.get('id') == self.next_id, msg
            if self.schema and 'return' in msg:
                bad = self.schema.reply(name, msg['return'])
                assert not bad, '\n'.join(bad)
            return msg

    def cmd(self, name, arguments=None, limit=None, **more):
        reply = self.ask(name, arguments, limit, **more)
        if 'error' in reply:
            raise QmpError(reply)
        return reply['return']

    def wait_event(self, name, limit=None, **data):
        """Take the first event `name` whose data has these items."""
        want = {k.replace('_', '-'): v for k, v in data.items()}

        def fits(msg):
            have = msg.get('data', {})
            return msg.get('event') == name and all(
                k in have and have[k] == v for k, v in want.items())

        for i, msg in enumerate(self.events):
            if fits(msg):
                return self.events.pop(i)
        end = time.monotonic() + (LIMIT if limit is None else limit)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError('no event %s %r; others: %r'
                                   % (name, want, self.events))
            msg = self.recv(left)
            assert 'event' in msg, msg
            if fits(msg):
                return msg
            self.events.append(msg)


def environment(tmp, more=None):
    """The environment of a program under test: sanitizers report to tmp."""
    env = dict(os.environ)
    log = 'log_path=%s/sanitizer:' % tmp
    supp = os.path.join(TOP, 'tests', 'tsan.supp')
    env['ASAN_OPTIONS'] = log + 'halt_on_error=1:detect_leaks=1:detect_stack_use_after_return=0'
    env['UBSAN_OPTIONS'] = log + 'halt_on_error=1:print_stacktrace=1'
    env['TSAN_OPTIONS'] = log + 'halt_on_error=1:second_deadlock_stack=1'
    if os.path.exists(supp):
        env['TSAN_OPTIONS'] += ':suppressions=' + supp
    env.update(more or {})
    return env


def sanitizer_reports(tmp):
    """What sanitizers wrote below tmp, as one text; '' if nothing."""
    text = ''
    for path in sorted(glob.glob('%s/sanitizer.*' % tmp)):
        with open(path, errors='replace') as f:
            text += '%s:\n%s\n' % (path, f.read())
    return text


Result = collections.namedtuple('Result', 'status out err')


def run(*argv, tmp, stdin='', env=None, limit=LIMIT, check=False, cwd=None):
    """Run a program to its end.  Result(status, out, err), as text."""
    p = subprocess.run([str(a) for a in argv], input=stdin, capture_output=True,
                       text=True, errors='replace', timeout=limit, cwd=cwd,
                       env=environment(tmp, env))
    if check:
        assert p.returncode == 0, '%s: status %d\n%s%s' % (
            argv, p.returncode, p.stdout, p.stderr)
    return Result(p.returncode, p.stdout, p.stderr)


def wait_for_locks(path):
    """Until nobody has a lock on the file: the kernel takes an io_uring apart, and
    lets go of its files, some time after its process has ended."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW,
                    struct.pack('hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)


class Daemon:
    """A running quoind (or peer), with a QMP client on it."""
    count = 0
    schemas = {}

    def __init__(self, *options, tmp, program=None, qmp=True, negotiate=True,
                 env=None, wrap=(), stdin=subprocess.DEVNULL, pass_fds=()):
        """`qmp` False: no monitor socket, and no wait for a greeting.
        `wrap`: words before the program's name, as ('strace', '-f')."""
        Daemon.count += 1
        self.tmp = tmp
        self.path = '%s/qmp%d.sock' % (tmp, Daemon.count)
        self.errpath = '%s/stderr%d' % (tmp, Daemon.count)
        self.clients = []
        self.qmp = None
        self.ended = False
        self.program = str(program or QUOIND)
        self.argv = [*wrap, self.program, *options]
        if qmp:
            self.argv += ['--chardev', 'socket,id=qmp,path=%s,server=on,wait=off' % self.path,
                          '--monitor', 'chardev=qmp']
        # The peer's socket is there before its monitor is, and who comes in between is
        # greeted twice or not heard.  It sets monitors up one after the other: when it
        # greets by this one, which it connects itself, the one before it is there.
        self.ready = None
        if qmp and self.program != QUOIND:
            path = '%s/ready%d.sock' % (tmp, Daemon.count)
            self.ready = socket.socket(socket.AF_UNIX)
            self.ready.bind(path)
            self.ready.listen()
            self.argv += ['--chardev', 'socket,id=ready,path=%s' % path,
                          '--monitor', 'chardev=ready']
        self.argv = [str(a) for a in self.argv]
        with open(self.errpath, 'wb') as err:
            self.proc = subprocess.Popen(
                self.argv, stdin=stdin, stdout=err, stderr=err,
                env=environment(tmp, env), pass_fds=pass_fds)
        self.pid = self.proc.pid
        self.pidfd = os.pidfd_open(self.pid)
        if qmp:
            try:
                self.qmp = self.connect(negotiate)
                if negotiate:
                    self._learn_schema()
            except BaseException:
                self.destroy()
                raise

    def _learn_schema(self):
        """From here on replies and events are checked against the schema."""
        if self.program not in Daemon.schemas:
            reply = self.qmp.ask('query-qmp-schema')
            Daemon.schemas[self.program] = \
                introspect.Schema(reply['return']) if 'return' in reply else None
        self.qmp.schema = Daemon.schemas[self.program]

    def _wait_until_ready(self):
        if not self.ready:
            return
        poll = select.poll()
        poll.register(self.ready, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        with self.ready as listener:
            if listener.fileno() in dict(poll.poll(LIMIT * 1000)):
                with listener.accept()[0] as conn:
                    conn.settimeout(LIMIT)
                    conn.recv(1)
        self.ready = None

    def connect(self, negotiate=True, limit=LIMIT, path=None):
        """A client, as soon as the socket takes one."""
        path = path or self.path
        end = time.monotonic() + limit
        while True:
            try:
                self._wait_until_ready()
                client = Qmp(path, negotiate)
                client.schema = Daemon.schemas.get(self.program)
                self.clients.append(client)
                return client
            except (FileNotFoundError, ConnectionRefusedError):
                # No event tells that a socket listens now; a death does.
                if self._died(0.005):
                    raise AssertionError('%s ended with status %s before its greeting:\n%s' % (
                        self.argv, self.proc.wait(), self.stderr())) from None
                if time.monotonic() > end:
                    raise

    def cmd(self, *args, **kw):
        return self.qmp.cmd(*args, **kw)

    def ask(self, *args, **kw):
        return self.qmp.ask(*args, **kw)

    def wait_event(self, *args, **kw):
        return self.qmp.wait_event(*args, **kw)

    def stderr(self):
        with open(self.errpath, errors='replace') as f:
            return f.read()

    def _died(self, limit):
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(limit * 1000))

    def wait(self, status=0, limit=LIMIT):
        """Wait for the end; assert the exit status (None: any)."""
        died = self._died(limit)
        assert died, '%s (pid %d) does not end:\n%s' % (self.argv, self.pid, self.stderr())
        got = self.proc.wait()
        self._forget()
        report = sanitizer_reports(self.tmp)
        assert not report, report
        assert status is None or got == status, \
            '%s ended with status %d, not %s:\n%s' % (self.argv, got, status, self.stderr())
        return got

    def stop(self, status=0, limit=LIMIT):
        """End it the polite way and assert that it went well."""
        if self.ended:
            return
        if self.qmp is not None:
            try:
                self.qmp.send_raw(b'{"execute":"quit"}\n')
            except OSError:
                pass
        else:
            self.send_signal(signal.SIGTERM)
        self.wait(status, limit)

    def send_signal(self, sig):
        signal.pidfd_send_signal(self.pidfd, sig)

    def kill(self, sig=signal.SIGKILL):
        """End it by a signal; no assertion but that it ends."""
        if self.ended:
            return
        paths = self._open_files()
        self.send_signal(sig)
        self.wait(None)
        for path in paths:
            wait_for_locks(path)

    def _open_files(self):
        folder = '/proc/%d/fd' % self.pid
        found = set()
        for fd in os.listdir(folder):
            try:
                path = os.readlink('%s/%s' % (folder, fd))
            except FileNotFoundError:
                continue
            if os.path.isfile(path):
                found.add(path)
        return found

    def _forget(self):
        self.ended = True
        for c in self.clients:
            c.close()

    def destroy(self):
        """Whatever its state: afterwards there is no process."""
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait(LIMIT)
        self._forget()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
