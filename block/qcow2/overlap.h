/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/overlap.h - is a place that is about to be written really none of the
 * image's tables?  In an image whose refcounts or maps are wrong it may be one, and
 * writing there would ruin the image.
 *
 * Each write of guest data and of a new table is checked against the kinds of tables
 * that the option overlap-check names.  L2 tables and refcount blocks are many, so a
 * filter of one bit for each of 65,536 classes of clusters says first, in a load or
 * two, that there is none of them at a place.
 *
 * Context    with q->lock held.
 */
#ifndef BLOCK_QCOW2_OVERLAP_H
#define BLOCK_QCOW2_OVERLAP_H

#include <stdbool.h>
#include <stdint.h>

struct Qcow2OverlapChecks;
struct error;
struct qcow2;

/* Kinds of tables; the snapshots' are the inactive ones. */
enum qcow2_overlap {
	QCOW2_OVERLAP_HEADER	  = 1 << 0,
	QCOW2_OVERLAP_L1	  = 1 << 1,
	QCOW2_OVERLAP_L2	  = 1 << 2,
	QCOW2_OVERLAP_REFTABLE	  = 1 << 3,
	QCOW2_OVERLAP_REFBLOCK	  = 1 << 4,
	QCOW2_OVERLAP_SNAPSHOTS	  = 1 << 5,
	QCOW2_OVERLAP_INACTIVE_L1 = 1 << 6,
	QCOW2_OVERLAP_INACTIVE_L2 = 1 << 7,
	QCOW2_OVERLAP_BITMAPS	  = 1 << 8,	/* their directory */

	/* The templates: what takes a comparison each; what is in memory; and all. */
	QCOW2_OVERLAP_CONSTANT = QCOW2_OVERLAP_HEADER | QCOW2_OVERLAP_L1 |
				 QCOW2_OVERLAP_REFTABLE | QCOW2_OVERLAP_SNAPSHOTS |
				 QCOW2_OVERLAP_BITMAPS,
	QCOW2_OVERLAP_CACHED = QCOW2_OVERLAP_CONSTANT | QCOW2_OVERLAP_L2 |
			       QCOW2_OVERLAP_REFBLOCK | QCOW2_OVERLAP_INACTIVE_L1,
	QCOW2_OVERLAP_ALL = QCOW2_OVERLAP_CACHED | QCOW2_OVERLAP_INACTIVE_L2,
};

/* May [off, off + len) be written?  kinds are checked besides those of the option.
 * 0; or -EIO, and it is noted that the image is corrupt (corrupt.h). */
int qcow2_overlap_check(struct qcow2 *q, unsigned kinds, uint64_t off, uint64_t len);

/* The same for the place of the bitmap directory itself. */
int qcow2_overlap_check_bitmaps(struct qcow2 *q, uint64_t off, uint64_t len);

/* The same, and nothing is noted. */
bool qcow2_overlaps_fixed(const struct qcow2 *q, uint64_t off, uint64_t len);

/* ---- what there is ---- */

/* At open: the filter, for all tables that are there.  -ENOMEM. */
int qcow2_overlap_init(struct qcow2 *q);
void qcow2_overlap_done(struct qcow2 *q);
/* len bytes from host on are L2 tables or refcount blocks from now on. */
void qcow2_overlap_add(struct qcow2 *q, uint64_t host, uint64_t len);

/* What the option (NULL: none was given) says: a mask of enum qcow2_overlap. */
unsigned qcow2_overlap_option(const struct Qcow2OverlapChecks *o);

#endif
