/* SPDX-License-Identifier: Apache-2.0 */
/* Level 0 holds one bit a granule.  A bit of level k + 1 is set exactly while
 * the word of level k that it stands for is not zero.  The top level is one
 * word.  All levels lie in one piece of memory, level 0 first. */
#include "base/bitmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"

enum { WORD_BITS = 64, WORD_SHIFT = 6, LEVELS_MAX = 11, GRANULES_SHIFT_MAX = 34 };

struct bitmap {
	uint64_t size, count;	/* count: granules set */
	unsigned shift;		/* of the granularity */
	unsigned levels;
	uint64_t granules;
	uint64_t *level[LEVELS_MAX];
	uint64_t words[];
};

int
bitmap_new(uint64_t size, uint64_t granularity, struct bitmap **ret_bitmap)
{
	unsigned shift = (unsigned)__builtin_ctzll(granularity), levels = 0;
	uint64_t granules = (size >> shift) + !!(size & (granularity - 1));
	uint64_t total = 0, words[LEVELS_MAX], bits = granules;
	struct bitmap *b;

	assert(is_pow2(granularity));
	do {
		bits = max_u64(div_up(bits, WORD_BITS), 1);
		words[levels++] = bits;
		total += bits;
	} while (bits > 1);
	if (granules >> GRANULES_SHIFT_MAX)
		return -ENOMEM;
	b = calloc(1, sizeof(*b) + total * sizeof(uint64_t));
	if (!b)
		return -ENOMEM;
	b->size = size;
	b->shift = shift;
	b->granules = granules;
	b->levels = levels;
	b->level[0] = b->words;
	for (unsigned i = 1; i < levels; i++)
		b->level[i] = b->level[i - 1] + words[i - 1];
	*ret_bitmap = b;
	return 0;
}

void
bitmap_free(struct bitmap *b)
{
	free(b);
}

/* Words of a level; the top one is a single word. */
static uint64_t
words_of(const struct bitmap *b, unsigned level)
{
	return level + 1 < b->levels ? (uint64_t)(b->level[level + 1] - b->level[level]) : 1;
}

static uint64_t
granules_of(const struct bitmap *b, uint64_t size)
{
	return (size >> b->shift) + !!(size & (((uint64_t)1 << b->shift) - 1));
}

uint64_t
bitmap_size(const struct bitmap *b)
{
	return b->size;
}

uint64_t
bitmap_granularity(const struct bitmap *b)
{
	return (uint64_t)1 << b->shift;
}

/* Word w of a level became zero, or no longer is. */
static void
tell_above(struct bitmap *b, uint64_t w, bool set)
{
	for (unsigned i = 1; i < b->levels; i++) {
		uint64_t *word = &b->level[i][w >> WORD_SHIFT], before = *word;
		uint64_t bit = (uint64_t)1 << (w & (WORD_BITS - 1));

		*word = set ? before | bit : before & ~bit;
		if (set ? before != 0 : *word != 0)
			return;
		w >>= WORD_SHIFT;
	}
}

/* The bits of word w that lie within granules [first, last]. */
static uint64_t
mask_of(uint64_t w, uint64_t first, uint64_t last)
{
	uint64_t mask = ~(uint64_t)0;

	if (w == first >> WORD_SHIFT)
		mask <<= first & (WORD_BITS - 1);
	if (w == last >> WORD_SHIFT)
		mask &= ~(uint64_t)0 >> (WORD_BITS - 1 - (last & (WORD_BITS - 1)));
	return mask;
}

/* Bytes that n granules stand for; tail: the last granule is one of them. */
static uint64_t
bytes_of(const struct bitmap *b, uint64_t n, bool tail)
{
	return (n << b->shift) - (tail ? (b->granules << b->shift) - b->size : 0);
}

static bool
is_set(const struct bitmap *b, uint64_t granule)
{
	return b->level[0][granule >> WORD_SHIFT] >> (granule & (WORD_BITS - 1)) & 1;
}

static uint64_t
change(struct bitmap *b, uint64_t off, uint64_t len, bool set)
{
	uint64_t first = off >> b->shift, last = (off + len - 1) >> b->shift, n = 0;
	bool tail;

	if (!len)
		return 0;
	assert(range_within(off, len, b->size));
	tail = last == b->granules - 1 && is_set(b, last) != set;
	for (uint64_t w = first >> WORD_SHIFT; w <= last >> WORD_SHIFT; w++) {
		uint64_t *word = &b->level[0][w], before = *word;
		uint64_t mask = mask_of(w, first, last);

		*word = set ? before | mask : before & ~mask;
		n += (unsigned)__builtin_popcountll(before ^ *word);
		if (!before != !*word)
			tell_above(b, w, set);
	}
	b->count = set ? b->count + n : b->count - n;
	return bytes_of(b, n, tail);
}

uint64_t
bitmap_set(struct bitmap *b, uint64_t off, uint64_t len)
{
	return change(b, off, len, true);
}

uint64_t
bitmap_clear(struct bitmap *b, uint64_t off, uint64_t len)
{
	return change(b, off, len, false);
}

