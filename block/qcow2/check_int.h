/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/check_int.h - what the parts of the check share.
 *
 * Each kind of metadata has a file with a function that walks it and calls
 * qcow2_check_count() for all that it refers to, itself included.
 *
 * Errors     0 or -errno.  A place that is wrong is a corruption, said and added
 *            to the result, and the walk goes on.  One that cannot be read is an
 *            error there, and ends the check: the counts would be too low.
 */
#ifndef BLOCK_QCOW2_CHECK_INT_H
#define BLOCK_QCOW2_CHECK_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/check.h"
#include "block/qcow2/qcow2.h"

/* ---- check_counts.c: a counter for each cluster of the file ---- */

struct qcow2_counts {
	uint64_t n;		/* clusters */
	struct qcow2_count_page *pages;	/* as many as n needs */
	size_t n_pages;
};

/* As many clusters, at least; new ones count nothing.  -EFBIG: too many. */
int qcow2_counts_grow(struct qcow2_counts *c, uint64_t n);
void qcow2_counts_done(struct qcow2_counts *c);
uint64_t qcow2_counts_get(const struct qcow2_counts *c, uint64_t cluster);
/* cluster < n; count <= QCOW2_COUNT_MAX.  -ENOMEM. */
#define QCOW2_COUNT_MAX UINT32_MAX
int qcow2_counts_set(struct qcow2_counts *c, uint64_t cluster, uint64_t count);
/* The first cluster at or behind this one that may have a count; n: none. */
uint64_t qcow2_counts_next(const struct qcow2_counts *c, uint64_t cluster);

/* ---- check.c ---- */

struct qcow2_checker {
	struct qcow2 *q;
	struct check_result *result;
	const struct check_report *report;
	struct check_result snapshots;	/* of the snapshot table itself, added at the end */
	unsigned lines;			/* said so far */
	unsigned fix;
	bool rebuild;			/* the counts cannot be put right in place */
	struct qcow2_counts counts;	/* the references found */
	struct qcow2_counts beyond;	/* those to what ends behind the end of the file */
	uint64_t last;			/* the last cluster in use */
};

/* Report a line. */
void qcow2_check_say(struct qcow2_checker *c, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* "Repairing" if fix (a mask) is asked for, else "ERROR". */
const char *qcow2_check_verb(const struct qcow2_checker *c, unsigned fix);
/* Count a reference to each cluster that [off, off + len) touches. */
int qcow2_check_count(struct qcow2_checker *c, uint64_t off, uint64_t len);

/* ---- the kinds of metadata, by file ---- */

int qcow2_check_active(struct qcow2_checker *c);	/* check_tables.c */
/* An L1 table of n entries at off, which is not the active one. */
int qcow2_check_inactive(struct qcow2_checker *c, uint64_t off, uint64_t n);
/* Read the snapshot table, which opening for a check left out. */
int qcow2_check_read_snapshots(struct qcow2_checker *c);
int qcow2_check_snapshots(struct qcow2_checker *c);
/* After all else: write the table anew, if something in it was wrong. */
int qcow2_check_write_snapshots(struct qcow2_checker *c);
int qcow2_check_bitmaps(struct qcow2_checker *c);
int qcow2_check_blocks(struct qcow2_checker *c);	/* check_refs.c */

/* ---- after counting ---- */

/* Compare the references found with the counts in the image, and put right in
 * place what fix says. */
int qcow2_check_compare(struct qcow2_checker *c, unsigned fix);
/* Write all refcount blocks and the table anew, and let the header point there. */
int qcow2_check_rebuild(struct qcow2_checker *c);
/* The COPIED flags of the active tables. */
int qcow2_check_flags(struct qcow2_checker *c);

#endif
