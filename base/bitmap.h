/* SPDX-License-Identifier: Apache-2.0 */
/* base/bitmap.h - a set of byte ranges at a granularity, for dirty tracking.
 *
 * One bit stands for one granule.  Above the bits stand levels that say which
 * words below them have any bit set, so that finding the next set bit of an
 * almost empty bitmap of any size takes a handful of steps.
 *
 * Units      bytes.  A range touches every granule that it shares a byte with.
 *            Ranges lie within the bitmap's size.
 * Context    any thread; the user brings the lock.
 * Errors     -ENOMEM where a function returns int.
 */
#ifndef BASE_BITMAP_H
#define BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bitmap;

/* All clear.  granularity is a power of two; more than 2^34 granules, which
 * would take 2 GiB, are more than there is memory. */
int bitmap_new(uint64_t size, uint64_t granularity, struct bitmap **ret_bitmap);
void bitmap_free(struct bitmap *b);	/* takes NULL */

/* Make *b larger, by clear granules, or smaller; only the former can fail, and
 * then nothing has changed.  *b may be another object afterwards. */
int bitmap_resize(struct bitmap **b, uint64_t size);

uint64_t bitmap_size(const struct bitmap *b);
uint64_t bitmap_granularity(const struct bitmap *b);

/* Set, or clear, every granule that the range touches; how many bytes of the
 * bitmap's size changed (the last granule may be short). */
uint64_t bitmap_set(struct bitmap *b, uint64_t off, uint64_t len);
uint64_t bitmap_clear(struct bitmap *b, uint64_t off, uint64_t len);

/* Is any granule set that the range touches? */
bool bitmap_any(const struct bitmap *b, uint64_t off, uint64_t len);

/* The first run of set granules in [off, end), cut to it.  False: none. */
bool bitmap_next(const struct bitmap *b, uint64_t off, uint64_t end, uint64_t *ret_off,
		 uint64_t *ret_len);

/* Bytes of the bitmap's size that are set. */
uint64_t bitmap_count(const struct bitmap *b);

/* Set in `to` whatever is set in `from`, as far as both reach; their granularities
 * may differ. */
void bitmap_merge(struct bitmap *to, const struct bitmap *from);

/* As bytes, in the form that disks and the wire know: granule 8 * i + k is bit k of
 * byte i.  A range of bytes may reach beyond the end, where there are zeroes. */
uint64_t bitmap_bytes(const struct bitmap *b);
void bitmap_get_bytes(const struct bitmap *b, uint64_t first, void *buf, size_t len);
/* Set the granules that buf has set; none is cleared. */
void bitmap_set_bytes(struct bitmap *b, uint64_t first, const void *buf, size_t len);

#endif
