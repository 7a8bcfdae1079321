/* SPDX-License-Identifier: Apache-2.0 */
/* Writing compressed clusters.
 *
 * They are packed: each starts where the one before ended, at any byte, and may
 * go on into the next host cluster if that is free.  A host cluster counts one
 * reference for each compressed cluster that touches it.
 *
 * Order         As for any allocating write: counted, written, then mapped.  What
 *               is written behind another cluster's bytes leaves those as they are,
 *               in every sector that both share.
 *
 * The end       qcow2->pack_next is where the next one may start.  Whoever drops a
 *               reference to the cluster that it lies in resets it, for that cluster
 *               may be on its way to be free, or discarded.  So it only ever lies in
 *               a cluster of which every reference that was taken is still there:
 *               a reference added to it, and pack_next seen unchanged behind that,
 *               and the place is ours.
 *
 * In place      There is none: what has a place already, compressed or not, is not
 *               written compressed (-EIO, as in QEMU). */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/planted.h"
#include "block/io.h"
#include "block/pack.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/compress.h"
#include "block/qcow2/compressed.h"
#include "block/qcow2/map.h"
#include "block/qcow2/refs.h"

enum { PACKERS_MAX = 4 };	/* clusters of one request that are packed at once */

/* ---- places ---- */

/* The bits that an offset may have in a compressed entry; above them stands the
 * number of sectors. */
static unsigned
offset_bits(const struct qcow2 *q)
{
	return 62 - (q->cluster_bits - 8);
}

/* Add a reference to the cluster that pack_next lies in, and move pack_next from
 * `at` by len.  1: done; 0: it can be packed there no more. */
static int
go_on(struct qcow2 *q, uint64_t at, uint64_t len)
{
	uint64_t cluster = at >> q->cluster_bits;
	bool unchanged;
	int r = qcow2_refs_change(q, cluster, 1, 1);

	if (r < 0)
		return r == -EINVAL ? 0 : r;	/* it cannot count any further */
	qcow2_lock(q);
	unchanged = q->pack_next == at;
	if (unchanged)
		q->pack_next = is_aligned(at + len, q->cluster_size) ? 0 : at + len;
	qcow2_unlock(q);
	if (!unchanged)
		(void)qcow2_refs_change(q, cluster, 1, -1);
	return unchanged;
}

static void
start_at(struct qcow2 *q, uint64_t at)
{
	if (PLANTED(packed_too_tight))
		at -= 8;
	qcow2_lock(q);
	q->pack_next = is_aligned(at, q->cluster_size) ? 0 : at;
	qcow2_unlock(q);
}

/* Find len bytes, at most a cluster, and count the host clusters they lie in. */
static int
take(struct qcow2 *q, uint64_t len, uint64_t *ret_host)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->packing;
	uint64_t at, room, host, got;
	bool fresh;
	int r;

	co_mutex_lock(held);
	qcow2_lock(q);
	at = q->pack_next;
	qcow2_unlock(q);
	room = at ? round_up(at, q->cluster_size) - at : 0;
	if (len <= room) {
		r = go_on(q, at, len);
		if (r) {
			*ret_host = at;
			return r < 0 ? r : 0;
		}
		room = 0;
	}
	r = qcow2_refs_take(q, 1, &host, &got, &fresh);
	if (r < 0)
		return r;
	/* The neighbour: it begins in the old one. */
	if (room && host == at + room) {
		r = go_on(q, at, len);
		if (r < 0)
			(void)qcow2_refs_give_back(q, host, 1);
		if (r) {
			*ret_host = at;
			return r < 0 ? r : 0;
		}
	}
	start_at(q, host + len);
	*ret_host = host;
	return 0;
}

void
qcow2_pack_forget(struct qcow2 *q, uint64_t host, uint64_t n)
{
	if (q->pack_next > host && q->pack_next < host + (n << q->cluster_bits) &&
	    !PLANTED(pack_remembers_freed))
		q->pack_next = 0;
}

static void
give_back(struct qcow2 *q, uint64_t host, uint64_t len)
{
	uint64_t first = round_down(host, q->cluster_size);
	uint64_t n = (round_up(host + len, q->cluster_size) - first) >> q->cluster_bits;

	(void)qcow2_refs_give_back(q, first, n);
}

/* ---- one cluster ---- */

struct packing {
	enum unpack_kind kind;
	uint8_t *plain, *packed;	/* cluster_size each */
	size_t size, len;
};

static int
run_pack(void *arg)
{
	struct packing *p = arg;

	/* A cluster that gets no smaller is better off as it is. */
	return pack(p->kind, p->plain, p->size, p->packed, p->size - 1, &p->len);
}

