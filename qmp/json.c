/* SPDX-License-Identifier: Apache-2.0 */
/* The parser collects a text's tokens until its brackets are balanced, and only
 * then makes sense of them.  So a broken text is read to its end before it is
 * refused, and the next one starts in step.
 *
 * Tokens lie one behind the other in a buffer: kind, text, zero byte. */
#include "qmp/json.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "qmp/lexer.h"
#include "schema/utf8.h"

struct json_parser {
	struct lexer lexer;
	struct buf tokens;
	size_t count;		/* of tokens */
	size_t size;		/* bytes of their texts */
	int braces, brackets;	/* open ones */
};

/* The text being made sense of. */
struct reader {
	const char *at, *end;	/* in tokens */
	struct json_object **stack;	/* containers that are open */
	char **keys;			/* under which the next value goes */
	size_t depth;
	struct json_object *root;
	struct error **errp;
};

struct json_parser *
json_parser_new(void)
{
	return calloc(1, sizeof(struct json_parser));
}

void
json_parser_free(struct json_parser *p)
{
	if (!p)
		return;
	buf_done(&p->lexer.text);
	buf_done(&p->tokens);
	free(p);
}

static int
broken(struct reader *r, const char *why)
{
	return error_set(r->errp, "JSON parse error, %s", why);
}

static int
no_memory(struct reader *r)
{
	return error_set(r->errp, "Cannot allocate memory");
}

static enum token
peek(const struct reader *r)
{
	return r->at < r->end ? (enum token)*r->at : TOKEN_NONE;
}

/* The text of the next token, which is taken. */
static const char *
take(struct reader *r)
{
	const char *text = r->at + 1;

	r->at = text + strlen(text) + 1;
	return text;
}

