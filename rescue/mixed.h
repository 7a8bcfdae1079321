/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/mixed.h - sectors that old programs encrypted otherwise, or not at all.
 *
 * In images with the old AES encryption, a sector's initialization vector (IV) is its
 * number on the guest disk.  QEMU 2.7 took the number in the image file where it filled
 * up a new cluster around what a guest wrote (copy on write).  Read in the usual way
 * such a sector has 8 wrong bytes, the first ones: CBC makes the IV no more than a mask
 * of the first block.  Programs that forgot to set the key, in backups and commits,
 * left plain text; read in the usual way it becomes noise.
 *
 * Each sector of a cluster is looked at, and votes: what is not noise as it is stored
 * was never encrypted (rescue/judge.h); of one that decrypts to something else than
 * noise, the two IVs give two versions of a few bytes, and the one whose bytes are the
 * more frequent ones in the rest of the sector is the likelier.  That holds where a
 * sector is the same all over, zeroes or text; of tables and programs, whose first bytes
 * may be of their own kind, it says too little to vote.  The cheapest course through the
 * cluster that explains the votes decides, where each change has its price: so a single
 * odd sector changes nothing, a run of them does.  Within a run that has the file's IV
 * the tables and programs go with it that prefer it.  What decrypts to noise says
 * nothing: between plain sectors it is taken for plain, as whole clusters were, and its
 * IV is taken to be the usual one, as it is for what the guest wrote.
 *
 * Units      offsets and lengths are bytes on the guest disk, whole sectors.
 * Context    any thread; a struct mixed that is complete may be read by many.
 * Errors     0 or -errno.
 */
#ifndef RESCUE_MIXED_H
#define RESCUE_MIXED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cipher;

enum { MIXED_RANGES_MAX = 256 * 1024 };	/* of all layers */

enum mixed_reading { MIXED_USUAL, MIXED_FILE_IV, MIXED_PLAIN, MIXED_READINGS };

/* How one sector votes: bits of evidence against the usual reading. */
struct mixed_vote {
	int16_t weight[MIXED_READINGS];	/* that of MIXED_USUAL is 0 */
	int16_t leaning;		/* to the file's IV, if others vote for that */
};

struct mixed_range {
	uint64_t off, len;
	enum mixed_reading reading;	/* not MIXED_USUAL */
};

/* What is to be read otherwise, in ascending order. */
struct mixed {
	struct mixed_range *range;
	size_t n, others;		/* others: of other layers, by whoever adds */
	uint64_t bytes[MIXED_READINGS];
};

/* Look at a sector as it is stored; guest and file are its numbers on the disk and in
 * the image file. */
struct mixed_vote mixed_look(const struct cipher *c, uint64_t guest, uint64_t file,
			     const uint8_t stored[512]);

/* Decide on the n sectors of a cluster, at least one.  -ENOMEM. */
int mixed_decide(const struct mixed_vote *votes, size_t n, enum mixed_reading *ret);

/* Add what was decided of a cluster at off, which lies behind all that was added
 * before.  -E2BIG: there are too many ranges. */
int mixed_add(struct mixed *m, uint64_t off, const enum mixed_reading *readings, size_t n);

/* How off is to be read; *len becomes less where that ends. */
enum mixed_reading mixed_find(const struct mixed *m, uint64_t off, size_t *len);

void mixed_free(struct mixed *m);	/* takes NULL */

/* Looks in passing at what is read in the usual way; cheap, and right if true.  Is this
 * plain text where ciphertext should be?  Is it, decrypted, a sector of zeroes with the
 * other IV, where the two differ by diff? */
bool mixed_seems_plain(const uint8_t stored[512]);
bool mixed_seems_zero(const uint8_t plain[512], uint64_t diff);

/* "plain-text", "file-iv" for programs. */
const char *mixed_reading_name(enum mixed_reading reading);

#endif
