/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/json.h - JSON texts into trees of json-c and back, as QEMU takes and
 * writes them.
 *
 * Besides JSON proper, strings may stand in single quotes.  What QEMU refuses
 * is refused with its texts: a key that comes twice, invalid UTF-8, surrogates
 * without a partner, noncharacters; and nesting deeper than JSON_MAX_DEPTH, a
 * text of more than JSON_MAX_SIZE bytes or JSON_MAX_TOKENS tokens.
 *
 * Trees may be deep: free them with json_free(), and write them with
 * json_write(), for those do not recurse; json-c's own functions do.
 *
 * Context    any thread; a parser belongs to one at a time.
 */
#ifndef QMP_JSON_H
#define QMP_JSON_H

#include <stddef.h>

struct buf;
struct error;
struct json_object;
struct json_parser;

enum {
	JSON_MAX_DEPTH = 1024,
	JSON_MAX_TOKENS = 2 << 20,
	JSON_MAX_SIZE = 64 << 20,
};

struct json_parser *json_parser_new(void);	/* NULL: out of memory */
void json_parser_free(struct json_parser *p);	/* takes NULL */

/* Take bytes from *at up to the end of a text, or all up to end.  1 with a
 * tree (NULL is JSON's null), -1 with *errp for a text that is broken, after
 * which the next may follow; 0: more bytes are needed. */
int json_parser_next(struct json_parser *p, const char **at, const char *end,
		     struct json_object **ret, struct error **errp);

/* Exactly one text.  0 or -1. */
int json_parse(const char *text, struct json_object **ret, struct error **errp);

void json_free(struct json_object *tree);	/* takes NULL */
void json_freep(struct json_object **tree);	/* for CLEANUP */

void json_write(struct buf *out, struct json_object *tree);

/* Lay a text that json_write() or schema/encode.h made out over lines. */
void json_pretty(struct buf *out, const char *text);

#endif
