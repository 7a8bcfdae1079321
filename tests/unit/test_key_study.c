/* SPDX-License-Identifier: Apache-2.0 */
/* The study of wrong and right keys that docs/rescue-keys.md reports: how often the
 * judge takes a wrong key, or refuses the right one, and how often a sector of a good
 * image is read otherwise.  A short run by default; with QUOIN_STUDY=all, as ./dev study
 * sets it, all of it, with file systems full of this machine's files (minutes). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "rescue/cipher.h"
#include "rescue/mixed.h"
#include "tests/unit/judge_kit.h"

/* What fills a file system in the long run. */
static const struct kit_kind full[] = {
	{ "mkfs.ext4", "mkfs.ext4 -q -F -d /usr/share/doc $f", "documents, many .gz", 400 },
	{ "mkfs.ext4", "mkfs.ext4 -q -F -d /usr/lib/python3 $f", "Python modules", 128 },
	{ "mkfs.ext4", "mkfs.ext4 -q -F -d /usr/bin $f", "programs", 800 },
	{ "mkfs.btrfs", "mkfs.btrfs -q --rootdir /usr/lib/python3 $f >/dev/null",
	  "Python modules, btrfs", 256 },
	{ "debugfs", "tar -C / -cJf $f.xz usr/lib/python3 && mkfs.ext4 -q -F $f && "
		     "debugfs -w -R \"write $f.xz a.tar.xz\" $f 2>/dev/null; rm -f $f.xz",
	  "one large .tar.xz", 32 },
};

static bool
is_long(void)
{
	const char *s = getenv("QUOIN_STUDY");

	return s && !strcmp(s, "all");
}

/* Call fn with each disk that can be made here, its samples taken. */
static void
for_each_disk(void (*fn)(struct kit_disk *d, const char *name))
{
	size_t n = kit_n_kinds + (is_long() ? ARRAY_SIZE(full) : 0);

	for (size_t i = 0; i < n; i++) {
		const struct kit_kind *kind = i < kit_n_kinds ? &kit_kinds[i]
							      : &full[i - kit_n_kinds];
		struct kit_disk d;

		if (!kit_have_tool(kind->tool)) {
			print_message("    skipped: no %s here\n", kind->tool);
			continue;
		}
		kit_mkfs(&d, kind);
		kit_sample(&d);
		fn(&d, kind->evidence);
		kit_done(&d);
	}
}

/* ---- wrong keys ---- */

static struct {
	uint64_t keys, sectors, odd, verdict[3];
} wrong;

static void
try_wrong_keys(struct kit_disk *d, const char *name)
{
	unsigned n = is_long() ? 5000 : 30;

	for (unsigned i = 0; i < n; i++) {
		struct judge_report r;
		uint8_t key[16];

		kit_noise(key, sizeof(key));
		wrong.verdict[kit_judge(d, key, &r)]++;
		wrong.keys++;
		wrong.sectors += r.sampled;
		wrong.odd += r.odd;
	}
	print_message("    %-24s%6zu sectors, %u wrong keys\n", name, d->n, n);
}

static void
test_wrong_keys_are_refused(void **state)
{
	kit_seed = 11;
	for_each_disk(try_wrong_keys);
	print_message("    of %llu wrong keys %llu were taken, %llu could not be judged; "
		      "of %llu sectors of noise %llu were odd\n",
		      (unsigned long long)wrong.keys,
		      (unsigned long long)wrong.verdict[VERDICT_PLAUSIBLE],
		      (unsigned long long)wrong.verdict[VERDICT_UNKNOWN],
		      (unsigned long long)wrong.sectors, (unsigned long long)wrong.odd);
	assert_int_equal(wrong.verdict[VERDICT_PLAUSIBLE], 0);
	/* As many as rescue/judge.h says are to be expected, and a few more by chance. */
	assert_in_range(wrong.odd, 0, (wrong.sectors >> 28) + 5);
	assert_in_range(wrong.verdict[VERDICT_UNKNOWN], 0, (wrong.keys >> 15) + 5);
}

/* ---- the right key, for layers that store a part of a disk ---- */

static const unsigned clusters[] = { 1, 4, 16, 64 };

/* Let n of the stored clusters, taken at random, be all there is. */
static void
store_some(struct kit_disk *d, unsigned n)
{
	uint64_t all = div_up(d->size, KIT_CLUSTER), left = 0;
	bool *stored = calloc(all, sizeof(*stored));

	assert_non_null(stored);
	free(d->stored);
	d->stored = NULL;
	for (uint64_t c = 0; c < all; c++)
		left += kit_is_stored(d, c);
	/* Each of those that are left with the same probability. */
	for (uint64_t c = 0; c < all; c++)
		if (kit_is_stored(d, c) && kit_random() % left-- < n) {
			stored[c] = true;
			n--;
		}
	d->stored = stored;
}

