/* SPDX-License-Identifier: Apache-2.0 */
/* What is packed unpacks to the same; what gets no smaller is not packed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "block/pack.h"
#include "tests/unit/aio_test.h"

enum { SIZE = 100000 };

static const enum unpack_kind kinds[] = {
	UNPACK_DEFLATE,
#ifdef HAVE_ZSTD
	UNPACK_ZSTD,
#endif
};

/* Words of some length, again and again, or none that repeats. */
static void
fill(uint8_t *buf, unsigned word, uint64_t seed)
{
	struct rng r = { seed };

	for (size_t i = 0; i < SIZE; i++)
		buf[i] = word && i >= word ? buf[i - word] : (uint8_t)rng_below(&r, 256);
}

static void
what_is_packed_unpacks_to_the_same(void **state)
{
	static uint8_t plain[SIZE], packed[SIZE], got[SIZE];
	size_t len, less;

	(void)state;
	for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
		for (unsigned word = 1; word < 5000; word = word * 3 + 1) {
			fill(plain, word, word);
			assert_int_equal(pack(kinds[k], plain, SIZE, packed, SIZE - 1, &len), 0);
			memset(packed + len, 0xee, SIZE - len);
			assert_int_equal(unpack(kinds[k], packed, SIZE, got, SIZE), 0);
			assert_memory_equal(got, plain, SIZE);
			assert_int_equal(pack(kinds[k], plain, SIZE, packed, len / 2, &less),
					 -ENOSPC);
		}
	}
}

static void
what_gets_no_smaller_is_not_packed(void **state)
{
	static uint8_t plain[SIZE], packed[SIZE];
	size_t len = 77;

	(void)state;
	for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
		fill(plain, 0, 1);
		assert_int_equal(pack(kinds[k], plain, SIZE, packed, SIZE - 1, &len), -ENOSPC);
		assert_int_equal(pack(kinds[k], plain, SIZE, packed, 0, &len), -ENOSPC);
	}
	assert_int_equal(len, 77);
}

/* QEMU unpacks with a window of 4 KiB. */
static void
deflate_looks_no_further_back_than_qemu(void **state)
{
	static uint8_t plain[SIZE], packed[SIZE], got[SIZE];
	z_stream z = { 0 };
	size_t len;

	(void)state;
	fill(plain, 4000, 2);
	assert_int_equal(pack(UNPACK_DEFLATE, plain, SIZE, packed, SIZE - 1, &len), 0);
	assert_int_equal(inflateInit2(&z, -12), Z_OK);
	z.next_in = packed;
	z.avail_in = (uInt)len;
	z.next_out = got;
	z.avail_out = SIZE;
	assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
	assert_int_equal(z.avail_out, 0);
	inflateEnd(&z);
	assert_memory_equal(got, plain, SIZE);
}

#ifdef HAVE_ZSTD
/* A frame that asks for a window of a gibibyte, and another behind it. */
static void
zstd_takes_no_memory_that_a_frame_asks_for(void **state)
{
	static const uint8_t frames[] = {
		0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 4 << 3 | 1, 0, 0, 'g', 'e', 'h', 'e',
		0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 2 << 3 | 1, 0, 0, 'i', 'm', 0xee, 0xee,
	};
	char got[6];

	(void)state;
	assert_int_equal(unpack(UNPACK_ZSTD, frames, sizeof(frames), got, 6), 0);
	assert_memory_equal(got, "geheim", 6);
	assert_int_equal(unpack(UNPACK_ZSTD, frames, 12, got, 6), -EIO);
	assert_int_equal(unpack(UNPACK_ZSTD, frames, sizeof(frames), got, 5), -EIO);
}
#endif

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_packed_unpacks_to_the_same),
		cmocka_unit_test(what_gets_no_smaller_is_not_packed),
		cmocka_unit_test(deflate_looks_no_further_back_than_qemu),
#ifdef HAVE_ZSTD
		cmocka_unit_test(zstd_takes_no_memory_that_a_frame_asks_for),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
