/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/judge_kit.h - disks for tests of the judge, encrypted as they are read.
 *
 * A disk is in memory, in clear; clusters of zeroes are holes, as in an image.  All
 * randomness comes from kit_seed.  What fails ends the test.
 */
#ifndef TESTS_UNIT_JUDGE_KIT_H
#define TESTS_UNIT_JUDGE_KIT_H

#include <nettle/aes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rescue/judge.h"

enum { KIT_CLUSTER = 64 * 1024, KIT_CLUSTER_SECTORS = KIT_CLUSTER / 512 };

extern uint64_t kit_seed;
extern const uint8_t kit_right_key[16];

uint64_t kit_random(void);
void kit_noise(void *buf, size_t len);	/* a multiple of 8 */

struct kit_disk {
	uint8_t *data;
	uint64_t size;
	bool *stored;		/* for each cluster; NULL: all but the holes.  Freed */
	bool *hole;		/* ... by the first kit_sample(), as the next ones */
	struct aes128_ctx aes;
	struct judge_sample *samples;
	size_t n;
};

void kit_new(struct kit_disk *d, uint64_t size);
void kit_done(struct kit_disk *d);

/* Is it of the clusters that are stored, and no hole?  After kit_sample(). */
bool kit_is_stored(const struct kit_disk *d, uint64_t cluster);

/* A sector as it is stored, with iv, which is its number on the disk in good images. */
void kit_encrypt(const struct kit_disk *d, uint64_t sector, uint64_t iv, uint8_t out[512]);

/* Sample evenly what is stored; the content must not change any more, but what is
 * stored may, for the next call. */
void kit_sample(struct kit_disk *d);

enum verdict kit_judge(struct kit_disk *d, const uint8_t key[16], struct judge_report *r);

/* How many of n random keys get each verdict? */
void kit_wrong_keys(struct kit_disk *d, unsigned n, unsigned count[3]);

/* What is made by a program for file systems. */
struct kit_kind {
	const char *tool, *command, *evidence;
	unsigned mib;
};

extern const struct kit_kind kit_kinds[];
extern const size_t kit_n_kinds;

bool kit_have_tool(const char *tool);

/* Make what kind says in a file, and map it. */
void kit_mkfs(struct kit_disk *d, const struct kit_kind *kind);

#endif
