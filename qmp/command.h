/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/command.h - a row of the dispatch table.
 *
 * The generator fills the table (schema/commands.h); a server is given it.
 */
#ifndef QMP_COMMAND_H
#define QMP_COMMAND_H

struct error;
struct meta;

enum qmp_command_flag {
	QMP_OOB = 1 << 0,	/* may be executed out of band */
	QMP_READ_ONLY = 1 << 1,	/* changes nothing: read-only sockets have it */
};

struct qmp_command {
	const char *name;
	unsigned flags;
	const struct meta *args;	/* NULL: it takes none */
	const struct meta *ret;		/* NULL: it returns {} */

	/* Call the handler.  ret points at a slot (schema/meta.h) of the type
	 * ret, which is zero bytes before and is filled on success only.
	 * Returns 0, or -1 with an error set.  Coroutine on loop 0. */
	int (*run)(const void *args, void *ret, struct error **errp);
};

#endif
