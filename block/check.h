/* SPDX-License-Identifier: Apache-2.0 */
/* block/check.h - judging an image's metadata, and repairing it: what a format
 * that can do so offers, and what it finds.
 *
 * Context    coroutine on loop 0; no request of the node under way.
 * Errors     0 or -errno where the check itself could not be done; what it found
 *            is in the result, which is valid in any case.
 */
#ifndef BLOCK_CHECK_H
#define BLOCK_CHECK_H

#include <stdint.h>

struct node;

enum check_fix {
	CHECK_FIX_LEAKS	 = 1 << 0,	/* space that nothing uses, but is counted */
	CHECK_FIX_ERRORS = 1 << 1,	/* all else that can be repaired */
};

/* leaks and corruptions are what is left: what was repaired is in *_fixed only. */
struct check_result {
	uint64_t leaks, leaks_fixed;
	uint64_t corruptions, corruptions_fixed;
	uint64_t errors;		/* places that could not be judged */
	uint64_t total_clusters, allocated_clusters, compressed_clusters,
		fragmented_clusters;
	uint64_t image_end;		/* the end of the last cluster in use */
};

/* Gets a line, without its end, for each thing found: QEMU's texts. */
struct check_report {
	void (*line)(void *arg, const char *text);
	void *arg;
};

/* Check n, and repair what fix (a mask) says; n is writable then.  report may be
 * NULL.  -ENOTSUP: the format has no check. */
int node_check(struct node *n, unsigned fix, const struct check_report *report,
	       struct check_result *ret);

#endif
