/* SPDX-License-Identifier: Apache-2.0 */
/* Sectors that were encrypted otherwise, or not at all, among good ones: what is told
 * apart, and that good clusters of all sorts are left alone.  Fixed seeds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <nettle/aes.h>
#include <nettle/cbc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "rescue/cipher.h"
#include "rescue/mixed.h"

enum { CLUSTER = 128, GUEST = 128 * 700, FILE_AT = 128 * 5000 };

static const uint8_t KEY[16] = "the right key...";
static struct aes128_ctx aes;
static struct cipher *cipher;
static uint64_t seed;

static int
set_up(void **state)
{
	aes128_set_encrypt_key(&aes, KEY);
	return cipher_new(&cipher_qcow_aes, KEY, 16, &cipher, NULL);
}

static int
tear_down(void **state)
{
	cipher_free(cipher);
	return 0;
}

static void
fill_noise(uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t z = seed += 0x9e3779b97f4a7c15ULL;

		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
		z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
		put_le64(buf + i, z ^ z >> 31);
	}
}

static void
fill_text(uint8_t *buf, size_t len)
{
	static const char text[] = "Every line of this is text, and no two sectors are alike. ";

	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)text[(i + i / 512) % (sizeof(text) - 1)];
}

/* A cluster of n sectors: what it holds, and how each sector is stored. */
struct cluster {
	size_t n;
	uint64_t guest, file;		/* sectors */
	uint8_t plain[CLUSTER][512];
	enum mixed_reading stored[CLUSTER];
	enum mixed_reading got[CLUSTER];
};

static void
store(const struct cluster *c, size_t i, uint8_t out[512])
{
	uint8_t iv[16] = { 0 };

	if (c->stored[i] == MIXED_PLAIN) {
		memcpy(out, c->plain[i], 512);
		return;
	}
	put_le64(iv, (c->stored[i] == MIXED_FILE_IV ? c->file : c->guest) + i);
	cbc_encrypt(&aes, (nettle_cipher_func *)aes128_encrypt, 16, iv, 512, out, c->plain[i]);
}

static void
decide(struct cluster *c)
{
	struct mixed_vote votes[CLUSTER];

	for (size_t i = 0; i < c->n; i++) {
		uint8_t stored[512];

		store(c, i, stored);
		votes[i] = mixed_look(cipher, c->guest + i, c->file + i, stored);
	}
	assert_int_equal(mixed_decide(votes, c->n, c->got), 0);
}

static struct cluster *
cluster_new(void)
{
	struct cluster *c = calloc(1, sizeof(*c));

	assert_non_null(c);
	c->n = CLUSTER;
	c->guest = GUEST;
	c->file = FILE_AT;
	return c;
}

static void
store_as(struct cluster *c, size_t from, size_t to, enum mixed_reading how)
{
	for (size_t i = from; i < to; i++)
		c->stored[i] = how;
}

static void
assert_got(const struct cluster *c, size_t from, size_t to, enum mixed_reading want)
{
	for (size_t i = from; i < to; i++)
		if (c->got[i] != want)
			fail_msg("sector %zu is read as %s, not %s", i,
				 mixed_reading_name(c->got[i]), mixed_reading_name(want));
}

static void
test_zeroes_filled_up_around_a_write_are_told_by_their_iv(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	fill_text(c->plain[40], 8 * 512);
	store_as(c, 0, 40, MIXED_FILE_IV);
	store_as(c, 48, CLUSTER, MIXED_FILE_IV);
	decide(c);
	assert_got(c, 0, 40, MIXED_FILE_IV);
	assert_got(c, 40, 48, MIXED_USUAL);
	assert_got(c, 48, CLUSTER, MIXED_FILE_IV);
}

static void
test_what_a_guest_wrote_into_it_is_not_disturbed_if_it_is_noise(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	seed = 1;
	fill_noise(c->plain[40], 8 * 512);
	store_as(c, 0, 40, MIXED_FILE_IV);
	store_as(c, 48, CLUSTER, MIXED_FILE_IV);
	decide(c);
	assert_got(c, 0, 40, MIXED_FILE_IV);
	assert_got(c, 40, 48, MIXED_USUAL);
	assert_got(c, 48, CLUSTER, MIXED_FILE_IV);
}

