/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/lost.h - the places of a disk whose data could not be had, and why.
 *
 * Kept in order and merged with their neighbours.  The map that is made of them
 * is a mapfile of GNU ddrescue: lost ranges are '-' (bad sector), all else '+'.
 *
 * Units      bytes on the guest disk.
 * Context    any thread.
 * Errors     -ENOMEM; -E2BIG: there are too many ranges.
 */
#ifndef RESCUE_LOST_H
#define RESCUE_LOST_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum lost_why {
	LOST_UNREADABLE,	/* the image file cannot be read there */
	LOST_MAPPING,		/* the tables that say where it is are damaged */
	LOST_PACKED,		/* compressed data that does not unpack */
	LOST_BEYOND_END,	/* the image file ends before it */
};

enum { LOST_MAX = 1 << 20 };	/* ranges */

/* In few bytes: there may be that many. */
struct lost_range {
	uint64_t off;
	uint64_t len : 54;
	uint64_t why : 2;	/* enum lost_why */
	uint64_t layer : 8;	/* 0: the topmost */
};

#define LOST_LEN_MAX ((UINT64_C(1) << 54) - 512)	/* of one range */

struct lost {
	pthread_mutex_t lock;
	struct lost_range *range;	/* by offset, disjoint */
	size_t n, room;
	_Atomic size_t *total;	/* borrowed; LOST_MAX counts for all that share it; or NULL */
};

void lost_init(struct lost *l);
void lost_done(struct lost *l);

/* Lose [off, off + len); ranges that are there already are left as they are. */
int lost_add(struct lost *l, uint64_t off, uint64_t len, const struct lost_range *cause);

/* Is all of the range lost? */
bool lost_covers(struct lost *l, uint64_t off, uint64_t len);

/* Make zero what of buf, which stands for [off, off + len), is lost. */
void lost_mask(struct lost *l, uint64_t off, void *buf, size_t len);

uint64_t lost_bytes(struct lost *l);

/* "the compressed data does not unpack", for people */
const char *lost_why_text(enum lost_why why);

/* The mapfile of a disk of this size.  blamed tells which file is at fault for a range. */
void lost_print_map(struct lost *l, uint64_t size,
		    const char *(*blamed)(void *user, const struct lost_range *r), void *user,
		    FILE *to);

#endif
