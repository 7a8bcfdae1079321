# SPDX-License-Identifier: Apache-2.0
"""systemd's own judgement of the units, as `make install` lays them down."""
import os
import re
import shutil
import subprocess

import pytest

import house


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with everything that `make install` puts there; the units name
    the programs in it, as systemd wants them to exist."""
    if not shutil.which('systemd-analyze'):
        pytest.skip('systemd-analyze is not installed (Debian package: systemd)')
    root = str(tmp_path_factory.mktemp('inst'))
    house.output('make', '-s', '-C', house.BUILD, 'install', 'prefix=' + root,
                 'systemdsystemunitdir=%s/lib/systemd/system' % root)
    return root


def unit(root, name):
    path = '%s/lib/systemd/system/%s' % (root, name)
    assert os.path.exists(path)
    return path


def analyze(*argv):
    return subprocess.run(['systemd-analyze', *argv], capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL)


def test_the_units_are_valid(installed):
    p = analyze('verify', '--man=no', *(unit(installed, n) for n in (
        'quoind.service', 'quoind.socket', 'quoind-nbd.socket')))
    if p.returncode and 'Failed to initialize manager' in p.stderr:
        pytest.skip('systemd-analyze verify cannot run here: ' + p.stderr.strip())
    assert p.returncode == 0 and not p.stderr, p.stderr


def test_an_invalid_unit_would_be_seen(installed, tmp_path):
    bad = tmp_path / 'bad.service'
    bad.write_text('[Service]\nExecStart=/nonexistent/program\n')
    p = analyze('verify', '--man=no', str(bad))
    if 'Failed to initialize manager' in p.stderr:
        pytest.skip('systemd-analyze verify cannot run here: ' + p.stderr.strip())
    assert 'nonexistent' in p.stderr


def test_the_service_is_hardened():
    if not shutil.which('systemd-analyze'):
        pytest.skip('systemd-analyze is not installed (Debian package: systemd)')
    p = analyze('security', '--offline=true', '--no-pager',
                os.path.join(house.TOP, 'systemd', 'quoind.service'))
    m = re.search(r'Overall exposure level for quoind.service: ([\d.]+)', p.stdout)
    assert m, p.stdout + p.stderr
    assert float(m[1]) < 2.0


def test_the_user_and_its_folder_are_declared(installed, tmp_path):
    if not shutil.which('systemd-sysusers') or os.geteuid() != 0:
        pytest.skip('systemd-sysusers is not here, or this is not root')
    (tmp_path / 'etc').mkdir()
    subprocess.run(['systemd-sysusers', '--root=%s' % tmp_path,
                    installed + '/lib/sysusers.d/quoind.conf'], check=True, timeout=30,
                   capture_output=True)
    assert re.search(r'^quoind:', (tmp_path / 'etc/passwd').read_text(), re.M)
    subprocess.run(['systemd-tmpfiles', '--create', '--root=%s' % tmp_path,
                    installed + '/lib/tmpfiles.d/quoind.conf'], check=True, timeout=30,
                   capture_output=True)
    assert (tmp_path / 'run/quoind').stat().st_mode & 0o777 == 0o750
