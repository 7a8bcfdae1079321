/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: what a key decrypts to, judged: any bytes as a guest's disk,
 * with the partition tables and file systems that are looked for in it. */
#include <nettle/aes.h>
#include <nettle/cbc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "rescue/cipher.h"
#include "rescue/judge.h"

enum { SECTORS_MAX = 256 };

struct disk {
	struct judge_sample sector[SECTORS_MAX];	/* encrypted */
	size_t n;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const uint8_t key[AES128_KEY_SIZE] = "geheim";

static void
fill(struct disk *d, const uint8_t *data, size_t len)
{
	struct aes128_ctx aes;

	aes128_set_encrypt_key(&aes, key);
	d->n = min_u64(len / CIPHER_SECTOR, SECTORS_MAX);
	for (size_t i = 0; i < d->n; i++) {
		uint8_t iv[AES_BLOCK_SIZE] = { 0 };

		put_le64(iv, i);
		d->sector[i].sector = i;
		cbc_encrypt(&aes, (nettle_cipher_func *)aes128_encrypt, AES_BLOCK_SIZE, iv,
			    CIPHER_SECTOR, d->sector[i].data, data + i * CIPHER_SECTOR);
	}
}

static bool
fetch(void *user, uint64_t sector, uint8_t data[512])
{
	const struct disk *d = user;

	if (sector >= d->n)
		return false;
	memcpy(data, d->sector[sector].data, CIPHER_SECTOR);
	return true;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct disk d;
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	struct judge_disk disk = { .fetch = fetch, .user = &d };
	struct judge_report report;

	if (cipher_new(&cipher_qcow_aes, key, sizeof(key), &c, NULL) < 0)
		abort();
	fill(&d, data, len);
	disk.sectors = d.n;
	judge_key(c, d.sector, d.n, &disk, &report);
	if (!memchr(report.evidence, 0, sizeof(report.evidence)))
		abort();
	return 0;
}
