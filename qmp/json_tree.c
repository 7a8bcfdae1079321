/* SPDX-License-Identifier: Apache-2.0 */
/* What works on a whole tree without recursion. */
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "qmp/json.h"
#include "schema/encode.h"

/* Containers whose children are being taken out, innermost last. */
struct pile {
	struct json_object **items;
	size_t count, cap;
};

/* Keep a container that is about to lose its parent; false: no memory. */
static bool
pile_add(struct pile *p, struct json_object *o)
{
	struct json_object **items;
	size_t cap = p->cap ? p->cap * 2 : 16;

	if (p->count == p->cap) {
		items = reallocarray(p->items, cap, sizeof(*items));
		if (!items)
			return false;
		p->items = items;
		p->cap = cap;
	}
	p->items[p->count++] = json_object_get(o);
	return true;
}

static bool
is_container(struct json_object *o)
{
	return json_object_is_type(o, json_type_object) ||
	       json_object_is_type(o, json_type_array);
}

void
json_free(struct json_object *tree)
{
	struct pile pile = { 0 };

	if (!is_container(tree) || !pile_add(&pile, tree)) {
		json_object_put(tree);
		return;
	}
	json_object_put(tree);		/* the pile holds it now */
	while (pile.count > 0) {
		struct json_object *o = pile.items[--pile.count];

		/* Whatever the pile holds is not freed with its parent.  What
		 * it could not take for want of memory is, by recursion. */
		if (json_object_is_type(o, json_type_object)) {
			json_object_object_foreach(o, key, child) {
				(void)key;
				if (is_container(child))
					pile_add(&pile, child);
			}
		} else {
			for (size_t i = 0; i < json_object_array_length(o); i++) {
				struct json_object *child =
					json_object_array_get_idx(o, i);

				if (is_container(child))
					pile_add(&pile, child);
			}
		}
		json_object_put(o);
	}
	free(pile.items);
}

void
json_freep(struct json_object **tree)
{
	json_free(*tree);
}

static void
write_leaf(struct buf *out, struct json_object *o)
{
	switch (json_object_get_type(o)) {
	case json_type_boolean:
		buf_adds(out, json_object_get_boolean(o) ? "true" : "false");
		break;
	case json_type_int:
		if (json_object_get_int64(o) < 0)
			buf_addf(out, "%" PRId64, json_object_get_int64(o));
		else
			buf_addf(out, "%" PRIu64, json_object_get_uint64(o));
		break;
	case json_type_double:
		encode_number(out, json_object_get_double(o));
		break;
	case json_type_string:
		encode_string(out, json_object_get_string(o));
		break;
	default:
		buf_adds(out, "null");
		break;
	}
}

/* A container that is being written, and how far it is. */
struct frame {
	struct json_object *o;
	struct lh_entry *entry;		/* the next, of an object */
	size_t index;			/* of the next, in an array */
};

static struct frame
open_frame(struct buf *out, struct json_object *o)
{
	struct frame f = { .o = o };

	if (json_object_is_type(o, json_type_object)) {
		f.entry = json_object_get_object(o)->head;
		buf_addc(out, '{');
	} else {
		buf_addc(out, '[');
	}
	return f;
}

/* The next child, after what belongs before it; false if there is none. */
static bool
next_child(struct buf *out, struct frame *f, struct json_object **ret)
{
	bool object = json_object_is_type(f->o, json_type_object);

	if (object ? !f->entry : f->index == json_object_array_length(f->o)) {
		buf_addc(out, object ? '}' : ']');
		return false;
	}
	if (f->index++ > 0)
		buf_adds(out, ", ");
	if (!object) {
		*ret = json_object_array_get_idx(f->o, f->index - 1);
		return true;
	}
	encode_string(out, lh_entry_k(f->entry));
	buf_adds(out, ": ");
	*ret = (struct json_object *)lh_entry_v(f->entry);
	f->entry = f->entry->next;
	return true;
}

void
json_write(struct buf *out, struct json_object *tree)
{
	struct frame *stack;
	struct json_object *child;
	size_t depth = 0;

	if (!is_container(tree)) {
		write_leaf(out, tree);
		return;
	}
	stack = calloc(JSON_MAX_DEPTH, sizeof(*stack));
	if (!stack) {
		out->failed = true;
		return;
	}
	stack[depth++] = open_frame(out, tree);
	while (depth > 0) {
		if (!next_child(out, &stack[depth - 1], &child))
			depth--;
		else if (!is_container(child))
			write_leaf(out, child);
		else if (depth < JSON_MAX_DEPTH)
			stack[depth++] = open_frame(out, child);
		else
			out->failed = true, depth = 0;
	}
	free(stack);
}

static void
new_line(struct buf *out, unsigned depth)
{
	buf_addc(out, '\n');
	while (depth-- > 0)
		buf_adds(out, "    ");
}

void
json_pretty(struct buf *out, const char *text)
{
	unsigned depth = 0;
	bool string = false;

	for (const char *s = text; *s; s++) {
		if (string) {
			buf_addc(out, *s);
			if (*s == '\\')
				buf_addc(out, *++s);
			else if (*s == '"')
				string = false;
		} else if ((*s == '{' || *s == '[') && s[1] != *s + 2) {
			buf_addc(out, *s);
			new_line(out, ++depth);
		} else if ((*s == '}' || *s == ']') && s[-1] != *s - 2) {
			new_line(out, --depth);
			buf_addc(out, *s);
		} else if (*s == ',') {
			buf_addc(out, ',');
			new_line(out, depth);
			if (s[1] == ' ')
				s++;
		} else {
			buf_addc(out, *s);
			string = *s == '"';
		}
	}
}
