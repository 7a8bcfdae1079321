/* SPDX-License-Identifier: Apache-2.0 */
/* Writing.  What has a place is written there, by any number at once: a cluster
 * never moves from it.  The others get theirs one request at a time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/qcow/qcow.h"

enum { STEP = 1 << 20 };	/* bytes that are given their places at once, at most */

static struct node *
file_of(const struct qcow *q)
{
	return q->node->file->child;
}

static void *
buffer(const struct qcow *q, size_t len)
{
	uint32_t align = file_of(q)->limits.mem_align;
	void *p = iov_alloc(align > 64 ? align : 64, len);

	if (p)
		memset(p, 0, len);
	return p;
}

/* Is [off, off + len) of the file the header, the backing file's name or the L1
 * table?  A broken table may say that guest data, or a table, is there. */
static bool
is_vital(const struct qcow *q, uint64_t off, uint64_t len)
{
	const struct qcow_header *h = &q->header;

	return ranges_overlap(off, len, 0, QCOW_HEADER) ||
	       ranges_overlap(off, len, h->l1_off, 8 * h->l1_size) ||
	       (h->backing_off && ranges_overlap(off, len, h->backing_off, h->backing_len));
}

/* ---- places ---- */

/* With q->allocating held, as all below.  A file that does not grow is full. */
static int
take(struct qcow *q, uint64_t len, uint64_t *ret_host)
{
	uint64_t host = round_up(q->end, q->cluster_size);

	if (host > (uint64_t)INT64_MAX - len)
		return -EFBIG;
	if (!(file_of(q)->driver->caps & DRIVER_GROWS) &&
	    host + len > atomic_load(&file_of(q)->size))
		return -ENOSPC;
	q->end = host + len;
	*ret_host = host;
	return 0;
}

/* Nothing leads there yet, and it was the last that was taken. */
static void
give_back(struct qcow *q, uint64_t host)
{
	q->end = host;
}

static int
barrier(struct qcow *q)
{
	int r = node_flush(file_of(q));

	if (r < 0)
		atomic_store(&q->failed, r);
	return r;
}

/* Give the clusters around off an L2 table. */
static int
make_l2(struct qcow *q, uint64_t off, struct qcow_table *l2)
{
	const struct qcow_table l1 = { q->header.l1_off, q->header.l1_size };
	uint64_t i = off >> (q->header.cluster_bits + q->header.l2_bits), host;
	CLEANUP(cleanup_free) uint8_t *zeroes = buffer(q, 8 * l2->entries);
	int r = zeroes ? take(q, 8 * l2->entries, &host) : -ENOMEM;

	if (r < 0)
		return r;
	r = node_pwrite(file_of(q), host, zeroes, 8 * l2->entries);
	if (!r)
		r = barrier(q);
	if (r < 0) {
		give_back(q, host);
		return r;
	}
	/* If this fails, who knows which of the two the disk has?  The table is
	 * lost, or will be found empty. */
	r = qcow_cache_write(q, &l1, i, host);
	if (!r)
		l2->off = host;
	return r;
}

/* ---- clusters without a place ---- */

/* Whole clusters [start, start + len), of which the request fills [off, off + n). */
struct job {
	struct qcow *q;
	uint64_t start, len, off, n;
	const struct iov *src;
	size_t skip;		/* of src */
};

/* What the guest sees in the cluster at `at` now. */
static int
read_old(const struct job *j, uint8_t *buf, uint64_t at)
{
	struct node *n = j->q->node;
	struct iov v = IOV_BUF(buf + (at - j->start),
			       min_u64(j->q->cluster_size, atomic_load(&n->size) - at));

	return qcow_read(n, at, &v);
}

