/* SPDX-License-Identifier: Apache-2.0 */
/* cli/member.h - the members of JSON objects that are printed.
 *
 * Ownership  values are taken over.
 * Errors     on no memory a member is left out and *failed becomes true; it is never
 *            set to false.
 */
#ifndef CLI_MEMBER_H
#define CLI_MEMBER_H

#include <stdbool.h>
#include <stdint.h>

struct json_object;

void member_add(struct json_object *to, const char *name, struct json_object *value,
		bool *failed);
void member_text(struct json_object *to, const char *name, const char *text, bool *failed);
void member_number(struct json_object *to, const char *name, uint64_t n, bool *failed);
void member_bool(struct json_object *to, const char *name, bool b, bool *failed);

/* Put value at the end of an array. */
void member_append(struct json_object *to, struct json_object *value, bool *failed);

/* A string.  File names are bytes, JSON is UTF-8: what is none becomes a question mark. */
struct json_object *member_new_text(const char *text, bool *failed);

#endif
