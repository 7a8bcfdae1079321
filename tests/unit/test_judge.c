/* SPDX-License-Identifier: Apache-2.0 */
/* The judge of keys: the error rates that rescue/judge.h states, by the exact
 * distribution and by thousands of random keys; and real file systems of
 * several kinds, as mkfs makes them, with the right key and with wrong ones.
 * All randomness comes from fixed seeds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <nettle/aes.h>
#include <nettle/cbc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "rescue/cipher.h"
#include "rescue/judge.h"

enum { CLUSTER = 64 * 1024, SECTORS_PER_CLUSTER = CLUSTER / 512 };

static const uint8_t RIGHT_KEY[16] = "the right key...";

/* ---- noise from a seed ---- */

static uint64_t seed;

static uint64_t
next_random(void)
{
	uint64_t z = seed += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static void
fill_noise(void *buf, size_t len)
{
	uint8_t *p = buf;

	for (size_t i = 0; i < len; i += 8)
		put_le64(p + i, next_random());
}

/* ---- an image: clusters of zeroes are holes, the rest is encrypted ---- */

struct image {
	uint8_t *data;
	uint64_t size;
	struct aes128_ctx aes;
	struct judge_sample *samples;
	size_t n;
};

static bool
is_hole(const struct image *im, uint64_t sector)
{
	uint64_t at = round_down(sector * 512, CLUSTER);

	return bytes_are_zero(im->data + at, min_u64(CLUSTER, im->size - at));
}

static bool
fetch(void *user, uint64_t sector, uint8_t data[512])
{
	struct image *im = user;
	uint8_t iv[16] = { 0 };

	if ((sector + 1) * 512 > im->size || is_hole(im, sector))
		return false;
	put_le64(iv, sector);
	cbc_encrypt(&im->aes, (nettle_cipher_func *)aes128_encrypt, 16, iv, 512, data,
		    im->data + sector * 512);
	return true;
}

/* Sample evenly what is no hole. */
static void
image_sample(struct image *im)
{
	uint64_t clusters = div_up(im->size, CLUSTER), used = 0, step, at = 0;

	aes128_set_encrypt_key(&im->aes, RIGHT_KEY);
	im->samples = calloc(JUDGE_SAMPLES, sizeof(*im->samples));
	assert_non_null(im->samples);
	for (uint64_t c = 0; c < clusters; c++)
		used += !is_hole(im, c * SECTORS_PER_CLUSTER);
	step = max_u64(1, used * SECTORS_PER_CLUSTER / JUDGE_SAMPLES);
	for (uint64_t s = 0; s < im->size / 512 && im->n < JUDGE_SAMPLES; s++) {
		if (s % SECTORS_PER_CLUSTER == 0 && is_hole(im, s)) {
			s += SECTORS_PER_CLUSTER - 1;
			continue;
		}
		if (at++ % step)
			continue;
		im->samples[im->n].sector = s;
		assert_true(fetch(im, s, im->samples[im->n++].data));
	}
	judge_prepare(im->samples, im->n);
}

static void
image_done(struct image *im)
{
	munmap(im->data, im->size);
	free(im->samples);
}

static void
image_new(struct image *im, uint64_t size)
{
	*im = (struct image){ .size = size };
	im->data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(im->data, MAP_FAILED);
}

static enum verdict
judge(struct image *im, const uint8_t key[16], struct judge_report *r)
{
	struct judge_disk disk = { .sectors = im->size / 512, .fetch = fetch, .user = im };
	CLEANUP(cipher_freep) struct cipher *c = NULL;

	assert_int_equal(cipher_new(&cipher_qcow_aes, key, 16, &c, NULL), 0);
	judge_key(c, im->samples, im->n, &disk, r);
	return r->verdict;
}

/* How many of n random keys get each verdict? */
static void
try_wrong_keys(struct image *im, unsigned n, unsigned count[3])
{
	struct judge_report r;
	uint8_t key[16];

	memset(count, 0, 3 * sizeof(*count));
	for (unsigned i = 0; i < n; i++) {
		fill_noise(key, sizeof(key));
		count[judge(im, key, &r)]++;
	}
}

/* ---- the stated rates ---- */

enum { MEASURE_CAP = 1000 };

/* ways[s][m]: the weight of s bytes making the measure m, over the byte values
 * so far.  Nothing is ever subtracted, so rounding does not add up; that one
 * value of 256 takes 32 of 512 bytes is rarer than all that is looked for here. */
static double ways[513][MEASURE_CAP + 1], more[513][MEASURE_CAP + 1];

/* Billions of steps that sanitizers have nothing to say about. */
static void __attribute__((no_sanitize("address", "undefined", "thread")))
add_row(double *to, const double *from, double weight, int pairs)
{
	int m = 0;

	for (; m < MEASURE_CAP - pairs; m++)
		to[m + pairs] += weight * from[m];
	for (; m <= MEASURE_CAP; m++)
		to[MEASURE_CAP] += weight * from[m];
}

static void
add_byte_value(void)
{
	memset(more, 0, sizeof(more));
	for (int n = 0; n < 32; n++) {
		double weight = exp(n * log(2.0) - 2.0 - lgamma(n + 1.0));

		for (int s = 0; s + n <= 512; s++)
			add_row(more[s + n], ways[s], weight, n * (n - 1) / 2);
	}
	memcpy(ways, more, sizeof(ways));
}

static double
probability(int from, int to)
{
	double all = 0, in = 0;

	for (int m = 0; m <= MEASURE_CAP; m++) {
		all += ways[512][m];
		if (m >= from && m <= to)
			in += ways[512][m];
	}
	return in / all;
}

static void
test_thresholds_are_as_rare_in_noise_as_stated(void **state)
{
	ways[0][0] = 1;
	for (int i = 0; i < 256; i++)
		add_byte_value();
	assert_true(log2(probability(860, MEASURE_CAP) + probability(0, 345)) < -65);
	assert_true(log2(probability(680, MEASURE_CAP) + probability(0, 400)) < -28);

	/* The formula and the code agree where both can be seen. */
	unsigned low = 0, high = 0, n = 200000;

	seed = 1;
	for (unsigned i = 0; i < n; i++) {
		uint8_t s[512];
		unsigned m;

		fill_noise(s, sizeof(s));
		m = judge_measure(s);
		low += m <= 450;
		high += m >= 590;
	}
	assert_true(fabs(low - n * probability(0, 450)) < 6 * sqrt(n * probability(0, 450)));
	assert_true(fabs(high - n * probability(590, MEASURE_CAP)) <
		    6 * sqrt(n * probability(590, MEASURE_CAP)));
}

static void
test_five_thousand_wrong_keys_are_all_refused(void **state)
{
	struct image im;
	unsigned count[3];

	/* Zeroes and a little text: what a right key would show. */
	image_new(&im, 4 * 1024 * 1024);
	for (uint64_t at = 100; at < im.size; at += CLUSTER)
		memcpy(im.data + at, "some text", 9);
	image_sample(&im);
	im.n = 512;
	seed = 2;
	try_wrong_keys(&im, 5000, count);
	print_message("    5000 wrong keys: %u plausible, %u unknown, %u implausible\n",
		      count[VERDICT_PLAUSIBLE], count[VERDICT_UNKNOWN], count[VERDICT_IMPLAUSIBLE]);
	assert_int_equal(count[VERDICT_PLAUSIBLE], 0);
	assert_in_range(count[VERDICT_UNKNOWN], 0, 2);
	image_done(&im);
}

/* ---- real file systems ---- */

struct kind {
	const char *tool, *command, *evidence;
	unsigned mib;
};

static const struct kind kinds[] = {
	{ "mkfs.ext2", "mkfs.ext2 -q -F %s", "ext2 file system", 64 },
	{ "mkfs.ext3", "mkfs.ext3 -q -F %s", "ext3 file system", 64 },
	{ "mkfs.ext4", "mkfs.ext4 -q -F %s", "ext4 file system", 64 },
	{ "mkfs.vfat", "mkfs.vfat %s >/dev/null", "FAT file system", 64 },
	{ "mkfs.xfs", "mkfs.xfs -q %s", "XFS file system", 512 },
	{ "mkfs.btrfs", "mkfs.btrfs -q %s >/dev/null", "btrfs file system", 256 },
	{ "mkfs.ntfs", "mkfs.ntfs -Q -q -F %s 2>/dev/null", "NTFS file system", 64 },
	{ "mkswap", "mkswap %s >/dev/null 2>&1", "swap space", 64 },
	{ "sfdisk", "printf 'label: gpt\\n,20M\\n,\\n' | sfdisk -q %s", "GPT partition table", 64 },
	{ "sfdisk", "printf 'label: dos\\n,20M\\n,\\n' | sfdisk -q %s", "MBR partition table", 64 },
};

static bool
have_tool(const char *tool)
{
	char command[128];

	snprintf(command, sizeof(command), "PATH=$PATH:/sbin:/usr/sbin command -v %s >/dev/null",
		 tool);
	return system(command) == 0;
}

/* Make what kind says in a file, and map it. */
static void
image_mkfs(struct image *im, const struct kind *kind)
{
	char path[] = "/tmp/quoin-judge-XXXXXX", make[256], command[320];
	CLEANUP(cleanup_close) int fd = mkstemp(path);

	assert_true(fd >= 0);
	*im = (struct image){ .size = (uint64_t)kind->mib << 20 };
	assert_int_equal(ftruncate(fd, (off_t)im->size), 0);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	snprintf(make, sizeof(make), kind->command, path);
#pragma GCC diagnostic pop
	snprintf(command, sizeof(command), "PATH=$PATH:/sbin:/usr/sbin; %s", make);
	assert_int_equal(system(command), 0);
	im->data = mmap(NULL, im->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(im->data, MAP_FAILED);
	unlink(path);
}

static void
test_file_systems_are_told_by_the_right_key_only(void **state)
{
	seed = 3;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct judge_report r;
		struct image im;
		unsigned count[3];

		if (!have_tool(kinds[i].tool)) {
			print_message("    skipped: no %s here\n", kinds[i].tool);
			continue;
		}
		image_mkfs(&im, &kinds[i]);
		image_sample(&im);
		assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_PLAUSIBLE);
		print_message("    %-10s %s\n", kinds[i].tool, r.evidence);
		assert_non_null(strstr(r.evidence, kinds[i].evidence));
		assert_true(r.clear > 0);

		try_wrong_keys(&im, 50, count);
		assert_int_equal(count[VERDICT_PLAUSIBLE], 0);
		assert_in_range(count[VERDICT_UNKNOWN], 0, 1);
		image_done(&im);
	}
}

