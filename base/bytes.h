/* SPDX-License-Identifier: Apache-2.0 */
/* base/bytes.h - integers in byte strings, rounding, overflow-safe sums.
 *
 * get_/put_ work at any alignment.  Rounding is to a power of two.
 */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define BYTES_ACCESS(name, type, from, to)                                     \
	static inline type get_##name(const void *p)                           \
	{                                                                      \
		type v;                                                        \
		memcpy(&v, p, sizeof(v));                                      \
		return from(v);                                                \
	}                                                                      \
	static inline void put_##name(void *p, type v)                         \
	{                                                                      \
		v = to(v);                                                     \
		memcpy(p, &v, sizeof(v));                                      \
	}

BYTES_ACCESS(be16, uint16_t, be16toh, htobe16)
BYTES_ACCESS(be32, uint32_t, be32toh, htobe32)
BYTES_ACCESS(be64, uint64_t, be64toh, htobe64)
BYTES_ACCESS(le16, uint16_t, le16toh, htole16)
BYTES_ACCESS(le32, uint32_t, le32toh, htole32)
BYTES_ACCESS(le64, uint64_t, le64toh, htole64)

#undef BYTES_ACCESS

static inline bool
is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

static inline uint64_t
round_down(uint64_t v, uint64_t align)
{
	return v & ~(align - 1);
}

/* The caller knows that v + align - 1 does not overflow. */
static inline uint64_t
round_up(uint64_t v, uint64_t align)
{
	return (v + align - 1) & ~(align - 1);
}

static inline bool
is_aligned(uint64_t v, uint64_t align)
{
	return !(v & (align - 1));
}

static inline uint64_t
div_up(uint64_t v, uint64_t by)
{
	return v / by + !!(v % by);
}

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Do [a, a + alen) and [b, b + blen) share a byte?  Neither end overflows. */
static inline bool
ranges_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return alen && blen && a < b + blen && b < a + alen;
}

/* Is [off, off + len) within [0, size)?  Safe for any values. */
static inline bool
range_within(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

/* True if all of buf is zero. */
bool bytes_are_zero(const void *buf, size_t len);

#endif
