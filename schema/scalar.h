/* SPDX-License-Identifier: Apache-2.0 */
/* schema/scalar.h - numbers and switches of the schema's types. */
#ifndef SCHEMA_SCALAR_H
#define SCHEMA_SCALAR_H

#include <stdbool.h>
#include <stdint.h>

struct meta;

/* Store a number in a variable of type's width; false if it does not fit. */
bool scalar_store_int(const struct meta *type, int64_t value, void *to);
bool scalar_store_uint(const struct meta *type, uint64_t value, void *to);

/* Parse the text form of a bool, an integer, a size or a number.  NULL if it
 * went well, else what was expected, after "Parameter 'x' expects "; with a
 * '!' before it where the number is well formed but does not fit. */
const char *scalar_parse(const struct meta *type, const char *text, void *to);

#endif
