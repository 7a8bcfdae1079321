/* SPDX-License-Identifier: Apache-2.0 */
/* JSON in and out.  The expected texts are those of qemu-storage-daemon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "qmp/json.h"

/* Feed text in pieces of this many bytes; all that comes out, one a line. */
static char *
feed(const char *text, size_t len, size_t piece)
{
	struct json_parser *p = json_parser_new();
	struct buf out = { 0 };

	buf_adds(&out, "");
	while (len > 0) {
		size_t n = len < piece ? len : piece;
		const char *at = text, *end = text + n;

		while (at < end) {
			struct json_object *tree = NULL;
			struct error *err = NULL;
			int r = json_parser_next(p, &at, end, &tree, &err);

			if (r == 1)
				json_write(&out, tree);
			else if (r < 0)
				buf_adds(&out, error_text(err));
			if (r != 0)
				buf_addc(&out, '\n');
			json_free(tree);
			error_free(err);
		}
		text += n;
		len -= n;
	}
	json_parser_free(p);
	return out.data;
}

static void
check(const char *text, const char *expected)
{
	for (size_t piece = 1; piece <= 64; piece *= 8) {
		CLEANUP(cleanup_free) char *got = feed(text, strlen(text), piece);

		assert_string_equal(got, expected);
	}
}

#define BROKEN(why) "JSON parse error, " why "\n"
#define VALUE BROKEN("expecting value")

static void
values_come_out_as_qemu_writes_them(void **state)
{
	check("{'a': [1,2.50,null,true,false], \"b\": {}}",
	      "{\"a\": [1, 2.5, null, true, false], \"b\": {}}\n");
	check("18446744073709551615 18446744073709551616 -9223372036854775809\n",
	      "18446744073709551615\n1.8446744073709552e+19\n-9.2233720368547758e+18\n");
	check("-0 -0.0 0.1 1e20 1.5e-7 1e400\n",
	      "0\n-0.0\n0.10000000000000001\n1e+20\n1.4999999999999999e-07\n1e999\n");
	check("\"a\\u00e4\\u0001\\\"\\\\\\/\\u007f\\b\\f\\n\\r\\t\"",
	      "\"a\\u00E4\\u0001\\\"\\\\/\\u007F\\b\\f\\n\\r\\t\"\n");
	check("\"\xc3\xa4\xf0\x9f\x98\x80\" '\\ud83d\\ude00'",
	      "\"\\u00E4\\uD83D\\uDE00\"\n\"\\uD83D\\uDE00\"\n");
	check("'\\u0000' \"\xc0\x80\"", "\"\\u0000\"\n\"\\u0000\"\n");
	check("[] [[]] {\"a\":{}}", "[]\n[[]]\n{\"a\": {}}\n");
}

static void
broken_texts_are_refused_with_qemus_texts(void **state)
{
	check("{\"a\":1,\"a\":2}", BROKEN("duplicate key"));
	check("{\"a\" 1}", BROKEN("missing : in object pair"));
	check("{\"a\":1,}", VALUE);
	check("[1 2]", BROKEN("expected separator in list"));
	check("{\"a\":1 2}", BROKEN("expected separator in dict"));
	check("{\"a\":}", VALUE);
	check("{1:2}", BROKEN("key is not a string in object"));
	check("{{}:2}", BROKEN("key is not a string in object"));
	check("{\"a\":tru}", BROKEN("invalid keyword 'tru'"));
	check("nul\n", BROKEN("invalid keyword 'nul'"));
	check("[1,2}", BROKEN("expected separator in list"));
	check("}", VALUE);
	check("]", VALUE);
	check("{\"execute\":\"a\\ud83d\"}",
	      BROKEN("\\ud83d is not a valid Unicode character"));
	check("{\"execute\":\"a\\u12\"}",
	      BROKEN("\\u12\" is not a valid Unicode character"));
	check("\"\\uffff\"", BROKEN("\\uffff is not a valid Unicode character"));
	check("\"\\x\"", BROKEN("invalid escape sequence in string"));
	check("\"\xed\xa0\x80\"", BROKEN("invalid UTF-8 sequence in string"));
	check("\"\xef\xbf\xbf\"", BROKEN("invalid UTF-8 sequence in string"));
	check("\"\xf4\x90\x80\x80\"", BROKEN("invalid UTF-8 sequence in string"));
	check("\"\xc1\x81\"", BROKEN("invalid UTF-8 sequence in string"));
}

