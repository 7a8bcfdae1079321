/* SPDX-License-Identifier: Apache-2.0 */
/* Ciphers decrypt what nettle's own modes encrypt, sector by sector, at any
 * length, and refuse what they do not know. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/nettle-meta.h>
#include <nettle/sha2.h>
#include <nettle/xts.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/cipher.h"

enum { LEN = 21 * 512 };	/* more than two batches, and not a multiple of one */

static const uint64_t SECTOR = 0x1fffffff5ULL;	/* beyond 32 bits; the low half wraps */
static const uint8_t KEY[65] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-";

static void
fill(uint8_t *buf)
{
	for (size_t i = 0; i < LEN; i++)
		buf[i] = (uint8_t)(i * 37 + (i >> 9) * 11);
}

static void
make_iv(uint64_t sector, bool plain64, uint8_t iv[16])
{
	memset(iv, 0, 16);
	put_le64(iv, plain64 ? sector : (uint32_t)sector);
}

static void
check(const struct cipher_spec *spec, size_t key_len, uint8_t *cipher)
{
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	uint8_t plain[LEN];

	fill(plain);
	assert_int_equal(cipher_new(spec, KEY, key_len, &c, NULL), 0);
	cipher_decrypt(c, SECTOR, cipher, LEN);
	assert_memory_equal(plain, cipher, LEN);
}

/* Space for any of nettle's contexts. */
static uint8_t ctx[8192] __attribute__((aligned(16)));

static void
encrypt_cbc(const struct nettle_cipher *alg, bool plain64, uint8_t *buf)
{
	uint8_t iv[16];

	fill(buf);
	alg->set_encrypt_key(ctx, KEY);
	for (size_t at = 0; at < LEN; at += 512) {
		make_iv(SECTOR + at / 512, plain64, iv);
		cbc_encrypt(ctx, alg->encrypt, alg->block_size, iv, 512, buf + at, buf + at);
	}
}

static void
test_known_sector_of_qcow_aes(void **state)
{
	/* What openssl makes of a sector of zeroes, as sector 5: both its ends. */
	static const uint8_t first[4] = { 0x1f, 0x5d, 0xd8, 0x99 };
	static const uint8_t last[4] = { 0x13, 0xcb, 0x94, 0x83 };
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	uint8_t buf[512] = { 0 }, iv[16] = { 5 };
	struct aes128_ctx aes;

	aes128_set_encrypt_key(&aes, KEY);
	cbc_encrypt(&aes, (nettle_cipher_func *)aes128_encrypt, 16, iv, 512, buf, buf);
	assert_memory_equal(buf, first, sizeof(first));
	assert_memory_equal(buf + 508, last, sizeof(last));

	assert_int_equal(cipher_new(&cipher_qcow_aes, KEY, 16, &c, NULL), 0);
	cipher_decrypt(c, 5, buf, sizeof(buf));
	assert_true(bytes_are_zero(buf, sizeof(buf)));
}

static void
test_cbc_of_every_algorithm(void **state)
{
	static const struct {
		const char *name;
		const struct nettle_cipher *alg;
	} algs[] = {
		{ "aes", &nettle_aes128 },	   { "aes", &nettle_aes192 },
		{ "aes", &nettle_aes256 },	   { "serpent", &nettle_serpent128 },
		{ "serpent", &nettle_serpent192 }, { "serpent", &nettle_serpent256 },
		{ "twofish", &nettle_twofish128 }, { "twofish", &nettle_twofish192 },
		{ "twofish", &nettle_twofish256 }, { "cast5", &nettle_cast128 },
	};
	uint8_t buf[LEN];

	for (size_t i = 0; i < ARRAY_SIZE(algs); i++)
		for (int plain64 = 0; plain64 < 2; plain64++) {
			struct cipher_spec spec = { .alg = algs[i].name, .mode = "cbc",
						    .ivgen = plain64 ? "plain64" : "plain" };

			encrypt_cbc(algs[i].alg, plain64, buf);
			check(&spec, algs[i].alg->key_size, buf);
		}
}

