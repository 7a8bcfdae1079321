/* SPDX-License-Identifier: Apache-2.0 */
/* Options of the command line.  The expected texts are those of
 * qemu-storage-daemon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "qmp/keyval.h"
#include "schema/encode.h"
#include "schema/types.h"

static void
check(const struct meta *type, const char *implied, const char *text,
      const char *expected)
{
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(buf_done) struct buf out = { 0 };
	void *p = NULL;

	if (keyval_decode(type, text, implied, &p, &err) < 0)
		buf_adds(&out, error_text(err));
	else
		encode_value(&out, type, p);
	meta_free(type, p);
	assert_string_equal(out.data, expected);
}

static void
node(const char *text, const char *expected)
{
	check(&BlockdevOptions_meta, "driver", text, expected);
}

static void
export(const char *text, const char *expected)
{
	check(&BlockExportOptions_meta, "type", text, expected);
}

static void
good_text_is_decoded(void **state)
{
	node("null-co,node-name=a,size=0x10,read-zeroes=y",
	     "{\"driver\": \"null-co\", \"node-name\": \"a\", \"size\": 16, "
	     "\"read-zeroes\": true}");
	node("raw,file.driver=file,file.filename=/a,,b,=c,file.cache.direct=on",
	     "Invalid parameter ''");
	node("raw,file.driver=file,file.filename=/a,,b=c,file.cache.direct=on",
	     "{\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"cache\": "
	     "{\"direct\": true}, \"filename\": \"/a,b=c\"}}");
	node("null-co,node-name=a,node-name=b",
	     "{\"driver\": \"null-co\", \"node-name\": \"b\"}");
	node("{'driver':'null-co','node-name':'a'}",
	     "{\"driver\": \"null-co\", \"node-name\": \"a\"}");
	node("copy-before-write,file=a,target=b,min-cluster-size=1.5k",
	     "{\"driver\": \"copy-before-write\", \"file\": \"a\", "
	     "\"target\": \"b\", \"min-cluster-size\": 1536}");
	export("nbd,id=a,node-name=x,bitmaps.0=a,bitmaps.1.node=n,bitmaps.1.name=m",
	       "{\"type\": \"nbd\", \"id\": \"a\", \"node-name\": \"x\", "
	       "\"bitmaps\": [\"a\", {\"node\": \"n\", \"name\": \"m\"}]}");
}

static void
bad_values_get_qemus_texts(void **state)
{
	static const char integer[] = "Parameter 'size' expects integer";

	node("null-co,node-name=a,size=1G", integer);
	node("null-co,node-name=a,size=", integer);
	node("null-co,node-name=a,size=99999999999999999999", integer);
	node("null-co,node-name=a,latency-ns=x",
	     "Parameter 'latency-ns' expects integer");
	node("null-co,read-zeroes=1",
	     "Parameter 'read-zeroes' expects 'on' or 'off'");
	node("raw,file.driver=null-co,file.cache.direct=z",
	     "Parameter 'file.cache.direct' expects 'on' or 'off'");
	node("raw,file.driver=null-co,file.cache=z",
	     "Invalid parameter type for 'file.cache', expected: object");
	node("raw,file.0=x",
	     "Invalid parameter type for 'file', expected: BlockdevRef");
	node("qcow2,file=x,overlap-check.template=zz",
	     "Parameter 'template' does not accept value 'zz'");
	node("copy-before-write,file=a,target=b,min-cluster-size=1Z",
	     "Parameter 'min-cluster-size' expects size");
	node("copy-before-write,file=a,target=b,cbw-timeout=99999999999",
	     "Parameter 'cbw-timeout' expects uint32_t");
	node("null-co,size.x=1", "Parameters 'size.*' are unexpected");
	node("file", "Parameter 'filename' is missing");
	node("node-name=a", "Parameter 'driver' is missing");
	node("", "Parameter 'driver' is missing");
	node("raw,file.driver=null-co,file.zz=1", "Parameter 'file.zz' is unexpected");
	node("[1]", "Parameter 'driver' does not accept value '[1]'");
}

static void
bad_keys_get_qemus_texts(void **state)
{
	static const char twice[] = "Parameters 'file.*' used inconsistently";

	node("null-co,read-zeroes", "Expected '=' after parameter 'read-zeroes'");
	node("raw,file.driver=file,file=x", twice);
	node("raw,file=x,file.driver=file", twice);
	node("raw,fi,,le=x", "Expected '=' after parameter 'fi'");
	node("help", "Help is not available for this option");
	node("raw,?", "Help is not available for this option");
	node("raw,=x", "Invalid parameter ''");
	node("=x", "Invalid parameter ''");
	node(",", "Invalid parameter ''");
	node("raw,file..x=1", "Invalid parameter 'file..x'");
	node("raw,.x=1", "Invalid parameter '.x'");
	node("raw,x.=1", "Invalid parameter 'x.'");
	node("raw,1=1", "Invalid parameter '1'");
	node(" {\"driver\":\"null-co\",\"node-name\":\"f\"}",
	     "Invalid parameter '\"node-name\":\"f\"}'");
	check(&NbdServerOptions_meta, NULL, "foo",
	      "Expected '=' after parameter 'foo'");
}

static void
bad_lists_get_qemus_texts(void **state)
{
	static const char array[] =
		"Invalid parameter type for 'bitmaps', expected: array";

	export("type=nbd,id=a,node-name=x,bitmaps.1=a", "Parameter 'bitmaps.0' missing");
	export("type=nbd,id=a,node-name=x,bitmaps=a", array);
	export("type=nbd,id=a,node-name=x,bitmaps.x=a", array);
	export("type=nbd,id=a,node-name=x,bitmaps.0.node=a",
	       "Parameter 'bitmaps.0.name' is missing");
	export("type=nbd,id=a,node-name=x,bitmaps.0.node=a,bitmaps.0.name=b,"
	       "bitmaps.0.z=b", "Parameter 'bitmaps.0.z' is unexpected");
	export("type=nbd,id=a,node-name=x,bitmaps.99999999999=a",
	       "Parameter 'bitmaps.0' missing");
	export("type=nbd,id=a,node-name=x,bitmaps.0=a,bitmaps.x=a",
	       "Parameters 'bitmaps.*' used inconsistently");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_text_is_decoded),
		cmocka_unit_test(bad_values_get_qemus_texts),
		cmocka_unit_test(bad_keys_get_qemus_texts),
		cmocka_unit_test(bad_lists_get_qemus_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
