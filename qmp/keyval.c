/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/keyval.h"

#include <ctype.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "qmp/json.h"
#include "schema/decode.h"

enum {
	KEY_MAX = 127,		/* characters of a part of a key */
	DEPTH_MAX = 100,	/* parts of a key */
	INDEX_MAX = 1 << 20,
};

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

/* A name: a letter, then letters, digits, '-', '_'; or an index; or QEMU's
 * "__RFQDN_name".  Returns its length, 0 if it is none. */
static size_t
part_length(const char *s)
{
	size_t n = 0;

	if (isdigit((unsigned char)*s)) {
		while (isdigit((unsigned char)s[n]))
			n++;
		return n;
	}
	if (!isalpha((unsigned char)*s) && *s != '_')
		return 0;
	while (isalnum((unsigned char)s[n]) || s[n] == '-' || s[n] == '_')
		n++;
	return n;
}

/* Is path[0, len) a path: parts with a '.' between, the first no index? */
static int
check_path(const char *path, size_t len, struct error **errp)
{
	const char *s = path, *end = path + len;
	size_t n, depth = 0;

	for (;; s += n + 1) {
		n = part_length(s);
		if (n == 0 || s + n > end || (s + n < end && s[n] != '.') ||
		    (s == path && isdigit((unsigned char)*s)))
			return error_set(errp, "Invalid parameter '%.*s'",
					 (int)len, path);
		if (n > KEY_MAX || ++depth > DEPTH_MAX)
			return error_set(errp, "Parameter%s '%.*s' is too long",
					 n == len ? "" : " fragment",
					 (int)(n < 200 ? n : 200), s);
		if (s + n == end)
			return 0;
	}
}

static int
inconsistent(const char *path, size_t len, struct error **errp)
{
	return error_set(errp, "Parameters '%.*s.*' used inconsistently", (int)len,
			 path);
}

/* The object under name in at, made if it is not there; -1 with *errp. */
static int
descend(struct json_object **at, const char *name, const char *path, size_t len,
	struct error **errp)
{
	struct json_object *next;

	if (!json_object_object_get_ex(*at, name, &next)) {
		next = json_object_new_object();
		if (!next || json_object_object_add(*at, name, next)) {
			json_object_put(next);
			return no_memory(errp);
		}
	} else if (!json_object_is_type(next, json_type_object)) {
		return inconsistent(path, len, errp);
	}
	*at = next;
	return 0;
}

/* Hang value under a checked path; parts before the last make objects.  Takes
 * value over if it returns 0. */
static int
put(struct json_object *at, const char *path, size_t len,
    struct json_object *value, struct error **errp)
{
	const char *s = path, *end = path + len;
	struct json_object *old;
	char part[KEY_MAX + 1];
	size_t n;

	for (;; s += n + 1) {
		n = part_length(s);
		memcpy(part, s, n);
		part[n] = '\0';
		if (s + n == end)
			break;
		if (descend(&at, part, path, (size_t)(s + n - path), errp) < 0)
			return -1;
	}
	if (json_object_object_get_ex(at, part, &old) &&
	    json_object_is_type(old, json_type_object))
		return inconsistent(path, len, errp);
	return json_object_object_add(at, part, value) ? no_memory(errp) : 0;
}

static bool
is_help(const char *word, size_t len)
{
	return (len == 4 && !memcmp(word, "help", 4)) || (len == 1 && *word == '?');
}

/* One "key=value" at *s, and the comma behind it. */
static int
take_pair(struct json_object *root, const char **s, const char *implied,
	  struct error **errp)
{
	CLEANUP(buf_done) struct buf value = { 0 };
	const char *key = *s, *p;
	size_t len = strcspn(key, "=,");
	struct json_object *leaf;

