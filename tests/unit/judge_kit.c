/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/judge_kit.h"

#include <nettle/cbc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "rescue/cipher.h"

const uint8_t kit_right_key[16] = "the right key...";

/* ---- noise from a seed ---- */

uint64_t kit_seed;

uint64_t
kit_random(void)
{
	uint64_t z = kit_seed += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

void
kit_noise(void *buf, size_t len)
{
	uint8_t *p = buf;

	for (size_t i = 0; i < len; i += 8)
		put_le64(p + i, kit_random());
}

/* ---- disks ---- */

void
kit_new(struct kit_disk *d, uint64_t size)
{
	*d = (struct kit_disk){ .size = size };
	d->data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(d->data, MAP_FAILED);
}

void
kit_done(struct kit_disk *d)
{
	munmap(d->data, d->size);
	free(d->samples);
	free(d->stored);
	free(d->hole);
}

bool
kit_is_stored(const struct kit_disk *d, uint64_t cluster)
{
	return (!d->stored || d->stored[cluster]) && !d->hole[cluster];
}

static void
find_holes(struct kit_disk *d)
{
	uint64_t clusters = div_up(d->size, KIT_CLUSTER);

	d->hole = calloc(clusters, sizeof(*d->hole));
	assert_non_null(d->hole);
	for (uint64_t c = 0; c < clusters; c++)
		d->hole[c] = bytes_are_zero(d->data + c * KIT_CLUSTER,
					    min_u64(KIT_CLUSTER, d->size - c * KIT_CLUSTER));
}

void
kit_encrypt(const struct kit_disk *d, uint64_t sector, uint64_t iv_sector, uint8_t out[512])
{
	uint8_t iv[16] = { 0 };

	put_le64(iv, iv_sector);
	cbc_encrypt(&d->aes, (nettle_cipher_func *)aes128_encrypt, 16, iv, 512, out,
		    d->data + sector * 512);
}

static bool
fetch(void *user, uint64_t sector, uint8_t data[512])
{
	const struct kit_disk *d = user;

	if ((sector + 1) * 512 > d->size || !kit_is_stored(d, sector / KIT_CLUSTER_SECTORS))
		return false;
	kit_encrypt(d, sector, sector, data);
	return true;
}

void
kit_sample(struct kit_disk *d)
{
	uint64_t clusters = div_up(d->size, KIT_CLUSTER), used = 0, step, at = 0;

	if (!d->samples) {
		aes128_set_encrypt_key(&d->aes, kit_right_key);
		find_holes(d);
		d->samples = calloc(JUDGE_SAMPLES, sizeof(*d->samples));
		assert_non_null(d->samples);
	}
	d->n = 0;
	for (uint64_t c = 0; c < clusters; c++)
		used += kit_is_stored(d, c);
	step = max_u64(1, div_up(used * KIT_CLUSTER_SECTORS, JUDGE_SAMPLES));
	for (uint64_t s = 0; s < d->size / 512 && d->n < JUDGE_SAMPLES; s++) {
		if (s % KIT_CLUSTER_SECTORS == 0 && !kit_is_stored(d, s / KIT_CLUSTER_SECTORS)) {
			s += KIT_CLUSTER_SECTORS - 1;
			continue;
		}
		if (at++ % step)
			continue;
		d->samples[d->n].sector = s;
		assert_true(fetch(d, s, d->samples[d->n++].data));
	}
	judge_prepare(d->samples, d->n);
}

enum verdict
kit_judge(struct kit_disk *d, const uint8_t key[16], struct judge_report *r)
{
	struct judge_disk disk = { .sectors = d->size / 512, .fetch = fetch, .user = d };
	CLEANUP(cipher_freep) struct cipher *c = NULL;

	assert_int_equal(cipher_new(&cipher_qcow_aes, key, 16, &c, NULL), 0);
	judge_key(c, d->samples, d->n, &disk, r);
	return r->verdict;
}

void
kit_wrong_keys(struct kit_disk *d, unsigned n, unsigned count[3])
{
	struct judge_report r;
	uint8_t key[16];

	memset(count, 0, 3 * sizeof(*count));
	for (unsigned i = 0; i < n; i++) {
		kit_noise(key, sizeof(key));
		count[kit_judge(d, key, &r)]++;
	}
}

/* ---- file systems ---- */

/* $f is the file. */
const struct kit_kind kit_kinds[] = {
	{ "mkfs.ext2", "mkfs.ext2 -q -F $f", "ext2 file system", 64 },
	{ "mkfs.ext3", "mkfs.ext3 -q -F $f", "ext3 file system", 64 },
	{ "mkfs.ext4", "mkfs.ext4 -q -F $f", "ext4 file system", 64 },
	{ "mkfs.vfat", "mkfs.vfat $f >/dev/null", "FAT file system", 64 },
	{ "mkfs.xfs", "mkfs.xfs -q $f", "XFS file system", 512 },
	{ "mkfs.btrfs", "mkfs.btrfs -q $f >/dev/null", "btrfs file system", 256 },
	{ "mkfs.ntfs", "mkfs.ntfs -Q -q -F $f 2>/dev/null", "NTFS file system", 64 },
	{ "mkswap", "mkswap $f >/dev/null 2>&1", "swap space", 64 },
	{ "cryptsetup", "echo key | cryptsetup -q --type luks1 --pbkdf-force-iterations 1000 "
			"luksFormat $f -", "LUKS volume", 16 },
	{ "sfdisk", "printf 'label: gpt\n,20M\n,\n' | sfdisk -q $f", "GPT partition table", 64 },
	{ "sfdisk", "printf 'label: dos\n,20M\n,\n' | sfdisk -q $f", "MBR partition table", 64 },
};

const size_t kit_n_kinds = ARRAY_SIZE(kit_kinds);

bool
kit_have_tool(const char *tool)
{
	char command[128];

	snprintf(command, sizeof(command), "PATH=$PATH:/sbin:/usr/sbin command -v %s >/dev/null",
		 tool);
	return system(command) == 0;
}

void
kit_mkfs(struct kit_disk *d, const struct kit_kind *kind)
{
	char path[] = "/tmp/quoin-judge-XXXXXX", command[512];
	CLEANUP(cleanup_close) int fd = mkstemp(path);

	assert_true(fd >= 0);
	*d = (struct kit_disk){ .size = (uint64_t)kind->mib << 20 };
	assert_int_equal(ftruncate(fd, (off_t)d->size), 0);
	snprintf(command, sizeof(command), "f=%s; PATH=$PATH:/sbin:/usr/sbin; %s", path,
		 kind->command);
	assert_int_equal(system(command), 0);
	d->data = mmap(NULL, d->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(d->data, MAP_FAILED);
	unlink(path);
}
