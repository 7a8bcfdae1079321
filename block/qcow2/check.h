/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/check.h - counting all references anew, and repairing counts.
 *
 * Context    coroutine; no request under way, nothing dirty (qcow2_settle()).
 * Errors     0 or -errno where the check itself could not be done; what it found
 *            is in the result.
 */
#ifndef BLOCK_QCOW2_CHECK_H
#define BLOCK_QCOW2_CHECK_H

#include <stdbool.h>
#include <stdint.h>

struct qcow2;

enum qcow2_fix {
	QCOW2_FIX_LEAKS	 = 1 << 0,	/* counts that are too high */
	QCOW2_FIX_ERRORS = 1 << 1,	/* counts that are too low, wrong COPIED flags */
};

struct qcow2_check {
	uint64_t leaks, leaks_fixed;
	uint64_t corruptions, corruptions_fixed;
	uint64_t errors;		/* places that could not be read */
	uint64_t total_clusters, allocated_clusters, compressed_clusters,
		fragmented_clusters;
	uint64_t image_end;		/* the end of the last cluster in use */
};

int qcow2_check(struct qcow2 *q, unsigned fix, struct qcow2_check *ret);

#endif
