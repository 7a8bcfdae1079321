/* SPDX-License-Identifier: Apache-2.0 */
/* cli/member.h - JSON that is printed as it comes, so that it takes no memory.
 *
 * Errors     of the stream, for whoever prints to ask: ferror().
 */
#ifndef CLI_MEMBER_H
#define CLI_MEMBER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct member_out {
	FILE *to;
	unsigned depth;
	bool filled;	/* there is something in the innermost object or array */
};

/* An object ("{}") or array ("[]"), which is open until its end.  name: NULL in an array,
 * and for what is in nothing; of the others too. */
void member_begin(struct member_out *out, const char *name, const char *kind);
void member_end(struct member_out *out, const char *kind);

/* File names are bytes, JSON is UTF-8: what is none becomes a question mark. */
void member_text(struct member_out *out, const char *name, const char *text);
void member_number(struct member_out *out, const char *name, uint64_t n);
void member_bool(struct member_out *out, const char *name, bool b);
void member_seconds(struct member_out *out, const char *name, double seconds);

#endif
