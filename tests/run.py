#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Run the tests and end with one line: N passed, N failed, N skipped.

    ./dev test                     everything
    ./dev test unit wire           these suites
    ./dev test wire -- -k greeting pytest's own options for them

Builds come first, each counted as one test.  Then the suites, two at a time;
each one's output goes to build/test/SUITE.log, and the end of it is shown if
something failed.  Every process has a time limit and is ended by its group.
"""
import collections
import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET

import peers

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOGS = os.path.join(TOP, 'build', 'test')
# An idle machine of two cores needs a quarter of it; a busy one is no failure.
DEADLINE = time.monotonic() + float(os.environ.get('QUOIN_TEST_TIME', '3400'))

# What the sanitizers cost: time limits are multiplied by it.
BUILDS = collections.OrderedDict(
    plain=('build', 1), clang=('build/clang', 1), lean=('build/lean', 1),
    asan=('build/asan', 3), tsan=('build/tsan', 8), faults=('build/faults', 1),
    fuzz=('build/fuzz', 3))

# name: (build it needs, kind, what, seconds on an idle machine at most)
SUITES = collections.OrderedDict([
    ('wire-asan', ('asan', 'pytest', ['-m', 'not patient', 'tests/wire'], 300)),
    ('wire', ('plain', 'pytest', ['tests/wire'], 300)),
    ('compat', ('plain', 'pytest', ['tests/compat'], 240)),
    ('clients', ('plain', 'pytest', ['tests/clients'], 300)),
    ('io-tsan', ('tsan', 'pytest', ['-m', 'io', 'tests/wire', 'tests/clients'], 300)),
    ('unit-tsan', ('tsan', 'unit', r'^(?!test_(cipher|judge|key|rescue|progress|cli|json|schema|qcow2_crash|qcow2_hostile|bitmap_crash))', 300)),
    ('unit-asan', ('asan', 'unit', '.', 300)),
    ('lean', ('lean', 'pytest', ['tests/wire/test_story.py', 'tests/wire/test_images.py'], 120)),
    ('crash', ('faults', 'crash', [[], ['--planted']], 400)),
    ('hygiene', ('plain', 'pytest', ['tests/hygiene'], 240)),
    ('unit', ('plain', 'unit', '.', 240)),
])

Count = collections.namedtuple('Count', 'passed failed skipped notes')
say_lock = threading.Lock()


def say(text):
    with say_lock:
        print(text, flush=True)


def bounded(argv, log, limit, env):
    """Run argv in a group of its own, output to log.  The exit status, or None
    when its time was up."""
    limit = max(1, min(limit, DEADLINE - time.monotonic()))
    p = subprocess.Popen(argv, cwd=TOP, stdin=subprocess.DEVNULL, stdout=log,
                         stderr=subprocess.STDOUT, env=env, start_new_session=True)
    try:
        return p.wait(limit)
    except subprocess.TimeoutExpired:
        log.write(b'\nended: over its time of %d s\n' % limit)
        return None
    finally:
        try:
            os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        p.wait()


def environment(build):
    folder, slow = BUILDS[build]
    env = dict(os.environ, QUOIN_SLOW=str(slow), QUOIN_BUILD=os.path.join(TOP, folder),
               QUOIND=os.path.join(TOP, folder, 'quoind'),
               QUOIN=os.path.join(TOP, folder, 'quoin'), LC_ALL='C.UTF-8',
               CMOCKA_MESSAGE_OUTPUT='tap', PYTHONDONTWRITEBYTECODE='1',
               ASAN_OPTIONS='detect_leaks=1', UBSAN_OPTIONS='print_stacktrace=1',
               TSAN_OPTIONS='halt_on_error=1')
    supp = os.path.join(TOP, 'tests', 'tsan.supp')
    if os.path.exists(supp):
        env['TSAN_OPTIONS'] += ':suppressions=' + supp
    return env


def run_tap(argv, name, limit, log, env):
    """Run a program that speaks TAP, or none."""
    log.write(b'== %s\n' % name.encode())
    log.flush()
    start = log.tell()
    status = bounded(argv, log, limit, env)
    log.flush()
    with open(log.name, errors='replace') as f:
        f.seek(start)
        out = f.read()
    ok = len(re.findall(r'^ok ', out, re.M))
    skips = re.findall(r'^(?:not )?ok \d+ # SKIP (.*)', out, re.M)
    bad = len(re.findall(r'^not ok \d+ (?!# SKIP)', out, re.M))
    if status != 0 and bad == 0:
        bad = 1     # a crash, a sanitizer report, or out of time
    if status == 0 and ok == 0 and not skips:
        ok = 1      # a program that speaks no TAP
    why = re.findall(r'^SKIP: (.*)', out, re.M)
    notes = ['skipped %s: %s%s' % (name, s, ': ' + why[i] if i < len(why) else '')
             for i, s in enumerate(skips)]
    if bad:
        notes.append('FAILED %s (exit status %s)\n%s' % (name, status, tail(out)))
    return Count(ok, bad, len(skips), notes)


def add(counts):
    return Count(*(sum(c[i] for c in counts) for i in range(3)),
                 [n for c in counts for n in c.notes])


def run_unit(build, pattern, limit, log, name):
    folder, slow = BUILDS[build]
    programs = subprocess.run(['make', '-s', '-C', folder, 'list-tests'], cwd=TOP, text=True,
                              capture_output=True, check=True).stdout.split()
    # ThreadSanitizer needs the address space laid out the usual way.
    wrap = ['setarch', '-R'] if build == 'tsan' and subprocess.run(
        ['setarch', '-R', 'true'], stderr=subprocess.DEVNULL).returncode == 0 else []
    return add([run_tap([*wrap, os.path.join(TOP, folder, p)], os.path.basename(p), 60 * slow,
                        log, environment(build))
                for p in programs if re.search(pattern, os.path.basename(p))])


def run_crash(build, runs, limit, log, name):
    program = os.path.join(TOP, BUILDS[build][0], 'tests', 'sim', 'crash')
    env = dict(environment(build), QUOIN_QEMU_IMG=peers.QEMU_IMG or '')
    return add([run_tap([program, *argv], ' '.join(['crash', *argv]), limit, log, env)
                for argv in runs])


def run_pytest(build, what, limit, log, name):
    what = [w for w in what if not w.startswith('tests/') or os.path.exists(os.path.join(TOP, w))]
    if not any(w.startswith('tests/') for w in what):
        return Count(0, 0, 0, [])
    xml = os.path.join(LOGS, name + '.xml')
    if os.path.exists(xml):
        os.unlink(xml)
    argv = ['/usr/bin/python3', '-m', 'pytest', '-c', 'tests/pytest.ini', '--rootdir=tests',
            '-q', '--tb=short', '--durations=5', '--junitxml=' + xml, *what, *pytest_options]
    status = bounded(argv, log, limit, environment(build))
    log.flush()
    with open(log.name, errors='replace') as f:
        out = f.read()
    notes = ['skipped' + line[len('SKIPPED'):] for line in out.splitlines()
             if line.startswith('SKIPPED')]
    if not os.path.exists(xml):
        return Count(0, 1, 0, notes + ['FAILED %s (exit status %s)\n%s' % (name, status, tail(out))])
    suite = ET.parse(xml).getroot().find('testsuite')
    total, skips = int(suite.get('tests')), int(suite.get('skipped'))
    bad = int(suite.get('failures')) + int(suite.get('errors'))
    passed = max(0, total - bad - skips)
    if status not in (0, 5) and bad == 0:
        bad = 1
    if bad:
        notes.append('FAILED %s (exit status %s)\n%s' % (name, status, tail(out, 60)))
    return Count(passed, bad, skips, notes)


def tail(text, lines=40):
    return '\n'.join('    ' + line for line in text.splitlines()[-lines:])


def run_suite(name):
    build, kind, what, seconds = SUITES[name]
    began = time.monotonic()
    say('-- %s: running' % name)
    with open(os.path.join(LOGS, name + '.log'), 'wb') as log:
        do = {'unit': run_unit, 'crash': run_crash, 'pytest': run_pytest}[kind]
        count = do(build, what, seconds * 4, log, name)
    with say_lock:
        print('-- %s: %d passed, %d failed, %d skipped, %d s' % (
            name, *count[:3], time.monotonic() - began))
        for note in count.notes:
            print('   ' + note)
        sys.stdout.flush()
    return count


def run_build(name):
    began = time.monotonic()
    path = os.path.join(LOGS, 'build-%s.log' % name)
    with open(path, 'wb') as log:
        status = bounded(['./dev', 'variant', name], log, 600, dict(os.environ))
    say('-- build %s: %s, %d s' % (name, 'done' if status == 0 else 'FAILED',
                                  time.monotonic() - began))
    if status != 0:
        with open(path, errors='replace') as f:
            say(tail(f.read()))
    return status == 0


def main(names):
    os.makedirs(LOGS, exist_ok=True)
    for n in names:
        if n not in SUITES:
            sys.exit('no suite %s; there are: %s' % (n, ' '.join(SUITES)))
    chosen = [n for n in SUITES if not names or n in names]
    needed = [b for b in BUILDS if not names or any(SUITES[n][0] == b for n in chosen)]
    built = {b: run_build(b) for b in needed}
    counts = [Count(sum(built.values()), len(built) - sum(built.values()), 0, [])]
    runnable = [n for n in chosen if built[SUITES[n][0]]]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        counts += pool.map(run_suite, runnable)
    passed, failed, skipped = (sum(c[i] for c in counts) for i in range(3))
    print('%d passed, %d failed, %d skipped' % (passed, failed, skipped))
    return 1 if failed else 0


if __name__ == '__main__':
    args = sys.argv[1:]
    cut = args.index('--') if '--' in args else len(args)
    pytest_options = args[cut + 1:]
    sys.exit(main(args[:cut]))
