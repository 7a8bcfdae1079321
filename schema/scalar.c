/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/scalar.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "schema/meta.h"

bool
scalar_store_int(const struct meta *type, int64_t value, void *to)
{
	switch (type->size) {
	case 1: *(int8_t *)to = (int8_t)value; return value == (int8_t)value;
	case 2: *(int16_t *)to = (int16_t)value; return value == (int16_t)value;
	case 4: *(int32_t *)to = (int32_t)value; return value == (int32_t)value;
	default: *(int64_t *)to = value; return true;
	}
}

bool
scalar_store_uint(const struct meta *type, uint64_t value, void *to)
{
	switch (type->size) {
	case 1: *(uint8_t *)to = (uint8_t)value; return value <= UINT8_MAX;
	case 2: *(uint16_t *)to = (uint16_t)value; return value <= UINT16_MAX;
	case 4: *(uint32_t *)to = (uint32_t)value; return value <= UINT32_MAX;
	default: *(uint64_t *)to = value; return true;
	}
}

static bool
parse_bool(const char *text, bool *to)
{
	static const char *const yes[] = { "on", "yes", "true", "y" };
	static const char *const no[] = { "off", "no", "false", "n" };

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		if (!strcmp(text, yes[i]) || !strcmp(text, no[i])) {
			*to = !strcmp(text, yes[i]);
			return true;
		}
	}
	return false;
}

static int
suffix_shift(char c)
{
	static const char units[] = "bkmgtpe";
	const char *at;

	if (c >= 'A' && c <= 'Z')
		c = (char)(c - 'A' + 'a');
	at = c ? strchr(units, c) : NULL;
	return at ? (int)(at - units) * 10 : -1;
}

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Digits in decimal or hexadecimal, perhaps a fraction, perhaps a unit that is
 * a power of 1024.  Hexadecimal numbers take neither. */
static bool
parse_size(const char *text, uint64_t *to)
{
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	uint64_t whole, part;
	double fraction = 0;
	char *end;
	int shift = 0;

	if (!is_digit(text[0]) && !(text[0] == '.' && is_digit(text[1])))
		return false;
	errno = 0;
	whole = strtoull(text, &end, hex ? 16 : 10);
	if (errno)
		return false;
	if (text[0] == '.')
		end = (char *)text;
	if (!hex && *end == '.') {
		if (is_digit(end[1]))
			fraction = strtod(end, &end);
		else
			end++;
	}
	if (*end && !hex) {
		shift = suffix_shift(*end++);
		if (shift < 0)
			return false;
	}
	if (*end || (fraction > 0 && shift == 0))
		return false;
	part = (uint64_t)(fraction * (double)(UINT64_C(1) << shift));
	if (whole > UINT64_MAX >> shift)
		return false;
	return !__builtin_add_overflow(whole << shift, part, to);
}

static bool
parse_number(const char *text, double *to)
{
	char *end;

	*to = strtod(text, &end);
	return end != text && !*end && isfinite(*to);
}

static const char *
range_text(const struct meta *type)
{
	switch (type->size) {
	case 1: return type->kind == META_INT ? "!int8_t" : "!uint8_t";
	case 2: return type->kind == META_INT ? "!int16_t" : "!uint16_t";
	default: return type->kind == META_INT ? "!int32_t" : "!uint32_t";
	}
}

static const char *
parse_integer(const struct meta *type, const char *text, void *to)
{
	char *end;
	bool fits;

	errno = 0;
	if (type->kind == META_INT)
		fits = scalar_store_int(type, strtoll(text, &end, 0), to);
	else
		fits = scalar_store_uint(type, strtoull(text, &end, 0), to);
	if (end == text || *end || errno)
		return "integer";
	return fits ? NULL : range_text(type);
}

const char *
scalar_parse(const struct meta *type, const char *text, void *to)
{
	switch (type->kind) {
	case META_BOOL:
		return parse_bool(text, to) ? NULL : "'on' or 'off'";
	case META_SIZE:
		return parse_size(text, to) ? NULL : "size";
	case META_NUMBER:
		return parse_number(text, to) ? NULL : "number";
	default:
		return parse_integer(type, text, to);
	}
}
