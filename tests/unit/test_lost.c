/* SPDX-License-Identifier: Apache-2.0 */
/* Lost ranges are kept in order and merged, and the map is one of ddrescue's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rescue/lost.h"

static void
add(struct lost *l, uint64_t off, uint64_t len, enum lost_why why)
{
	assert_int_equal(lost_add(l, off, len, &(struct lost_range){ .why = why }), 0);
}

static void
assert_range(const struct lost *l, size_t i, uint64_t off, uint64_t len)
{
	assert_true(i < l->n);
	assert_int_equal(l->range[i].off, off);
	assert_int_equal(l->range[i].len, len);
}

static void
test_neighbours_are_merged(void **state)
{
	struct lost l;

	lost_init(&l);
	add(&l, 1024, 512, LOST_UNREADABLE);
	add(&l, 0, 512, LOST_UNREADABLE);
	assert_int_equal(l.n, 2);
	add(&l, 512, 512, LOST_UNREADABLE);
	add(&l, 1536, 512, LOST_MAPPING);
	assert_int_equal(lost_bytes(&l), 2048);
	assert_range(&l, l.n - 1, 1536, 512);
	assert_true(lost_covers(&l, 0, 2048));
	assert_false(lost_covers(&l, 0, 2049));
	lost_done(&l);
}

static void
test_what_is_there_is_left_as_it_is(void **state)
{
	struct lost l;

	lost_init(&l);
	add(&l, 1000, 100, LOST_PACKED);
	add(&l, 900, 300, LOST_MAPPING);
	assert_int_equal(l.n, 3);
	assert_range(&l, 0, 900, 100);
	assert_range(&l, 1, 1000, 100);
	assert_range(&l, 2, 1100, 100);
	assert_int_equal(l.range[1].why, LOST_PACKED);
	add(&l, 900, 300, LOST_UNREADABLE);
	assert_int_equal(l.n, 3);
	lost_done(&l);
}

static void
test_any_order_of_adding_covers_the_same(void **state)
{
	enum { UNITS = 64, ROUNDS = 200 };

	srand(1);
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint8_t want[UNITS] = { 0 };
		uint8_t got[UNITS];
		struct lost l;

		lost_init(&l);
		for (unsigned i = 0; i < 20; i++) {
			unsigned off = (unsigned)rand() % UNITS;
			unsigned len = 1 + (unsigned)rand() % (UNITS - off);

			if (len > 8)
				len = 8;
			memset(want + off, 1, len);
			add(&l, off, len, rand() % 2 ? LOST_MAPPING : LOST_UNREADABLE);
		}
		memset(got, 1, sizeof(got));
		lost_mask(&l, 0, got, sizeof(got));
		for (unsigned i = 0; i < UNITS; i++) {
			assert_int_equal(got[i], !want[i]);
			assert_int_equal(lost_covers(&l, i, 1), want[i]);
		}
		for (size_t i = 1; i < l.n; i++)
			assert_true(l.range[i - 1].off + l.range[i - 1].len <= l.range[i].off);
		lost_done(&l);
	}
}

static void
test_lists_that_share_a_total_have_room_for_so_many_ranges(void **state)
{
	struct lost_range cause = { .why = LOST_PACKED };
	_Atomic size_t total = LOST_MAX - 1;
	struct lost l;

	lost_init(&l);
	l.total = &total;
	add(&l, 0, 512, LOST_PACKED);
	add(&l, 512, 512, LOST_PACKED);
	assert_int_equal(lost_add(&l, 4096, 512, &cause), -E2BIG);
	assert_int_equal(l.n, 1);
	assert_int_equal(total, LOST_MAX);
	lost_done(&l);
}

static void
test_what_is_longer_than_a_range_takes_several(void **state)
{
	struct lost l;

	lost_init(&l);
	add(&l, 0, INT64_MAX, LOST_MAPPING);
	assert_true(l.n > 1);
	assert_int_equal(lost_bytes(&l), INT64_MAX);
	assert_true(lost_covers(&l, 0, INT64_MAX));
	lost_done(&l);
}

static const char *
name(void *user, const struct lost_range *r)
{
	return r->layer ? "base\n# 0x0 evil" : "top";
}

static void
test_the_map_is_whole_and_names_are_harmless(void **state)
{
	struct lost_range cause = { .why = LOST_BEYOND_END, .layer = 1 };
	char *text = NULL;
	struct lost l;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	lost_init(&l);
	assert_int_equal(lost_add(&l, 4096, 512, &cause), 0);
	lost_print_map(&l, 8192, name, NULL, f);
	assert_int_equal(fclose(f), 0);
	assert_non_null(strstr(text, "base?# 0x0 evil: the image file ends before it\n"));
	assert_non_null(strstr(text, "\n0x00000000  0x00001000  +\n"
				     "0x00001000  0x00000200  -\n"
				     "0x00001200  0x00000E00  +\n"));
	free(text);
	lost_done(&l);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_neighbours_are_merged),
		cmocka_unit_test(test_what_is_there_is_left_as_it_is),
		cmocka_unit_test(test_any_order_of_adding_covers_the_same),
		cmocka_unit_test(test_lists_that_share_a_total_have_room_for_so_many_ranges),
		cmocka_unit_test(test_what_is_longer_than_a_range_takes_several),
		cmocka_unit_test(test_the_map_is_whole_and_names_are_harmless),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
