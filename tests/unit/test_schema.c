/* SPDX-License-Identifier: Apache-2.0 */
/* Generated types: decoded, encoded, cloned, compared.  The expected error
 * texts are those of qemu-storage-daemon. */
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
#include "schema/decode.h"
#include "schema/encode.h"
#include "schema/types.h"

static char *
text_of(const struct meta *type, const void *p)
{
	struct buf out = { 0 };

	encode_value(&out, type, p);
	return out.data;
}

static void *
good(const struct meta *type, const char *json)
{
	struct json_object *tree = json_tokener_parse(json);
	struct error *err = NULL;
	void *p = NULL;

	assert_non_null(tree);
	if (decode(type, tree, DECODE_JSON, &p, &err) < 0)
		fail_msg("%s: %s", json, error_text(err));
	json_object_put(tree);
	return p;
}

static void
bad(const struct meta *type, const char *json, const char *expected)
{
	struct json_object *tree = json_tokener_parse(json);
	CLEANUP(error_freep) struct error *err = NULL;
	void *p = NULL;

	assert_non_null(tree);
	assert_int_equal(decode(type, tree, DECODE_JSON, &p, &err), -1);
	json_object_put(tree);
	assert_null(p);
	assert_string_equal(error_text(err), expected);
}

/* Decoding and encoding give the text back, and so do clones. */
static void
round_trip(const struct meta *type, const char *json)
{
	CLEANUP(cleanup_free) char *first = NULL;
	CLEANUP(cleanup_free) char *second = NULL;
	void *p = good(type, json), *copy = meta_clone(type, p);

	first = text_of(type, p);
	assert_string_equal(first, json);
	assert_true(meta_equal(type, p, copy));
	meta_free(type, p);
	second = text_of(type, copy);
	assert_string_equal(second, json);
	meta_free(type, copy);
}

static const char chain[] =
	"{\"driver\": \"qcow2\", \"node-name\": \"a\", \"cache\": {\"direct\": true}, "
	"\"read-only\": false, \"file\": {\"driver\": \"file\", "
	"\"filename\": \"/x\", \"aio\": \"io_uring\"}, \"backing\": "
	"{\"driver\": \"raw\", \"file\": \"b\", \"size\": 1024}, "
	"\"overlap-check\": {\"template\": \"all\", \"active-l1\": false}, "
	"\"cache-size\": -1}";

static void
what_is_decoded_is_encoded_alike(void **state)
{
	round_trip(&BlockdevOptions_meta, chain);
	round_trip(&BlockdevOptions_meta,
		   "{\"driver\": \"qcow2\", \"file\": \"f\", \"backing\": null, "
		   "\"overlap-check\": \"none\"}");
	round_trip(&BlockExportOptions_meta,
		   "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", "
		   "\"name\": \"\", \"bitmaps\": [\"a\", {\"node\": \"n\", "
		   "\"name\": \"b\"}], \"allocation-depth\": true}");
	round_trip(&NbdServerOptions_meta,
		   "{\"max-connections\": 4294967295, \"addr\": {\"type\": \"unix\", "
		   "\"path\": \"/s\"}}");
	round_trip(&qmp_capabilities_args_meta, "{\"enable\": [\"oob\"]}");
	round_trip(&BlockJobInfo_meta,
		   "{\"type\": \"mirror\", \"device\": \"j\", \"len\": 1, "
		   "\"offset\": 0, \"busy\": true, \"paused\": false, \"speed\": 0, "
		   "\"io-status\": \"ok\", \"ready\": true, \"status\": \"ready\", "
		   "\"auto-finalize\": true, \"auto-dismiss\": true, "
		   "\"actively-synced\": true}");
}

