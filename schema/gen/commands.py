# SPDX-License-Identifier: Apache-2.0
"""schema/commands.h and schema/commands.c: handlers and the dispatch table;
schema/arguments.c: the types of the arguments alone."""

from . import names
from .ctypes import HEAD, meta_ref, star

TOP = '''\
/* schema/commands.h - the handlers of the commands, and the table of them.
 *
 * A handler gets its arguments decoded and checked, and returns 0, or -1 with
 * an error set.  On success it sets *ret, which its caller frees; a pointer
 * must not be NULL.
 *
 * Context    coroutine on loop 0; a handler that waits stalls its own session.
 * Ownership  args are borrowed; X_clone() what shall stay.
 */
#ifndef SCHEMA_COMMANDS_H
#define SCHEMA_COMMANDS_H

#include "qmp/command.h"
#include "schema/types.h"

struct error;

/* All commands, up to one without a name. */
extern const struct qmp_command schema_commands[];

'''


def prototype(cmd):
    params = []
    if cmd.args:
        params.append(f'const struct {cmd.args.name} *args')
    if cmd.handler_ret:
        params.append(f'{star(names.declare(cmd.handler_ret, "").rstrip())}*ret')
    params.append('struct error **errp')
    return f'int {names.handler(cmd)}({", ".join(params)});'


def header(schema):
    out = [prototype(c) for c in schema.commands.values()]
    return HEAD + TOP + '\n'.join(out) + '\n\n#endif\n'


def runner(cmd):
    call = []
    if cmd.args:
        call.append('args')
    if cmd.handler_ret:
        call.append('ret')
    call.append('errp')
    return ['static int',
            f'run_{names.handler(cmd)[4:]}(const void *args, void *ret, '
            'struct error **errp)', '{',
            f'\treturn {names.handler(cmd)}({", ".join(call)});', '}', '']


def row(cmd):
    flags = []
    if cmd.oob:
        flags.append('QMP_OOB')
    if (cmd.name.startswith(('query-', 'x-quoin-query-'))
            or cmd.name == 'qmp_capabilities'):
        flags.append('QMP_READ_ONLY')
    fields = [f'.name = "{cmd.name}"']
    if flags:
        fields.append(f'.flags = {" | ".join(flags)}')
    if cmd.args:
        fields.append(f'.args = {meta_ref(cmd.args)}')
    if cmd.handler_ret:
        fields.append(f'.ret = {meta_ref(cmd.handler_ret)}')
    fields.append(f'.run = run_{names.handler(cmd)[4:]}')
    return '\t{ ' + ', '.join(fields) + ' },'


def source(schema):
    out, rows = [], []
    for cmd in schema.commands.values():
        out += runner(cmd)
        rows.append(row(cmd))
    out += ['const struct qmp_command schema_commands[] = {', *rows,
            '\t{ .name = NULL },', '};']
    return (HEAD + '#include "schema/commands.h"\n\n' + '\n'.join(out) + '\n')


ARGUMENTS = '''\
#include "schema/arguments.h"

#include <string.h>

#include "schema/types.h"

static const struct {
	const char *name;
	const struct meta *args;
} table[] = {
%s
};

bool
arguments_of(const char *command, const struct meta **ret)
{
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (!strcmp(table[i].name, command)) {
			*ret = table[i].args;
			return true;
		}
	}
	return false;
}
'''


def arguments(schema):
    rows = [f'\t{{ "{c.name}", {meta_ref(c.args) if c.args else "NULL"} }},'
            for c in schema.commands.values()]
    return HEAD + ARGUMENTS % '\n'.join(rows)
