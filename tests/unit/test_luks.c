/* SPDX-License-Identifier: Apache-2.0 */
/* LUKS headers at the edges of what is legal, and one slot opened by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/cipher.h"
#include "rescue/luks.h"

enum { AREA = 2 * 1024 * 1024 };

static uint8_t header[LUKS_HEADER];

/* As cryptsetup and QEMU write it, with one slot. */
static void
make_header(void)
{
	uint8_t *slot = header + 208;

	memset(header, 0, sizeof(header));
	memcpy(header, "LUKS\xba\xbe\0\1aes", 11);
	memcpy(header + 40, "xts-plain64", 11);
	memcpy(header + 72, "sha256", 6);
	put_be32(header + 104, AREA / 512);
	put_be32(header + 108, 64);
	put_be32(header + 164, 1000);
	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		put_be32(slot + 48 * (size_t)i, 0xdead);
	put_be32(slot, 0x00ac71f3);
	put_be32(slot + 4, 1000);
	put_be32(slot + 40, 8);
	put_be32(slot + 44, LUKS_STRIPES);
}

static void
refuse(const char *text)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct luks l;

	assert_int_equal(luks_parse(header, AREA, &l, &err), -1);
	assert_non_null(strstr(error_text(err), text));
}

static void
test_a_sound_header(void **state)
{
	struct luks l;

	make_header();
	memcpy(header + 40, "cbc-essiv:sha256\0", 17);
	put_be32(header + 108, 32);
	assert_int_equal(luks_parse(header, AREA, &l, NULL), 0);
	assert_string_equal(l.alg, "aes");
	assert_string_equal(l.mode, "cbc");
	assert_string_equal(l.ivgen, "essiv");
	assert_string_equal(l.ivhash, "sha256");
	assert_int_equal(l.payload, AREA);
	assert_int_equal(l.slot[0].iterations, 1000);
	assert_int_equal(l.slot[1].iterations, 0);
}

static void
test_absurd_costs_are_refused(void **state)
{
	make_header();
	put_be32(header + 212, LUKS_ITERATIONS_MAX + 1U);
	refuse("iterations");
	put_be32(header + 212, 0);
	refuse("iterations");
	make_header();
	put_be32(header + 164, UINT32_MAX);
	refuse("iterations");
	put_be32(header + 164, 0);
	refuse("iterations");
	make_header();
	put_be32(header + 252, LUKS_STRIPES + 1);
	refuse("stripes");
	put_be32(header + 252, 0);
	refuse("stripes");
}

static void
test_slots_lie_within_the_header_area(void **state)
{
	struct luks l;
	/* 64 bytes of key times 4,000 stripes are 500 sectors. */
	uint32_t last = AREA / 512 - 500;

	make_header();
	put_be32(header + 248, last);
	assert_int_equal(luks_parse(header, AREA, &l, NULL), 0);
	put_be32(header + 248, last + 1);
	refuse("outside");
	put_be32(header + 248, UINT32_MAX);
	refuse("outside");
	put_be32(header + 248, 1);	/* within the header itself */
	refuse("outside");
	make_header();
	put_be32(header + 208, 1);
	refuse("no legal state");
}

static void
test_names_and_lengths(void **state)
{
	make_header();
	put_be16(header + 6, 2);
	refuse("version 2");
	make_header();
	put_be32(header + 108, 0);
	refuse("keys of 0 bytes");
	put_be32(header + 108, LUKS_KEY_MAX + 1);
	refuse("keys of 65 bytes");
	make_header();
	memcpy(header + 72, "md4\0\0\0", 6);
	refuse("hash md4 is not supported");
	make_header();
	memset(header + 8, 0, 32);
	refuse("no cipher");
	memset(header + 8, 'a', 32);	/* no end: still a name of 32 bytes */
	header[20] = '\n';
	refuse("is no name");
	make_header();
	header[0] = 'l';
	refuse("no LUKS header");
}

static void
test_an_unsound_slot_leaves_the_others_alone(void **state)
{
	uint8_t *other = header + 208 + 48;
	struct luks l;

	make_header();
	memcpy(other, header + 208, 48);
	put_be32(other + 40, 8 + 500);
	put_be32(header + 212, 0);
	assert_int_equal(luks_parse(header, AREA, &l, NULL), 0);
	assert_int_equal(l.slot[0].iterations, 0);
	assert_int_equal(l.slot[1].iterations, 1000);
	assert_string_equal(l.damage, "key slot 0 wants 0 iterations");
}

static void
test_slots_that_overlap(void **state)
{
	uint8_t *other = header + 208 + 48;
	struct luks l;

	make_header();
	memcpy(other, header + 208, 48);
	put_be32(other + 40, 8 + 500);
	assert_int_equal(luks_parse(header, AREA, &l, NULL), 0);
	assert_string_equal(l.damage, "");
	put_be32(other + 40, 8 + 499);
	assert_int_equal(luks_parse(header, AREA, &l, NULL), 0);
	assert_string_equal(l.damage, "key slot 1 overlaps key slot 0");
	assert_int_equal(l.slot[0].iterations, 1000);
	assert_int_equal(l.slot[1].iterations, 1000);
}

static void
test_no_slot_is_used(void **state)
{
	make_header();
	put_be32(header + 208, 0xdead);
	refuse("No key slot");
}

static int
read_zeroes(void *user, uint64_t off, void *buf, size_t len)
{
	assert_true(range_within(off, len, AREA));
	memset(buf, 0, len);
	return *(int *)user;
}

static enum luks_result
unlock(int read_result, struct error **errp)
{
	struct cipher *c = NULL;
	unsigned slot;
	struct luks l;

	assert_int_equal(luks_parse(header, AREA, &l, NULL), 0);
	return luks_unlock(&l, read_zeroes, &read_result, "x", 1, &c, &slot, errp);
}

static void
test_a_null_cipher_is_refused(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;

	make_header();
	memcpy(header + 8, "cipher_null\0", 12);
	memcpy(header + 40, "ecb\0\0\0\0\0\0\0\0", 11);
	assert_int_equal(unlock(0, &err), LUKS_FAILED);
	assert_non_null(strstr(error_text(err), "cipher_null-ecb"));
	assert_non_null(strstr(error_text(err), "not supported"));
}

static void
test_wrong_passphrases_and_bad_reads(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;

	make_header();
	assert_int_equal(unlock(0, NULL), LUKS_WRONG);
	assert_int_equal(unlock(-5, &err), LUKS_FAILED);
	assert_non_null(strstr(error_text(err), "key slot"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_sound_header),
		cmocka_unit_test(test_absurd_costs_are_refused),
		cmocka_unit_test(test_slots_lie_within_the_header_area),
		cmocka_unit_test(test_names_and_lengths),
		cmocka_unit_test(test_an_unsound_slot_leaves_the_others_alone),
		cmocka_unit_test(test_slots_that_overlap),
		cmocka_unit_test(test_no_slot_is_used),
		cmocka_unit_test(test_a_null_cipher_is_refused),
		cmocka_unit_test(test_wrong_passphrases_and_bad_reads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
