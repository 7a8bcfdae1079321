/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/qcow2.h - the state of an open image, shared by the driver's files.
 *
 * Why a crash corrupts nothing
 *
 * On disk these hold at every moment, whatever part of what was written since
 * the last barrier (a flush of the image file) got there:
 *
 *   I1  Nothing mapped is uncounted: what an L1, L2, refcount table entry on
 *       disk points at has a refcount on disk of at least its references.
 *   I2  Nothing mapped shows another cluster's bytes: what an entry on disk
 *       points at was filled, on disk, for that entry.
 *
 * Tables change in memory and are written back by a checkpoint (checkpoint.c), one
 * at a time:
 *
 *     snapshot  all dirty L2 slices, L1 entries and refcount slices are copied
 *               at one instant; the clusters unmapped so far are set aside
 *     write     the refcount slices; if new refcount blocks came into being,
 *               barrier, then the refcount table's entries for them
 *     barrier   counts, and all data that was written before the snapshot, are
 *               on disk
 *     write     the L2 slices and L1 entries
 *     barrier   (only where clusters were set aside) they are unmapped on disk
 *     free      their refcounts go down, in memory, once no request that found
 *               them in a table is under way any more
 *
 * An L2 entry enters its table in memory only after the data it points at was
 * written, and after its cluster was counted in memory; the snapshot is one
 * instant, so for each entry in it the count is in it too, and the data is
 * covered by the first barrier: I1 and I2 for L2 entries.  A new L2 table is
 * written whole, at its place, before the L1 entry changes in memory; should
 * the L1 entry get to disk before the slices of the same checkpoint do, it
 * points at a table that says what the old one said.  A new refcount block is
 * zeroed at its place first and counts itself.  A refcount goes down only after
 * the barrier behind the unmapping; that is also when a cluster may be used
 * again, so that no old entry on disk ever points at new content.
 *
 * With extended L2 an entry also says which subclusters its cluster has the data
 * of.  A bit goes on in memory only after that subcluster was written, so the
 * barrier that covers the data of a mapping covers the data of a bit alike: I2 for
 * subclusters.  Filling one more of a cluster that is mapped already needs no
 * count.  Place and bitmap change under the lock, in one slice, so a checkpoint
 * copies either both or neither; and no torn write parts them, for entries of 16
 * bytes, aligned to that, do not cross a sector.
 *
 * So a crash leaks at most: clusters counted and not mapped (an allocating
 * write that did not reach its checkpoint, a free that did not either).
 *
 * invariants.c asserts this and more of the state in memory.
 *
 * Lazy refcounts    With the option on, counts stay in memory until there are too many
 * or the image is closed: a checkpoint writes the maps only.  Before the first one
 * that does so the image is marked as dirty, by which I1 gives way to "whoever
 * opens the image next counts anew" (qcow2_repair_dirty()); I2 stays.
 *
 * What fails    A write of tables that fails leaves them dirty; a later
 * checkpoint tries again.  A barrier that fails is final (qcow2->failed): the
 * kernel may have dropped what it could not write, so nothing can be known to
 * be on disk any more, no table is written again, and every later flush fails.
 * An allocating write that fails gives its clusters back; nothing mapped them.
 *
 * Locks         lock (a thread's mutex, held for short, never over a yield)
 * guards all that is marked so.  The co_mutexes are taken in this order:
 * bitmaps_busy, packing, making_l2, making_refs, checkpoint; lock is innermost.  A
 * claim on guest clusters (claim.h) comes before all of them.
 *
 * Units         bytes, unless a name says entries or clusters.
 */
#ifndef BLOCK_QCOW2_QCOW2_H
#define BLOCK_QCOW2_QCOW2_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/colock.h"
#include "aio/timer.h"
#include "base/list.h"
#include "block/driver.h"
#include "block/qcow2/cache.h"
#include "block/qcow2/extensions.h"
#include "block/qcow2/header.h"

struct decryptor;
struct qcow2_snapshot;

/* Entries of L1 and L2 tables. */
#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO_BIT (UINT64_C(1) << 0)
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

/* Entries [lo, hi) of a table in memory differ from the disk; empty: lo >= hi. */
struct qcow2_dirty {
	uint64_t lo, hi;
};

/* Why clusters are freed: decides whether the file below hears of it. */
enum qcow2_free_why {
	QCOW2_FREE_OTHER,
	QCOW2_FREE_CUT,		/* what a disk made smaller, or a bitmap, held: always */
	QCOW2_FREE_REQUEST,	/* a guest's discard */
	QCOW2_FREE_SNAPSHOT,
	QCOW2_FREE_NEVER,
	QCOW2_FREE_WHYS,
};

/* Clusters that lost one reference in memory. */
struct qcow2_freed {
	uint64_t cluster, n;	/* index of the first, number */
	uint64_t epoch;		/* requests up to this one may still use them */
	enum qcow2_free_why why;
};

struct qcow2_freelist {
	struct qcow2_freed *runs;
	size_t n, room;
	size_t sealed;		/* this many runs do not grow any more */
	uint64_t clusters;	/* the sum over runs */
};

/* Requests under way that use host clusters found in a table; see claim.h. */
enum { QCOW2_SHARDS = 8 };
struct qcow2_shard {
	atomic_uint active[2];		/* by the epoch's parity */
	char pad[64 - 2 * sizeof(atomic_uint)];
};

/* What was found wrong with the image in use; see corrupt.h. */
enum { QCOW2_CORRUPT_TEXT = 160 };
struct qcow2_corruption {
	bool noted;
	bool told;			/* an event was sent, for this or for less */
	uint64_t off, len;
	char text[QCOW2_CORRUPT_TEXT];
};
enum { QCOW2_SOUND, QCOW2_CORRUPT_NOTED, QCOW2_CORRUPT_TOLD, QCOW2_CORRUPT_DEAD };

struct qcow2 {
	/* Set at open, constant then. */
	struct node *node;
	unsigned cluster_bits;
	uint32_t cluster_size;
	bool extended_l2;		/* clusters have subclusters, entries a bitmap */
	unsigned l2e_bits;		/* log2 of the bytes of an L2 entry */
	unsigned l2_bits;		/* log2 of the entries of an L2 table */
	unsigned sub_bits;		/* log2 of a subcluster; cluster_bits without them */
	uint32_t sub_size;
	unsigned slice_bits;		/* log2 of the bytes of a cached piece of a table */
	unsigned refcount_order;
	unsigned refblock_bits;		/* log2 of the entries of a refcount block */
	uint64_t refcount_max;
	int version;
	bool checking;		/* opened to be checked (block/open.h): nothing else works */
	uint64_t table_memory;	/* it is read once, with that much (block/open.h); 0: not so */
	bool discard_no_unref;
	bool pass_discard[QCOW2_FREE_WHYS];
	bool lazy;			/* counts may stay in memory; see above */
	unsigned overlap_check;		/* mask of enum qcow2_overlap */
	char *backing_name, *backing_format;	/* as in the header; NULL: none */

	/* An external data file: all guest data lies there, at the guest's offsets.
	 * The check reads tables only and does without it. */
	bool external_data;
	bool data_raw;			/* it is a raw image in its own right */
	struct edge *data_edge;		/* NULL: none, or not opened */
	struct qcow2_exts exts;			/* changed with the checkpoint lock held */

	/* Encryption: known, and readable only with a key from outside. */
	bool encrypted;
	const struct decryptor *decryptor;
	void *key;

	/* ---- guarded by lock ---- */
	pthread_mutex_t lock;
	struct qcow2_header header;	/* as on disk, but for dirty tables' places */
	uint64_t *l1;			/* host byte order; NULL with table_memory */
	uint64_t l1_size;		/* entries */
	struct qcow2_dirty l1_dirty;
	uint64_t *reftable;
	uint64_t reftable_size;		/* entries */
	struct qcow2_dirty reftable_dirty;
	struct qcow2_cache l2_cache, ref_cache;
	/* With table_memory the L1 table comes in pieces, as L2 tables do, and there is no
	 * refcount table, no snapshot and no bitmap. */
	struct qcow2_cache l1_cache;
	uint64_t l1_off, l1_stored;	/* where it stands, and how many entries of l1_size */
	bool *l1_used;			/* by piece: something is in it */
	uint64_t free_hint;		/* no cluster before this one is free */
	uint64_t fresh_from;		/* from this offset the file was never written */
	bool fresh_known;		/* ... and reads as zeroes */
	uint64_t pack_next;		/* where the next compressed cluster goes; 0: anew */
	uint64_t *table_filter;		/* overlap.h */
	uint64_t bitmap_dir_off, bitmap_dir_len;	/* 0 bytes: none */
	struct qcow2_corruption corruption;
	struct list claims;
	struct qcow2_freelist freed;	/* unmapped in memory, maybe not on disk */
	uint64_t epoch;

	struct co_queue claim_queue;	/* for a claim to go away */
	struct qcow2_shard shards[QCOW2_SHARDS];

	struct co_mutex making_l2;	/* one L2 table comes into being at a time */
	struct co_mutex making_refs;	/* as well a refcount block, or a larger table */
	struct co_mutex packing;	/* one compressed cluster gets its place at a time */
	struct co_mutex checkpoint;	/* writes tables, and the header */
	struct qcow2_freelist unmapped;	/* unmapped on disk; guarded by checkpoint */
	_Atomic uint64_t reclaimed;	/* runs of it that were freed, all told */
	bool lazy_marked;		/* dirty for the lazy counts only; so is this */
	_Atomic int failed;		/* -errno of the barrier that failed */
	_Atomic int corrupt;		/* QCOW2_SOUND, QCOW2_CORRUPT_*, ... */
	atomic_bool mark_due;		/* the image is to be marked before a write */

	/* Stored dirty bitmaps (bitmaps_int.h), guarded by bitmaps_busy, which comes
	 * before all other locks. */
	struct co_mutex bitmaps_busy;
	struct list bitmaps;		/* changed on loop 0 only */
	bool header_unsure;		/* the disk's may be of another directory */

	struct timer clean_timer;	/* loop 0: forget what was not used for a while */
	int64_t clean_ns;		/* 0: never */

	struct qcow2_snapshot *snapshots;
	uint32_t nb_snapshots;
	uint64_t snapshots_len;		/* bytes of the snapshot table */
};

static inline struct node *
qcow2_file(const struct qcow2 *q)
{
	return q->node->file->child;
}

/* Where guest data lies: in the image file, or in an external data file, and
 * there at the guest's own offsets, whole and uncounted. */
static inline struct node *
qcow2_data_file(const struct qcow2 *q)
{
	return q->data_edge ? q->data_edge->child : qcow2_file(q);
}

static inline struct node *
qcow2_backing(const struct qcow2 *q)
{
	return q->node->backing ? q->node->backing->child : NULL;
}

static inline void
qcow2_lock(struct qcow2 *q)
{
	pthread_mutex_lock(&q->lock);
}

static inline void
qcow2_unlock(struct qcow2 *q)
{
	pthread_mutex_unlock(&q->lock);
}

static inline uint64_t
qcow2_clusters(const struct qcow2 *q, uint64_t bytes)
{
	return (bytes >> q->cluster_bits) + !!(bytes & (q->cluster_size - 1));
}

static inline void
qcow2_dirty_add(struct qcow2_dirty *d, uint64_t lo, uint64_t hi)
{
	if (d->lo >= d->hi) {
		d->lo = lo;
		d->hi = hi;
		return;
	}
	if (lo < d->lo)
		d->lo = lo;
	if (hi > d->hi)
		d->hi = hi;
}

/* Read and judge all that is needed to use the image whose file q->node has as
 * its "file" child: header, tables, snapshots.  q is zeroed, but for how it is used; on
 * failure all of it is.  slice: bytes of a cached piece of a table, 0 for the default. */
int qcow2_load(struct qcow2 *q, uint32_t slice, struct error **errp);
/* Let q, which is read-only, show its disk as s has it. */
int qcow2_load_snapshot(struct qcow2 *q, const struct qcow2_snapshot *s, struct error **errp);
/* Set the limits of the caches, in bytes; 0: the default. */
void qcow2_set_caches(struct qcow2 *q, uint64_t l2_bytes, uint64_t refcount_bytes);
void qcow2_unload(struct qcow2 *q);

/* With no request under way: write everything back, with a barrier behind, and
 * free what waited for requests to end.  Coroutine; 0 or -errno. */
int qcow2_settle(struct qcow2 *q);
/* As above, for good: an image that is dirty for lazy counts only is so no more. */
int qcow2_settle_clean(struct qcow2 *q);
/* Repair what an unclean end left of an image that is marked dirty, and unmark
 * it.  Coroutine, nothing else under way; 0 or -1. */
int qcow2_repair_dirty(struct qcow2 *q, struct error **errp);

/* The driver's functions, by file. */
int qcow2_open(struct node *n, struct opener *op, struct error **errp);
int qcow2_close(struct node *n);
int qcow2_set_read_only(struct node *n, bool read_only, struct error **errp);
int qcow2_read(struct node *n, uint64_t off, const struct iov *dst);
int qcow2_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		 struct extent *ret_extent);
int qcow2_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags);
int qcow2_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int qcow2_discard(struct node *n, uint64_t off, uint64_t len);
int qcow2_flush(struct node *n);
int qcow2_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
		   struct error **errp);
int qcow2_create(const struct BlockdevCreateOptions *opts, struct error **errp);
int qcow2_info(struct node *n, struct ImageInfo *info, struct error **errp);
int qcow2_check_image(struct node *n, unsigned fix, const struct check_report *report,
		      struct check_result *ret);
extern const struct snapshot_ops qcow2_snapshot_ops;
int qcow2_change_backing(struct node *n, const char *file, const char *fmt,
			 struct error **errp);

#endif
