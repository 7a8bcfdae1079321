/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/iov.h"

void *__real_malloc(size_t len);
void *__wrap_malloc(size_t len);

static bool heap_fails;

void *
__wrap_malloc(size_t len)
{
	return heap_fails ? NULL : __real_malloc(len);
}

enum { LEN = 26, PIECES = 9 };

/* "abc...z" in nine pieces, two of them empty. */
static char store[LEN];
static struct iovec vec[PIECES];
static struct iov view = { .vec = vec, .count = PIECES, .len = LEN };

static int
cut_the_alphabet(void **state)
{
	static const size_t lens[PIECES] = { 1, 0, 4, 2, 1, 8, 0, 3, 7 };
	size_t at = 0;

	for (int i = 0; i < LEN; i++)
		store[i] = (char)('a' + i);
	for (int i = 0; i < PIECES; i++) {
		vec[i].iov_base = store + at;
		vec[i].iov_len = lens[i];
		at += lens[i];
	}
	assert_int_equal(at, LEN);
	return 0;
}

static void
each_part_shows_its_bytes(void **state)
{
	for (size_t off = 0; off <= LEN; off++) {
		for (size_t len = 0; off + len <= LEN; len++) {
			struct iov_part part;
			char got[LEN];
			size_t sum = 0;

			assert_int_equal(iov_part(&part, &view, off, len), 0);
			assert_int_equal(part.iov.len, len);
			for (int i = 0; i < part.iov.count; i++)
				sum += part.iov.vec[i].iov_len;
			assert_int_equal(sum, len);
			iov_read(&part.iov, 0, got, len);
			assert_memory_equal(got, store + off, len);
			iov_part_done(&part);
		}
	}
}

static void
a_part_of_few_pieces_needs_no_memory(void **state)
{
	struct iov_part part;

	heap_fails = true;
	assert_int_equal(iov_part(&part, &view, 0, 5), 0);
	iov_part_done(&part);
	assert_int_equal(iov_part(&part, &view, 0, LEN), -ENOMEM);
	heap_fails = false;
	iov_part_done(&part);
}

static void
write_and_fill_touch_their_range_only(void **state)
{
	char want[LEN];

	memcpy(want, store, LEN);
	memcpy(want + 3, "0123456789", 10);
	iov_write(&view, 3, "0123456789", 10);
	assert_memory_equal(store, want, LEN);
	memset(want + 15, '-', 4);
	iov_fill(&view, 15, '-', 4);
	assert_memory_equal(store, want, LEN);
	iov_fill(&view, LEN, '!', 0);
	assert_memory_equal(store, want, LEN);
}

static void
zero_is_all_pieces_zero(void **state)
{
	assert_false(iov_is_zero(&view));
	iov_fill(&view, 0, 0, LEN);
	assert_true(iov_is_zero(&view));
	store[LEN - 1] = 1;
	assert_false(iov_is_zero(&view));
}

static void
alignment_counts_addresses_and_lengths(void **state)
{
	char *mem = iov_alloc(4096, 8192);
	struct iovec two[2];
	struct iov v = { .vec = two, .count = 2, .len = 4096 + 512 };

	assert_non_null(mem);
	assert_int_equal((uintptr_t)mem % 4096, 0);
	two[0] = (struct iovec){ mem, 4096 };
	two[1] = (struct iovec){ mem + 4096, 512 };
	assert_true(iov_is_aligned(&v, 512));
	assert_false(iov_is_aligned(&v, 4096));
	two[1].iov_base = mem + 4097;
	assert_false(iov_is_aligned(&v, 512));
	free(mem);
}

static void
a_plain_buffer_is_a_view(void **state)
{
	char buf[4] = "abc";
	struct iov v = IOV_BUF(buf, sizeof(buf));

	assert_int_equal(v.count, 1);
	assert_int_equal(v.len, 4);
	iov_fill(&v, 1, 'x', 1);
	assert_string_equal(buf, "axc");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(each_part_shows_its_bytes, cut_the_alphabet),
		cmocka_unit_test_setup(a_part_of_few_pieces_needs_no_memory, cut_the_alphabet),
		cmocka_unit_test_setup(write_and_fill_touch_their_range_only, cut_the_alphabet),
		cmocka_unit_test_setup(zero_is_all_pieces_zero, cut_the_alphabet),
		cmocka_unit_test(alignment_counts_addresses_and_lengths),
		cmocka_unit_test(a_plain_buffer_is_a_view),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
