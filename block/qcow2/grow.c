/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/grow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/planted.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/refs.h"

static void *
zeroed(const struct qcow2 *q, size_t len)
{
	uint32_t align = qcow2_file(q)->limits.mem_align;
	void *p = iov_alloc(align > 64 ? align : 64, len);

	if (p)
		memset(p, 0, len);
	return p;
}

/* The block is there in memory's table; it was written before. */
static void
enter_block(struct qcow2 *q, uint64_t block, uint64_t host)
{
	qcow2_cache_drop(&q->ref_cache, host, q->cluster_size);
	q->reftable[block] = host;
	qcow2_overlap_add(q, host, q->cluster_size);
	qcow2_dirty_add(&q->reftable_dirty, block, block + 1);
	qcow2_refs_mark_used(q, host, q->cluster_size);
}

static int
make_block(struct qcow2 *q, uint64_t block)
{
	CLEANUP(cleanup_free) uint8_t *data = zeroed(q, q->cluster_size);
	uint64_t host = block << (q->refblock_bits + q->cluster_bits);
	int r;

	if (!data)
		return -ENOMEM;
	/* Without a block its range should be free. */
	qcow2_lock(q);
	r = qcow2_overlap_check(q, QCOW2_OVERLAP_CACHED, host, q->cluster_size);
	qcow2_unlock(q);
	if (r < 0)
		return r;
	qcow2_refcount_put(data, q->refcount_order, 0, 1);
	r = node_pwrite(qcow2_file(q), host, data, q->cluster_size);
	if (r < 0)
		return r;
	qcow2_lock(q);
	enter_block(q, block, host);
	qcow2_unlock(q);
	return 0;
}

/* Blocks from `first` on, of which the first clusters of their ranges are counted. */
struct batch {
	uint64_t first, blocks, counted, host;
};

/* Write them; nothing points there yet. */
static int
write_blocks(struct qcow2 *q, const struct batch *b, uint8_t *buf, uint64_t *ret_end)
{
	uint64_t counted = b->counted, host = b->host;
	int r = 0;

	for (uint64_t k = 0; k < b->blocks && !r; k++, host += q->cluster_size) {
		uint64_t n = min_u64(counted, UINT64_C(1) << q->refblock_bits);

		memset(buf, 0, q->cluster_size);
		for (uint64_t i = 0; i < n; i++)
			qcow2_refcount_put(buf, q->refcount_order, i, 1);
		counted -= n;
		r = node_pwrite(qcow2_file(q), host, buf, q->cluster_size);
	}
	*ret_end = host;
	return r;
}

/* Where the larger table goes: behind all that the old one counts. */
struct plan {
	uint64_t first;		/* number of the first new block */
	uint64_t blocks;	/* new blocks, one behind the other from `host` */
	uint64_t entries;	/* of the new table */
	uint64_t clusters;	/* that it takes, behind the blocks */
	uint64_t host;
};

static int
plan_table(const struct qcow2 *q, uint64_t block, struct plan *p)
{
	uint64_t per_block = UINT64_C(1) << q->refblock_bits;
	uint64_t per_cluster = q->cluster_size / 8, max = QCOW2_REFTABLE_MAX / 8;
	uint64_t need;

	p->first = q->reftable_size;
	p->blocks = 1;
	for (;;) {
		need = max_u64(block + 1, p->first + p->blocks);
		if (need > max)
			return -EFBIG;
		p->entries = round_up(min_u64(need + need / 2, max), per_cluster);
		p->clusters = p->entries / per_cluster;
		if (div_up(p->blocks + p->clusters, per_block) <= p->blocks)
			break;
		p->blocks++;
	}
	p->host = p->first << (q->refblock_bits + q->cluster_bits);
	return 0;
}

/* Write the new blocks and the new table; nothing points there yet. */
static int
write_plan(struct qcow2 *q, const struct plan *p, uint64_t *table)
{
	const struct batch b = { p->first, p->blocks, p->blocks + p->clusters, p->host };
	uint64_t len = p->clusters << q->cluster_bits, host;
	CLEANUP(cleanup_free) uint8_t *buf = zeroed(q, max_u64(q->cluster_size, len));
	int r;

	if (!buf)
		return -ENOMEM;
	r = write_blocks(q, &b, buf, &host);
	if (r < 0)
		return r;
	for (uint64_t k = 0; k < p->blocks; k++)
		table[p->first + k] = p->host + (k << q->cluster_bits);
	for (uint64_t i = 0; i < p->entries; i++)
		put_be64(buf + 8 * i, table[i]);
	return node_pwrite(qcow2_file(q), host, buf, len);
}

