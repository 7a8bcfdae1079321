/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow/qcow.h - the first version of the qcow format, for reading.
 *
 * An L1 and L2 tables lead from guest clusters to offsets in the file; there are
 * no reference counts, no snapshots, no zero clusters.  Nothing is allocated by
 * numbers from the image: both tables are read by small pieces.
 *
 * Units      bytes, unless a name says entries.
 * Context    coroutine; reading on any loop.
 */
#ifndef BLOCK_QCOW_QCOW_H
#define BLOCK_QCOW_QCOW_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/driver.h"

struct decryptor;

enum {
	QCOW_HEADER = 48,		/* bytes */
	QCOW_BACKING_MAX = 1023,
	QCOW_PIECE = 4096,		/* of a table, in memory */
	QCOW_PIECES = 64,
};

struct qcow_header {
	uint64_t backing_off;
	uint32_t backing_len;
	uint64_t size;
	unsigned cluster_bits, l2_bits;	/* log2 of a cluster's bytes, of a table's entries */
	bool aes;
	uint64_t l1_off, l1_size;	/* entries */
};

/* Decode and judge the first QCOW_HEADER bytes of an image.  0 or -1. */
int qcow_header_parse(const void *buf, struct qcow_header *ret, struct error **errp);

/* Pieces of tables, each at the place that its offset hashes to. */
struct qcow_cache {
	pthread_mutex_t lock;
	uint64_t off[QCOW_PIECES];	/* + 1; 0: nothing there */
	uint8_t *data[QCOW_PIECES];
};

struct qcow {
	struct node *node;
	struct qcow_header header;
	uint32_t cluster_size;
	char *backing_name;
	const struct decryptor *decryptor;
	void *key;
	struct qcow_cache cache;
};

enum qcow_kind { QCOW_UNALLOCATED, QCOW_NORMAL, QCOW_COMPRESSED };

/* A stretch of the guest disk, contiguous in the file. */
struct qcow_run {
	enum qcow_kind kind;
	uint64_t len;
	uint64_t host;			/* of its first byte; COMPRESSED: of the packed data */
	uint64_t packed;		/* COMPRESSED: bytes of it */
};

/* The run at off, at most len long; a compressed one ends with its cluster.
 * 0 or -errno; -EIO: a table points at nonsense. */
int qcow_map(struct qcow *q, uint64_t off, uint64_t len, struct qcow_run *ret);

void qcow_cache_init(struct qcow_cache *c);
void qcow_cache_done(struct qcow_cache *c);

int qcow_read(struct node *n, uint64_t off, const struct iov *dst);
int qcow_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		struct extent *ret_extent);

#endif
