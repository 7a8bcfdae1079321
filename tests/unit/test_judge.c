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
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "rescue/judge.h"
#include "tests/unit/judge_kit.h"

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

	kit_seed = 1;
	for (unsigned i = 0; i < n; i++) {
		uint8_t s[512];
		unsigned m;

		kit_noise(s, sizeof(s));
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
	struct kit_disk im;
	unsigned count[3];

	/* Zeroes and a little text: what a right key would show. */
	kit_new(&im, 4 * 1024 * 1024);
	for (uint64_t at = 100; at < im.size; at += KIT_CLUSTER)
		memcpy(im.data + at, "some text", 9);
	kit_sample(&im);
	/* Fewer of them, from all over it. */
	im.n = 512;
	for (size_t i = 0; i < im.n; i++)
		im.samples[i] = im.samples[i * JUDGE_SAMPLES / im.n];
	kit_seed = 2;
	kit_wrong_keys(&im, 5000, count);
	print_message("    5000 wrong keys: %u plausible, %u unknown, %u implausible\n",
		      count[VERDICT_PLAUSIBLE], count[VERDICT_UNKNOWN], count[VERDICT_IMPLAUSIBLE]);
	assert_int_equal(count[VERDICT_PLAUSIBLE], 0);
	assert_in_range(count[VERDICT_UNKNOWN], 0, 2);
	kit_done(&im);
}

/* ---- real file systems ---- */

static void
test_file_systems_are_told_by_the_right_key_only(void **state)
{
	kit_seed = 3;
	for (size_t i = 0; i < kit_n_kinds; i++) {
		struct judge_report r;
		struct kit_disk im;
		unsigned count[3];

		if (!kit_have_tool(kit_kinds[i].tool)) {
			print_message("    skipped: no %s here\n", kit_kinds[i].tool);
			continue;
		}
		kit_mkfs(&im, &kit_kinds[i]);
		kit_sample(&im);
		assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_PLAUSIBLE);
		print_message("    %-10s %s\n", kit_kinds[i].tool, r.evidence);
		assert_non_null(strstr(r.evidence, kit_kinds[i].evidence));
		assert_true(r.clear > 0);

		kit_wrong_keys(&im, 50, count);
		assert_int_equal(count[VERDICT_PLAUSIBLE], 0);
		assert_in_range(count[VERDICT_UNKNOWN], 0, 1);
		kit_done(&im);
	}
}

/* ---- the edges ---- */

static void
test_partitions_of_a_gpt_are_looked_into(void **state)
{
	struct kit_disk im;
	struct judge_report r;
	uint8_t *gpt, *part;

	kit_new(&im, 16 << 20);
	gpt = im.data + 512;
	memcpy(gpt, "EFI PART", 8);
	put_le64(gpt + 72, 2);
	kit_noise(im.data + 1024, 16);
	put_le64(im.data + 1024 + 32, 8192);	/* the first entry starts there */
	part = im.data + 8192 * 512;
	memcpy(part + 512, "LABELONE", 8);
	memcpy(part + 512 + 24, "LVM2 001", 8);
	kit_sample(&im);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_PLAUSIBLE);
	assert_non_null(strstr(r.evidence, "LVM2 physical volume at 4 MiB"));
	kit_done(&im);
}

static void
test_noise_is_refused_and_a_little_noise_cannot_be_judged(void **state)
{
	struct kit_disk im;
	struct judge_report r;

	kit_seed = 4;
	kit_new(&im, 1 << 20);
	kit_noise(im.data, im.size);
	kit_sample(&im);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_IMPLAUSIBLE);
	im.n = JUDGE_ENOUGH - 1;
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_UNKNOWN);
	kit_done(&im);
}

/* The right key, where a layer stores no more than a compressed file. */
static void
test_noise_from_few_places_cannot_be_judged_but_at_the_start(void **state)
{
	struct kit_disk im;
	struct judge_report r;

	kit_seed = 7;
	kit_new(&im, 4 << 20);
	kit_noise(im.data + (2 << 20), (JUDGE_PLACES - 1) * KIT_CLUSTER);
	kit_sample(&im);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_UNKNOWN);
	assert_int_equal(r.places, JUDGE_PLACES - 1);
	assert_non_null(strstr(r.evidence, "they lie in 15 places of 64 KiB"));
	kit_done(&im);

	kit_new(&im, 4 << 20);
	kit_noise(im.data, KIT_CLUSTER);
	kit_sample(&im);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_IMPLAUSIBLE);
	kit_done(&im);
}

static void
test_a_lone_boot_mark_cannot_be_judged(void **state)
{
	struct kit_disk im;
	struct judge_report r;

	kit_seed = 5;
	kit_new(&im, 1 << 20);
	kit_noise(im.data, im.size);
	im.data[510] = 0x55;
	im.data[511] = 0xaa;
	im.data[446] = 1;	/* no legal boot flag: this is no partition table */
	kit_sample(&im);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_UNKNOWN);
	assert_non_null(strstr(r.evidence, "boot mark"));
	kit_done(&im);
}

static void
test_one_sector_of_zeroes_in_noise_is_enough(void **state)
{
	struct kit_disk im;
	struct judge_report r;

	kit_seed = 6;
	kit_new(&im, 2 << 20);
	kit_noise(im.data, im.size);
	memset(im.data + 700 * 512, 0, 512);
	kit_sample(&im);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_PLAUSIBLE);
	assert_int_equal(r.zero, 1);
	assert_int_equal(r.noise, r.sampled - 1);
	kit_done(&im);
}

static void
test_an_image_without_ciphertext_needs_no_key(void **state)
{
	struct kit_disk im;
	struct judge_report r;

	kit_new(&im, 1 << 20);
	kit_sample(&im);
	assert_int_equal(im.n, 0);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_PLAUSIBLE);
	assert_non_null(strstr(r.evidence, "no encrypted sector"));
	kit_done(&im);
}

static void
test_what_was_never_encrypted_is_no_evidence(void **state)
{
	struct kit_disk im;
	struct judge_report r;

	kit_new(&im, 1 << 20);
	kit_sample(&im);
	im.n = 100;	/* zeroes where ciphertext should be */
	judge_prepare(im.samples, im.n);
	assert_int_equal(kit_judge(&im, kit_right_key, &r), VERDICT_UNKNOWN);
	assert_int_equal(r.unencrypted, 100);
	assert_int_equal(r.sampled, 0);
	kit_done(&im);
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
		cmocka_unit_test(test_noise_from_few_places_cannot_be_judged_but_at_the_start),
		cmocka_unit_test(test_a_lone_boot_mark_cannot_be_judged),
		cmocka_unit_test(test_one_sector_of_zeroes_in_noise_is_enough),
		cmocka_unit_test(test_an_image_without_ciphertext_needs_no_key),
		cmocka_unit_test(test_what_was_never_encrypted_is_no_evidence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
