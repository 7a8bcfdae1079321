/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/node.h"
#include "block/qcow/qcow.h"

#define COMPRESSED (UINT64_C(1) << 63)

void
qcow_cache_init(struct qcow_cache *c)
{
	memset(c, 0, sizeof(*c));
	pthread_mutex_init(&c->lock, NULL);
}

void
qcow_cache_done(struct qcow_cache *c)
{
	for (int i = 0; i < QCOW_PIECES; i++)
		free(c->data[i]);
	pthread_mutex_destroy(&c->lock);
}

static bool
cached(struct qcow_cache *c, uint64_t piece, uint64_t at, uint64_t *ret)
{
	size_t i = piece / QCOW_PIECE % QCOW_PIECES;
	bool hit;

	pthread_mutex_lock(&c->lock);
	hit = c->off[i] == piece + 1;
	if (hit)
		*ret = get_be64(c->data[i] + at);
	pthread_mutex_unlock(&c->lock);
	return hit;
}

/* The entry at off in the file. */
static int
read_entry(struct qcow *q, uint64_t off, uint64_t *ret)
{
	uint64_t piece = round_down(off, QCOW_PIECE), at = off - piece;
	struct qcow_cache *c = &q->cache;
	size_t i = piece / QCOW_PIECE % QCOW_PIECES;
	struct node *file = q->node->file->child;
	uint8_t *data, entry[8];
	int r;

	/* Zeroes from behind the end of a file that was cut off are no table. */
	if (!range_within(off, 8, node_size(file)))
		return -EIO;
	if (at > QCOW_PIECE - 8) {	/* a table at an odd place */
		r = node_pread(file, off, entry, 8);
		*ret = get_be64(entry);
		return r;
	}
	if (cached(c, piece, at, ret))
		return 0;
	data = malloc(QCOW_PIECE);
	if (!data)
		return -ENOMEM;
	r = node_pread(file, piece, data, QCOW_PIECE);
	if (r < 0) {
		free(data);
		return r;
	}
	*ret = get_be64(data + at);
	pthread_mutex_lock(&c->lock);
	free(c->data[i]);
	c->data[i] = data;
	c->off[i] = piece + 1;
	pthread_mutex_unlock(&c->lock);
	return 0;
}

/* The L2 entry of the cluster at off; 0 where there is no table. */
static int
find_entry(struct qcow *q, uint64_t off, uint64_t *ret)
{
	uint64_t cluster = off >> q->header.cluster_bits, table;
	uint64_t index = cluster & ((UINT64_C(1) << q->header.l2_bits) - 1);
	uint64_t l1 = cluster >> q->header.l2_bits;
	int r;

	*ret = 0;
	if (l1 >= q->header.l1_size)
		return -EIO;
	r = read_entry(q, q->header.l1_off + 8 * l1, &table);
	if (r < 0 || !table)
		return r;
	if (table > INT64_MAX - (UINT64_C(8) << q->header.l2_bits))
		return -EIO;
	return read_entry(q, table + 8 * index, ret);
}

static int
decode(const struct qcow *q, uint64_t entry, uint64_t off, struct qcow_run *run)
{
	uint64_t in_cluster = off & (q->cluster_size - 1);
	unsigned shift = 63 - q->header.cluster_bits;

	*run = (struct qcow_run){ .len = q->cluster_size - in_cluster };
	if (!entry)
		return 0;
	if (entry & COMPRESSED) {
		run->kind = QCOW_COMPRESSED;
		run->host = entry & ((UINT64_C(1) << shift) - 1);
		run->packed = entry >> shift & (q->cluster_size - 1);
		return 0;
	}
	if (entry > (uint64_t)INT64_MAX - q->cluster_size)
		return -EIO;
	run->kind = QCOW_NORMAL;
	run->host = entry + in_cluster;
	return 0;
}

int
qcow_map(struct qcow *q, uint64_t off, uint64_t len, struct qcow_run *ret)
{
	struct qcow_run next;
	uint64_t entry;
	int r = find_entry(q, off, &entry);

	if (!r)
		r = decode(q, entry, off, ret);
	if (r < 0)
		return r;
	while (ret->len < len && ret->kind != QCOW_COMPRESSED) {
		r = find_entry(q, off + ret->len, &entry);
		if (!r)
			r = decode(q, entry, off + ret->len, &next);
		/* What is wrong there is for a request that starts there. */
		if (r < 0 || next.kind != ret->kind ||
		    (next.kind == QCOW_NORMAL && next.host != ret->host + ret->len))
			break;
		ret->len += next.len;
	}
	ret->len = min_u64(ret->len, len);
	return 0;
}