/* The first set bit of level 0 at or after granule g; b->granules if none. */
static uint64_t
next_set(const struct bitmap *b, uint64_t g)
{
	unsigned i = 0;

	/* Up, until a word has something at or after our place ... */
	for (;;) {
		uint64_t w = g >> WORD_SHIFT, bits = 0;

		if (w < words_of(b, i))
			bits = b->level[i][w] & (~(uint64_t)0 << (g & (WORD_BITS - 1)));
		if (bits) {
			g = (w << WORD_SHIFT) + (unsigned)__builtin_ctzll(bits);
			break;
		}
		if (++i == b->levels)
			return b->granules;
		g = w + 1;
	}
	/* ... and down again, always to the first. */
	while (i-- > 0)
		g = (g << WORD_SHIFT) + (unsigned)__builtin_ctzll(b->level[i][g]);
	return g;
}

/* The first clear bit after granule g, at most end. */
static uint64_t
next_clear(const struct bitmap *b, uint64_t g, uint64_t end)
{
	while (g < end) {
		uint64_t bits = ~b->level[0][g >> WORD_SHIFT] >> (g & (WORD_BITS - 1));

		if (bits)
			return min_u64(g + (unsigned)__builtin_ctzll(bits), end);
		g = ((g >> WORD_SHIFT) + 1) << WORD_SHIFT;
	}
	return end;
}

bool
bitmap_next(const struct bitmap *b, uint64_t off, uint64_t end, uint64_t *ret_off,
	    uint64_t *ret_len)
{
	uint64_t first, stop;

	assert(end <= b->size);
	if (off >= end)
		return false;
	first = next_set(b, off >> b->shift);
	if (first >= b->granules || first << b->shift >= end)
		return false;
	stop = next_clear(b, first + 1, ((end - 1) >> b->shift) + 1);
	*ret_off = max_u64(off, first << b->shift);
	*ret_len = min_u64(end, stop << b->shift) - *ret_off;
	return true;
}

bool
bitmap_any(const struct bitmap *b, uint64_t off, uint64_t len)
{
	uint64_t first = off >> b->shift, last = (off + len - 1) >> b->shift;
	uint64_t w = first >> WORD_SHIFT;

	if (!len)
		return false;
	assert(range_within(off, len, b->size));
	if (w == last >> WORD_SHIFT)
		return b->level[0][w] & mask_of(w, first, last);
	return next_set(b, first) <= last;
}

uint64_t
bitmap_count(const struct bitmap *b)
{
	bool tail = b->granules && is_set(b, b->granules - 1);

	return bytes_of(b, b->count, tail);
}

/* ---- whole bitmaps ---- */

/* Or bits into word w of level 0. */
static void
set_word(struct bitmap *b, uint64_t w, uint64_t bits)
{
	uint64_t *word = &b->level[0][w], before = *word;

	*word |= bits;
	b->count += (unsigned)__builtin_popcountll(*word ^ before);
	if (!before && *word)
		tell_above(b, w, true);
}

int
bitmap_resize(struct bitmap **b, uint64_t size)
{
	struct bitmap *old = *b, *new;
	uint64_t granules = granules_of(old, size), kept = granules << old->shift;
	int err;

	if (granules < old->granules)
		bitmap_clear(old, kept, old->size - kept);
	/* There is room, if only from before it became smaller. */
	if (granules <= words_of(old, 0) * WORD_BITS) {
		old->size = size;
		old->granules = granules;
		return 0;
	}
	err = bitmap_new(size, bitmap_granularity(old), &new);
	if (err)
		return err;
	for (uint64_t w = 0; w < words_of(old, 0); w++)
		set_word(new, w, old->level[0][w]);
	bitmap_free(old);
	*b = new;
	return 0;
}

void
bitmap_merge(struct bitmap *to, const struct bitmap *from)
{
	uint64_t end = min_u64(to->size, from->size), off = 0, len;

	if (to->shift == from->shift && to->size == from->size) {
		for (uint64_t w = 0; w < min_u64(words_of(from, 0), words_of(to, 0)); w++)
			set_word(to, w, from->level[0][w]);
		return;
	}
	for (; bitmap_next(from, off, end, &off, &len); off += len)
		bitmap_set(to, off, len);
}

uint64_t
bitmap_bytes(const struct bitmap *b)
{
	return div_up(b->granules, 8);
}

void
bitmap_get_bytes(const struct bitmap *b, uint64_t first, void *buf, size_t len)
{
	uint8_t *p = buf;

	for (size_t i = 0; i < len; i++) {
		uint64_t byte = first + i;

		p[i] = byte < bitmap_bytes(b)
			       ? (uint8_t)(b->level[0][byte / 8] >> byte % 8 * 8) : 0;
	}
}

void
bitmap_set_bytes(struct bitmap *b, uint64_t first, const void *buf, size_t len)
{
	const uint8_t *p = buf;

	for (size_t i = 0; i < len; i++) {
		uint64_t byte = first + i, w = byte / 8;

		if (!p[i] || byte >= bitmap_bytes(b))
			continue;
		set_word(b, w, (uint64_t)p[i] << byte % 8 * 8 & mask_of(w, 0, b->granules - 1));
	}
}
