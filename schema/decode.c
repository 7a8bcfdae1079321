/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/decode.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "schema/meta.h"
#include "schema/scalar.h"

/* Where we are, for error texts: a list from the leaf up to the root. */
struct place {
	const struct place *up;
	const char *name;	/* NULL at the root and for items of lists */
	size_t index;		/* of an item */
	unsigned depth;
};

struct decoder {
	enum decode_road road;
	struct error **errp;
};

/* "file.cache", "bitmaps[1].node", in key=value form "bitmaps.1.node". */
static void
add_path(struct buf *out, const struct decoder *d, const struct place *at)
{
	if (!at->up)
		return;
	add_path(out, d, at->up);
	if (!at->name)
		buf_addf(out, d->road == DECODE_KEYVAL ? ".%zu" : "[%zu]",
			 at->index);
	else
		buf_addf(out, "%s%s", out->len ? "." : "", at->name);
}

/* before PATH after what.  Some of QEMU's texts have the whole path, some the
 * last name only, and clients match them. */
static int
fail(const struct decoder *d, const struct place *at, const char *before,
     const char *after, const char *what)
{
	CLEANUP(buf_done) struct buf path = { 0 };

	add_path(&path, d, at);
	return error_set(d->errp, "%s '%s'%s%s", before,
			 path.len ? path.data : "<anonymous>", after, what);
}

static const char *
leaf(const struct place *at)
{
	return at->name ? at->name : "null";
}

static int
fail_type(const struct decoder *d, const struct place *at, const char *expected)
{
	return fail(d, at, "Invalid parameter type for", ", expected: ", expected);
}

static int
fail_tree(const struct decoder *d, const struct place *at)
{
	CLEANUP(buf_done) struct buf path = { 0 };

	add_path(&path, d, at);
	return error_set(d->errp, "Parameters '%s.*' are unexpected",
			 path.len ? path.data : "<anonymous>");
}

/* In key=value form a leaf is a string; a tree stands for "x.*". */
static int
get_text(const struct decoder *d, const struct place *at,
	 struct json_object *tree, const char **ret)
{
	if (!json_object_is_type(tree, json_type_string))
		return fail_tree(d, at);
	*ret = json_object_get_string(tree);
	return 0;
}

static int
decode_text(const struct decoder *d, const struct meta *type, void *to,
	    struct json_object *tree, const struct place *at)
{
	const char *text, *expected;

	if (get_text(d, at, tree, &text) < 0)
		return -1;
	expected = scalar_parse(type, text, to);
	if (!expected)
		return 0;
	if (expected[0] == '!')		/* out of its range, not malformed */
		return error_set(d->errp, "Parameter '%s' expects %s", leaf(at),
				 expected + 1);
	return fail(d, at, "Parameter", " expects ", expected);
}

static int
decode_integer(const struct decoder *d, const struct meta *type, void *to,
	       struct json_object *tree, const struct place *at)
{
	bool wide = type->kind != META_INT;
	uint64_t u;
	int64_t i;

	if (!json_object_is_type(tree, json_type_int))
		return wide ? fail(d, at, "Parameter", " expects ", "uint64") :
			      fail_type(d, at, "integer");
	i = json_object_get_int64(tree);
	u = json_object_get_uint64(tree);
	if (i == INT64_MAX && u > INT64_MAX && !wide)
		return fail_type(d, at, "integer");
	/* QEMU takes a negative number for its two's complement. */
	if (i < 0)
		u = (uint64_t)i;
	if (wide ? !scalar_store_uint(type, u, to) : !scalar_store_int(type, i, to))
		return error_set(d->errp, "Parameter '%s' expects %s_t", leaf(at),
				 type->name);
	return 0;
}