/* ---- the edges ---- */

static void
test_partitions_of_a_gpt_are_looked_into(void **state)
{
	struct image im;
	struct judge_report r;
	uint8_t *gpt, *part;

	image_new(&im, 16 << 20);
	gpt = im.data + 512;
	memcpy(gpt, "EFI PART", 8);
	put_le64(gpt + 72, 2);
	fill_noise(im.data + 1024, 16);
	put_le64(im.data + 1024 + 32, 8192);	/* the first entry starts there */
	part = im.data + 8192 * 512;
	memcpy(part + 512, "LABELONE", 8);
	memcpy(part + 512 + 24, "LVM2 001", 8);
	image_sample(&im);
	assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_PLAUSIBLE);
	assert_non_null(strstr(r.evidence, "LVM2 physical volume at 4 MiB"));
	image_done(&im);
}

static void
test_noise_is_refused_and_a_little_noise_cannot_be_judged(void **state)
{
	struct image im;
	struct judge_report r;

	seed = 4;
	image_new(&im, 1 << 20);
	fill_noise(im.data, im.size);
	image_sample(&im);
	assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_IMPLAUSIBLE);
	im.n = JUDGE_ENOUGH - 1;
	assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_UNKNOWN);
	image_done(&im);
}

static void
test_a_lone_boot_mark_cannot_be_judged(void **state)
{
	struct image im;
	struct judge_report r;

	seed = 5;
	image_new(&im, 1 << 20);
	fill_noise(im.data, im.size);
	im.data[510] = 0x55;
	im.data[511] = 0xaa;
	im.data[446] = 1;	/* no legal boot flag: this is no partition table */
	image_sample(&im);
	assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_UNKNOWN);
	assert_non_null(strstr(r.evidence, "boot mark"));
	image_done(&im);
}

