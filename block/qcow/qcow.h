/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow/qcow.h - the first version of the qcow format.
 *
 * An L1 and L2 tables lead from guest clusters to offsets in the file; there are
 * no reference counts, no snapshots, no zero clusters.  Nothing is allocated by
 * numbers from the image: both tables are read by small pieces.
 *
 * Writing: a cluster that has no place yet gets one at the end of the file, and
 * nothing is ever given back.  Its L2 entry changes in memory when its data was
 * written, and gets to the disk by a write-back (cache.c): a barrier, then the
 * entries.  So no entry on disk leads to bytes that were not written for it, and
 * after a crash space at the end of the file may be lost, and nothing else.  An
 * L2 table is written, empty, with a barrier behind, before its L1 entry, which
 * is written through.  A barrier that fails is final: no entry is written then,
 * for what it leads to may be lost.
 *
 * Units      bytes, unless a name says entries.
 * Context    coroutine, any loop.
 */
#ifndef BLOCK_QCOW_QCOW_H
#define BLOCK_QCOW_QCOW_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/colock.h"
#include "block/driver.h"

struct decryptor;

enum {
	QCOW_HEADER = 48,		/* bytes */
	QCOW_BACKING_MAX = 1023,
	QCOW_PIECE = 4096,		/* of a table, in memory, at most */
	QCOW_PIECE_BITS_MIN = 3,	/* log2 of how many there are */
	QCOW_PIECE_BITS = 8,
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

/* Encode h, with no encryption, into the first QCOW_HEADER bytes of an image. */
void qcow_header_encode(const struct qcow_header *h, void *buf);

/* A table in the file. */
struct qcow_table {
	uint64_t off, entries;
};

struct qcow_piece {
	uint64_t off;
	uint32_t len;
	bool dirty;
	uint8_t *data;			/* NULL: nothing there */
};

/* Pieces of tables, each at one of the two neighbouring places that its offset hashes
 * to. */
struct qcow_cache {
	pthread_mutex_t lock;		/* for short, never over a yield */
	struct co_mutex loading;	/* who loads, forgets or writes back pieces */
	unsigned bits;			/* log2 of the number of places */
	struct qcow_piece *pieces;	/* by lock */
};

struct qcow {
	struct node *node;
	struct qcow_header header;
	uint32_t cluster_size;
	char *backing_name;
	const struct decryptor *decryptor;
	void *key;
	struct qcow_cache cache;
	struct co_mutex allocating;	/* who gives a guest cluster its place */
	uint64_t end;			/* of the file, where the next goes; by allocating */
	_Atomic int failed;		/* -errno of the barrier that failed */
};

enum qcow_kind { QCOW_UNALLOCATED, QCOW_NORMAL, QCOW_COMPRESSED };

/* A stretch of the guest disk, contiguous in the file. */
struct qcow_run {
	enum qcow_kind kind;
	uint64_t len;
	uint64_t host;			/* of its first byte; COMPRESSED: of the packed data */
	uint64_t packed;		/* COMPRESSED: bytes of it */
};

/* The run at off, at most len long, and perhaps followed by more of its kind; a
 * compressed one ends with its cluster.
 * 0 or -errno; -EIO: a table points at nonsense. */
int qcow_map(struct qcow *q, uint64_t off, uint64_t len, struct qcow_run *ret);

/* Where the entry of the cluster at off stands.  No L2 table: *ret_l2 has off 0. */
int qcow_find_l2(struct qcow *q, uint64_t off, struct qcow_table *ret_l2);

/* ---- cache.c ---- */

/* About so many bytes of them; 0: as many as is good.  -ENOMEM. */
int qcow_cache_init(struct qcow_cache *c, uint64_t bytes);
void qcow_cache_done(struct qcow_cache *c);	/* takes a zeroed one */
/* Entry i of t, which has that many. */
int qcow_cache_get(struct qcow *q, const struct qcow_table *t, uint64_t i, uint64_t *ret_entry);
/* Change it in memory, or (L1 entries) on disk too. */
int qcow_cache_set(struct qcow *q, const struct qcow_table *t, uint64_t i, uint64_t entry);
int qcow_cache_write(struct qcow *q, const struct qcow_table *t, uint64_t i, uint64_t entry);
/* Write what was changed in memory so far; no barrier behind. */
int qcow_cache_write_back(struct qcow *q);

/* ---- the driver's functions ---- */

int qcow_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags);
int qcow_flush(struct node *n);
int qcow_create(const struct BlockdevCreateOptions *opts, struct error **errp);
int qcow_read(struct node *n, uint64_t off, const struct iov *dst);
int qcow_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		struct extent *ret_extent);

#endif