/* Claim the cluster at off for a compressed one. */
static int
claim_cluster(struct qcow2 *q, uint64_t off, struct qcow2_claim *claim)
{
	for (;;) {
		struct qcow2_run run;
		int r = qcow2_before_write(q);

		if (!r)
			r = qcow2_map_lock(q, off, q->cluster_size, &run);
		if (r < 0)
			return r;
		if (run.kind != QCOW2_RUN_UNALLOCATED && run.kind != QCOW2_RUN_ZERO) {
			qcow2_unlock(q);
			return -EIO;
		}
		if (qcow2_claim_take(q, claim, off, off + q->cluster_size))
			break;
	}
	qcow2_unlock(q);
	return 0;
}

static struct qcow2_l2e
compressed_entry(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	(void)q;
	(void)old;
	(void)index;
	return (struct qcow2_l2e){ *(uint64_t *)arg, 0 };
}

static int
map_packed(struct qcow2 *q, uint64_t off, uint64_t host, size_t len)
{
	uint64_t sectors = ((host + len - 1) >> 9) - (host >> 9), done;
	uint64_t entry = QCOW2_COMPRESSED | sectors << offset_bits(q) | host;

	return qcow2_map_change(q, off, 1, false, QCOW2_FREE_OTHER, compressed_entry, &entry,
				&done);
}

static int
store(struct qcow2 *q, uint64_t off, const struct packing *p)
{
	struct qcow2_claim claim;
	uint64_t host;
	int r = claim_cluster(q, off, &claim);

	if (r < 0)
		return r;
	r = take(q, p->len, &host);
	if (!r) {
		if ((host + p->len) >> offset_bits(q))
			r = -EFBIG;
		if (!r)
			r = node_pwrite(qcow2_file(q), host, p->packed, p->len);
		if (!r)
			r = map_packed(q, off, host, p->len);
		if (r < 0)
			give_back(q, host, p->len);
	}
	qcow2_claim_drop(q, &claim);
	return r;
}

static int
write_plain(struct qcow2 *q, uint64_t off, const struct iov *src, size_t skip, size_t len)
{
	struct iov_part part;
	int r = iov_part(&part, src, skip, len);

	if (!r)
		r = qcow2_write(q->node, off, &part.iov, 0);
	iov_part_done(&part);
	return r;
}

/* Write src[skip, skip + len), at most a cluster, as the cluster at off. */
static int
write_cluster(struct qcow2 *q, uint64_t off, const struct iov *src, size_t skip, size_t len)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(2 * (size_t)q->cluster_size);
	struct packing p = {
		.kind = qcow2_compression(q), .plain = buf, .size = q->cluster_size,
	};
	int r;

	if (!buf)
		return -ENOMEM;
	p.packed = buf + q->cluster_size;
	iov_read(src, skip, p.plain, len);
	memset(p.plain + len, 0, p.size - len);
	r = work_run(run_pack, &p);
	if (r == -ENOSPC)
		return write_plain(q, off, src, skip, len);
	while (!r) {
		uint64_t seen = atomic_load_explicit(&q->reclaimed, memory_order_relaxed);

		r = store(q, off, &p);
		if (r != -ENOSPC || !qcow2_reclaim(q, seen))
			break;
		r = 0;	/* once more */
	}
	return r;
}

/* ---- a request: several clusters at once, all on this loop ---- */

struct request {
	struct qcow2 *q;
	uint64_t off;
	const struct iov *src;
	size_t next;		/* in src */
	int result;
};

static void
write_next(void *arg)
{
	struct request *rq = arg;

	while (rq->next < rq->src->len && !rq->result) {
		size_t skip = rq->next;
		size_t len = min_u64(rq->src->len - skip, rq->q->cluster_size);
		int r;

		rq->next += len;
		r = write_cluster(rq->q, rq->off + skip, rq->src, skip, len);
		if (r < 0 && !rq->result)
			rq->result = r;
	}
}

int
qcow2_write_compressed(struct qcow2 *q, uint64_t off, const struct iov *src)
{
	struct request rq = { .q = q, .off = off, .src = src };
	uint64_t clusters = qcow2_clusters(q, src->len);
	struct co_group helpers;

	if (q->external_data)
		return -ENOTSUP;
	if (!is_aligned(off, q->cluster_size) ||
	    (!is_aligned(src->len, q->cluster_size) &&
	     off + src->len != atomic_load(&q->node->size)))
		return -EINVAL;
	if (clusters > 1) {
		co_group_init(&helpers);
		/* Without a helper it only takes longer. */
		for (uint64_t i = 1; i < min_u64(clusters, PACKERS_MAX); i++)
			(void)co_group_start(&helpers, write_next, &rq);
	}
	write_next(&rq);
	if (clusters > 1)
		co_group_wait(&helpers);
	return rq.result;
}
