# SPDX-License-Identifier: Apache-2.0
"""The manual pages and the programs' own --help say the same."""
import glob
import os
import re
import shutil
import subprocess

import pytest

import house


def helped(program, *words):
    """The long options that a program's --help lists."""
    text = house.output(os.path.join(house.BUILD, program), *words, '--help')
    return set(re.findall(r'(?:^|[ ,\[(])(--[a-z][a-z-]+)', text, re.M))


def documented(page):
    """The long options that the OPTIONS of a manual page name, wherever they stand."""
    text = house.read('docs/' + page).replace('\\-', '-')
    tags = re.findall(r'^\.TP\n\.B[RI]? (.*)', text, re.M)
    return {o for line in tags for o in re.findall(r'(?:^|[ "])(--[a-z][a-z-]+)', line)}


def test_tests_that_a_table_names_are_there():
    """In these documents, each name in a last column is of a test or its file."""
    sources = {f: house.read(f) for f in house.files() if re.match(r'tests/.*\.(c|py)$', f)}
    known = '\n'.join(sources) + '\n'.join(sources.values())
    for page in ('docs/nbd.md', 'docs/qcow2.md', 'docs/rescue.md'):
        last = [line.split('|')[-2] for line in house.read(page).splitlines()
                if line.startswith('|')]
        names = set(re.findall(r'`((?:test_)?[a-z0-9]+(?:_[a-z0-9]+){2,})`', ' '.join(last)))
        assert len(names) > 20, page
        assert [n for n in sorted(names) if not re.search(r'\b%s\b' % n, known)] == [], page


def verbs():
    return re.findall(r'^  ([a-z]+)\s', house.output(
        os.path.join(house.BUILD, 'quoin'), '--help'), re.M)


def pages():
    return [f for f in house.files() if re.fullmatch(r'docs/.*\.[18]', f)]


@pytest.mark.parametrize('program, page', [('quoind', 'quoind.8'), ('quoin', 'quoin.1')])
def test_a_programs_page_lists_its_options(program, page):
    assert documented(page) == helped(program)


def test_each_verbs_page_lists_its_options():
    assert len(verbs()) > 1
    for verb in verbs():
        assert documented('quoin-%s.1' % verb) == helped('quoin', verb), verb


# Options that are there to be refused with an explanation: keys do not belong on a command line.
REFUSED = {'rescue': {'--key', '--object', '--passphrase', '--password', '--secret'}}


def accepted(source):
    """The options of the table for getopt_long() in a source."""
    rows = re.findall(r'\{ "([a-z-]+)", (?:no|required|optional)_argument, NULL, ([^}]+) \}',
                      house.read(source))
    return {'--' + name for name, _ in rows}


@pytest.mark.parametrize('source, words', [
    ('daemon/options.c', ['quoind']), ('cli/main.c', ['quoin']), ('cli/rescue.c', ['quoin', 'rescue']),
    ('cli/check.c', ['quoin', 'check']), ('cli/info.c', ['quoin', 'info']),
    ('cli/qmp.c', ['quoin', 'qmp'])])
def test_help_lists_the_options_that_the_code_takes(source, words):
    assert accepted(source) - REFUSED.get(words[-1], set()) == helped(*words)


def test_every_verb_is_looked_at_for_its_options():
    assert all('--help' in accepted('cli/%s.c' % v) for v in verbs())


def test_quoins_page_names_each_verb():
    page = house.read('docs/quoin.1')
    assert sorted(verbs()) == sorted(re.findall(r'^\.TP\n\.B ([a-z]+)$', page, re.M))


def test_each_page_is_installed():
    listed = house.read('docs/Makemodule.am')
    assert sorted(pages()) == sorted(re.findall(r'docs/\S+\.[18]', listed))


def test_the_nbd_page_names_tests_that_there_are():
    files = {'m': 'test_nbd_matrix', 'n': 'test_nbd', 's': 'test_nbd_servers', 't': 'test_nbd_tls'}
    named = re.findall(r'([mnst]) `(test_\w+)`', house.read('docs/nbd.md'))
    assert len(named) > 50
    for letter, test in named:
        assert f'def {test}(' in house.read(f'tests/wire/{files[letter]}.py'), test


def file_of(word):
    """docs/rescue.md: keys, wire/info, unit/judge."""
    if word == 'rescue':
        return 'tests/wire/test_rescue.py'
    folder, _, name = word.rpartition('/')
    if not folder:
        return 'tests/wire/test_rescue_%s.py' % name
    return 'tests/%s/test_%s.%s' % (folder, name, 'c' if folder == 'unit' else 'py')


def test_the_rescue_page_names_tests_that_there_are():
    rows = [line.split('|')[-2] for line in house.read('docs/rescue.md').splitlines()
            if line.startswith('|')]
    named = [(word, test) for row in rows
             for word, tests in re.findall(r'([a-z0-9_/]+) ((?:`[a-z0-9_]+`(?:, )?)+)', row)
             for test in re.findall('`(.*?)`', tests)]
    assert len(named) > 150
    for word, test in named:
        there = (r'\(%s[,)]' if word.startswith('unit/') else r'^def %s\(') % test
        assert re.search(there, house.read(file_of(word)), re.M), (word, test)
    # All of them have a word before them.
    assert len(named) == len(re.findall('`(?!fuzz_)[a-z0-9]+(?:_[a-z0-9]+)+`', ' '.join(rows)))


def test_the_pages_are_well_formed():
    if not shutil.which('groff'):
        pytest.skip('groff is not installed')
    p = subprocess.run(['groff', '-man', '-ww', '-z', *pages()], cwd=house.TOP,
                       capture_output=True, text=True, timeout=30)
    assert p.returncode == 0 and not p.stderr, p.stderr


def texts():
    return [f for f in house.files() if f.endswith('.md')]


def test_links_lead_somewhere():
    for page in texts():
        for target in re.findall(r'\]\(([^)#]+)\)', house.read(page)):
            path = os.path.join(house.TOP, os.path.dirname(page), target)
            assert '://' in target or os.path.exists(path), '%s: %s' % (page, target)


def test_every_verb_of_dev_named_in_the_docs_exists():
    verbs = set(re.findall(r'^verb_(\w+)\(\)', house.read('dev'), re.M))
    for page in texts():
        for verb in re.findall(r'\./dev (\w+)', house.read(page)):
            assert verb in verbs, '%s: ./dev %s' % (page, verb)


# What stands for something else, is another project's, or is made by a run.
NO_FILES = {'tests/unit/test_foo.c', 'foo.c', 'block/DRIVER.c', 'block/DRIVER/', 'doc/proto.md',
            'tests/qemu-iotests', 'build/test/SUITE.log'}


def is_there(name):
    """A path from the top, from the build folder, or the end of one; with or without .c or .py."""
    if any(glob.glob(os.path.join(folder, name)) for folder in (house.TOP, house.BUILD)):
        return True
    tail = re.compile('(^|/)' + re.escape(name) + r'(\.c|\.py)?$')
    return any(tail.search(f) for f in house.files())


def test_files_that_a_text_names_are_there():
    name = re.compile(r'`(\w[\w./*-]*/[\w./*-]*|\w+\.(?:c|h|py|am|json|md))`')
    for page in texts():
        bad = [n for n in name.findall(house.read(page)) if n not in NO_FILES and not is_there(n)]
        assert not bad, '%s: %s' % (page, bad)
