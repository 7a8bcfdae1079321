/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/bytes.h"

static struct bitmap *
make(uint64_t size, uint64_t granularity)
{
	struct bitmap *b;

	assert_int_equal(bitmap_new(size, granularity, &b), 0);
	return b;
}

static void
new_bitmap_is_clear(void **state)
{
	struct bitmap *b = make(10 << 20, 65536);
	uint64_t off, len;

	(void)state;
	assert_int_equal(bitmap_count(b), 0);
	assert_false(bitmap_any(b, 0, 10 << 20));
	assert_false(bitmap_next(b, 0, 10 << 20, &off, &len));
	bitmap_free(b);
}

static void
empty_bitmap_works(void **state)
{
	struct bitmap *b = make(0, 512);
	uint64_t off, len;

	(void)state;
	assert_int_equal(bitmap_count(b), 0);
	assert_false(bitmap_next(b, 0, 0, &off, &len));
	bitmap_free(b);
}

static void
a_touched_granule_counts_whole(void **state)
{
	struct bitmap *b = make(1 << 20, 4096);
	uint64_t off, len;

	(void)state;
	assert_int_equal(bitmap_set(b, 4095, 2), 8192);
	assert_int_equal(bitmap_set(b, 0, 4096), 0);
	assert_int_equal(bitmap_count(b), 8192);
	assert_true(bitmap_next(b, 0, 1 << 20, &off, &len));
	assert_int_equal(off, 0);
	assert_int_equal(len, 8192);
	bitmap_free(b);
}

static void
the_last_granule_may_be_short(void **state)
{
	struct bitmap *b = make(10000, 4096);
	uint64_t off, len;

	(void)state;
	assert_int_equal(bitmap_set(b, 9000, 1000), 10000 - 8192);
	assert_int_equal(bitmap_count(b), 10000 - 8192);
	assert_true(bitmap_next(b, 0, 10000, &off, &len));
	assert_int_equal(off, 8192);
	assert_int_equal(len, 10000 - 8192);
	assert_int_equal(bitmap_set(b, 0, 10000), 8192);
	assert_int_equal(bitmap_clear(b, 0, 10000), 10000);
	assert_int_equal(bitmap_count(b), 0);
	bitmap_free(b);
}

static void
next_is_cut_to_what_was_asked(void **state)
{
	struct bitmap *b = make(1 << 20, 4096);
	uint64_t off, len;

	(void)state;
	bitmap_set(b, 8192, 65536);
	assert_true(bitmap_next(b, 10000, 20000, &off, &len));
	assert_int_equal(off, 10000);
	assert_int_equal(len, 10000);
	assert_false(bitmap_next(b, 0, 8192, &off, &len));
	assert_false(bitmap_next(b, 8192 + 65536, 1 << 20, &off, &len));
	bitmap_free(b);
}

static void
the_far_end_is_found_at_once(void **state)
{
	uint64_t size = (uint64_t)1 << 46, off, len;
	struct bitmap *b = make(size, 1 << 20);

	(void)state;
	bitmap_set(b, size - 1, 1);
	for (int i = 0; i < 1000000; i++)
		assert_true(bitmap_next(b, (uint64_t)i << 20, size, &off, &len));
	assert_int_equal(off, size - (1 << 20));
	bitmap_free(b);
}

static void
what_cannot_be_had_is_refused(void **state)
{
	struct bitmap *b = NULL;

	(void)state;
	assert_int_equal(bitmap_new(UINT64_MAX, 1, &b), -ENOMEM);
	assert_null(b);
}

/* ---- against a model: one byte a granule ---- */

enum { GRANULES = 9000, GRANULE = 512, SIZE = GRANULES * GRANULE - 100 };

static uint64_t
model_count(const char *m)
{
	uint64_t n = 0;

	for (int i = 0; i < GRANULES; i++)
		n += m[i] ? (i == GRANULES - 1 ? GRANULE - 100 : GRANULE) : 0;
	return n;
}

static void
check_next(const struct bitmap *b, const char *m, uint64_t from, uint64_t end)
{
	uint64_t g = from / GRANULE, off, len, last = div_up(end, GRANULE), start;
	bool found = bitmap_next(b, from, end, &off, &len);

	while (g < last && !m[g])
		g++;
	assert_int_equal(found, from < end && g < last);
	assert_int_equal(bitmap_any(b, from, end > from ? end - from : 0), found);
	if (!found)
		return;
	start = max_u64(from, g * GRANULE);
	assert_int_equal(off, start);
	while (g < last && m[g])
		g++;
	assert_int_equal(len, min_u64(end, g * GRANULE) - start);
}

static void
random_changes_agree_with_a_model(void **state)
{
	struct bitmap *b = make(SIZE, GRANULE);
	char *m = calloc(1, GRANULES);
	unsigned seed = 20261124;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		uint64_t off = (uint64_t)rand_r(&seed) % SIZE;
		uint64_t most = rand_r(&seed) % 8 ? 5000 : SIZE;
		uint64_t len = min_u64((uint64_t)rand_r(&seed) % most + 1, SIZE - off);
		bool set = rand_r(&seed) % 2;
		uint64_t before = bitmap_count(b), n;

		n = set ? bitmap_set(b, off, len) : bitmap_clear(b, off, len);
		memset(m + off / GRANULE, set,
		       (off + len - 1) / GRANULE - off / GRANULE + 1);
		assert_int_equal(bitmap_count(b), set ? before + n : before - n);
		if (i % 16 == 0)
			assert_int_equal(bitmap_count(b), model_count(m));
		off = (uint64_t)rand_r(&seed) % SIZE;
		check_next(b, m, off, off + (uint64_t)rand_r(&seed) % (SIZE - off + 1));
	}
	free(m);
	bitmap_free(b);
}

