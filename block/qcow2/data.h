/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/data.h - the bytes behind a run, however it is stored. */
#ifndef BLOCK_QCOW2_DATA_H
#define BLOCK_QCOW2_DATA_H

#include <stddef.h>
#include <stdint.h>

struct iov;
struct qcow2;
struct qcow2_run;

/* Fill dst[skip, skip + len) with guest bytes [off, off + len), which lie in run;
 * run was looked up for off.  Whoever calls has a claim, or is in an epoch.
 * Coroutine. */
int qcow2_data_read(struct qcow2 *q, const struct qcow2_run *run, uint64_t off,
		    const struct iov *dst, size_t skip, size_t len);

#endif
