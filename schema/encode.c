/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/encode.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/buf.h"
#include "schema/meta.h"
#include "schema/utf8.h"

static void
add_unit(struct buf *out, unsigned unit)
{
	buf_addf(out, "\\u%04X", unit);
}

static void
add_escaped(struct buf *out, int32_t cp)
{
	switch (cp) {
	case '"': buf_adds(out, "\\\""); return;
	case '\\': buf_adds(out, "\\\\"); return;
	case '\b': buf_adds(out, "\\b"); return;
	case '\f': buf_adds(out, "\\f"); return;
	case '\n': buf_adds(out, "\\n"); return;
	case '\r': buf_adds(out, "\\r"); return;
	case '\t': buf_adds(out, "\\t"); return;
	default: break;
	}
	if (cp < 0)
		cp = 0xfffd;
	if (cp > 0xffff) {
		cp -= 0x10000;
		add_unit(out, 0xd800 + ((unsigned)cp >> 10));
		cp = 0xdc00 + (cp & 0x3ff);
	}
	add_unit(out, (unsigned)cp);
}

void
encode_string(struct buf *out, const char *s)
{
	const char *end = s + strlen(s), *plain = s;

	buf_addc(out, '"');
	while (s < end) {
		const char *at = s;
		int32_t cp;

		if (*s >= ' ' && *s < 0x7f && *s != '"' && *s != '\\') {
			s++;
			continue;
		}
		buf_add(out, plain, (size_t)(at - plain));
		cp = utf8_next(&s, end);
		add_escaped(out, cp);
		plain = s;
	}
	buf_add(out, plain, (size_t)(s - plain));
	buf_addc(out, '"');
}

void
encode_number(struct buf *out, double d)
{
	/* JSON has no infinity; readers make one of what is out of range. */
	if (isinf(d))
		buf_adds(out, d < 0 ? "-1e999" : "1e999");
	else if (isnan(d))
		buf_adds(out, "null");
	else if (d == 0)
		buf_adds(out, signbit(d) ? "-0.0" : "0");	/* -0 is an integer */
	else
		buf_addf(out, "%.17g", d);
}

static int64_t
load_int(const struct meta *type, const void *p)
{
	switch (type->size) {
	case 1: return *(const int8_t *)p;
	case 2: return *(const int16_t *)p;
	case 4: return *(const int32_t *)p;
	default: return *(const int64_t *)p;
	}
}

static uint64_t
load_uint(const struct meta *type, const void *p)
{
	switch (type->size) {
	case 1: return *(const uint8_t *)p;
	case 2: return *(const uint16_t *)p;
	case 4: return *(const uint32_t *)p;
	default: return *(const uint64_t *)p;
	}
}

/* The members of an object and of its branch; sep says whether one precedes. */
static bool
encode_members(struct buf *out, const struct meta *type, const void *p, bool sep)
{
	const struct meta *branch = meta_branch(type, p);

	for (uint32_t i = 0; i < type->count; i++) {
		const struct meta_member *m = &type->members[i];

		if (m->optional && !meta_has(m, p))
			continue;
		if (sep)
			buf_adds(out, ", ");
		sep = true;
		encode_string(out, m->name);
		buf_adds(out, ": ");
		encode_slot(out, m->type, meta_slot(m, p));
	}
	if (branch)
		sep = encode_members(out, branch, (const char *)p + type->u, sep);
	return sep;
}

static void
encode_list(struct buf *out, const struct meta *type, const struct meta_list *l)
{
	size_t size = meta_slot_size(type->element);

	buf_addc(out, '[');
	for (size_t i = 0; i < l->count; i++) {
		if (i > 0)
			buf_adds(out, ", ");
		encode_slot(out, type->element, (const char *)l->items + i * size);
	}
	buf_addc(out, ']');
}

static void
encode_alternate(struct buf *out, const struct meta *type, const void *p)
{
	const struct meta *branch = meta_branch(type, p);

	p = (const char *)p + type->u;
	if (branch && branch->kind == META_LIST)
		encode_slot(out, branch, p);
	else if (branch)
		encode_value(out, branch, p);
	else
		buf_adds(out, "null");
}

void
encode_value(struct buf *out, const struct meta *type, const void *p)
{
	const char *s;

	switch (type->kind) {
	case META_STR:
		s = *(const char *const *)p;
		encode_string(out, s ? s : "");
		break;
	case META_ANY:
		s = *(const char *const *)p;
		buf_adds(out, s ? s : "null");
		break;
	case META_BOOL:
		buf_adds(out, *(const bool *)p ? "true" : "false");
		break;
	case META_INT:
		buf_addf(out, "%" PRId64, load_int(type, p));
		break;
	case META_UINT:
	case META_SIZE:
		buf_addf(out, "%" PRIu64, load_uint(type, p));
		break;
	case META_NUMBER:
		encode_number(out, *(const double *)p);
		break;
	case META_NULL:
		buf_adds(out, "null");
		break;
	case META_ENUM:
		encode_string(out, meta_enum_str(type, *(const int *)p));
		break;
	case META_OBJECT:
		buf_addc(out, '{');
		encode_members(out, type, p, false);
		buf_addc(out, '}');
		break;
	case META_ALTERNATE:
		encode_alternate(out, type, p);
		break;
	case META_LIST:
		encode_list(out, type, p);
		break;
	}
}

void
encode_slot(struct buf *out, const struct meta *type, const void *slot)
{
	const void *p = slot;

	if (type->kind >= META_OBJECT) {
		p = *(const void *const *)slot;
		if (!p) {
			buf_adds(out, type->kind == META_LIST ? "[]" : "null");
			return;
		}
	}
	encode_value(out, type, p);
}
