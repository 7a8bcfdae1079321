/* SPDX-License-Identifier: Apache-2.0 */
/* base/iov.h - scatter-gather views of memory, which carry their own length.
 *
 * A struct iov names memory, it does not own it.  The
 * common view of one piece costs no allocation: IOV_BUF().
 *
 * Units      bytes.
 * Context    any thread.
 * Errors     -ENOMEM only, where a function says that it returns int.
 */
#ifndef BASE_IOV_H
#define BASE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct iov {
	struct iovec *vec;
	int count;
	size_t len;	/* the sum over vec */
};

/* A view of one piece of memory, for the length of the enclosing block:
 *	struct iov v = IOV_BUF(buf, len); */
#define IOV_BUF(buf, length)                                                   \
	{                                                                      \
		.vec = &(struct iovec){ (void *)(buf), (length) }, .count = 1, \
		.len = (length)                                                \
	}

/* A part of another view: pieces live in small, or in big where more than
 * IOV_SMALL are needed.  Free with iov_part_done(). */
enum { IOV_SMALL = 4 };
struct iov_part {
	struct iov iov;
	struct iovec small[IOV_SMALL];
	struct iovec *big;
};

/* Make *part the view of src's bytes [off, off + len).  -ENOMEM or 0; the
 * range must lie within src.  *part must not be moved afterwards. */
int iov_part(struct iov_part *part, const struct iov *src, size_t off, size_t len);
void iov_part_done(struct iov_part *part);	/* takes one that is all zero bytes */

/* Copy between a view at off and plain memory; the range lies within. */
void iov_read(const struct iov *v, size_t off, void *to, size_t len);
void iov_write(const struct iov *v, size_t off, const void *from, size_t len);
void iov_fill(const struct iov *v, size_t off, int byte, size_t len);

bool iov_is_zero(const struct iov *v);

/* Does each piece start at, and span, a multiple of align (a power of two)? */
bool iov_is_aligned(const struct iov *v, size_t align);

/* Memory for I/O, aligned to align (a power of two, >= 8); NULL on no memory.
 * Released by free(). */
void *iov_alloc(size_t align, size_t len);

#endif
