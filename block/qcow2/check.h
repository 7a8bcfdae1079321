/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/check.h - counting all references anew, and repairing counts.
 *
 * Memory     two bytes for each cluster that is in use, or near one that is (four
 *            where a count needs them), and the tables that are looked at, one
 *            at a time.
 * Context    coroutine; no request under way, nothing dirty (qcow2_settle()).
 * Errors     0 or -errno where the check itself could not be done; what it found
 *            is in the result.
 */
#ifndef BLOCK_QCOW2_CHECK_H
#define BLOCK_QCOW2_CHECK_H

#include "block/check.h"

struct qcow2;

/* fix is a mask of enum check_fix; report may be NULL. */
int qcow2_check(struct qcow2 *q, unsigned fix, const struct check_report *report,
		struct check_result *ret);

#endif
