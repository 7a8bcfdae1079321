# SPDX-License-Identifier: Apache-2.0
"""The release tarball: all that git has, and enough to build without Python."""
import os
import re
import subprocess
import tarfile

import pytest

import house

# In git, and of no use outside it.
NOT_SHIPPED = {'.gitignore'}


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """The unpacked tarball."""
    where = tmp_path_factory.mktemp('dist')
    house.output('make', '-s', '-C', house.BUILD, 'dist-xz', env=dict(os.environ, XZ_OPT='-0'))
    name = [n for n in os.listdir(house.BUILD) if n.endswith('.tar.xz')]
    assert len(name) == 1, name
    path = os.path.join(house.BUILD, name[0])
    with tarfile.open(path) as tar:
        tar.extractall(where)
    os.unlink(path)
    return os.path.join(where, name[0][:-len('.tar.xz')])


def test_the_tarball_has_every_file_that_git_has(tree):
    assert not [f for f in house.files()
                if f not in NOT_SHIPPED and not os.path.exists(os.path.join(tree, f))]


def test_the_tarball_has_no_leftovers(tree):
    bad = [os.path.join(d, n) for d, _, names in os.walk(tree) for n in names
           if n.endswith(('.o', '.a', '.pyc', '.log', '.orig', '~', '.sock'))]
    assert not bad, bad


@pytest.mark.limit(300)
def test_the_tarball_builds_and_installs_with_nothing_optional(tree, tmp_path):
    build = tmp_path / 'b'
    build.mkdir()
    env = dict(os.environ, PYTHON='false', ACLOCAL='false', AUTOMAKE='false', AUTOCONF='false')

    def do(*argv):
        p = subprocess.run(argv, cwd=build, env=env, capture_output=True, text=True, timeout=280)
        assert p.returncode == 0, p.stdout + p.stderr

    do(os.path.join(tree, 'configure'), '-q', '--without-liburing', '--without-zstd',
       '--without-systemd', '--without-libnbd', 'CFLAGS=-O0', '--enable-werror')
    do('make', '-s', '-j2', 'all')
    assert 'version' in house.output(str(build / 'quoind'), '-V')
    libraries = house.output('readelf', '-d', str(build / 'quoind'))
    assert not [n for n in ('liburing', 'libzstd', 'libsystemd', 'libnbd') if n in libraries]
    do('make', '-s', 'install', 'DESTDIR=%s' % (tmp_path / 'root'))
    doc = tmp_path / 'root' / 'usr' / 'local' / 'share' / 'doc' / 'quoin'
    links = re.findall(r'\]\((?!https?:)([^)#]+)', (doc / 'README.md').read_text())
    assert links and not [link for link in links if not (doc / link).exists()]
