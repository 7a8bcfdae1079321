# SPDX-License-Identifier: Apache-2.0
"""C names for the schema's names."""

import re

# Words of C, and macros that compilers predefine.
RESERVED = set('''auto break case char const continue default do double else
    enum extern float for goto if inline int long register restrict return
    short signed sizeof static struct switch typedef union unsigned void
    volatile while asm typeof bool true false linux unix i386 errno'''.split())


def member(name):
    """Member of a struct or union, or parameter."""
    name = re.sub(r'\W', '_', name)
    if name in RESERVED or name[0].isdigit():
        return 'q_' + name
    return name


def upper(name):
    """BlockdevOnError: BLOCKDEV_ON_ERROR; QCryptoBlockFormat:
    QCRYPTO_BLOCK_FORMAT; XDbgBlock: XDBG_BLOCK."""
    name = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name)
    name = re.sub(r'(?<=[A-Z]{2})(?=[A-Z][a-z])', '_', name)
    return re.sub(r'\W', '_', name).upper()


def constant(enum, value):
    return (enum.prefix or upper(enum.name)) + '_' + upper(value)


def alternate_constant(alt, branch):
    return upper(alt.name) + '_' + upper(branch)


def handler(command):
    return 'qmp_' + re.sub(r'\W', '_', command.name)


def struct(type_):
    return 'struct ' + type_.name


def is_pointer(type_):
    """Whether a member of this type is a pointer, NULL if absent."""
    if type_.kind == 'builtin':
        return type_.meta in ('STR', 'ANY')
    return type_.kind != 'enum'


def declare(type_, name):
    """A member or variable of this type; None for null, which has no value."""
    if type_.kind == 'builtin':
        if type_.ctype is None:
            return None
        return type_.ctype + ('' if type_.ctype.endswith('*') else ' ') + name
    if type_.kind == 'enum':
        return f'enum {type_.name} {name}'
    return f'struct {type_.name} *{name}'