static int
decode_scalar(const struct decoder *d, const struct meta *type, void *to,
	      struct json_object *tree, const struct place *at)
{
	if (d->road == DECODE_KEYVAL)
		return decode_text(d, type, to, tree, at);
	switch (type->kind) {
	case META_BOOL:
		if (!json_object_is_type(tree, json_type_boolean))
			return fail_type(d, at, "boolean");
		*(bool *)to = json_object_get_boolean(tree);
		return 0;
	case META_NUMBER:
		if (!json_object_is_type(tree, json_type_int) &&
		    !json_object_is_type(tree, json_type_double))
			return fail_type(d, at, "number");
		*(double *)to = json_object_get_double(tree);
		return 0;
	default:
		return decode_integer(d, type, to, tree, at);
	}
}

static int
decode_string(const struct decoder *d, char **to, struct json_object *tree,
	      const struct place *at)
{
	const char *s;

	if (d->road == DECODE_KEYVAL) {
		if (get_text(d, at, tree, &s) < 0)
			return -1;
	} else if (!json_object_is_type(tree, json_type_string)) {
		return fail_type(d, at, "string");
	}
	*to = strdup(json_object_get_string(tree));
	return *to ? 0 : error_set(d->errp, "Cannot allocate memory");
}

static int
decode_any(const struct decoder *d, char **to, struct json_object *tree)
{
	const char *s = json_object_to_json_string_ext(tree, JSON_C_TO_STRING_PLAIN);

	*to = s ? strdup(s) : NULL;
	return *to ? 0 : error_set(d->errp, "Cannot allocate memory");
}

static int
decode_enum(const struct decoder *d, const struct meta *type, int *to,
	    struct json_object *tree, const struct place *at)
{
	const char *s;
	int v;

	if (d->road == DECODE_KEYVAL) {
		if (get_text(d, at, tree, &s) < 0)
			return -1;
	} else if (!json_object_is_type(tree, json_type_string)) {
		return fail_type(d, at, "string");
	}
	s = json_object_get_string(tree);
	v = meta_enum_parse(type, s);
	if (v < 0)
		return error_set(d->errp,
				 "Parameter '%s' does not accept value '%.200s'",
				 leaf(at), s);
	*to = v;
	return 0;
}

static int decode_value(const struct decoder *d, const struct meta *type,
			void *to, struct json_object *tree,
			const struct place *at);

/* to holds zero bytes, and after a failure what may be cleared. */
static int
decode_slot(const struct decoder *d, const struct meta *type, void *to,
	    struct json_object *tree, const struct place *at)
{
	if (type->kind >= META_OBJECT) {
		void *p = calloc(1, type->size);

		if (!p)
			return error_set(d->errp, "Cannot allocate memory");
		*(void **)to = p;
		to = p;
	}
	return decode_value(d, type, to, tree, at);
}

static int
decode_members(const struct decoder *d, const struct meta *type, void *p,
	       struct json_object *tree, const struct place *at)
{
	const struct meta *branch;

	for (uint32_t i = 0; i < type->count; i++) {
		const struct meta_member *m = &type->members[i];
		struct place here = { at, m->name, 0, at->depth + 1 };
		struct json_object *item;

		if (!json_object_object_get_ex(tree, m->name, &item)) {
			if (m->optional)
				continue;
			return fail(d, &here, "Parameter", " is missing", "");
		}
		if (decode_slot(d, m->type, meta_slot(m, p), item, &here) < 0)
			return -1;
		if (m->optional && m->by_value)
			*((bool *)((char *)p + m->has)) = true;
	}
	branch = meta_branch(type, p);
	if (!branch)
		return 0;
	return decode_members(d, branch, (char *)p + type->u, tree, at);
}

static bool
knows(const struct meta *type, const void *p, const char *name)
{
	const struct meta *branch = meta_branch(type, p);

	for (uint32_t i = 0; i < type->count; i++)
		if (!strcmp(type->members[i].name, name))
			return true;
	return branch && knows(branch, (const char *)p + type->u, name);
}

