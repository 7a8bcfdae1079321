# SPDX-License-Identifier: Apache-2.0
"""The programs are built to be hard to exploit, where the compiler can."""
import os

import pytest

import house

PROGRAMS = ['quoind', 'quoin']


def readelf(what, program):
    return house.output('readelf', '-W', what, os.path.join(house.BUILD, program))


@pytest.mark.parametrize('program', PROGRAMS)
def test_it_is_position_independent(program):
    assert 'DYN (' in readelf('-h', program)


@pytest.mark.parametrize('program', PROGRAMS)
def test_its_relocations_are_read_only_and_resolved_at_start(program):
    assert 'GNU_RELRO' in readelf('-l', program)
    assert 'BIND_NOW' in readelf('-d', program)


@pytest.mark.parametrize('program', PROGRAMS)
def test_its_stack_is_not_executable(program):
    line = [s for s in readelf('-l', program).splitlines() if 'GNU_STACK' in s]
    assert line and 'RWE' not in line[0]


@pytest.mark.parametrize('program', PROGRAMS)
def test_its_stack_is_guarded_and_its_copies_are_checked(program):
    names = house.output('nm', '-D', os.path.join(house.BUILD, program))
    assert '__stack_chk_fail' in names
    assert '__memcpy_chk' in names or '__snprintf_chk' in names or '__vsnprintf_chk' in names
