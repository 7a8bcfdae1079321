/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/meta.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SCALAR(id, k, type)                                                    \
	const struct meta meta_##id = {                                        \
		.name = #id, .kind = (k), .size = sizeof(type),                \
	}

SCALAR(str, META_STR, char *);
SCALAR(bool, META_BOOL, bool);
SCALAR(number, META_NUMBER, double);
SCALAR(any, META_ANY, char *);
SCALAR(int, META_INT, int64_t);
SCALAR(int8, META_INT, int8_t);
SCALAR(int16, META_INT, int16_t);
SCALAR(int32, META_INT, int32_t);
SCALAR(int64, META_INT, int64_t);
SCALAR(uint8, META_UINT, uint8_t);
SCALAR(uint16, META_UINT, uint16_t);
SCALAR(uint32, META_UINT, uint32_t);
SCALAR(uint64, META_UINT, uint64_t);
SCALAR(size, META_SIZE, uint64_t);

const struct meta meta_null = { .name = "null", .kind = META_NULL };

static bool
is_pointed_at(const struct meta *type)
{
	return type->kind >= META_OBJECT;
}

static bool
is_string(const struct meta *type)
{
	return type->kind == META_STR || type->kind == META_ANY;
}

size_t
meta_slot_size(const struct meta *type)
{
	return is_pointed_at(type) ? sizeof(void *) : type->size;
}

void *
meta_slot(const struct meta_member *m, const void *p)
{
	return (char *)p + m->offset;
}

bool
meta_has(const struct meta_member *m, const void *p)
{
	if (!m->by_value)
		return *(void *const *)((const char *)p + m->offset);
	return !m->optional || *(const bool *)((const char *)p + m->has);
}

const struct meta *
meta_branch(const struct meta *type, const void *p)
{
	unsigned which;

	if (!type->branches)
		return NULL;
	if (type->kind == META_ALTERNATE)
		which = *(const unsigned *)p;
	else
		which = *(const unsigned *)meta_slot(type->tag, p);
	if (which >= (type->tag ? type->tag->type->count : type->count))
		return NULL;
	return type->branches[which];
}

/* What the value at p owns; p itself stays. */
static void
clear_value(const struct meta *type, void *p)
{
	const struct meta *branch;
	struct meta_list *l = p;

	switch (type->kind) {
	case META_STR:
	case META_ANY:
		free(*(char **)p);
		*(char **)p = NULL;
		break;
	case META_OBJECT:
		branch = meta_branch(type, p);
		if (branch)
			clear_value(branch, (char *)p + type->u);
		for (uint32_t i = 0; i < type->count; i++)
			meta_clear_slot(type->members[i].type,
					meta_slot(&type->members[i], p));
		break;
	case META_ALTERNATE:
		branch = meta_branch(type, p);
		if (branch && branch->kind == META_LIST)
			meta_clear_slot(branch, (char *)p + type->u);
		else if (branch)
			clear_value(branch, (char *)p + type->u);
		break;
	case META_LIST:
		for (size_t i = 0; i < l->count; i++)
			meta_clear_slot(type->element,
					(char *)l->items +
						i * meta_slot_size(type->element));
		free(l->items);
		*l = (struct meta_list){ 0 };
		break;
	default:
		break;
	}
}

void
meta_clear_slot(const struct meta *type, void *slot)
{
	if (is_pointed_at(type)) {
		meta_free(type, *(void **)slot);
		*(void **)slot = NULL;
	} else {
		clear_value(type, slot);
	}
}

void
meta_free(const struct meta *type, void *p)
{
	if (!p)
		return;
	clear_value(type, p);
	free(p);
}

static int copy_value(const struct meta *type, void *dst, const void *src);

/* dst holds nothing yet, and after a failure holds what may be cleared. */
static int
copy_slot(const struct meta *type, void *dst, const void *src)
{
	const void *from;
	void *to;

	if (!is_pointed_at(type))
		return copy_value(type, dst, src);
	from = *(void *const *)src;
	if (!from)
		return 0;
	to = calloc(1, type->size);
	*(void **)dst = to;
	return to ? copy_value(type, to, from) : -ENOMEM;
}

static int
copy_list(const struct meta *element, struct meta_list *dst,
	  const struct meta_list *src)
{
	size_t size = meta_slot_size(element);
	int r;

	if (!src->count)
		return 0;
	dst->items = calloc(src->count, size);
	if (!dst->items)
		return -ENOMEM;
	for (; dst->count < src->count; dst->count++) {
		size_t at = dst->count * size;

		r = copy_slot(element, (char *)dst->items + at,
			      (const char *)src->items + at);
		if (r < 0) {
			dst->count++;
			return r;
		}
	}
	return 0;
}

