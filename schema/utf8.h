/* SPDX-License-Identifier: Apache-2.0 */
/* schema/utf8.h - UTF-8 as QEMU's JSON has it: strings end with a zero byte, so
 * U+0000 inside one is the two bytes C0 80. */
#ifndef SCHEMA_UTF8_H
#define SCHEMA_UTF8_H

#include <stdbool.h>
#include <stdint.h>

/* Whether a code point may stand in a string: neither a surrogate nor one of
 * Unicode's noncharacters, and in range. */
bool utf8_valid(int32_t cp);

/* The code point at *s, which is before end, and move *s behind it.  -1 if
 * there is no valid one; *s is then behind what can be no part of the next. */
int32_t utf8_next(const char **s, const char *end);

/* Write a valid code point, up to 4 bytes; returns their count. */
unsigned utf8_put(char *to, int32_t cp);

#endif