static void
test_text_of_a_base_is_told_by_its_iv(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	fill_text(c->plain[0], sizeof(c->plain));
	store_as(c, 8, CLUSTER, MIXED_FILE_IV);
	decide(c);
	assert_got(c, 0, 8, MIXED_USUAL);
	assert_got(c, 8, CLUSTER, MIXED_FILE_IV);
}

static void
test_a_plain_cluster_is_plain_with_the_noise_in_it(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	seed = 2;
	fill_text(c->plain[10], 20 * 512);
	fill_noise(c->plain[30], 98 * 512);
	store_as(c, 0, CLUSTER, MIXED_PLAIN);
	decide(c);
	assert_got(c, 0, CLUSTER, MIXED_PLAIN);
}

static void
test_plain_sectors_among_encrypted_ones(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	fill_text(c->plain[0], sizeof(c->plain));
	store_as(c, 17, 18, MIXED_PLAIN);
	store_as(c, 100, CLUSTER, MIXED_PLAIN);
	decide(c);
	assert_got(c, 0, 17, MIXED_USUAL);
	assert_got(c, 17, 18, MIXED_PLAIN);
	assert_got(c, 18, 100, MIXED_USUAL);
	assert_got(c, 100, CLUSTER, MIXED_PLAIN);
}

static void
test_noise_is_read_as_usual(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	seed = 3;
	fill_noise(c->plain[0], sizeof(c->plain));
	store_as(c, 0, 64, MIXED_PLAIN);
	decide(c);
	assert_got(c, 0, CLUSTER, MIXED_USUAL);
}

static void
test_two_sectors_alone_change_no_iv(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	fill_text(c->plain[0], sizeof(c->plain));
	store_as(c, 50, 52, MIXED_FILE_IV);
	decide(c);
	assert_got(c, 0, CLUSTER, MIXED_USUAL);
}

static void
test_where_both_numbers_are_the_same_there_is_no_other_iv(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	c->file = c->guest;
	decide(c);
	assert_got(c, 0, CLUSTER, MIXED_USUAL);
}

/* Where the two numbers of a cluster differ in one byte, least tells them apart. */
static void
test_iv_that_differ_in_one_byte(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	c->file = c->guest ^ 128;
	store_as(c, 0, 120, MIXED_FILE_IV);
	decide(c);
	assert_got(c, 0, 120, MIXED_FILE_IV);
	assert_got(c, 120, CLUSTER, MIXED_USUAL);
}

static void
test_clusters_of_one_sector(void **state)
{
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();

	c->n = 1;
	c->stored[0] = MIXED_PLAIN;
	decide(c);
	assert_got(c, 0, 1, MIXED_PLAIN);
	c->stored[0] = MIXED_USUAL;
	decide(c);
	assert_got(c, 0, 1, MIXED_USUAL);
}

/* Programs, libraries and whatever is in them, at places of all kinds. */
static void
test_good_clusters_are_never_disturbed(void **state)
{
	static const char *const files[] = { "/proc/self/exe", "/bin/bash", "/usr/bin/python3",
					     "/usr/lib/locale/C.utf8/LC_CTYPE", "/etc/services",
					     "/lib/x86_64-linux-gnu/libc.so.6" };
	CLEANUP(cleanup_free) struct cluster *c = cluster_new();
	size_t sectors = 0;

	seed = 4;
	for (size_t f = 0; f < ARRAY_SIZE(files); f++) {
		CLEANUP(cleanup_close) int fd = open(files[f], O_RDONLY | O_CLOEXEC);

		while (fd >= 0 && read(fd, c->plain, sizeof(c->plain)) > 0) {
			uint8_t r[16];

			fill_noise(r, sizeof(r));
			/* Near each other, and anywhere on a terabyte. */
			c->guest = get_le32(r) / 2 * CLUSTER;
			c->file = r[8] % 2 ? c->guest ^ (1 + r[9] % 15U) * CLUSTER
					   : get_le32(r + 12) / 2 * (uint64_t)CLUSTER;
			decide(c);
			assert_got(c, 0, CLUSTER, MIXED_USUAL);
			sectors += CLUSTER;
		}
	}
	print_message("    %zu good sectors, none is read otherwise\n", sectors);
	assert_true(sectors > 2000);
}

