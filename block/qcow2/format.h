/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/format.h - writing an empty image into a file. */
#ifndef BLOCK_QCOW2_FORMAT_H
#define BLOCK_QCOW2_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct node;

struct qcow2_format {
	uint64_t size;			/* of the guest disk */
	unsigned version;		/* 2 or 3 */
	unsigned cluster_bits;
	unsigned refcount_order;
	bool lazy_refcounts;
	bool extended_l2;
	unsigned compression;		/* QCOW2_COMPRESSION_* */
	const char *backing_file, *backing_format;	/* NULL: none */
	const char *data_file;		/* name of the external data file; NULL: none */
	bool data_raw;			/* it is a raw image in its own right */
};

/* Judge f, then empty the file and write header, refcounts and L1 table.  The
 * file is on stable storage when it returns.  Coroutine; 0 or -1. */
int qcow2_format_check(const struct qcow2_format *f, struct error **errp);
int qcow2_format(struct node *file, const struct qcow2_format *f, struct error **errp);

#endif
