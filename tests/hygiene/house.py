# SPDX-License-Identifier: Apache-2.0
"""What the hygiene tests share: the tree's files and the build's objects."""
import functools
import os
import re
import subprocess

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get('QUOIN_BUILD', os.path.join(TOP, 'build'))


def read(path):
    with open(os.path.join(TOP, path), errors='replace') as f:
        return f.read()


def output(*argv, **kw):
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120,
                          cwd=kw.pop('cwd', TOP), stdin=subprocess.DEVNULL, **kw).stdout


@functools.cache
def files():
    """Every file of the project, as git has it."""
    return [f for f in output('git', 'ls-files').splitlines()
            if os.path.exists(os.path.join(TOP, f))]


def sources(*ends):
    return [f for f in files() if f.endswith(ends or ('.c', '.h'))]


@functools.cache
def compile_flags():
    return output('make', '-s', '-C', BUILD, 'list-flags').split()


def objects():
    """(source, object file) of every module in the libraries and programs."""
    have = set(sources('.c'))
    for folder, dirs, names in os.walk(BUILD):
        rel = os.path.relpath(folder, BUILD)
        if rel.split(os.sep)[0] in ('asan', 'tsan', 'clang', 'faults', 'fuzz', 'peers', 'test',
                                    'tests', 'bench', 'dist'):
            dirs[:] = []
            continue
        for n in names:
            if n.endswith('.o'):
                base = re.sub(r'^.*_a-|^quoind?-', '', n[:-2])
                src = os.path.normpath(os.path.join(rel, base + '.c'))
                if src in have:
                    yield src, os.path.join(folder, n)
