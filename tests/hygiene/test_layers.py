# SPDX-License-Identifier: Apache-2.0
"""Who may include whom: the list in docs/architecture.md, read off the code."""
import os
import re

import house

# folder: the folders whose headers it may include, beside its own
MAY = {
    'base': [],
    'aio': ['base'],
    'schema': ['base'],
    'block': ['aio', 'base', 'schema'],
    'job': ['block', 'aio', 'base', 'schema'],
    'export': ['block', 'aio', 'base', 'schema'],
    'qmp': ['aio', 'base', 'schema'],
    'rescue': ['block', 'aio', 'base', 'schema'],
    'daemon': ['export', 'job', 'block', 'qmp', 'aio', 'base', 'schema'],
    'cli': ['rescue', 'export', 'job', 'block', 'qmp', 'aio', 'base', 'schema'],
}
# library header: the folders that may include it (generated decoders are in schema/)
LIBRARIES = {
    r'event2/|event\.h': ['aio'],
    r'liburing': ['aio'],
    r'json(-c/.*|)\.h|json_': ['qmp', 'schema', 'cli'],
    r'nettle/': ['rescue'],
    r'libnbd\.h': ['block', 'rescue'],
    r'systemd/': ['daemon'],
    r'gnutls/': ['aio'],
}
DRIVER_FOLDERS = ['block/qcow2', 'block/qcow', 'block/nbd', 'block/filters']


def includes(path):
    return re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', house.read(path), re.M)


def layered():
    return [f for f in house.sources() if f.split('/')[0] in MAY]


def test_includes_go_down_only():
    bad = []
    for f in layered():
        own = f.split('/')[0]
        for kind, inc in includes(f):
            to = inc.split('/')[0]
            if kind == '"' and to in MAY and to != own and to not in MAY[own]:
                bad.append('%s includes %s' % (f, inc))
    assert not bad, '\n'.join(bad)


def test_own_headers_are_named_from_the_top():
    bad = ['%s includes "%s"' % (f, inc) for f in layered() for kind, inc in includes(f)
           if kind == '"' and inc.split('/')[0] not in MAY and inc != 'config.h']
    assert not bad, '\n'.join(bad)


def test_libraries_are_used_in_their_folder_only():
    bad = ['%s includes <%s>' % (f, inc)
           for f in layered() for kind, inc in includes(f)
           for pattern, where in LIBRARIES.items()
           if kind == '<' and re.match(pattern, inc) and f.split('/')[0] not in where]
    assert not bad, '\n'.join(bad)


def test_no_driver_includes_another_drivers_header():
    bad = []
    for f in layered():
        own = os.path.dirname(f)
        if own not in DRIVER_FOLDERS:
            continue
        bad += ['%s includes %s' % (f, inc) for kind, inc in includes(f)
                if kind == '"' and os.path.dirname(inc) in DRIVER_FOLDERS
                and os.path.dirname(inc) != own]
    assert not bad, '\n'.join(bad)


def test_there_is_no_include_folder_and_no_umbrella_header():
    assert not [f for f in house.files() if f.startswith('include/')]
