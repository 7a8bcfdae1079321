/* SPDX-License-Identifier: Apache-2.0 */
/* How much one core decrypts, a mebibyte at a time and without any disk: MiB/s by
 * CPU time for each kind of cipher that rescue/ meets. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "rescue/cipher.h"

enum { MIB = 1024 * 1024, SECONDS_NS = 400 * 1000 * 1000 };

static const struct {
	const char *name;
	struct cipher_spec spec;
	size_t key_len;
} kinds[] = {
	{ "aes-128-cbc", { .alg = "aes", .mode = "cbc", .ivgen = "plain64" }, 16 },
	{ "aes-256-cbc", { .alg = "aes", .mode = "cbc", .ivgen = "plain64" }, 32 },
	{ "aes-128-xts", { .alg = "aes", .mode = "xts", .ivgen = "plain64" }, 32 },
	{ "aes-256-xts", { .alg = "aes", .mode = "xts", .ivgen = "plain64" }, 64 },
	{ "serpent-256-xts", { .alg = "serpent", .mode = "xts", .ivgen = "plain64" }, 64 },
	{ "twofish-256-xts", { .alg = "twofish", .mode = "xts", .ivgen = "plain64" }, 64 },
};

static int64_t
cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static double
measure(const struct cipher *c, uint8_t *buf)
{
	int64_t start = cpu_ns(), now;
	uint64_t mib = 0;

	do {
		cipher_decrypt(c, mib * (MIB / CIPHER_SECTOR), buf, MIB);
		mib++;
		now = cpu_ns();
	} while (now - start < SECONDS_NS);
	return (double)mib * 1e9 / (double)(now - start);
}

int
main(void)
{
	static uint8_t buf[MIB];
	static const uint8_t key[64] = "any bytes do, but both halves of a key of xts must differ....";

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct cipher *c;

		if (cipher_new(&kinds[i].spec, key, kinds[i].key_len, &c, NULL) < 0)
			return EXIT_FAILURE;
		printf("%s %.0f\n", kinds[i].name, measure(c, buf));
		cipher_free(c);
	}
	return EXIT_SUCCESS;
}
