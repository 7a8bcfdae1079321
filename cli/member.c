/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/member.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

void
member_add(struct json_object *to, const char *name, struct json_object *value, bool *failed)
{
	if (to && value && json_object_object_add(to, name, value) == 0)
		return;
	json_object_put(value);
	*failed = true;
}

/* Bytes of one UTF-8 sequence at s; 0: it is none. */
static size_t
utf8_length(const unsigned char *s)
{
	size_t n = *s < 0x80 ? 1 : *s >= 0xc2 && *s < 0xe0 ? 2 : *s >= 0xe0 && *s < 0xf0 ? 3
		 : *s >= 0xf0 && *s < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

struct json_object *
member_new_text(const char *text, bool *failed)
{
	CLEANUP(cleanup_free) char *copy = strdup(text);
	struct json_object *o;

	for (char *s = copy; s && *s;) {
		size_t n = utf8_length((unsigned char *)s);

		if (!n)
			*s = '?';
		s += n ? n : 1;
	}
	o = copy ? json_object_new_string(copy) : NULL;
	*failed |= !o;
	return o;
}

void
member_text(struct json_object *to, const char *name, const char *text, bool *failed)
{
	member_add(to, name, member_new_text(text, failed), failed);
}

void
member_number(struct json_object *to, const char *name, uint64_t n, bool *failed)
{
	member_add(to, name, json_object_new_uint64(n), failed);
}

void
member_bool(struct json_object *to, const char *name, bool b, bool *failed)
{
	member_add(to, name, json_object_new_boolean(b), failed);
}

void
member_append(struct json_object *to, struct json_object *value, bool *failed)
{
	if (to && value && json_object_array_add(to, value) == 0)
		return;
	json_object_put(value);
	*failed = true;
}