/* Let the header point at the new table. */
static int
switch_table(struct qcow2 *q, const struct plan *p, uint64_t **table)
{
	uint64_t host = p->host + (p->blocks << q->cluster_bits);
	uint64_t old_host, old_clusters;
	uint8_t field[12];
	int r;

	put_be64(field, host);
	put_be32(field + 8, (uint32_t)p->clusters);
	r = node_pwrite(qcow2_file(q), QCOW2_OFF_REFTABLE, field, sizeof(field));
	if (r < 0)	/* which of the two does the disk have? */
		atomic_store(&q->failed, r);
	else
		r = qcow2_barrier(q);
	if (r < 0)
		return r;

	qcow2_lock(q);
	old_host = q->header.reftable_off;
	old_clusters = q->header.reftable_clusters;
	free(q->reftable);
	q->reftable = STEAL(*table);
	q->reftable_size = p->entries;
	q->reftable_dirty = (struct qcow2_dirty){ 0, 0 };
	q->header.reftable_off = host;
	q->header.reftable_clusters = (uint32_t)p->clusters;
	qcow2_cache_drop(&q->ref_cache, p->host, p->blocks << q->cluster_bits);
	qcow2_overlap_add(q, p->host, p->blocks << q->cluster_bits);
	qcow2_refs_mark_used(q, p->host, (p->blocks + p->clusters) << q->cluster_bits);
	qcow2_refs_drop_later(q, old_host, old_clusters, QCOW2_FREE_OTHER);
	qcow2_unlock(q);
	return 0;
}

static int
grow_table(struct qcow2 *q, uint64_t block)
{
	CLEANUP(cleanup_free) uint64_t *table = NULL;
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->checkpoint;
	struct plan p;
	int r;

	co_mutex_lock(held);
	r = atomic_load(&q->failed);
	if (r < 0)
		return r;
	r = plan_table(q, block, &p);
	if (r < 0)
		return r;
	qcow2_lock(q);
	r = qcow2_overlap_check(q, QCOW2_OVERLAP_CACHED, p.host,
				(p.blocks + p.clusters) << q->cluster_bits);
	qcow2_unlock(q);
	if (r < 0)
		return r;
	table = calloc(p.entries, sizeof(*table));
	if (!table)
		return -ENOMEM;
	/* Only we make blocks, so the table stands still. */
	memcpy(table, q->reftable, q->reftable_size * sizeof(*table));

	/* The table that is replaced may hold entries that are not on disk yet:
	 * the blocks they point at must be. */
	r = qcow2_write_refs(q);
	if (r < 0)
		return r;
	r = write_plan(q, &p, table);
	if (!r && !PLANTED(no_barrier_before_reftable_switch))
		r = qcow2_barrier(q);
	if (r < 0)
		return r;
	return switch_table(q, &p, &table);
}

int
qcow2_grow_refs(struct qcow2 *q, uint64_t block)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->making_refs;
	int r;

	co_mutex_lock(held);
	if (block >= q->reftable_size) {
		r = grow_table(q, block);
		if (r < 0)
			return r;
	}
	if (q->reftable[block] & ~UINT64_C(511))
		return 0;
	return make_block(q, block);
}

/* ---- many clusters in a row ---- */

/* The number of the first block behind all that exist; making_refs is held, or it is
 * just a guess. */
static uint64_t
blocks_end(struct qcow2 *q)
{
	uint64_t n;

	qcow2_lock(q);
	n = q->reftable_size;
	while (n && !(q->reftable[n - 1] & ~UINT64_C(511)))
		n--;
	qcow2_unlock(q);
	return n;
}

uint64_t
qcow2_grow_end(struct qcow2 *q)
{
	return blocks_end(q) << q->refblock_bits;
}

static int
make_batch(struct qcow2 *q, const struct batch *b)
{
	CLEANUP(cleanup_free) uint8_t *buf = zeroed(q, q->cluster_size);
	uint64_t end;
	int r;

	if (!buf)
		return -ENOMEM;
	qcow2_lock(q);
	r = qcow2_overlap_check(q, QCOW2_OVERLAP_CACHED, b->host,
				b->counted << q->cluster_bits);
	qcow2_unlock(q);
	if (!r)
		r = write_blocks(q, b, buf, &end);
	if (r < 0)
		return r;
	qcow2_lock(q);
	for (uint64_t k = 0; k < b->blocks; k++)
		enter_block(q, b->first + k, b->host + (k << q->cluster_bits));
	qcow2_refs_mark_used(q, b->host, b->counted << q->cluster_bits);
	qcow2_unlock(q);
	return 0;
}

int
qcow2_grow_take(struct qcow2 *q, uint64_t n, uint64_t limit, uint64_t *ret_host)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->making_refs;
	struct batch b = { .blocks = div_up(n, (UINT64_C(1) << q->refblock_bits) - 1) };
	int r;

	b.counted = b.blocks + n;
	co_mutex_lock(held);
	b.first = blocks_end(q);
	/* A larger table comes with blocks too, so the end moves. */
	while (b.first + b.blocks > q->reftable_size) {
		r = grow_table(q, b.first + b.blocks - 1);
		if (r < 0)
			return r;
		b.first = blocks_end(q);
	}
	if (b.counted > limit || (b.first << q->refblock_bits) > limit - b.counted)
		return -ENOSPC;
	b.host = b.first << (q->refblock_bits + q->cluster_bits);
	r = make_batch(q, &b);
	if (r < 0)
		return r;
	*ret_host = b.host + (b.blocks << q->cluster_bits);
	return 0;
}