/* ---- resizing, merging, bytes ---- */

static struct bitmap *
make_random(uint64_t size, uint64_t granularity, unsigned *seed)
{
	struct bitmap *b = make(size, granularity);

	for (int i = 0; i < 40; i++) {
		uint64_t off = (uint64_t)rand_r(seed) % size;

		bitmap_set(b, off, min_u64((uint64_t)rand_r(seed) % 9000 + 1, size - off));
	}
	return b;
}

/* Is byte off within a granule that is set? */
static bool
has(const struct bitmap *b, uint64_t off)
{
	return off < bitmap_size(b) && bitmap_any(b, off, 1);
}

static void
a_larger_bitmap_keeps_what_was_set_and_adds_clear_granules(void **state)
{
	unsigned seed = 1;

	(void)state;
	for (int i = 0; i < 200; i++) {
		uint64_t old = (uint64_t)rand_r(&seed) % (1 << 20) + 1;
		uint64_t size = old + (uint64_t)rand_r(&seed) % (1 << 21);
		struct bitmap *b = make_random(old, 512, &seed), *was = make(old, 512);

		bitmap_merge(was, b);
		assert_int_equal(bitmap_resize(&b, size), 0);
		assert_int_equal(bitmap_size(b), size);
		for (uint64_t off = 0; off < size; off += 512)
			assert_int_equal(has(b, off), has(was, off));
		bitmap_free(b);
		bitmap_free(was);
	}
}

static void
what_a_smaller_bitmap_lost_is_clear_when_it_grows_again(void **state)
{
	unsigned seed = 2;

	(void)state;
	for (int i = 0; i < 200; i++) {
		uint64_t old = (uint64_t)rand_r(&seed) % (1 << 20) + 1;
		uint64_t size = (uint64_t)rand_r(&seed) % old;
		struct bitmap *b = make(old, 512);

		bitmap_set(b, 0, old);
		assert_int_equal(bitmap_resize(&b, size), 0);
		assert_int_equal(bitmap_count(b), size);
		assert_int_equal(bitmap_resize(&b, old), 0);
		assert_int_equal(bitmap_count(b), min_u64(round_up(size, 512), old));
		bitmap_free(b);
	}
}

static void
merging_marks_whatever_either_marks_at_any_granularity(void **state)
{
	static const uint64_t granularities[] = { 512, 4096, 65536 };
	unsigned seed = 3;

	(void)state;
	for (int i = 0; i < 9; i++) {
		uint64_t size = 3000000 + (uint64_t)rand_r(&seed) % 1000;
		uint64_t granularity = granularities[i % 3];
		struct bitmap *to = make_random(size, granularity, &seed);
		struct bitmap *from = make_random(size, granularities[i / 3], &seed);
		struct bitmap *was = make(size, granularity);

		bitmap_merge(was, to);
		bitmap_merge(to, from);
		for (uint64_t off = 0; off < size; off += granularity) {
			uint64_t len = min_u64(granularity, size - off);

			assert_int_equal(has(to, off), has(was, off) || bitmap_any(from, off, len));
		}
		bitmap_free(to);
		bitmap_free(from);
		bitmap_free(was);
	}
}

static void
bytes_carry_a_bitmap_piece_by_piece(void **state)
{
	unsigned seed = 4;

	(void)state;
	for (int i = 0; i < 50; i++) {
		uint64_t size = (uint64_t)rand_r(&seed) % 3000000 + 1;
		struct bitmap *b = make_random(size, 512, &seed), *copy = make(size, 512);
		uint64_t piece = (uint64_t)rand_r(&seed) % 700 + 1;
		uint8_t buf[700];

		for (uint64_t at = 0; at < bitmap_bytes(b); at += piece) {
			bitmap_get_bytes(b, at, buf, piece);
			for (uint64_t k = 0; k < 8 * piece; k++)
				assert_int_equal(buf[k / 8] >> k % 8 & 1,
						 has(b, (8 * at + k) * 512));
			bitmap_set_bytes(copy, at, buf, piece);
		}
		assert_int_equal(bitmap_count(copy), bitmap_count(b));
		for (uint64_t off = 0; off < size; off += 512)
			assert_int_equal(has(b, off), has(copy, off));
		bitmap_free(b);
		bitmap_free(copy);
	}
}

static void
bits_beyond_the_end_are_left_out(void **state)
{
	struct bitmap *b = make(5 * 512, 512);
	const uint8_t ones[3] = { 0xff, 0xff, 0xff };

	(void)state;
	bitmap_set_bytes(b, 0, ones, sizeof(ones));
	assert_int_equal(bitmap_count(b), 5 * 512);
	bitmap_free(b);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(new_bitmap_is_clear),
		cmocka_unit_test(empty_bitmap_works),
		cmocka_unit_test(a_touched_granule_counts_whole),
		cmocka_unit_test(the_last_granule_may_be_short),
		cmocka_unit_test(next_is_cut_to_what_was_asked),
		cmocka_unit_test(the_far_end_is_found_at_once),
		cmocka_unit_test(what_cannot_be_had_is_refused),
		cmocka_unit_test(random_changes_agree_with_a_model),
		cmocka_unit_test(a_larger_bitmap_keeps_what_was_set_and_adds_clear_granules),
		cmocka_unit_test(what_a_smaller_bitmap_lost_is_clear_when_it_grows_again),
		cmocka_unit_test(merging_marks_whatever_either_marks_at_any_granularity),
		cmocka_unit_test(bytes_carry_a_bitmap_piece_by_piece),
		cmocka_unit_test(bits_beyond_the_end_are_left_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