static void
members_stand_where_the_header_says(void **state)
{
	struct BlockdevOptions *o = good(&BlockdevOptions_meta, chain);

	assert_int_equal(o->driver, BLOCKDEV_DRIVER_QCOW2);
	assert_string_equal(o->node_name, "a");
	assert_true(o->cache->has_direct && o->cache->direct);
	assert_false(o->cache->has_no_flush);
	assert_true(o->has_read_only && !o->read_only);
	assert_false(o->has_discard);
	assert_int_equal(o->u.qcow2.file->type, BLOCKDEV_REF_DEFINITION);
	assert_string_equal(o->u.qcow2.file->u.definition.u.file.filename, "/x");
	assert_int_equal(o->u.qcow2.backing->type, BLOCKDEV_REF_OR_NULL_DEFINITION);
	assert_string_equal(
		o->u.qcow2.backing->u.definition.u.raw.file->u.reference, "b");
	assert_int_equal(o->u.qcow2.overlap_check->type, QCOW2_OVERLAP_CHECKS_FLAGS);
	assert_null(o->u.qcow2.encrypt);
	assert_int_equal(o->u.qcow2.cache_size, -1);
	assert_string_equal(BlockdevDriver_str(o->driver), "qcow2");
	BlockdevOptions_free(o);
}

static void
a_difference_is_seen(void **state)
{
	struct BlockdevOptions *a = good(&BlockdevOptions_meta, chain);
	struct BlockdevOptions *b = BlockdevOptions_clone(a);

	b->u.qcow2.file->u.definition.u.file.filename[0] = 'y';
	assert_false(meta_equal(&BlockdevOptions_meta, a, b));
	BlockdevOptions_free(b);
	b = BlockdevOptions_clone(a);
	b->cache->has_no_flush = true;
	assert_false(meta_equal(&BlockdevOptions_meta, a, b));
	BlockdevOptions_free(a);
	BlockdevOptions_free(b);
}

static void
lists_grow(void **state)
{
	struct CommandInfoList *l = calloc(1, sizeof(*l));
	CLEANUP(cleanup_free) char *text = NULL;

	for (int i = 0; i < 5; i++) {
		struct CommandInfo *c = calloc(1, sizeof(*c));

		c->name = strdup("x");
		assert_int_equal(CommandInfoList_add(l, c), 0);
	}
	assert_int_equal(l->count, 5);
	l->count = 2;
	for (int i = 2; i < 5; i++)
		CommandInfo_free(l->items[i]);
	text = text_of(&CommandInfoList_meta, l);
	assert_string_equal(text, "[{\"name\": \"x\"}, {\"name\": \"x\"}]");
	CommandInfoList_free(l);
}

static void
bad_nodes_get_qemus_texts(void **state)
{
	const struct meta *t = &BlockdevOptions_meta;

	bad(t, "[]", "Invalid parameter type for '<anonymous>', expected: object");
	bad(t, "{}", "Parameter 'driver' is missing");
	bad(t, "{\"driver\":1}",
	    "Invalid parameter type for 'driver', expected: string");
	bad(t, "{\"driver\":\"foo\"}",
	    "Parameter 'driver' does not accept value 'foo'");
	bad(t, "{\"driver\":\"file\"}", "Parameter 'filename' is missing");
	bad(t, "{\"driver\":\"file\",\"filename\":\"x\",\"foo\":1}",
	    "Parameter 'foo' is unexpected");
	bad(t, "{\"driver\":\"raw\",\"file\":1}",
	    "Invalid parameter type for 'file', expected: BlockdevRef");
	bad(t, "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\"}}",
	    "Parameter 'file.filename' is missing");
	bad(t, "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":null}}",
	    "Invalid parameter type for 'file.filename', expected: string");
	bad(t, "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/\","
	       "\"z\":1}}", "Parameter 'file.z' is unexpected");
	bad(t, "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/\","
	       "\"aio\":\"foo\"}}", "Parameter 'aio' does not accept value 'foo'");
	bad(t, "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/\","
	       "\"cache\":{\"direct\":\"on\"}}}",
	    "Invalid parameter type for 'file.cache.direct', expected: boolean");
	bad(t, "{\"driver\":\"qcow2\",\"file\":\"x\",\"overlap-check\":\"zz\"}",
	    "Parameter 'overlap-check' does not accept value 'zz'");
	bad(t, "{\"driver\":\"qcow2\",\"file\":\"x\",\"backing\":[]}",
	    "Invalid parameter type for 'backing', expected: BlockdevRefOrNull");
	bad(t, "{\"driver\":\"qcow2\",\"file\":\"x\",\"encrypt\":{\"format\":\"q\"}}",
	    "Parameter 'format' does not accept value 'q'");
}

