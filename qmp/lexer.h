/* SPDX-License-Identifier: Apache-2.0 */
/* qmp/lexer.h - JSON's tokens out of a stream of bytes, as QEMU takes them:
 * strings in single or double quotes, and a way back into step after junk.
 *
 * After bytes that fit nowhere comes one TOKEN_ERROR with those bytes; then
 * everything up to the next structural character or control character (but not
 * the tabulator) is skipped.
 */
#ifndef QMP_LEXER_H
#define QMP_LEXER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

enum token {
	TOKEN_NONE,	/* more bytes are needed */
	TOKEN_LCURLY,
	TOKEN_RCURLY,
	TOKEN_LSQUARE,
	TOKEN_RSQUARE,
	TOKEN_COLON,
	TOKEN_COMMA,
	TOKEN_INTEGER,
	TOKEN_FLOAT,
	TOKEN_KEYWORD,
	TOKEN_STRING,
	TOKEN_ERROR,
};

struct lexer {
	unsigned state;
	char quote;
	struct buf text;	/* of the token at hand */
};

/* Take bytes from *at up to the end of a token, or all up to end.  The token's
 * text is in lx->text until the next call. */
enum token lexer_next(struct lexer *lx, const char **at, const char *end);

/* There are no more bytes: the token that only waited for its end. */
enum token lexer_end(struct lexer *lx);

#endif
