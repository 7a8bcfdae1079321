# SPDX-License-Identifier: Apache-2.0
"""Bugs planted for the crash tests are in the build that asks for them, and nowhere else."""
import os
import re

import house
import pytest

PLANTED = re.compile('planted', re.I)
FAULTS = os.path.join(house.TOP, 'build', 'faults')


def symbols(path):
    return house.output('nm', path)


def test_the_programs_hold_no_planted_bug():
    for program in ('quoind', 'quoin'):
        assert not PLANTED.search(symbols(os.path.join(house.BUILD, program)))


def test_no_object_refers_to_planted_bugs():
    objects = list(house.objects())
    assert objects
    assert not [src for src, obj in objects if PLANTED.search(symbols(obj))]


def test_the_build_with_faults_does_hold_them():
    program = os.path.join(FAULTS, 'quoind')
    if not os.path.exists(program):
        pytest.skip('build/faults is not there (./dev variant faults)')
    assert PLANTED.search(symbols(program))


def test_each_planted_bug_is_used_once_or_more_and_has_a_name():
    bugs = set(re.findall(r'^\tPLANTED_([a-z_]+),', house.read('base/planted.h'), re.M))
    names = set(re.findall(r'^\tNAME\(([a-z_]+)\)', house.read('base/planted.c'), re.M))
    used = set()
    for path in house.sources('.c'):
        if not path.startswith('tests/'):
            used |= set(re.findall(r'\bPLANTED\(([a-z_]+)\)', house.read(path)))
    assert len(bugs) >= 10
    assert bugs == names == used
