/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/snapshots.h - the internal snapshots that an image holds.
 *
 * They are read and kept: what they refer to is counted, so writes to it go
 * elsewhere by themselves. */
#ifndef BLOCK_QCOW2_SNAPSHOTS_H
#define BLOCK_QCOW2_SNAPSHOTS_H

#include <stdint.h>

struct error;
struct qcow2;

struct qcow2_snapshot {
	uint64_t l1_off;
	uint32_t l1_size;		/* entries */
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec;
	uint64_t vm_state_size;
	uint64_t disk_size;
	uint64_t icount;		/* UINT64_MAX: none */
	char *id, *name;
};

/* Read the table that the header points at.  0 or -1; coroutine. */
int qcow2_snapshots_read(struct qcow2 *q, struct error **errp);
void qcow2_snapshots_done(struct qcow2 *q);

#endif
