/* SPDX-License-Identifier: Apache-2.0 */
/* base/buf.h - text that grows.
 *
 * Additions never report failure; the first one that found no memory marks the
 * buffer as failed and later ones do nothing, so that whoever uses the text
 * looks once, at the end.  data always ends with a zero byte that len does not
 * count, unless nothing was ever added.
 *
 * Context    any thread; a buffer belongs to one at a time.
 */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
	char *data;
	size_t len, cap;
	bool failed;
};

void buf_add(struct buf *b, const void *data, size_t len);
void buf_adds(struct buf *b, const char *s);
void buf_addc(struct buf *b, char c);
void buf_addf(struct buf *b, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Drop n bytes at the front. */
void buf_consume(struct buf *b, size_t n);

/* Empty, but keep the memory; clears failed. */
void buf_reset(struct buf *b);

void buf_done(struct buf *b);	/* frees what b owns; for CLEANUP, too */

#endif