static void
try_parts(struct kit_disk *d, const char *name)
{
	unsigned rounds = is_long() ? 500 : 10;
	struct judge_report r;

	assert_int_equal(kit_judge(d, kit_right_key, &r), VERDICT_PLAUSIBLE);
	print_message("    %-24s%5.1f%% not noise; refused, not judged, of %u:", name,
		      100.0 * (double)r.odd / (double)r.sampled, rounds);
	for (size_t i = 0; i < ARRAY_SIZE(clusters); i++) {
		unsigned count[3] = { 0 };

		for (unsigned j = 0; j < rounds; j++) {
			store_some(d, clusters[i]);
			kit_sample(d);
			count[kit_judge(d, kit_right_key, &r)]++;
		}
		print_message("  %u: %u, %u", clusters[i], count[VERDICT_IMPLAUSIBLE],
			      count[VERDICT_UNKNOWN]);
	}
	print_message("\n");
}

static void
test_the_right_key_is_taken(void **state)
{
	kit_seed = 12;
	for_each_disk(try_parts);
}

/* ---- sectors that are read otherwise ---- */

static struct {
	uint64_t good, disturbed;		/* in good clusters */
	uint64_t written, taken;		/* by a guest, and taken for filled up */
	uint64_t filled, told, plain, plain_told;
} mixed;

/* A cluster as an image with these numbers of sectors has it: read each one's vote, and
 * decide.  Those in [from, to) are as a guest wrote them, the others as how says. */
static void
decide(const struct kit_disk *d, const struct cipher *c, uint64_t sector, uint64_t file,
       enum mixed_reading how, unsigned from, unsigned to, enum mixed_reading *got)
{
	struct mixed_vote votes[KIT_CLUSTER_SECTORS];

	for (unsigned i = 0; i < KIT_CLUSTER_SECTORS; i++) {
		enum mixed_reading this = i >= from && i < to ? MIXED_USUAL : how;
		uint8_t stored[512];

		if (this == MIXED_PLAIN)
			memcpy(stored, d->data + (sector + i) * 512, 512);
		else
			kit_encrypt(d, sector + i, (this == MIXED_FILE_IV ? file : sector) + i, stored);
		votes[i] = mixed_look(c, sector + i, file + i, stored);
	}
	assert_int_equal(mixed_decide(votes, KIT_CLUSTER_SECTORS, got), 0);
}

static void
try_cluster(const struct kit_disk *d, const struct cipher *c, uint64_t sector)
{
	enum mixed_reading got[KIT_CLUSTER_SECTORS];
	uint64_t file = kit_random() % (1 << 23) * KIT_CLUSTER_SECTORS;
	unsigned from = (unsigned)(kit_random() % 15) * 8, to = from + 8;

	if (kit_random() % 2)	/* near each other, as in a new image */
		file = sector + (1 + kit_random() % 32) * KIT_CLUSTER_SECTORS;
	decide(d, c, sector, file, MIXED_USUAL, 0, 0, got);
	for (unsigned i = 0; i < KIT_CLUSTER_SECTORS; i++)
		mixed.disturbed += got[i] != MIXED_USUAL;
	mixed.good += KIT_CLUSTER_SECTORS;

	decide(d, c, sector, file, MIXED_FILE_IV, from, to, got);
	for (unsigned i = 0; i < KIT_CLUSTER_SECTORS; i++) {
		if (i >= from && i < to) {
			mixed.taken += got[i] != MIXED_USUAL;
			mixed.written++;
		} else {
			mixed.told += got[i] == MIXED_FILE_IV;
			mixed.filled++;
		}
	}

	decide(d, c, sector, file, MIXED_PLAIN, 0, 0, got);
	for (unsigned i = 0; i < KIT_CLUSTER_SECTORS; i++)
		mixed.plain_told += got[i] == MIXED_PLAIN;
	mixed.plain += KIT_CLUSTER_SECTORS;
}

static void
try_clusters(struct kit_disk *d, const char *name)
{
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	uint64_t limit = is_long() ? 4000 : 20;

	memset(&mixed, 0, sizeof(mixed));
	assert_int_equal(cipher_new(&cipher_qcow_aes, kit_right_key, 16, &c, NULL), 0);
	for (uint64_t at = 0; at < d->size / KIT_CLUSTER && limit; at++) {
		if (!kit_is_stored(d, at))
			continue;
		try_cluster(d, c, at * KIT_CLUSTER_SECTORS);
		limit--;
	}
	print_message("    %-24s%llu of %llu good sectors disturbed, %llu of %llu written ones; "
		      "told: %.1f%% of the filled up, %.1f%% of the plain\n", name,
		      (unsigned long long)mixed.disturbed, (unsigned long long)mixed.good,
		      (unsigned long long)mixed.taken, (unsigned long long)mixed.written,
		      100.0 * (double)mixed.told / (double)mixed.filled,
		      100.0 * (double)mixed.plain_told / (double)mixed.plain);
	assert_int_equal(mixed.disturbed, 0);
	/* What a guest wrote may look like what was filled up around it, now and then. */
	assert_true(mixed.taken * 100 <= mixed.written + 100);
}

static void
test_good_clusters_are_read_as_they_are(void **state)
{
	kit_seed = 13;
	for_each_disk(try_clusters);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_wrong_keys_are_refused),
		cmocka_unit_test(test_the_right_key_is_taken),
		cmocka_unit_test(test_good_clusters_are_read_as_they_are),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