static int32_t
hex4(const char *s)
{
	int32_t v = 0;

	for (int i = 0; i < 4; i++) {
		char c = s[i];

		if (c >= '0' && c <= '9')
			v = v << 4 | (c - '0');
		else if (c >= 'a' && c <= 'f')
			v = v << 4 | (c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			v = v << 4 | (c - 'A' + 10);
		else
			return -1;
	}
	return v;
}

/* "\uXXXX", or two of them that are surrogates; *s is behind the u. */
static int
unescape_unicode(struct reader *r, const char **s, struct buf *out)
{
	const char *start = *s - 2, *p = *s;
	int32_t cp = hex4(p), low;
	char utf8[4];

	if (cp >= 0)
		p += 4;
	if (cp >= 0xd800 && cp <= 0xdbff && p[0] == '\\' && p[1] == 'u') {
		low = hex4(p + 2);
		if (low >= 0xdc00 && low <= 0xdfff) {
			cp = 0x10000 + ((cp & 0x3ff) << 10 | (low & 0x3ff));
			p += 6;
		}
	}
	if (!utf8_valid(cp))
		return error_set(r->errp,
				 "JSON parse error, %.*s is not a valid Unicode character",
				 6, start);
	buf_add(out, utf8, utf8_put(utf8, cp));
	*s = p;
	return 0;
}

static int
unescape(struct reader *r, const char **s, struct buf *out)
{
	static const char from[] = "\"'\\/bfnrt", to[] = "\"'\\/\b\f\n\r\t";
	char c = *(*s)++;
	const char *at;

	if (c == 'u')
		return unescape_unicode(r, s, out);
	at = strchr(from, c);
	if (!at)
		return broken(r, "invalid escape sequence in string");
	buf_addc(out, to[at - from]);
	return 0;
}

/* The content of a string token, its quotes among the text. */
static int
read_string(struct reader *r, const char *token, struct buf *out)
{
	const char *s = token + 1, *end = token + strlen(token) - 1;

	buf_add(out, "", 0);
	while (s < end) {
		const char *start = s;

		if (*s == '\\') {
			s++;
			if (unescape(r, &s, out) < 0)
				return -1;
			continue;
		}
		if (utf8_next(&s, end) < 0)
			return broken(r, "invalid UTF-8 sequence in string");
		buf_add(out, start, (size_t)(s - start));
	}
	return out->failed ? no_memory(r) : 0;
}

static struct json_object *
read_integer(const char *text)
{
	int64_t i;
	uint64_t u;

	errno = 0;
	i = strtoll(text, NULL, 10);
	if (!errno)
		return json_object_new_int64(i);
	errno = 0;
	u = strtoull(text, NULL, 10);
	if (!errno && text[0] != '-')
		return json_object_new_uint64(u);
	return json_object_new_double(strtod(text, NULL));
}

static int
read_keyword(struct reader *r, const char *text, struct json_object **ret)
{
	if (!strcmp(text, "null")) {
		*ret = NULL;
		return 0;
	}
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
		return error_set(r->errp,
				 "JSON parse error, invalid keyword '%.200s'", text);
	*ret = json_object_new_boolean(text[0] == 't');
	return *ret ? 0 : no_memory(r);
}

static int
read_leaf(struct reader *r, struct json_object **ret)
{
	CLEANUP(buf_done) struct buf text = { 0 };

	switch (peek(r)) {
	case TOKEN_INTEGER:
		*ret = read_integer(take(r));
		break;
	case TOKEN_FLOAT:
		*ret = json_object_new_double(strtod(take(r), NULL));
		break;
	case TOKEN_KEYWORD:
		return read_keyword(r, take(r), ret);
	case TOKEN_STRING:
		if (read_string(r, take(r), &text) < 0)
			return -1;
		*ret = json_object_new_string_len(text.data, (int)text.len);
		break;
	case TOKEN_NONE:
		return broken(r, "premature EOI");
	default:
		return broken(r, "expecting value");
	}
	return *ret ? 0 : no_memory(r);
}

/* Hang value into the innermost container, or make it the root; taken over in
 * any case. */
static int
place(struct reader *r, struct json_object *value)
{
	struct json_object *top;
	int err;

	if (r->depth == 0) {
		r->root = value;
		return 0;
	}
	top = r->stack[r->depth - 1];
	if (json_object_is_type(top, json_type_array))
		err = json_object_array_add(top, value);
	else
		err = json_object_object_add(top, r->keys[r->depth - 1], value);
	if (err) {
		json_object_put(value);
		return no_memory(r);
	}
	return 0;
}

static int
open_container(struct reader *r)
{
	struct json_object *value = peek(r) == TOKEN_LCURLY ?
					    json_object_new_object() :
					    json_object_new_array();

	take(r);
	if (!value)
		return no_memory(r);
	if (place(r, value) < 0)
		return -1;
	r->keys[r->depth] = NULL;
	r->stack[r->depth++] = value;
	return 0;
}

/* A key and its colon, for the object on top of the stack. */
static int
read_key(struct reader *r)
{
	CLEANUP(buf_done) struct buf text = { 0 };
	struct json_object *top = r->stack[r->depth - 1], *other = NULL;

	if (peek(r) != TOKEN_STRING) {
		if (peek(r) == TOKEN_LCURLY || peek(r) == TOKEN_LSQUARE)
			return broken(r, "key is not a string in object");
		if (read_leaf(r, &other) < 0)
			return -1;
		json_object_put(other);
		return broken(r, "key is not a string in object");
	}
	if (read_string(r, take(r), &text) < 0)
		return -1;
	if (peek(r) != TOKEN_COLON)
		return broken(r, peek(r) == TOKEN_NONE ?
					 "premature EOI" :
					 "missing : in object pair");
	take(r);
	if (json_object_object_get_ex(top, text.data, NULL)) {
		/* QEMU looks at the value first. */
		if (peek(r) == TOKEN_RCURLY || peek(r) == TOKEN_COMMA)
			return broken(r, "expecting value");
		return broken(r, "duplicate key");
	}
	free(r->keys[r->depth - 1]);
	r->keys[r->depth - 1] = text.data;
	text = (struct buf){ 0 };
	return 0;
}

/* Behind a value: close what ends here, or get past a comma.  1 if the text is
 * complete. */
static int
read_separator(struct reader *r)
{
	while (r->depth > 0) {
		struct json_object *top = r->stack[r->depth - 1];
		bool object = json_object_is_type(top, json_type_object);
		enum token token = peek(r);

		if (token == TOKEN_NONE)
			return broken(r, "premature EOI");
		if (token == TOKEN_COMMA) {
			take(r);
			return object ? read_key(r) : 0;
		}
		if (token != (object ? TOKEN_RCURLY : TOKEN_RSQUARE))
			return broken(r, object ? "expected separator in dict" :
						  "expected separator in list");
		take(r);
		free(r->keys[--r->depth]);
	}
	return 1;
}

/* One value, or the opening of a container.  1 if the text is complete. */
static int
read_value(struct reader *r)
{
	struct json_object *value;
	enum token token = peek(r);

	if (token == TOKEN_LCURLY || token == TOKEN_LSQUARE) {
		if (open_container(r) < 0)
			return -1;
		if (peek(r) == (token == TOKEN_LCURLY ? TOKEN_RCURLY :
							TOKEN_RSQUARE))
			return read_separator(r);
		return token == TOKEN_LCURLY ? read_key(r) : 0;
	}
	if (read_leaf(r, &value) < 0 || place(r, value) < 0)
		return -1;
	return read_separator(r);
}

static int
read_text(struct json_parser *p, struct json_object **ret, struct error **errp)
{
	size_t depth = p->count < JSON_MAX_DEPTH ? p->count : JSON_MAX_DEPTH;
	CLEANUP(cleanup_free) void *stack = calloc(depth + 1, sizeof(void *));
	CLEANUP(cleanup_free) void *keys = calloc(depth + 1, sizeof(void *));
	struct reader r = {
		.at = p->tokens.data, .end = p->tokens.data + p->tokens.len,
		.stack = stack, .keys = keys, .errp = errp,
	};
	int done = 0;

	if (!stack || !keys || p->tokens.failed)
		return no_memory(&r);
	while (done == 0)
		done = read_value(&r);
	while (r.depth > 0)
		free(r.keys[--r.depth]);
	if (done < 0) {
		json_free(r.root);
		return -1;
	}
	*ret = r.root;
	return 1;
}

static void
forget(struct json_parser *p)
{
	p->count = p->size = 0;
	p->braces = p->brackets = 0;
	if (p->tokens.cap > 64 << 10)
		buf_done(&p->tokens);
	else
		buf_reset(&p->tokens);
}

static int
check_limits(const struct json_parser *p, struct error **errp)
{
	if (p->size > JSON_MAX_SIZE)
		return error_set(errp, "JSON token size limit exceeded");
	if (p->count > JSON_MAX_TOKENS)
		return error_set(errp, "JSON token count limit exceeded");
	if (p->braces + p->brackets > JSON_MAX_DEPTH)
		return error_set(errp, "JSON nesting depth limit exceeded");
	return 0;
}

/* One more token of the text; as json_parser_next(). */
static int
add_token(struct json_parser *p, enum token token, struct json_object **ret,
	  struct error **errp)
{
	const struct buf *text = &p->lexer.text;
	int r;

	p->braces += (token == TOKEN_LCURLY) - (token == TOKEN_RCURLY);
	p->brackets += (token == TOKEN_LSQUARE) - (token == TOKEN_RSQUARE);
	p->size += text->len + 1;
	p->count++;
	if (token == TOKEN_ERROR)
		r = error_set(errp, "JSON parse error, stray '%.200s'",
			      text->data ? text->data : "");
	else
		r = check_limits(p, errp);
	if (r == 0) {
		buf_addc(&p->tokens, (char)token);
		if (text->failed)
			p->tokens.failed = true;
		else
			buf_add(&p->tokens, text->data, text->len + 1);
		if (p->braces >= 0 && p->brackets >= 0 &&
		    p->braces + p->brackets > 0)
			return 0;
		r = read_text(p, ret, errp);
	}
	forget(p);
	return r;
}

int
json_parser_next(struct json_parser *p, const char **at, const char *end,
		 struct json_object **ret, struct error **errp)
{
	enum token token;
	int r;

	while ((token = lexer_next(&p->lexer, at, end)) != TOKEN_NONE) {
		r = add_token(p, token, ret, errp);
		if (r != 0)
			return r;
	}
	/* A token that never ends must not grow without bound, either. */
	if (p->lexer.text.len + p->size > JSON_MAX_SIZE) {
		p->size += p->lexer.text.len;
		p->lexer.state = 0;
		buf_done(&p->lexer.text);
		r = check_limits(p, errp);
		forget(p);
		return r;
	}
	return 0;
}

int
json_parse(const char *text, struct json_object **ret, struct error **errp)
{
	struct json_parser *p = json_parser_new();
	const char *end = text + strlen(text);
	struct json_object *tree = NULL, *more = NULL;
	enum token token;
	int r;

	if (!p)
		return error_set(errp, "Cannot allocate memory");
	r = json_parser_next(p, &text, end, &tree, errp);
	if (r == 0 && (token = lexer_end(&p->lexer)) != TOKEN_NONE)
		r = add_token(p, token, &tree, errp);
	if (r == 0)
		r = error_set(errp, p->count || p->lexer.state ?
					    "JSON parse error, premature EOI" :
					    "Expecting a JSON value");
	if (r == 1 && (json_parser_next(p, &text, end, &more, NULL) != 0 ||
		       lexer_end(&p->lexer) != TOKEN_NONE || p->count)) {
		json_free(tree);
		json_free(more);
		r = error_set(errp, "Expecting at most one JSON value");
	}
	if (r == 1)
		*ret = tree;
	json_parser_free(p);
	return r == 1 ? 0 : -1;
}
