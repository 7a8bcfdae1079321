/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/judge.h - is this the key?
 *
 * The AES of qcow and qcow2 keeps nothing in the header by which a key could be
 * checked.  But a wrong key turns every sector into noise, and disks are full
 * of sectors that are not noise.  So ciphertext sampled from the whole image is
 * decrypted with the key in question, and two things are looked for: known
 * structures at known places, and sectors whose bytes are not evenly spread.
 *
 * A sector's measure is its number of pairs of equal bytes, sum n(n-1)/2 over
 * the 256 values.  For noise its distribution is known exactly (mean 511); from
 * it, for one sector of noise:
 *
 *	clear	 measure >= 860 or <= 345	less than 2^-65
 *	odd	 measure >= 680 or <= 400	less than 2^-28
 *
 * The answers, with 4,096 sectors sampled, and how often a wrong key gets them:
 *
 *	plausible	a structure, a clear sector, or 3 odd ones
 *			less than 2^-42
 *	unknown		1 or 2 odd sectors; a lone boot mark (55 AA); or all of them
 *			noise, but fewer than 64 sectors, or from fewer than 16
 *			places of 64 KiB, none of them within the disk's first MiB
 *			less than 2^-15, but for layers that small
 *	implausible	all of the rest: enough sectors, all of them noise
 *
 * Single files are noise, compressed ones, and a layer may store no more than that; the
 * start of a disk or of its first partition hardly ever is, nor are 16 places at once.
 *
 * A disk whose own content is noise from end to end (encrypted by the guest
 * without any header) gives the same picture as a wrong key.  Nothing can tell
 * the two apart, and the evidence says so.
 *
 * Units      sectors of 512 bytes on the guest disk.
 * Context    any thread; judge_key() calls fetch in the caller's.
 */
#ifndef RESCUE_JUDGE_H
#define RESCUE_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rescue/signature.h"

struct cipher;

enum {
	JUDGE_SAMPLES = 4096,	/* sectors; all of an image that has no more */
	JUDGE_ENOUGH = 64,	/* sectors of noise that condemn a key */
	JUDGE_PLACES = 16,	/* that they must come from at least */
	JUDGE_PLACE = 128,	/* sectors of a place */
	JUDGE_START = 17,	/* places where disks and first partitions start */
	JUDGE_GLANCE = 64,	/* sectors of a first look */
	JUDGE_EVIDENCE = 600,
};

enum verdict { VERDICT_PLAUSIBLE, VERDICT_IMPLAUSIBLE, VERDICT_UNKNOWN };

/* As stored in the image. */
struct judge_sample {
	uint64_t sector;
	bool unencrypted;	/* by judge_prepare() */
	uint8_t data[512];
};

struct judge_disk {
	uint64_t sectors;
	/* Get one sector's ciphertext.  false: not stored encrypted. */
	bool (*fetch)(void *user, uint64_t sector, uint8_t data[512]);
	void *user;
	bool damaged;		/* there may be more that cannot be read */
};

struct judge_report {
	enum verdict verdict;
	size_t sampled;		/* ciphertext sectors that were decrypted */
	size_t noise;		/* ... to noise */
	size_t odd, clear, zero, text;	/* zero and text are clear, clear are odd */
	size_t places;		/* of JUDGE_PLACE sectors, where they come from */
	bool start;		/* one of these is at the start of a disk or partition */
	size_t unencrypted;	/* sampled, but no ciphertext: not decrypted */
	struct signatures signatures;
	char evidence[JUDGE_EVIDENCE];	/* one line, for people */
};

/* Look at n samples once, before any number of keys is judged by them. */
void judge_prepare(struct judge_sample *samples, size_t n);

/* Judge a key by n samples, in ascending order.  They are left as they are. */
void judge_key(const struct cipher *c, const struct judge_sample *samples, size_t n,
	       const struct judge_disk *disk, struct judge_report *ret);

/* A first look, where many keys are tried: is there something clear among a few of the
 * samples?  Much cheaper than judge_key(), which has the last word. */
bool judge_glance(const struct cipher *c, const struct judge_sample *samples, size_t n);

/* A sector's measure, and whether that is clear; see above. */
unsigned judge_measure(const uint8_t data[512]);
bool judge_is_clear(const uint8_t data[512]);

/* Is it all ASCII text? */
bool judge_is_text(const uint8_t *data, size_t len);

/* "plausible", "implausible" or "not-judged". */
const char *judge_verdict_name(enum verdict v);

#endif
