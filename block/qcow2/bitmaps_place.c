/* SPDX-License-Identifier: Apache-2.0 */
/* Where a stored bitmap lies: its table, and its clusters of bits. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/qcow2/bitmaps_int.h"
#include "block/qcow2/refs.h"

#define ENTRY_ALL_ONES UINT64_C(1)
#define ENTRY_RESERVED UINT64_C(0xff000000000001fe)

static void
forget(struct qcow2_place *p)
{
	free(p->table);
	memset(p, 0, sizeof(*p));
}

static uint64_t
table_clusters(const struct qcow2 *q, const struct qcow2_place *p)
{
	return qcow2_clusters(q, (uint64_t)p->n * 8);
}

/* Entries from i on whose clusters lie one behind the other. */
static uint32_t
run_of(const struct qcow2 *q, const struct qcow2_place *p, uint32_t i)
{
	uint64_t host = p->table[i] & QCOW2_OFFSET_MASK;
	uint32_t n = 1;

	while (i + n < p->n &&
	       (p->table[i + n] & QCOW2_OFFSET_MASK) == host + ((uint64_t)n << q->cluster_bits))
		n++;
	return n;
}

/* ---- a new one ---- */

/* Clusters for all entries.  Zeroing makes the file's own space for them, where it can
 * run out of that. */
static int
take_data(struct qcow2 *q, struct qcow2_place *p)
{
	uint64_t host, got;
	bool fresh;
	int r = 0;

	for (uint32_t i = 0; i < p->n && !r;) {
		r = qcow2_refs_take(q, p->n - i, &host, &got, &fresh);
		if (r < 0)
			return r;
		for (uint64_t k = 0; k < got; k++)
			p->table[i++] = host + (k << q->cluster_bits);
		r = node_zero(qcow2_file(q), host, got << q->cluster_bits, 0);
	}
	return r;
}

static int
write_table(struct qcow2 *q, const struct qcow2_place *p)
{
	size_t room = table_clusters(q, p) << q->cluster_bits;
	CLEANUP(cleanup_free) uint8_t *buf = NULL;

	assert(room > 0);	/* the format has no empty tables */
	buf = calloc(1, room);
	if (!buf)
		return -ENOMEM;
	for (uint32_t i = 0; i < p->n; i++)
		put_be64(buf + 8 * (size_t)i, p->table[i]);
	return node_pwrite(qcow2_file(q), p->off, buf, room);
}

int
qcow2_place_make(struct qcow2 *q, uint32_t n, struct qcow2_place *ret)
{
	struct qcow2_place p = { .n = n, .ours = true, .table = calloc(n, sizeof(*p.table)) };
	int r = p.table ? qcow2_refs_take_all(q, table_clusters(q, &p), &p.off) : -ENOMEM;

	if (!r)
		r = take_data(q, &p);
	if (!r)
		r = write_table(q, &p);
	if (r < 0) {
		qcow2_place_undo(q, &p);
		return r;
	}
	*ret = p;
	return 0;
}

void
qcow2_place_undo(struct qcow2 *q, struct qcow2_place *p)
{
	for (uint32_t i = 0, n; p->table && i < p->n && p->table[i]; i += n) {
		n = run_of(q, p, i);
		(void)qcow2_refs_give_back(q, p->table[i], n);
	}
	if (p->off)
		(void)qcow2_refs_give_back(q, p->off, table_clusters(q, p));
	forget(p);
}

/* ---- one that was ---- */

int
qcow2_place_read(struct qcow2 *q, struct qcow2_place *p)
{
	uint64_t *table;
	int r;

	if (p->table)
		return 0;
	table = malloc((size_t)p->n * sizeof(*table));
	if (!table)
		return -ENOMEM;
	r = node_pread(qcow2_file(q), p->off, table, (uint64_t)p->n * sizeof(*table));
	for (uint32_t i = 0; i < p->n && !r; i++) {
		uint64_t host;

		table[i] = be64toh(table[i]);
		host = table[i] & QCOW2_OFFSET_MASK;
		if (table[i] & ENTRY_RESERVED || (host && table[i] & ENTRY_ALL_ONES) ||
		    !is_aligned(host, q->cluster_size))
			r = -EINVAL;
	}
	if (r < 0)
		free(table);
	else
		p->table = table;
	return r;
}

void
qcow2_place_drop(struct qcow2 *q, struct qcow2_place *p)
{
	if (qcow2_place_read(q, p) == 0) {
		qcow2_lock(q);
		for (uint32_t i = 0, n; i < p->n; i += n) {
			n = 1;
			if (!(p->table[i] & QCOW2_OFFSET_MASK))
				continue;
			n = run_of(q, p, i);
			qcow2_refs_drop_later(q, p->table[i], n, QCOW2_FREE_CUT);
		}
		qcow2_refs_drop_later(q, p->off, table_clusters(q, p), QCOW2_FREE_OTHER);
		qcow2_unlock(q);
	}
	forget(p);
}
