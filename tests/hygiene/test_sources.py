# SPDX-License-Identifier: Apache-2.0
"""How sources look: licence lines, sizes, names, no leftovers, no sleeps."""
import collections
import concurrent.futures
import os
import re
import subprocess

import house

MAX_FILE = 1000
MAX_FUNCTION = 100
MAX_COLUMNS = 100


def test_every_source_names_its_licence():
    ends = ('.c', '.h', '.S', '.py', '.am', '.ac', '.sh', '.json', '.service', '.socket')
    others = ['dev', '.ci/run']
    bad = [f for f in house.files() if (f.endswith(ends) or f in others) and house.read(f)
           and 'SPDX-License-Identifier: Apache-2.0' not in house.read(f)[:400]]
    assert not bad, bad


def test_no_file_is_too_long():
    bad = [(f, n) for f in house.sources('.c', '.h', '.py', '.json')
           if (n := house.read(f).count('\n')) > MAX_FILE]
    assert not bad, bad


def test_no_line_of_a_source_is_too_long():
    bad = ['%s:%d' % (f, i + 1) for f in house.sources('.c', '.h')
           for i, line in enumerate(house.read(f).splitlines()) if len(line) > MAX_COLUMNS]
    assert not bad, bad


def functions(text):
    """(name, body) of each function; the house style starts both in column 0."""
    return re.findall(r'^(\w+)\([^;{}]*\)\n\{\n(.*?)^\}', text, re.M | re.S)


def test_the_function_reader_finds_functions():
    assert [n for n, _ in functions('int\nmain(int argc,\n     char **argv)\n{\n\treturn 0;\n}\n')] \
        == ['main']


def test_no_function_is_too_long():
    bad = []
    for f in house.sources('.c'):
        for name, body in functions(house.read(f)):
            n = body.count('\n')
            if n > MAX_FUNCTION and 'static const struct' not in body:
                bad.append('%s: %s has %d lines' % (f, name, n))
    assert not bad, '\n'.join(bad)


def test_nothing_is_left_for_later():
    word = re.compile(r'\b(TO' r'DO|FIX' r'ME|XX' r'X|HA' r'CK)\b')
    bad = ['%s: %s' % (f, line) for f in house.sources('.c', '.h', '.py', '.am', '.ac', '.md')
           for line in house.read(f).splitlines() if word.search(line)]
    assert not bad, '\n'.join(bad)


def test_tests_wait_for_events_and_never_sleep():
    call = re.compile(r'\b(time\.sleep|usleep|nanosleep|sleep)\s*\(')
    bad = ['%s: %s' % (f, line.strip()) for f in house.files()
           if f.startswith('tests/') and f.endswith(('.c', '.py'))
           and not f.startswith('tests/hygiene/')
           for line in house.read(f).splitlines() if call.search(line)]
    assert not bad, '\n'.join(bad)


def test_headers_compile_alone():
    headers = [h for h in house.sources('.h') if not h.startswith('tests/')]
    flags = [f for f in house.compile_flags() if not f.startswith('-Wmissing')]

    def check(h):
        p = subprocess.run(['gcc', *flags, '-I.', '-I' + house.TOP, '-fsyntax-only', '-x', 'c', '-'],
                           cwd=house.BUILD, input='#include "%s"\n' % h, capture_output=True,
                           text=True, timeout=60)
        return p.stderr if p.returncode else ''

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        bad = [e for e in pool.map(check, headers) if e]
    assert not bad, '\n'.join(bad)


def test_headers_have_a_guard_named_after_their_path():
    bad = [h for h in house.sources('.h') if '#ifndef ' + re.sub(r'[/.-]', '_', h).upper()
           not in house.read(h).replace('\t', ' ')]
    assert not bad, bad


# Exported names that no header's name begins, and why that is right.
OTHER_NAMES = {
    r'aio/place\.c': r'pace_\w+',        # after struct pace, of which it is made
    r'block/graph\.c': r'edge_\w+',      # an edge is what joins nodes; it has no file of its own
    r'block/refuse\.c': r'cipher_kind_name',     # after the enum in block/open.h
    r'block/.*\.c': r'driver_\w+',    # block/drivers.h declares them all
    r'(daemon/cmd_\w+|qmp/control)\.c': r'qmp_\w+',    # handlers; commands.h declares them
}


def words_of(folder):
    """What exported names in a folder may begin with: its own name and its
    headers', as node_ for what block/node.h declares."""
    stems = {os.path.basename(h)[:-2].replace('-', '_')
             for h in house.sources('.h') if os.path.dirname(h) == folder}
    return {os.path.basename(folder)} | stems | {s.split('_')[0] for s in stems}


def declared_in(folder):
    return '\n'.join(house.read(h) for h in house.sources('.h')
                     if os.path.dirname(h) == folder)


def test_modules_export_only_names_of_their_folders_headers():
    bad = []
    seen = 0
    for src, obj in house.objects():
        seen += 1
        folder = os.path.dirname(src)
        words = words_of(folder) | {os.path.basename(src)[:-2]}
        declared = declared_in(folder)
        for line in house.output('nm', '-g', '--defined-only', obj).splitlines():
            name = line.split()[-1]
            if name == 'main' or name.startswith('__') or any(
                    re.fullmatch(f, src) and re.fullmatch(n, name) for f, n in OTHER_NAMES.items()):
                continue
            if not any(name == w or name.startswith(w + '_') for w in words):
                bad.append('%s exports %s, which no header there is named after' % (src, name))
            if not re.search(r'\b%s\b' % name, declared):
                bad.append('%s exports %s, which no header there declares' % (src, name))
    assert seen > 0, 'no object files below ' + house.BUILD
    assert not bad, '\n'.join(bad)


def test_every_exported_function_has_a_caller():
    """A name that stands in its header and its definition only, comments aside, is dead."""
    made = [os.path.join(house.BUILD, 'schema', n)
            for n in os.listdir(os.path.join(house.BUILD, 'schema')) if n.endswith(('.c', '.h'))]
    comment = re.compile(r'/\*.*?\*/', re.S)
    used = collections.Counter()
    for f in [*house.sources('.c', '.h', '.S'), *made]:
        used.update(re.findall(r'\w+', comment.sub('', house.read(f))))
    seen, dead = 0, []
    for src, obj in house.objects():
        for line in house.output('nm', '-g', '--defined-only', obj).splitlines():
            kind, name = line.split()[-2:]
            if kind != 'T' or name == 'main' or name.startswith('__'):
                continue
            seen += 1
            if used[name] <= 2:
                dead.append('%s: %s' % (src, name))
    assert seen > 100, 'no object files below ' + house.BUILD
    assert not dead, '\n'.join(dead)
