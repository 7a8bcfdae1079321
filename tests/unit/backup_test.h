/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/backup_test.h - a disk that a guest writes to, and the target of its backup. */
#ifndef TESTS_UNIT_BACKUP_TEST_H
#define TESTS_UNIT_BACKUP_TEST_H

#include "tests/unit/job_test.h"

struct disks {
	struct memdisk *source, *target;
	struct node *source_node, *target_node;	/* "source" and "target" */
	struct root *guest;			/* on source_node */
	uint8_t *before;			/* what the source had at first; or NULL */
	struct dirty_bitmap *bitmap;		/* or NULL */
};

static inline void
disks_open(struct disks *d, uint64_t size)
{
	watch_jobs();
	d->source = memdisk_new(size);
	d->target = memdisk_new(size);
	d->source->no_log = d->target->no_log = true;
	d->source->yields = 1;
	d->target->yields = 2;
	d->source_node = must_mem(d->source, "source");
	d->target_node = must_mem(d->target, "target");
	d->guest = must_root(d->source_node, PERM_CONSISTENT_READ | PERM_WRITE,
			     PERM_ALL & ~(perm_set)PERM_WRITE);
}

static inline void
disks_close(struct disks *d)
{
	assert_null(job_next(NULL));
	root_free(d->guest);
	node_unref(d->source_node);
	node_unref(d->target_node);
	memdisk_free(d->source);
	memdisk_free(d->target);
	free(d->before);
}

#endif
