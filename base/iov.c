/* SPDX-License-Identifier: Apache-2.0 */
#include "base/iov.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* Find the piece that holds byte *off of v, and make *off relative to it. */
static int
seek(const struct iov *v, size_t *off)
{
	int i = 0;

	while (i < v->count && *off >= v->vec[i].iov_len)
		*off -= v->vec[i++].iov_len;
	return i;
}

int
iov_part(struct iov_part *part, const struct iov *src, size_t off, size_t len)
{
	size_t skip = off, end = off + len;
	int first, last;

	assert(range_within(off, len, src->len));
	part->big = NULL;
	part->iov = (struct iov){ .vec = part->small, .count = 0, .len = len };
	if (!len)
		return 0;
	first = seek(src, &skip);
	end--;
	last = seek(src, &end);
	if (last - first >= IOV_SMALL) {
		part->big = malloc((size_t)(last - first + 1) * sizeof(struct iovec));
		if (!part->big)
			return -ENOMEM;
		part->iov.vec = part->big;
	}
	for (int i = first; i <= last; i++) {
		struct iovec *to = &part->iov.vec[part->iov.count++];

		to->iov_base = (char *)src->vec[i].iov_base + skip;
		to->iov_len = min_u64(src->vec[i].iov_len - skip, len);
		len -= to->iov_len;
		skip = 0;
	}
	return 0;
}

void
iov_part_done(struct iov_part *part)
{
	free(part->big);
	part->big = NULL;
}

/* Call do_piece for each stretch of [off, off + len), in order. */
#define FOR_PIECES(v, off, len, base, n, body)                                 \
	do {                                                                   \
		size_t skip_ = (off), left_ = (len);                           \
		assert(range_within((off), (len), (v)->len));                  \
		for (int i_ = seek((v), &skip_); left_; i_++, skip_ = 0) {     \
			char *base = (char *)(v)->vec[i_].iov_base + skip_;    \
			size_t n = min_u64((v)->vec[i_].iov_len - skip_, left_); \
			body;                                                  \
			left_ -= n;                                            \
		}                                                              \
	} while (0)

void
iov_read(const struct iov *v, size_t off, void *to, size_t len)
{
	char *out = to;

	FOR_PIECES(v, off, len, base, n, { memcpy(out, base, n); out += n; });
}

void
iov_write(const struct iov *v, size_t off, const void *from, size_t len)
{
	const char *in = from;

	FOR_PIECES(v, off, len, base, n, { memcpy(base, in, n); in += n; });
}

void
iov_fill(const struct iov *v, size_t off, int byte, size_t len)
{
	FOR_PIECES(v, off, len, base, n, memset(base, byte, n));
}

bool
iov_is_zero(const struct iov *v)
{
	for (int i = 0; i < v->count; i++)
		if (!bytes_are_zero(v->vec[i].iov_base, v->vec[i].iov_len))
			return false;
	return true;
}

bool
iov_is_aligned(const struct iov *v, size_t align)
{
	for (int i = 0; i < v->count; i++)
		if (!is_aligned((uintptr_t)v->vec[i].iov_base | v->vec[i].iov_len, align))
			return false;
	return true;
}

void *
iov_alloc(size_t align, size_t len)
{
	void *p;

	return posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align,
			      len ? len : align)
		       ? NULL
		       : p;
}