static int
write_data(const struct job *j, uint64_t host)
{
	CLEANUP(cleanup_free) uint8_t *buf = NULL;
	uint64_t last = j->start + j->len - j->q->cluster_size;
	struct iov_part part;
	int r;

	if (j->off == j->start && j->n == j->len) {
		r = iov_part(&part, j->src, j->skip, j->n);
		if (!r)
			r = node_write(file_of(j->q), host, &part.iov, 0);
		iov_part_done(&part);
		return r;
	}
	buf = buffer(j->q, j->len);
	if (!buf)
		return -ENOMEM;
	r = j->off > j->start ? read_old(j, buf, j->start) : 0;
	if (!r && j->off + j->n < j->start + j->len && (last > j->start || j->off == j->start))
		r = read_old(j, buf, last);
	if (r < 0)
		return r;
	iov_read(j->src, j->skip, buf + (j->off - j->start), j->n);
	return node_pwrite(file_of(j->q), host, buf, j->len);
}

static int
link_clusters(const struct job *j, const struct qcow_table *l2, uint64_t host)
{
	unsigned bits = j->q->header.cluster_bits;
	int r = 0;

	for (uint64_t k = 0; k < j->len >> bits && !r; k++)
		r = qcow_cache_set(j->q, l2, (j->start >> bits & (l2->entries - 1)) + k,
				   host + (k << bits));
	return r;
}

static int
place(const struct job *j)
{
	struct qcow_table l2;
	uint64_t host;
	int r = qcow_find_l2(j->q, j->start, &l2);

	if (!r && !l2.off)
		r = make_l2(j->q, j->start, &l2);
	if (!r && is_vital(j->q, l2.off, 8 * l2.entries))
		r = -EIO;
	if (!r)
		r = take(j->q, j->len, &host);
	if (r < 0)
		return r;
	r = write_data(j, host);
	if (r < 0) {
		give_back(j->q, host);
		return r;
	}
	return link_clusters(j, &l2, host);
}

/* The request's bytes [off, off + *len), which had no place; *len is how many were
 * dealt with: none if they got one meanwhile. */
static int
write_placing(struct qcow *q, uint64_t off, const struct iov *src, size_t skip, uint64_t *len)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->allocating;
	uint64_t span = (uint64_t)q->cluster_size << q->header.l2_bits, end;
	struct qcow_run run;
	struct job j = { .q = q, .start = round_down(off, q->cluster_size), .off = off,
			 .src = src, .skip = skip };
	int r;

	co_mutex_lock(held);
	r = atomic_load(&q->failed);
	if (!r)
		r = qcow_map(q, off, min_u64(*len, STEP), &run);
	if (r < 0)
		return r;
	if (run.kind == QCOW_NORMAL) {
		*len = 0;
		return 0;
	}
	/* Within one L2 table. */
	j.n = min_u64(run.len, round_down(off, span) + span - off);
	end = round_up(off + j.n, q->cluster_size);
	j.len = end - j.start;
	*len = j.n;
	return place(&j);
}

static int
write_placed(struct qcow *q, const struct qcow_run *run, const struct iov *src, size_t skip)
{
	struct iov_part part;
	int r;

	if (is_vital(q, run->host, run->len))
		return -EIO;
	r = iov_part(&part, src, skip, run->len);
	if (!r)
		r = node_write(file_of(q), run->host, &part.iov, 0);
	iov_part_done(&part);
	return r;
}

int
qcow_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct qcow *q = n->state;
	size_t done = 0;
	int r = 0;

	(void)flags;
	while (!r && done < src->len) {
		uint64_t len = src->len - done;
		struct qcow_run run;

		r = qcow_map(q, off + done, len, &run);
		if (r < 0)
			break;
		len = run.len;
		if (run.kind == QCOW_NORMAL)
			r = write_placed(q, &run, src, done);
		else
			r = write_placing(q, off + done, src, done, &len);
		done += len;
	}
	return r;
}

int
qcow_flush(struct node *n)
{
	struct qcow *q = n->state;
	int r = atomic_load(&q->failed);

	return r < 0 || n->read_only ? r : qcow_cache_write_back(q);
}
