/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/snapshots.h - the table of the internal snapshots that an image holds.
 *
 * An entry is kept as it stands in the image, because there may be more in it than
 * is known here; it is written back so. */
#ifndef BLOCK_QCOW2_SNAPSHOTS_H
#define BLOCK_QCOW2_SNAPSHOTS_H

#include <stddef.h>
#include <stdint.h>

struct SnapshotInfo;
struct error;
struct open_snapshot;
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
	uint64_t *l1;			/* for QCOW2_OVERLAP_INACTIVE_L2; NULL: not needed */
	uint8_t *entry;			/* in the table, without padding */
	size_t entry_len;
};

/* Read the table that the header points at.  0 or -1; coroutine. */
int qcow2_snapshots_read(struct qcow2 *q, struct error **errp);
void qcow2_snapshots_done(struct qcow2 *q);
/* Read the one that want names and nothing more; *ret is to be done.  0 or -1; coroutine. */
int qcow2_snapshots_find(struct qcow2 *q, const struct open_snapshot *want,
			 struct qcow2_snapshot *ret, struct error **errp);

/* Can its L1 table be where the entry says?  0 or -1; whoever uses it asks, opening an
 * image does not. */
int qcow2_snapshot_check(const struct qcow2 *q, const struct qcow2_snapshot *s,
			 struct error **errp);

/* Make s's entry, id and name from all its other fields.  -ENOMEM. */
int qcow2_snapshot_init(struct qcow2_snapshot *s, const char *id, const char *name);
/* Take over entry, malloc'ed, as it stands in the table; disk_size is for entries that
 * do not say it.  -ENOMEM. */
int qcow2_snapshot_adopt(struct qcow2_snapshot *s, uint8_t *entry, uint64_t disk_size);
void qcow2_snapshot_done(struct qcow2_snapshot *s);
/* What QMP tells of it; NULL: no memory.  The caller frees. */
struct SnapshotInfo *qcow2_snapshot_info(const struct qcow2_snapshot *s);

/* The table of n snapshots.  -EFBIG: too large; -ENOMEM.  The caller frees. */
int qcow2_snapshots_encode(const struct qcow2_snapshot *s, uint32_t n, uint8_t **ret_table,
			   uint64_t *ret_len);

/* snapshot.c: write the table anew, as it is in memory, elsewhere.  Coroutine, no
 * request under way; 0 or -errno. */
int qcow2_snapshots_rewrite(struct qcow2 *q);

#endif
