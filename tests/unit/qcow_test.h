/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/qcow_test.h - qcow images over a disk in memory, opened as clients do.
 *
 * Node names: "file" is the disk, "base" the backing node, "image" the image. */
#ifndef TESTS_UNIT_QCOW_TEST_H
#define TESTS_UNIT_QCOW_TEST_H

#include "tests/unit/block_test.h"

enum { QCOW_SECTOR = 512 };

static inline struct BlockdevRef
qcow_test_ref(const char *name)
{
	return (struct BlockdevRef){ .type = BLOCKDEV_REF_REFERENCE,
				     .u.reference = (char *)name };
}

/* Make an image on the node "file"; backing_file may be NULL. */
static inline void
qcow_test_create(uint64_t size, const char *backing_file)
{
	struct BlockdevRef file = qcow_test_ref("file");
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW,
		.u.qcow = { .file = &file, .size = size, .backing_file = (char *)backing_file },
	};

	MUST(driver_find("qcow")->create(&o, &err));
}

/* Open the image over "file", and over "base" where backed says so. */
static inline int
qcow_test_open(bool backed, bool read_only, struct node **ret, struct error **errp)
{
	struct BlockdevRef file = qcow_test_ref("file");
	struct BlockdevRefOrNull backing = {
		.type = backed ? BLOCKDEV_REF_OR_NULL_REFERENCE : BLOCKDEV_REF_OR_NULL_NULL,
		.u.reference = (char *)"base",
	};
	struct BlockdevOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW, .node_name = (char *)"image",
		.has_read_only = true, .read_only = read_only,
		.u.qcow = { .file = &file, .backing = &backing },
	};

	return node_open(&o, NULL, ret, errp);
}

/* A disk that is `byte` all over. */
static inline struct memdisk *
qcow_test_base(uint64_t size, int byte)
{
	struct memdisk *m = memdisk_new(size);

	m->no_log = true;
	memset(m->content, byte, size);
	return m;
}

/* Larger clusters than those that creating gives an overlay, in the empty image on
 * m: the L1 table may be too large then. */
static inline void
qcow_test_set_cluster_bits(struct memdisk *m, unsigned bits)
{
	m->content[32] = (uint8_t)bits;
}

#endif