static void
numbers_are_checked_as_qemu_checks_them(void **state)
{
	const struct meta *t = &BlockdevOptions_meta;
	struct BlockdevOptions *o;

	bad(t, "{\"driver\":\"raw\",\"offset\":\"1\",\"file\":\"x\"}",
	    "Invalid parameter type for 'offset', expected: integer");
	bad(t, "{\"driver\":\"raw\",\"offset\":1.0,\"file\":\"x\"}",
	    "Invalid parameter type for 'offset', expected: integer");
	bad(t, "{\"driver\":\"raw\",\"offset\":18446744073709551615,\"file\":\"x\"}",
	    "Invalid parameter type for 'offset', expected: integer");
	bad(t, "{\"driver\":\"null-co\",\"latency-ns\":1.5}",
	    "Parameter 'latency-ns' expects uint64");
	bad(t, "{\"driver\":\"copy-before-write\",\"file\":\"a\",\"target\":\"b\","
	       "\"cbw-timeout\":4294967296}",
	    "Parameter 'cbw-timeout' expects uint32_t");
	bad(t, "{\"driver\":\"copy-before-write\",\"file\":\"a\",\"target\":\"b\","
	       "\"cbw-timeout\":-1}", "Parameter 'cbw-timeout' expects uint32_t");
	bad(&BlockdevCreateOptions_meta,
	    "{\"driver\":\"file\",\"filename\":\"x\",\"size\":\"1G\"}",
	    "Parameter 'size' expects uint64");
	bad(&InetSocketAddress_meta, "{\"host\":\"\",\"port\":\"1\",\"to\":70000}",
	    "Parameter 'to' expects uint16_t");
	/* A negative number is taken for its two's complement. */
	o = good(t, "{\"driver\":\"null-co\",\"latency-ns\":-1}");
	assert_true(o->u.null_co.latency_ns == UINT64_MAX);
	BlockdevOptions_free(o);
}

static void
bad_lists_get_qemus_texts(void **state)
{
	const struct meta *t = &BlockExportOptions_meta;

#define EXPORT(x) "{\"type\":\"nbd\",\"id\":\"a\",\"node-name\":\"x\",\"bitmaps\":" x "}"
	bad(t, EXPORT("[1]"),
	    "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr");
	bad(t, EXPORT("[\"a\",{\"node\":1}]"),
	    "Invalid parameter type for 'bitmaps[1].node', expected: string");
	bad(t, EXPORT("{}"),
	    "Invalid parameter type for 'bitmaps', expected: array");
	bad(t, EXPORT("[{\"node\":\"x\",\"name\":\"n\",\"q\":1}]"),
	    "Parameter 'bitmaps[0].q' is unexpected");
	bad(&qmp_capabilities_args_meta, "{\"enable\":[\"foo\"]}",
	    "Parameter 'null' does not accept value 'foo'");
	bad(&qmp_capabilities_args_meta, "{\"enable\":[1]}",
	    "Invalid parameter type for 'enable[0]', expected: string");
}

static void
nesting_is_bounded(void **state)
{
	CLEANUP(buf_done) struct buf b = { 0 };
	struct json_object *tree;
	CLEANUP(error_freep) struct error *err = NULL;
	struct json_tokener *tok = json_tokener_new_ex(2000);
	void *p;

	for (int i = 0; i < 500; i++)
		buf_adds(&b, "{\"driver\":\"raw\",\"file\":");
	buf_adds(&b, "\"x\"");
	for (int i = 0; i < 500; i++)
		buf_adds(&b, "}");
	tree = json_tokener_parse_ex(tok, b.data, (int)b.len);
	json_tokener_free(tok);
	assert_non_null(tree);
	assert_int_equal(decode(&BlockdevOptions_meta, tree, DECODE_JSON, &p, &err), -1);
	assert_non_null(strstr(error_text(err), "is nested too deeply"));
	json_object_put(tree);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_decoded_is_encoded_alike),
		cmocka_unit_test(members_stand_where_the_header_says),
		cmocka_unit_test(a_difference_is_seen),
		cmocka_unit_test(lists_grow),
		cmocka_unit_test(bad_nodes_get_qemus_texts),
		cmocka_unit_test(numbers_are_checked_as_qemu_checks_them),
		cmocka_unit_test(bad_lists_get_qemus_texts),
		cmocka_unit_test(nesting_is_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
