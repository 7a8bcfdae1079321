/* SPDX-License-Identifier: Apache-2.0 */
/* All refcount blocks and the refcount table anew, in clusters that nothing
 * refers to, made of the references found.
 *
 * Where they go is planned in memory first.  Then the blocks and the table are
 * written, with a barrier behind; then the header's two fields, which one sector
 * holds, change, with a barrier behind.  Cut off before, the image is as broken
 * as it was, and nothing that it refers to was touched; cut off behind, it is
 * whole, and the old blocks and table are leaks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/qcow2/check_int.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/refs.h"

struct plan {
	uint64_t *table;	/* offsets of the blocks; 0: none */
	uint64_t entries;
	uint64_t host;		/* of the table */
	uint64_t clusters;	/* of the table */
};

static void
plan_done(struct plan *p)
{
	free(p->table);
}

/* Take n clusters that nothing refers to and that lie one behind the other, the
 * first such at or behind from. */
static int
take(struct qcow2_checker *c, uint64_t from, uint64_t n, uint64_t *ret_first)
{
	uint64_t first = from, run = 0;
	int r;

	for (uint64_t i = from; run < n && i < c->counts.n; i++) {
		if (qcow2_counts_get(&c->counts, i)) {
			run = 0;
			first = i + 1;
		} else {
			run++;
		}
	}
	r = qcow2_counts_grow(&c->counts, first + n);
	for (uint64_t i = 0; i < n && !r; i++)
		r = qcow2_counts_set(&c->counts, first + i, 1);
	if (!r)
		*ret_first = first;
	return r;
}

static int
extend_table(struct qcow2_checker *c, struct plan *p, uint64_t block)
{
	uint64_t entries = round_up(block + 1, c->q->cluster_size / 8);
	uint64_t *table;

	if (block < p->entries)
		return 0;
	if (entries > QCOW2_REFTABLE_MAX / 8)
		return -EFBIG;
	table = realloc(p->table, entries * sizeof(*table));
	if (!table)
		return -ENOMEM;
	memset(table + p->entries, 0, (entries - p->entries) * sizeof(*table));
	p->table = table;
	p->entries = entries;
	return 0;
}

/* Clusters that broken references lead to count as well, so that none is taken, and
 * that the counts are right where the file grows over them. */
static int
count_beyond(struct qcow2_checker *c)
{
	uint64_t max = min_u64(c->q->refcount_max, QCOW2_COUNT_MAX);
	int r = qcow2_counts_grow(&c->counts, c->beyond.n);

	for (uint64_t i = 0; i < c->beyond.n && !r; i++) {
		uint64_t n;

		i = qcow2_counts_next(&c->beyond, i);
		n = qcow2_counts_get(&c->beyond, i);
		if (n)
			r = qcow2_counts_set(&c->counts, i,
					     min_u64(max, n + qcow2_counts_get(&c->counts, i)));
	}
	return r;
}

/* A block for each range of clusters in which one is in use; taking one may put
 * it in a range that has none yet. */
static int
plan_blocks(struct qcow2_checker *c, struct plan *p)
{
	uint64_t per_block = UINT64_C(1) << c->q->refblock_bits, host;
	int r = 0;

	for (uint64_t i = 0; i < c->counts.n && !r; i++) {
		uint64_t block;

		i = qcow2_counts_next(&c->counts, i);
		if (!qcow2_counts_get(&c->counts, i))
			continue;
		block = i >> c->q->refblock_bits;
		r = extend_table(c, p, block);
		if (!r && !p->table[block]) {
			r = take(c, block << c->q->refblock_bits, 1, &host);
			if (!r)
				p->table[block] = host << c->q->cluster_bits;
		}
		i = round_down(i, per_block) + per_block - 1;
	}
	return r;
}

/* The table's place has to be counted, for which there may have to be a block more,
 * for which the table may have to be larger. */