static void
test_cbc_essiv(void **state)
{
	struct cipher_spec spec = { .alg = "aes", .mode = "cbc", .ivgen = "essiv",
				    .ivhash = "sha256" };
	struct aes256_ctx iv_aes;
	struct sha256_ctx sha;
	uint8_t buf[LEN], iv[16], digest[32];

	fill(buf);
	sha256_init(&sha);
	sha256_update(&sha, 16, KEY);
	sha256_digest(&sha, 32, digest);
	aes256_set_encrypt_key(&iv_aes, digest);
	nettle_aes128.set_encrypt_key(ctx, KEY);
	for (size_t at = 0; at < LEN; at += 512) {
		make_iv(SECTOR + at / 512, true, iv);
		aes256_encrypt(&iv_aes, 16, iv, iv);
		cbc_encrypt(ctx, nettle_aes128.encrypt, 16, iv, 512, buf + at, buf + at);
	}
	check(&spec, 16, buf);
}

static void
test_xts(void **state)
{
	static const struct cipher_spec spec = { .alg = "aes", .mode = "xts", .ivgen = "plain64" };
	struct xts_aes128_key k128;
	struct xts_aes256_key k256;
	uint8_t buf[LEN], iv[16];

	fill(buf);
	xts_aes128_set_encrypt_key(&k128, KEY);
	for (size_t at = 0; at < LEN; at += 512) {
		make_iv(SECTOR + at / 512, true, iv);
		xts_aes128_encrypt_message(&k128, iv, 512, buf + at, buf + at);
	}
	check(&spec, 32, buf);

	fill(buf);
	xts_aes256_set_encrypt_key(&k256, KEY);
	for (size_t at = 0; at < LEN; at += 512) {
		make_iv(SECTOR + at / 512, true, iv);
		xts_aes256_encrypt_message(&k256, iv, 512, buf + at, buf + at);
	}
	check(&spec, 64, buf);
}

static void
test_ecb_and_ctr(void **state)
{
	struct cipher_spec ecb = { .alg = "twofish", .mode = "ecb" };
	struct cipher_spec ctr = { .alg = "aes", .mode = "ctr", .ivgen = "plain64" };
	uint8_t buf[LEN], iv[16];

	fill(buf);
	nettle_twofish256.set_encrypt_key(ctx, KEY);
	nettle_twofish256.encrypt(ctx, LEN, buf, buf);
	check(&ecb, 32, buf);

	fill(buf);
	nettle_aes256.set_encrypt_key(ctx, KEY);
	for (size_t at = 0; at < LEN; at += 512) {
		make_iv(SECTOR + at / 512, true, iv);
		ctr_crypt(ctx, nettle_aes256.encrypt, 16, iv, 512, buf + at, buf + at);
	}
	check(&ctr, 32, buf);
}

static void
refuse(const struct cipher_spec *spec, size_t key_len)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct cipher *c = NULL;

	assert_int_equal(cipher_new(spec, KEY, key_len, &c, &err), -1);
	assert_null(c);
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), "not supported"));
}

static void
test_what_is_not_known_is_refused(void **state)
{
	refuse(&(struct cipher_spec){ "cipher_null", "ecb", NULL, NULL }, 16);
	refuse(&(struct cipher_spec){ "aes", "cbc", "plain64", NULL }, 15);
	refuse(&(struct cipher_spec){ "aes", "cbc", "plain64", NULL }, 0);
	refuse(&(struct cipher_spec){ "aes", "cbc", NULL, NULL }, 16);
	refuse(&(struct cipher_spec){ "aes", "cbc", "benbi", NULL }, 16);
	refuse(&(struct cipher_spec){ "aes", "cbc", "essiv", NULL }, 16);
	refuse(&(struct cipher_spec){ "aes", "cbc", "essiv", "sha512" }, 16);
	refuse(&(struct cipher_spec){ "aes", "xts", "plain64", NULL }, 33);
	refuse(&(struct cipher_spec){ "aes", "gcm", "plain64", NULL }, 16);
	refuse(&(struct cipher_spec){ "cast5", "xts", "plain64", NULL }, 32);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_sector_of_qcow_aes),
		cmocka_unit_test(test_cbc_of_every_algorithm),
		cmocka_unit_test(test_cbc_essiv),
		cmocka_unit_test(test_xts),
		cmocka_unit_test(test_ecb_and_ctr),
		cmocka_unit_test(test_what_is_not_known_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
