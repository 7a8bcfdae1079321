#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make C from the schema: generate.py SCHEMA.json OUTPUT-FOLDER

Writes types.h and types.c (the types), commands.h and commands.c (handlers'
prototypes and the dispatch table), arguments.c (what commands take), events.h
and events.c (one function for each event), introspect.c (what query-qmp-schema
says) and qmp.md (the manual).
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

# The build must leave no trace in the source folder.
sys.dont_write_bytecode = True

from gen import commands, ctypes, events, introspect, manual  # noqa: E402
from gen.model import Schema                                  # noqa: E402
from gen.parse import SchemaError                             # noqa: E402


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        schema = Schema(sys.argv[1])
    except SchemaError as e:
        sys.exit(f'generate.py: {e}')
    # types.h first: the makefile takes the others' being newer for granted.
    for name, text in (('types.h', ctypes.header(schema)),
                       ('types.c', ctypes.source(schema)),
                       ('commands.h', commands.header(schema)),
                       ('commands.c', commands.source(schema)),
                       ('arguments.c', commands.arguments(schema)),
                       ('events.h', events.header(schema)),
                       ('events.c', events.source(schema)),
                       ('introspect.c', introspect.source(schema)),
                       ('qmp.md', manual.text(schema))):
        with open(os.path.join(sys.argv[2], name), 'w', encoding='utf-8') as f:
            f.write(text)


main()