static void
test_one_sector_of_zeroes_in_noise_is_enough(void **state)
{
	struct image im;
	struct judge_report r;

	seed = 6;
	image_new(&im, 2 << 20);
	fill_noise(im.data, im.size);
	memset(im.data + 700 * 512, 0, 512);
	image_sample(&im);
	assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_PLAUSIBLE);
	assert_int_equal(r.zero, 1);
	assert_int_equal(r.noise, r.sampled - 1);
	image_done(&im);
}

static void
test_an_image_without_ciphertext_needs_no_key(void **state)
{
	struct image im;
	struct judge_report r;

	image_new(&im, 1 << 20);
	image_sample(&im);
	assert_int_equal(im.n, 0);
	assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_PLAUSIBLE);
	assert_non_null(strstr(r.evidence, "no encrypted sector"));
	image_done(&im);
}

static void
test_what_was_never_encrypted_is_no_evidence(void **state)
{
	struct image im;
	struct judge_report r;

	image_new(&im, 1 << 20);
	im.samples = calloc(100, sizeof(*im.samples));
	assert_non_null(im.samples);
	im.n = 100;	/* zeroes where ciphertext should be */
	judge_prepare(im.samples, im.n);
	assert_int_equal(judge(&im, RIGHT_KEY, &r), VERDICT_UNKNOWN);
	assert_int_equal(r.unencrypted, 100);
	assert_int_equal(r.sampled, 0);
	image_done(&im);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_thresholds_are_as_rare_in_noise_as_stated),
		cmocka_unit_test(test_five_thousand_wrong_keys_are_all_refused),
		cmocka_unit_test(test_file_systems_are_told_by_the_right_key_only),
		cmocka_unit_test(test_partitions_of_a_gpt_are_looked_into),
		cmocka_unit_test(test_noise_is_refused_and_a_little_noise_cannot_be_judged),
		cmocka_unit_test(test_a_lone_boot_mark_cannot_be_judged),
		cmocka_unit_test(test_one_sector_of_zeroes_in_noise_is_enough),
		cmocka_unit_test(test_an_image_without_ciphertext_needs_no_key),
		cmocka_unit_test(test_what_was_never_encrypted_is_no_evidence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