static int
decode_object(const struct decoder *d, const struct meta *type, void *p,
	      struct json_object *tree, const struct place *at)
{
	if (!json_object_is_type(tree, json_type_object))
		return fail_type(d, at, "object");
	if (at->depth >= DECODE_DEPTH)
		return fail(d, at, "Parameter", " is nested too deeply", "");
	if (decode_members(d, type, p, tree, at) < 0)
		return -1;
	json_object_object_foreach(tree, key, item) {
		struct place here = { at, key, 0, at->depth + 1 };

		(void)item;
		if (!knows(type, p, key))
			return fail(d, &here, "Parameter", " is unexpected", "");
	}
	return 0;
}

static int
decode_list(const struct decoder *d, const struct meta *type,
	    struct meta_list *l, struct json_object *tree, const struct place *at)
{
	size_t size = meta_slot_size(type->element), count;

	if (!json_object_is_type(tree, json_type_array))
		return fail_type(d, at, "array");
	if (at->depth >= DECODE_DEPTH)
		return fail(d, at, "Parameter", " is nested too deeply", "");
	count = json_object_array_length(tree);
	if (count == 0)
		return 0;
	l->items = calloc(count, size);
	if (!l->items)
		return error_set(d->errp, "Cannot allocate memory");
	for (size_t i = 0; i < count; i++) {
		struct place here = { at, NULL, i, at->depth + 1 };

		l->count = i + 1;
		if (decode_slot(d, type->element, (char *)l->items + i * size,
				json_object_array_get_idx(tree, i), &here) < 0)
			return -1;
	}
	return 0;
}

/* Whether a branch of an alternate takes this tree. */
static bool
suits(const struct meta *branch, struct json_object *tree)
{
	switch (json_object_get_type(tree)) {
	case json_type_null:
		return branch->kind == META_NULL;
	case json_type_boolean:
		return branch->kind == META_BOOL;
	case json_type_int:
		return branch->kind >= META_INT && branch->kind <= META_NUMBER;
	case json_type_double:
		return branch->kind == META_NUMBER;
	case json_type_string:
		return branch->kind == META_STR || branch->kind == META_ENUM;
	case json_type_object:
		return branch->kind == META_OBJECT;
	case json_type_array:
		return branch->kind == META_LIST;
	}
	return false;
}

static int
decode_alternate(const struct decoder *d, const struct meta *type, void *p,
		 struct json_object *tree, const struct place *at)
{
	for (uint32_t i = 0; i < type->count; i++) {
		const struct meta *branch = type->branches[i];
		void *to = (char *)p + type->u;

		if (!suits(branch, tree))
			continue;
		*(unsigned *)p = i;
		if (branch->kind == META_LIST)
			return decode_slot(d, branch, to, tree, at);
		return decode_value(d, branch, to, tree, at);
	}
	return error_set(d->errp, "Invalid parameter type for '%s', expected: %s",
			 leaf(at), type->name);
}

static int
decode_value(const struct decoder *d, const struct meta *type, void *to,
	     struct json_object *tree, const struct place *at)
{
	switch (type->kind) {
	case META_STR:
		return decode_string(d, to, tree, at);
	case META_ANY:
		return decode_any(d, to, tree);
	case META_NULL:
		return tree ? fail_type(d, at, "null") : 0;
	case META_ENUM:
		return decode_enum(d, type, to, tree, at);
	case META_OBJECT:
		return decode_object(d, type, to, tree, at);
	case META_ALTERNATE:
		return decode_alternate(d, type, to, tree, at);
	case META_LIST:
		return decode_list(d, type, to, tree, at);
	default:
		return decode_scalar(d, type, to, tree, at);
	}
}

int
decode(const struct meta *type, struct json_object *tree, enum decode_road road,
       void **ret, struct error **errp)
{
	struct decoder d = { road, errp };
	struct place root = { 0 };
	void *p = NULL;

	if (decode_slot(&d, type, &p, tree, &root) < 0) {
		meta_free(type, p);
		return -1;
	}
	*ret = p;
	return 0;
}
