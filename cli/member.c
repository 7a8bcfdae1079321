/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/member.h"

#include <inttypes.h>

enum { INDENT = 2 };

static void
new_line(struct member_out *out)
{
	fprintf(out->to, "\n%*s", (int)(INDENT * out->depth), "");
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

/* How much of s is printed as it is. */
static size_t
clean_length(const unsigned char *s)
{
	size_t len = 0, n;

	for (; s[len] >= 0x20 && s[len] != '"' && s[len] != '\\'; len += n) {
		n = utf8_length(s + len);
		if (!n)
			break;
	}
	return len;
}

static void
print_string(FILE *to, const char *text)
{
	const unsigned char *s = (const unsigned char *)text;

	putc('"', to);
	for (size_t n; *s; s += n ? n : 1) {
		n = clean_length(s);
		if (n)
			fwrite(s, 1, n, to);
		else if (*s == '"' || *s == '\\')
			fprintf(to, "\\%c", *s);
		else if (*s < 0x20)
			fprintf(to, "\\u%04x", *s);
		else
			putc('?', to);
	}
	putc('"', to);
}

/* What stands in front of a value. */
static void
lead_in(struct member_out *out, const char *name)
{
	if (out->filled)
		putc(',', out->to);
	if (out->depth)
		new_line(out);
	out->filled = true;
	if (!name)
		return;
	print_string(out->to, name);
	putc(':', out->to);
}

void
member_begin(struct member_out *out, const char *name, const char *kind)
{
	lead_in(out, name);
	putc(kind[0], out->to);
	out->depth++;
	out->filled = false;
}

void
member_end(struct member_out *out, const char *kind)
{
	out->depth--;
	if (out->filled)
		new_line(out);
	putc(kind[1], out->to);
	out->filled = true;
	if (!out->depth)
		putc('\n', out->to);
}

void
member_text(struct member_out *out, const char *name, const char *text)
{
	lead_in(out, name);
	print_string(out->to, text);
}

void
member_number(struct member_out *out, const char *name, uint64_t n)
{
	lead_in(out, name);
	fprintf(out->to, "%" PRIu64, n);
}

void
member_bool(struct member_out *out, const char *name, bool b)
{
	lead_in(out, name);
	fputs(b ? "true" : "false", out->to);
}

void
member_seconds(struct member_out *out, const char *name, double seconds)
{
	lead_in(out, name);
	fprintf(out->to, "%.6f", seconds);
}
