/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation fails in turn, on the way from a client's bytes to a reply:
 * an error or a failed buffer comes out, and nothing is left behind (which the
 * build with AddressSanitizer sees). */
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
#include "qmp/keyval.h"
#include "schema/decode.h"
#include "schema/encode.h"
#include "schema/types.h"
#include "tests/support/failheap.h"

static const char request[] =
	"{\"driver\": \"qcow2\", \"node-name\": \"a\", \"file\": {\"driver\": "
	"\"file\", \"filename\": \"/x\"}, \"backing\": {\"driver\": \"raw\", "
	"\"file\": \"b\"}, \"overlap-check\": {\"template\": \"all\"}}";

static const char option[] =
	"qcow2,node-name=a,file.driver=file,file.filename=/x,backing.driver=raw,"
	"backing.file=b,overlap-check.template=all";

/* There and back: 0 if all went well and the text is the same. */
static int
through_json(void)
{
	CLEANUP(json_freep) struct json_object *tree = NULL;
	CLEANUP(buf_done) struct buf written = { 0 };
	CLEANUP(buf_done) struct buf encoded = { 0 };
	struct error *err = NULL;
	struct BlockdevOptions *o = NULL, *copy;

	if (json_parse(request, &tree, &err) < 0 ||
	    decode(&BlockdevOptions_meta, tree, DECODE_JSON, (void **)&o, &err) < 0) {
		assert_non_null(err);
		error_free(err);
		assert_null(o);
		return -1;
	}
	json_write(&written, tree);
	copy = BlockdevOptions_clone(o);
	BlockdevOptions_free(o);
	if (!copy)
		return -1;
	encode_value(&encoded, &BlockdevOptions_meta, copy);
	BlockdevOptions_free(copy);
	if (written.failed || encoded.failed)
		return -1;
	assert_string_equal(written.data, request);
	assert_string_equal(encoded.data, request);
	return 0;
}

static int
through_keyval(void)
{
	CLEANUP(buf_done) struct buf encoded = { 0 };
	struct error *err = NULL;
	struct BlockdevOptions *o = NULL;

	if (keyval_decode(&BlockdevOptions_meta, option, "driver", (void **)&o, &err) < 0) {
		assert_non_null(err);
		error_free(err);
		assert_null(o);
		return -1;
	}
	encode_value(&encoded, &BlockdevOptions_meta, o);
	BlockdevOptions_free(o);
	if (encoded.failed)
		return -1;
	assert_string_equal(encoded.data, request);
	return 0;
}

static int
through_list(void)
{
	struct strList *l = calloc(1, sizeof(*l));
	int r = l ? 0 : -1;

	for (int i = 0; i < 3 && r == 0; i++) {
		char *s = strdup("x");

		r = s ? strList_add(l, s) : -1;
		if (r < 0)
			free(s);
	}
	strList_free(l);
	return r < 0 ? -1 : 0;
}

/* A failure may be one that did no harm: json_free() has another way. */
static void
fail_each(int (*go)(void), unsigned at_least)
{
	unsigned nth = 0;
	bool failed;
	int r;

	do {
		failheap_arm(++nth);
		r = go();
		failed = failheap_disarm();
		assert_true(r == 0 || failed);
	} while (failed);
	assert_true(nth > at_least);
}

static void
json_survives_a_failing_heap(void **state)
{
	fail_each(through_json, 20);
}

static void
options_survive_a_failing_heap(void **state)
{
	fail_each(through_keyval, 15);
}

static void
lists_survive_a_failing_heap(void **state)
{
	fail_each(through_list, 3);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(json_survives_a_failing_heap),
		cmocka_unit_test(options_survive_a_failing_heap),
		cmocka_unit_test(lists_survive_a_failing_heap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
