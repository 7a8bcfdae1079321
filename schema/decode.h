/* SPDX-License-Identifier: Apache-2.0 */
/* schema/decode.h - JSON trees into values of the schema's types.
 *
 * Decoding is strict: every mandatory member, no unknown one, exact types.
 * Error texts are QEMU's.  Two roads lead here: JSON proper, and key=value
 * text (qmp/keyval.h), whose leaves are all strings.
 *
 * Context    any thread; uses some stack, so nesting is limited to
 *            DECODE_DEPTH objects and arrays.
 * Ownership  the tree is borrowed, *ret is the caller's: meta_free().
 */
#ifndef SCHEMA_DECODE_H
#define SCHEMA_DECODE_H

struct error;
struct json_object;
struct meta;

enum { DECODE_DEPTH = 100 };

enum decode_road {
	DECODE_JSON,
	DECODE_KEYVAL,	/* leaves are strings: "on", "1k", ... */
};

/* type: a struct or alternate.  0, or -1 with *errp. */
int decode(const struct meta *type, struct json_object *tree,
	   enum decode_road road, void **ret, struct error **errp);

#endif