	if (key[len] != '=' && is_help(key, len))
		return error_set(errp, "Help is not available for this option");
	if (implied && len > 0 && key[len] != '=') {
		p = key;
		key = implied;
		len = strlen(implied);
	} else {
		if (check_path(key, len, errp) < 0)
			return -1;
		if (key[len] != '=')
			return error_set(errp, "Expected '=' after parameter '%.*s'",
					 (int)len, key);
		p = key + len + 1;
	}
	buf_add(&value, "", 0);
	while (*p && !(p[0] == ',' && p[1] != ',')) {
		p += *p == ',';
		buf_addc(&value, *p++);
	}
	*s = *p ? p + 1 : p;
	leaf = value.failed ? NULL : json_object_new_string(value.data);
	if (!leaf)
		return no_memory(errp);
	if (put(root, key, len, leaf, errp) == 0)
		return 0;
	json_object_put(leaf);
	return -1;
}

/* -1 if the name is no index. */
static long
index_of(const char *name)
{
	long i = strtol(name, NULL, 10);

	if (!isdigit((unsigned char)*name))
		return -1;
	return i < INDEX_MAX ? i : INDEX_MAX;
}

static int listify(struct json_object **tree, const char *path,
		   struct error **errp);

/* The members of an object, each of which may become an array. */
static int
listify_members(struct json_object *tree, const char *path, struct error **errp)
{
	json_object_object_foreach(tree, key, value) {
		CLEANUP(buf_done) struct buf sub = { 0 };
		struct json_object *made = value;

		buf_addf(&sub, "%s%s%s", path, *path ? "." : "", key);
		if (sub.failed)
			return no_memory(errp);
		if (listify(&made, sub.data, errp) < 0)
			return -1;
		if (made == value)
			continue;
		/* The key is there: this replaces its value in place. */
		if (json_object_object_add(tree, key, made)) {
			json_object_put(made);
			return no_memory(errp);
		}
	}
	return 0;
}

/* An array of the members of tree, whose names are the numbers up to max. */
static int
make_array(struct json_object *tree, long max, const char *path,
	   struct json_object **ret, struct error **errp)
{
	struct json_object *array = json_object_new_array();
	long present = 0;

	if (!array)
		return no_memory(errp);
	json_object_object_foreach(tree, key, value) {
		if (json_object_array_put_idx(array, (size_t)index_of(key),
					      json_object_get(value))) {
			json_object_put(value);
			json_object_put(array);
			return no_memory(errp);
		}
	}
	while (present <= max && json_object_array_get_idx(array, (size_t)present))
		present++;
	if (present <= max) {
		json_object_put(array);
		return error_set(errp, "Parameter '%s.%ld' missing", path, present);
	}
	*ret = array;
	return 0;
}

/* Turn objects whose keys are numbers into arrays, from the leaves up.  Where
 * *tree itself is one, *tree is set to a new array. */
static int
listify(struct json_object **tree, const char *path, struct error **errp)
{
	bool numbers = false, names = false;
	long max = -1;

	if (!json_object_is_type(*tree, json_type_object))
		return 0;
	if (listify_members(*tree, path, errp) < 0)
		return -1;
	json_object_object_foreach(*tree, key, value) {
		long i = index_of(key);

		(void)value;
		numbers = numbers || i >= 0;
		names = names || i < 0;
		max = i > max ? i : max;
	}
	if (!numbers)
		return 0;
	if (names)
		return error_set(errp, "Parameters '%s.*' used inconsistently", path);
	if (max >= json_object_object_length(*tree))
		max = json_object_object_length(*tree);
	return make_array(*tree, max, path, tree, errp);
}

int
keyval_parse(const char *text, const char *implied, struct json_object **ret,
	     struct error **errp)
{
	struct json_object *root = json_object_new_object();

	if (!root)
		return no_memory(errp);
	while (*text) {
		if (take_pair(root, &text, implied, errp) < 0)
			goto fail;
		implied = NULL;
	}
	if (listify_members(root, "", errp) < 0)
		goto fail;
	*ret = root;
	return 0;

fail:
	json_object_put(root);
	return -1;
}

int
keyval_decode(const struct meta *type, const char *text, const char *implied,
	      void **ret, struct error **errp)
{
	CLEANUP(json_freep) struct json_object *tree = NULL;

	if (text[0] == '{') {
		if (json_parse(text, &tree, errp) < 0)
			return -1;
		return decode(type, tree, DECODE_JSON, ret, errp);
	}
	if (keyval_parse(text, implied, &tree, errp) < 0)
		return -1;
	return decode(type, tree, DECODE_KEYVAL, ret, errp);
}