static int
copy_object(const struct meta *type, void *dst, const void *src)
{
	const struct meta *branch = meta_branch(type, src);

	for (uint32_t i = 0; i < type->count; i++) {
		const struct meta_member *m = &type->members[i];
		int r;

		if (m->optional && m->by_value)
			*((bool *)((char *)dst + m->has)) = meta_has(m, src);
		r = copy_slot(m->type, meta_slot(m, dst), meta_slot(m, src));
		if (r < 0)
			return r;
	}
	if (!branch)
		return 0;
	return copy_value(branch, (char *)dst + type->u,
			  (const char *)src + type->u);
}

static int
copy_value(const struct meta *type, void *dst, const void *src)
{
	const struct meta *branch;
	const char *from;

	switch (type->kind) {
	case META_STR:
	case META_ANY:
		from = *(char *const *)src;
		if (!from)
			return 0;
		*(char **)dst = strdup(from);
		return *(char **)dst ? 0 : -ENOMEM;
	case META_OBJECT:
		return copy_object(type, dst, src);
	case META_ALTERNATE:
		memcpy(dst, src, sizeof(unsigned));
		branch = meta_branch(type, src);
		if (branch && branch->kind == META_LIST)
			return copy_slot(branch, (char *)dst + type->u,
					 (const char *)src + type->u);
		return branch ? copy_value(branch, (char *)dst + type->u,
					   (const char *)src + type->u) : 0;
	case META_LIST:
		return copy_list(type->element, dst, src);
	default:
		memcpy(dst, src, type->size);
		return 0;
	}
}

void *
meta_clone(const struct meta *type, const void *p)
{
	void *copy = NULL;

	if (copy_slot(type, &copy, &p) < 0) {
		meta_free(type, copy);
		return NULL;
	}
	return copy;
}

static bool equal_value(const struct meta *type, const void *a, const void *b);

static bool
equal_slot(const struct meta *type, const void *a, const void *b)
{
	if (is_pointed_at(type))
		return meta_equal(type, *(void *const *)a, *(void *const *)b);
	return equal_value(type, a, b);
}

static bool
equal_members(const struct meta *type, const void *a, const void *b)
{
	for (uint32_t i = 0; i < type->count; i++) {
		const struct meta_member *m = &type->members[i];

		if (meta_has(m, a) != meta_has(m, b))
			return false;
		if (meta_has(m, a) &&
		    !equal_slot(m->type, meta_slot(m, a), meta_slot(m, b)))
			return false;
	}
	return true;
}

static bool
equal_lists(const struct meta *type, const struct meta_list *a,
	    const struct meta_list *b)
{
	size_t size = meta_slot_size(type->element);

	if (a->count != b->count)
		return false;
	for (size_t i = 0; i < a->count; i++)
		if (!equal_slot(type->element, (const char *)a->items + i * size,
				(const char *)b->items + i * size))
			return false;
	return true;
}

static bool
equal_value(const struct meta *type, const void *a, const void *b)
{
	const struct meta *branch;

	if (is_string(type)) {
		const char *s = *(char *const *)a, *t = *(char *const *)b;

		return s == t || (s && t && !strcmp(s, t));
	}
	if (type->kind == META_LIST)
		return equal_lists(type, a, b);
	if (!is_pointed_at(type))
		return !memcmp(a, b, type->size);
	if (type->kind == META_OBJECT && !equal_members(type, a, b))
		return false;
	if (type->kind == META_ALTERNATE &&
	    *(const unsigned *)a != *(const unsigned *)b)
		return false;
	branch = meta_branch(type, a);
	if (!branch)
		return true;
	a = (const char *)a + type->u;
	b = (const char *)b + type->u;
	return branch->kind == META_LIST ? equal_slot(branch, a, b) :
					   equal_value(branch, a, b);
}

bool
meta_equal(const struct meta *type, const void *a, const void *b)
{
	if (!a || !b)
		return a == b;
	return equal_value(type, a, b);
}

int
meta_list_add(const struct meta *list, void *l, const void *slot)
{
	struct meta_list *to = l;
	size_t size = meta_slot_size(list->element);
	void *items;

	items = reallocarray(to->items, to->count + 1, size);
	if (!items)
		return -ENOMEM;
	to->items = items;
	memcpy((char *)to->items + to->count * size, slot, size);
	to->count++;
	return 0;
}

const char *
meta_enum_str(const struct meta *type, int value)
{
	return value >= 0 && (uint32_t)value < type->count ? type->names[value] :
							     "?";
}

int
meta_enum_parse(const struct meta *type, const char *name)
{
	for (uint32_t i = 0; i < type->count; i++)
		if (!strcmp(type->names[i], name))
			return (int)i;
	return -1;
}