static void
test_what_is_seen_in_passing(void **state)
{
	uint8_t s[512] = { 0 };

	assert_true(mixed_seems_plain(s));
	assert_false(mixed_seems_zero(s, 0x880));
	put_le64(s, 0x880);
	assert_true(mixed_seems_zero(s, 0x880));
	assert_false(mixed_seems_zero(s, 0x900));
	s[511] = 1;
	assert_false(mixed_seems_zero(s, 0x880));
	fill_text(s, sizeof(s));
	assert_true(mixed_seems_plain(s));
	memset(s, 0xff, sizeof(s));
	assert_true(mixed_seems_plain(s));
	seed = 5;
	for (int i = 0; i < 100000; i++) {
		fill_noise(s, sizeof(s));
		assert_false(mixed_seems_plain(s));
	}
}

/* ---- ranges ---- */

static void
assert_finds(const struct mixed *m, uint64_t off, size_t len, enum mixed_reading want,
	     size_t want_len)
{
	assert_int_equal(mixed_find(m, off, &len), want);
	assert_int_equal(len, want_len);
}

static void
test_ranges_are_joined_and_found(void **state)
{
	struct mixed *m = calloc(1, sizeof(*m));
	enum mixed_reading a[] = { MIXED_USUAL, MIXED_PLAIN, MIXED_PLAIN };
	enum mixed_reading b[] = { MIXED_PLAIN, MIXED_FILE_IV, MIXED_USUAL };

	assert_non_null(m);
	assert_int_equal(mixed_add(m, 1536, a, 3), 0);
	assert_int_equal(mixed_add(m, 3072, b, 3), 0);
	assert_int_equal(m->n, 2);
	assert_int_equal(m->bytes[MIXED_PLAIN], 3 * 512);
	assert_int_equal(m->bytes[MIXED_FILE_IV], 512);
	assert_finds(m, 0, 512, MIXED_USUAL, 512);
	assert_finds(m, 0, 65536, MIXED_USUAL, 2048);
	assert_finds(m, 2048, 65536, MIXED_PLAIN, 1536);
	assert_finds(m, 3072, 512, MIXED_PLAIN, 512);
	assert_finds(m, 3584, 65536, MIXED_FILE_IV, 512);
	assert_finds(m, 4096, 65536, MIXED_USUAL, 65536);
	mixed_free(m);
}

static void
test_there_is_a_limit_to_ranges(void **state)
{
	struct mixed *m = calloc(1, sizeof(*m));
	enum mixed_reading one = MIXED_PLAIN;

	assert_non_null(m);
	for (uint64_t i = 0; i < MIXED_RANGES_MAX; i++)
		assert_int_equal(mixed_add(m, i * 1024, &one, 1), 0);
	assert_int_equal(mixed_add(m, MIXED_RANGES_MAX * 1024ULL, &one, 1), -E2BIG);
	assert_finds(m, 777 * 1024, 512, MIXED_PLAIN, 512);
	assert_finds(m, 777 * 1024 + 512, 512, MIXED_USUAL, 512);
	mixed_free(m);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_zeroes_filled_up_around_a_write_are_told_by_their_iv),
		cmocka_unit_test(test_what_a_guest_wrote_into_it_is_not_disturbed_if_it_is_noise),
		cmocka_unit_test(test_text_of_a_base_is_told_by_its_iv),
		cmocka_unit_test(test_a_plain_cluster_is_plain_with_the_noise_in_it),
		cmocka_unit_test(test_plain_sectors_among_encrypted_ones),
		cmocka_unit_test(test_noise_is_read_as_usual),
		cmocka_unit_test(test_two_sectors_alone_change_no_iv),
		cmocka_unit_test(test_where_both_numbers_are_the_same_there_is_no_other_iv),
		cmocka_unit_test(test_iv_that_differ_in_one_byte),
		cmocka_unit_test(test_clusters_of_one_sector),
		cmocka_unit_test(test_good_clusters_are_never_disturbed),
		cmocka_unit_test(test_what_is_seen_in_passing),
		cmocka_unit_test(test_ranges_are_joined_and_found),
		cmocka_unit_test(test_there_is_a_limit_to_ranges),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
