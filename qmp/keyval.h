/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/keyval.h - key=value text, as command lines have it, into JSON trees.
 *
 *   driver=qcow2,node-name=a,file.driver=file,file.filename=x,,y
 *
 * Keys are paths; a part that is a number is an index of an array.  A comma in
 * a value is doubled.  All leaves are strings; decode them with DECODE_KEYVAL.
 *
 * Context    any thread.
 */
#ifndef QMP_KEYVAL_H
#define QMP_KEYVAL_H

struct error;
struct json_object;
struct meta;

/* implied: the key of a first part that has no '='; NULL: there must be one.
 * 0 with a tree (an object) that the caller owns, or -1. */
int keyval_parse(const char *text, const char *implied, struct json_object **ret,
		 struct error **errp);

/* What an option of the command line says, JSON if it begins with '{', else
 * key=value, into a value of the schema's type: 0, or -1 with *errp. */
int keyval_decode(const struct meta *type, const char *text, const char *implied,
		  void **ret, struct error **errp);

#endif