static int
plan_all(struct qcow2_checker *c, struct plan *p)
{
	int r = count_beyond(c);

	if (!r)
		r = plan_blocks(c, p);
	while (!r) {
		uint64_t entries = p->entries, first = 0;

		p->clusters = entries * 8 >> c->q->cluster_bits;
		r = take(c, 0, p->clusters, &first);
		if (!r)
			r = plan_blocks(c, p);
		if (r < 0 || p->entries == entries) {
			p->host = first << c->q->cluster_bits;
			break;
		}
		for (uint64_t i = 0; i < p->clusters && !r; i++)
			r = qcow2_counts_set(&c->counts, first + i, 0);
	}
	return r;
}

static int
write_blocks(struct qcow2_checker *c, const struct plan *p, uint8_t *buf)
{
	struct qcow2 *q = c->q;
	uint64_t per_block = UINT64_C(1) << q->refblock_bits;
	int r = 0;

	for (uint64_t b = 0; b < p->entries && !r; b++) {
		uint64_t first = b << q->refblock_bits;

		if (!p->table[b])
			continue;
		memset(buf, 0, q->cluster_size);
		for (uint64_t i = 0; i < per_block && first + i < c->counts.n; i++)
			qcow2_refcount_put(buf, q->refcount_order, i,
					   qcow2_counts_get(&c->counts, first + i));
		r = node_pwrite(qcow2_file(q), p->table[b], buf, q->cluster_size);
	}
	return r;
}

static int
write_table(struct qcow2_checker *c, const struct plan *p, uint8_t *buf)
{
	struct qcow2 *q = c->q;
	uint64_t per_cluster = q->cluster_size / 8;
	int r = 0;

	for (uint64_t k = 0; k < p->clusters && !r; k++) {
		for (uint64_t i = 0; i < per_cluster; i++)
			put_be64(buf + 8 * i, p->table[k * per_cluster + i]);
		r = node_pwrite(qcow2_file(q), p->host + (k << q->cluster_bits), buf,
				q->cluster_size);
	}
	return r;
}

static int
switch_header(struct qcow2 *q, const struct plan *p)
{
	uint8_t field[12];
	int r;

	put_be64(field, p->host);
	put_be32(field + 8, (uint32_t)p->clusters);
	co_mutex_lock(&q->checkpoint);
	r = qcow2_write_field(q, QCOW2_OFF_REFTABLE, field, sizeof(field));
	co_mutex_unlock(&q->checkpoint);
	return r;
}

/* Go on with the new counts. */
static void
adopt(struct qcow2 *q, struct plan *p)
{
	qcow2_lock(q);
	for (uint64_t i = 0; i < q->reftable_size; i++)
		if (q->reftable[i] & ~UINT64_C(511))
			qcow2_cache_drop(&q->ref_cache, q->reftable[i] & ~UINT64_C(511),
					 q->cluster_size);
	for (uint64_t i = 0; i < p->entries; i++)
		if (p->table[i])
			qcow2_refs_mark_used(q, p->table[i], q->cluster_size);
	qcow2_refs_mark_used(q, p->host, p->clusters << q->cluster_bits);
	free(q->reftable);
	q->reftable = STEAL(p->table);
	q->reftable_size = p->entries;
	q->reftable_dirty = (struct qcow2_dirty){ 0, 0 };
	q->header.reftable_off = p->host;
	q->header.reftable_clusters = (uint32_t)p->clusters;
	q->free_hint = 0;
	qcow2_unlock(q);
}

int
qcow2_check_rebuild(struct qcow2_checker *c)
{
	struct qcow2 *q = c->q;
	uint32_t align = qcow2_file(q)->limits.mem_align;
	CLEANUP(cleanup_free) uint8_t *buf = iov_alloc(align > 64 ? align : 64, q->cluster_size);
	CLEANUP(plan_done) struct plan p = { 0 };
	int r = buf ? plan_all(c, &p) : -ENOMEM;

	if (!r)
		r = write_blocks(c, &p, buf);
	if (!r)
		r = write_table(c, &p, buf);
	if (!r)
		r = switch_header(q, &p);
	if (!r)
		adopt(q, &p);
	return r;
}
