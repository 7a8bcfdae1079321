/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/bytes.h"

static void
accessors_work_at_any_alignment(void **state)
{
	unsigned char buf[16];

	for (size_t at = 0; at < 8; at++) {
		put_be64(buf + at, 0x0102030405060708);
		assert_int_equal(buf[at], 1);
		assert_int_equal(buf[at + 7], 8);
		assert_true(get_be64(buf + at) == 0x0102030405060708);
		assert_true(get_le64(buf + at) == 0x0807060504030201);
		assert_int_equal(get_be32(buf + at), 0x01020304);
		assert_int_equal(get_le16(buf + at), 0x0201);
		put_le32(buf + at, 0xfffefdfc);
		assert_int_equal(buf[at], 0xfc);
		assert_int_equal(get_be16(buf + at), 0xfcfd);
	}
}

static void
rounding_keeps_multiples(void **state)
{
	assert_int_equal(round_down(4095, 4096), 0);
	assert_int_equal(round_down(4096, 4096), 4096);
	assert_int_equal(round_up(4096, 4096), 4096);
	assert_int_equal(round_up(4097, 4096), 8192);
	assert_int_equal(round_up(0, 512), 0);
	assert_true(round_down(UINT64_MAX, 512) == UINT64_MAX - 511);
	assert_int_equal(div_up(0, 7), 0);
	assert_int_equal(div_up(7, 7), 1);
	assert_int_equal(div_up(8, 7), 2);
	assert_true(div_up(UINT64_MAX, 1) == UINT64_MAX);
	assert_true(is_aligned(0, 512) && is_aligned(1024, 512));
	assert_false(is_aligned(513, 512));
}

static void
powers_of_two_are_known(void **state)
{
	assert_false(is_pow2(0));
	assert_true(is_pow2(1));
	assert_false(is_pow2(3));
	assert_true(is_pow2(1ULL << 63));
	assert_false(is_pow2(UINT64_MAX));
}

static void
a_range_that_wraps_is_not_within(void **state)
{
	assert_true(range_within(0, 0, 0));
	assert_true(range_within(10, 0, 10));
	assert_true(range_within(9, 1, 10));
	assert_false(range_within(9, 2, 10));
	assert_false(range_within(11, 0, 10));
	assert_false(range_within(1, UINT64_MAX, UINT64_MAX));
	assert_false(range_within(UINT64_MAX, UINT64_MAX, 10));
	assert_true(range_within(0, UINT64_MAX, UINT64_MAX));
}

static void
overlap_needs_a_shared_byte(void **state)
{
	assert_true(ranges_overlap(0, 10, 9, 1));
	assert_false(ranges_overlap(0, 10, 10, 1));
	assert_false(ranges_overlap(10, 1, 0, 10));
	assert_true(ranges_overlap(3, 1, 0, 10));
	assert_false(ranges_overlap(3, 0, 0, 10));
}

static void
a_byte_anywhere_makes_it_not_zero(void **state)
{
	static unsigned char buf[200];

	for (size_t len = 0; len <= sizeof(buf); len++) {
		assert_true(bytes_are_zero(buf, len));
		for (size_t at = 0; at < len; at += len > 40 ? 7 : 1) {
			buf[at] = 0x80;
			assert_false(bytes_are_zero(buf, len));
			buf[at] = 0;
		}
	}
	buf[10] = 1;
	assert_true(bytes_are_zero(buf, 10));
	assert_true(bytes_are_zero(buf + 11, 100));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accessors_work_at_any_alignment),
		cmocka_unit_test(rounding_keeps_multiples),
		cmocka_unit_test(powers_of_two_are_known),
		cmocka_unit_test(a_range_that_wraps_is_not_within),
		cmocka_unit_test(overlap_needs_a_shared_byte),
		cmocka_unit_test(a_byte_anywhere_makes_it_not_zero),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
