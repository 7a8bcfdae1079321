/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a client: the stream parser, and the decoders of all commands.
 *
 * What the parser takes must come out of json_write() as a text that it takes
 * again and writes alike; what a decoder takes must survive encoding. */
#include <json-c/json.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "qmp/json.h"
#include "qmp/keyval.h"
#include "schema/arguments.h"
#include "schema/decode.h"
#include "schema/encode.h"
#include "schema/types.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_rewrite(struct json_object *tree)
{
	CLEANUP(buf_done) struct buf once = { 0 };
	CLEANUP(buf_done) struct buf twice = { 0 };
	struct json_object *again = NULL;

	json_write(&once, tree);
	if (json_parse(once.data, &again, NULL) < 0)
		abort();
	json_write(&twice, again);
	json_free(again);
	if (strcmp(once.data, twice.data) != 0)
		abort();
}

static void
check_args(struct json_object *tree)
{
	struct json_object *name, *args;
	const struct meta *type;
	CLEANUP(buf_done) struct buf text = { 0 };
	CLEANUP(error_freep) struct error *err = NULL;
	void *p, *copy;

	if (!json_object_is_type(tree, json_type_object) ||
	    !json_object_object_get_ex(tree, "execute", &name) ||
	    !json_object_object_get_ex(tree, "arguments", &args) ||
	    !json_object_is_type(name, json_type_string) ||
	    !arguments_of(json_object_get_string(name), &type) || !type ||
	    decode(type, args, DECODE_JSON, &p, &err) < 0)
		return;
	copy = meta_clone(type, p);
	if (!meta_equal(type, p, copy))
		abort();
	encode_value(&text, type, copy);
	meta_free(type, p);
	meta_free(type, copy);
}

static void
check_option(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	void *p;

	memcpy(text, data, size);
	text[size] = '\0';
	if (keyval_decode(&BlockdevOptions_meta, text, "driver", &p, NULL) == 0)
		meta_free(&BlockdevOptions_meta, p);
	free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct json_parser *p = json_parser_new();
	const char *at = (const char *)data, *end = at + size;

	while (at < end) {
		struct json_object *tree = NULL;

		if (json_parser_next(p, &at, end, &tree, NULL) != 1)
			continue;
		check_rewrite(tree);
		check_args(tree);
		json_free(tree);
	}
	json_parser_free(p);
	check_option(data, size);
	return 0;
}