static void
junk_is_skipped_up_to_the_next_likely_place(void **state)
{
	check("{\"a\":+1}\n", BROKEN("stray '+'") VALUE);
	check("{\"a\":-}\n", BROKEN("stray '-}'"));
	check("{\"a\":01}\n", BROKEN("stray '01'") VALUE);
	check("{\"a\":1.}\n", BROKEN("stray '1.}'"));
	check("{\"a\":1e}\n", BROKEN("stray '1e}'"));
	check("{\"a\":.5}\n", BROKEN("stray '.'") VALUE);
	check("{\"execute\":\"a\tb\"}\n", BROKEN("stray '\"a\t'") VALUE);
	check("{\"execute\":\"\xff\"}\n", BROKEN("stray '\"\xff'") VALUE);
	check("@\n1\n", BROKEN("stray '@'") "1\n");
	check("# x\n[]", BROKEN("stray '#'") "[]\n");
}

static void
a_broken_text_does_not_harm_the_next(void **state)
{
	check("{\"a\" 1}{\"b\":1}\n[1,}\n]{\"c\":2}",
	      BROKEN("missing : in object pair") "{\"b\": 1}\n" VALUE VALUE
	      "{\"c\": 2}\n");
}

static void
nesting_ends_at_1024(void **state)
{
	char text[2 * (JSON_MAX_DEPTH + 1) + 1];
	CLEANUP(cleanup_free) char *deep = NULL;
	CLEANUP(cleanup_free) char *deeper = NULL;

	memset(text, '[', JSON_MAX_DEPTH + 1);
	memset(text + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
	deep = feed(text + 1, 2 * JSON_MAX_DEPTH, 100);
	assert_memory_equal(deep, text + 1, 2 * JSON_MAX_DEPTH);
	deeper = feed(text, sizeof(text) - 1, 100);
	assert_memory_equal(deeper, "JSON nesting depth limit exceeded\n", 34);
}

static void
tokens_end_at_two_million(void **state)
{
	size_t n = JSON_MAX_TOKENS + 2;
	CLEANUP(cleanup_free) char *text = malloc(n);
	CLEANUP(cleanup_free) char *got = NULL;

	for (size_t i = 1; i < n; i += 2) {
		text[i] = '1';
		text[i + 1 < n ? i + 1 : i] = ',';
	}
	text[0] = '[';
	got = feed(text, n, n);
	assert_memory_equal(got, "JSON token count limit exceeded\n", 32);
}

static void
a_string_ends_at_64_mib(void **state)
{
	size_t n = (size_t)JSON_MAX_SIZE + 2;
	CLEANUP(cleanup_free) char *text = malloc(n);
	CLEANUP(cleanup_free) char *got = NULL;

	memset(text, 'a', n);
	text[0] = '"';
	got = feed(text, n, 1 << 20);
	assert_memory_equal(got, "JSON token size limit exceeded\n", 31);
}

static void
parse_one(const char *text, const char *expected)
{
	struct json_object *tree = NULL;
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(buf_done) struct buf out = { 0 };

	if (json_parse(text, &tree, &err) == 0)
		json_write(&out, tree);
	else
		buf_adds(&out, error_text(err));
	json_free(tree);
	assert_string_equal(out.data, expected);
}

static void
an_options_text_is_exactly_one_value(void **state)
{
	parse_one("{\"a\":1}", "{\"a\": 1}");
	parse_one(" 12", "12");
	parse_one("{\"a\":", "JSON parse error, premature EOI");
	parse_one("{", "JSON parse error, premature EOI");
	parse_one("{\"a\":1} 1", "Expecting at most one JSON value");
	parse_one("{\"a\":1}}", "Expecting at most one JSON value");
	parse_one("", "Expecting a JSON value");
}

static void
pretty_lays_out_over_lines(void **state)
{
	CLEANUP(buf_done) struct buf out = { 0 };

	json_pretty(&out, "{\"a, b\": [1, {}], \"c\": {\"d\": []}}");
	assert_string_equal(out.data, "{\n    \"a, b\": [\n        1,\n        {}\n"
				      "    ],\n    \"c\": {\n        \"d\": []\n"
				      "    }\n}");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values_come_out_as_qemu_writes_them),
		cmocka_unit_test(broken_texts_are_refused_with_qemus_texts),
		cmocka_unit_test(junk_is_skipped_up_to_the_next_likely_place),
		cmocka_unit_test(a_broken_text_does_not_harm_the_next),
		cmocka_unit_test(nesting_ends_at_1024),
		cmocka_unit_test(tokens_end_at_two_million),
		cmocka_unit_test(a_string_ends_at_64_mib),
		cmocka_unit_test(an_options_text_is_exactly_one_value),
		cmocka_unit_test(pretty_lays_out_over_lines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
