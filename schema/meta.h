/* SPDX-License-Identifier: Apache-2.0 */
/* schema/meta.h - tables that describe the schema's types, and what works on
 * any type by its table: free, copy, compare.
 *
 * A "value" is where something of a type lies: a struct itself, and for a
 * scalar, an enumeration or a string the variable that holds it.  A "slot" is
 * where a member of a type lies: the value itself for scalars, enumerations
 * and strings, a pointer to it for structs, alternates and lists.
 *
 * Context    any thread.
 */
#ifndef SCHEMA_META_H
#define SCHEMA_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum meta_kind {
	META_STR,
	META_BOOL,
	META_INT,
	META_UINT,
	META_SIZE,	/* as UINT, but text forms take suffixes (k, M, ...) */
	META_NUMBER,
	META_ANY,	/* a string: JSON text */
	META_NULL,
	META_ENUM,
	META_OBJECT,
	META_ALTERNATE,
	META_LIST,
};

struct meta;

struct meta_member {
	const char *name;
	const struct meta *type;
	uint32_t offset;
	uint32_t has;		/* offset of has_x, where optional and by_value */
	bool optional;
	bool by_value;		/* else a pointer, NULL if absent */
};

struct meta {
	const char *name;
	enum meta_kind kind;
	uint32_t size;		/* of the value */
	uint32_t count;		/* of members, names or an alternate's branches */
	uint32_t u;		/* offset of the union of branches */
	const struct meta_member *members;		/* OBJECT */
	const struct meta_member *tag;			/* OBJECT that is a union */
	/* OBJECT: by the tag's value, NULL for those that add nothing, the
	 * table itself NULL if none adds anything.  ALTERNATE: by its type. */
	const struct meta *const *branches;
	const char *const *names;			/* ENUM */
	const struct meta *element;			/* LIST */
};

/* Every struct XList looks like this. */
struct meta_list {
	size_t count;
	void *items;		/* slots of the element's type, one by one */
};

extern const struct meta meta_str, meta_bool, meta_number, meta_any, meta_null;
extern const struct meta meta_int, meta_int8, meta_int16, meta_int32, meta_int64;
extern const struct meta meta_uint8, meta_uint16, meta_uint32, meta_uint64, meta_size;

/* Free p, a value of struct, alternate or list type on the heap, and all that
 * it owns.  Takes NULL. */
void meta_free(const struct meta *type, void *p);

/* A deep copy of p on the heap; NULL if p is NULL or there is no memory. */
void *meta_clone(const struct meta *type, const void *p);

/* Are two values of struct, alternate or list type equal?  NULL equals NULL. */
bool meta_equal(const struct meta *type, const void *a, const void *b);

/* Free what a slot owns, and set it to zero bytes. */
void meta_clear_slot(const struct meta *type, void *slot);

/* Bytes of a slot of this type. */
size_t meta_slot_size(const struct meta *type);

/* Append one slot's content to a list: takes it over on 0; -ENOMEM. */
int meta_list_add(const struct meta *list, void *l, const void *slot);

/* The name of an enumeration's value; the number of a name, -1 if unknown. */
const char *meta_enum_str(const struct meta *type, int value);
int meta_enum_parse(const struct meta *type, const char *name);

/* Whether the member of p is there, and its slot. */
bool meta_has(const struct meta_member *m, const void *p);
void *meta_slot(const struct meta_member *m, const void *p);

/* The branch that p, a union or alternate, holds, NULL if it has nothing. */
const struct meta *meta_branch(const struct meta *type, const void *p);

#endif
