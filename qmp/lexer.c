/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/lexer.h"

enum state {
	START,
	STRING,		/* within quotes */
	ESCAPE,		/* behind a backslash */
	KEYWORD,
	MINUS,
	ZERO,		/* a zero that is the whole integer so far */
	DIGITS,
	POINT,		/* behind the decimal point */
	FRACTION,
	EXPONENT,	/* behind the e */
	EXPONENT_SIGN,
	EXPONENT_DIGITS,
	RECOVERY,
	DONE = 0x100,	/* | token: the byte belongs to it */
	AHEAD = 0x200,	/* | token: the byte does not */
};

static bool
is_digit(unsigned char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_space(unsigned char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static enum token
structural(unsigned char c)
{
	switch (c) {
	case '{': return TOKEN_LCURLY;
	case '}': return TOKEN_RCURLY;
	case '[': return TOKEN_LSQUARE;
	case ']': return TOKEN_RSQUARE;
	case ':': return TOKEN_COLON;
	case ',': return TOKEN_COMMA;
	default: return TOKEN_NONE;
	}
}

static unsigned
step_start(struct lexer *lx, unsigned char c)
{
	if (structural(c))
		return DONE | structural(c);
	if (c == '"' || c == '\'') {
		lx->quote = (char)c;
		return STRING;
	}
	if (c == '-')
		return MINUS;
	if (c == '0')
		return ZERO;
	if (is_digit(c))
		return DIGITS;
	if (c >= 'a' && c <= 'z')
		return KEYWORD;
	return is_space(c) ? START : DONE | TOKEN_ERROR;
}

static unsigned
step_string(struct lexer *lx, unsigned char c)
{
	if (c < ' ' || c >= 0xfe)
		return DONE | TOKEN_ERROR;
	if (lx->state == ESCAPE)
		return STRING;
	if (c == (unsigned char)lx->quote)
		return DONE | TOKEN_STRING;
	return c == '\\' ? ESCAPE : STRING;
}

static unsigned
step_number(unsigned state, unsigned char c)
{
	bool digit = is_digit(c), e = c == 'e' || c == 'E';

	switch (state) {
	case MINUS:
		return c == '0' ? ZERO : digit ? DIGITS : DONE | TOKEN_ERROR;
	case ZERO:
		if (digit)
			return DONE | TOKEN_ERROR;
		__attribute__((fallthrough));
	case DIGITS:
		if (digit)
			return DIGITS;
		return c == '.' ? POINT : e ? EXPONENT : AHEAD | TOKEN_INTEGER;
	case POINT:
		return digit ? FRACTION : DONE | TOKEN_ERROR;
	case FRACTION:
		return digit ? FRACTION : e ? EXPONENT : AHEAD | TOKEN_FLOAT;
	case EXPONENT:
		if (c == '+' || c == '-')
			return EXPONENT_SIGN;
		__attribute__((fallthrough));
	case EXPONENT_SIGN:
		return digit ? EXPONENT_DIGITS : DONE | TOKEN_ERROR;
	default:
		return digit ? EXPONENT_DIGITS : AHEAD | TOKEN_FLOAT;
	}
}

static unsigned
step(struct lexer *lx, unsigned char c)
{
	switch (lx->state) {
	case START:
		return step_start(lx, c);
	case STRING:
	case ESCAPE:
		return step_string(lx, c);
	case KEYWORD:
		return c >= 'a' && c <= 'z' ? KEYWORD : AHEAD | TOKEN_KEYWORD;
	case RECOVERY:
		/* Line ends and structure are likely places to find back into
		 * step; a client may also send 0xff to get there. */
		if ((c < ' ' && c != '\t') || c >= 0xfe || structural(c))
			return AHEAD | TOKEN_NONE;
		return RECOVERY;
	default:
		return step_number(lx->state, c);
	}
}

static enum token
finish(struct lexer *lx, enum token token)
{
	lx->state = token == TOKEN_ERROR ? RECOVERY : START;
	return token;
}

enum token
lexer_next(struct lexer *lx, const char **at, const char *end)
{
	if (lx->state == START || lx->state == RECOVERY)
		buf_reset(&lx->text);
	while (*at < end) {
		unsigned next = step(lx, (unsigned char)**at);

		if (next & AHEAD) {
			enum token token = finish(lx, next & 0xff);

			if (token != TOKEN_NONE)
				return token;
			continue;
		}
		if (next != RECOVERY && next != START)
			buf_add(&lx->text, *at, 1);
		++*at;
		if (next & DONE)
			return finish(lx, next & 0xff);
		lx->state = next;
	}
	return TOKEN_NONE;
}

enum token
lexer_end(struct lexer *lx)
{
	static const char newline[] = "\n";
	const char *at = newline;

	return lexer_next(lx, &at, newline + 1);
}
