/* SPDX-License-Identifier: Apache-2.0 */
/* schema/arguments.h - what a command takes, for programs that send commands
 * rather than serve them. */
#ifndef SCHEMA_ARGUMENTS_H
#define SCHEMA_ARGUMENTS_H

#include <stdbool.h>

struct meta;

/* Is there such a command?  Sets *ret to the type of its arguments, or to NULL
 * if it takes none. */
bool arguments_of(const char *command, const struct meta **ret);

#endif
