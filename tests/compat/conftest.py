# SPDX-License-Identifier: Apache-2.0
import pytest

import pair as pair_module


@pytest.fixture
def pair(tmp, start, start_peer):
    """quoind and the peer, started alike without options."""
    return pair_module.make_pair(tmp, start, start_peer)


@pytest.fixture
def pair_with(tmp, start, start_peer):
    """pair_with(*options)"""
    return lambda *options: pair_module.make_pair(tmp, start, start_peer, options)
