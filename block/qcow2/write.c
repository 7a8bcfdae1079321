/* SPDX-License-Identifier: Apache-2.0 */
/* Writing guest data.  The order on disk, and why it is safe, is told at the
 * head of qcow2.h; here is the part of a single request.
 *
 * In place      A cluster that only we refer to is overwritten where it lies,
 *               within an epoch, so that it is not used anew while we write.
 *
 * Allocating    The guest clusters are claimed in the look-up that found them
 *               to need a place; clusters are counted; filled, in one write, with
 *               the guest's bytes and around them with what the guest saw there
 *               before; then mapped.  Of the surroundings only what is missing is
 *               read, and what a never written file shows anyway is not written.
 *               A long write takes as many neighbouring clusters as there are.
 *
 * No space      What was discarded is free only behind a checkpoint: so there is one,
 *               and another try.
 *
 * Fails         Before the mapping: the clusters are given back, nothing has
 *               changed.  In the middle of a long mapping: what is mapped holds
 *               the guest's bytes, which a failed write may show; the rest is
 *               given back.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/planted.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/compress.h"
#include "block/qcow2/data.h"
#include "block/qcow2/map.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/refs.h"

enum {
	ALLOC_MAX = 16 << 20,		/* bytes mapped in one step */
	COW_ONE_WRITE_MAX = 128 << 10,	/* surroundings that go with the data */
};

/* A step of an allocating write: guest clusters [guest, guest + n) get
 * [host, ...), of which guest bytes [lo, hi) are filled: src[skip, skip + len) at
 * off, and around it what was there.  Without subclusters that is all of them. */
struct step {
	struct qcow2_run run;	/* what off's subcluster was, and those behind it */
	uint64_t guest, n, host;
	uint64_t lo, hi;	/* whole subclusters */
	uint64_t off;
	const struct iov *src;
	size_t skip, len;
	bool mixed;		/* [lo, hi) goes beyond run */
	bool fresh;		/* host was never written: reads as zeroes */
	bool reused;		/* host was ours before, without the data of run */
};

static int
write_part(struct qcow2 *q, uint64_t host, const struct iov *src, size_t skip, size_t len)
{
	struct iov_part part;
	int r;

	if (!skip && len == src->len)
		return node_write(qcow2_data_file(q), host, src, 0);
	r = iov_part(&part, src, skip, len);
	if (!r)
		r = node_write(qcow2_data_file(q), host, &part.iov, 0);
	iov_part_done(&part);
	return r;
}

/* What the guest saw at [off, off + len) before this write; beyond the end of
 * the disk, zeroes. */
static int
read_old(struct qcow2 *q, uint64_t off, uint8_t *buf, size_t len)
{
	uint64_t end = min_u64(off + len, atomic_load(&q->node->size));
	size_t n = end > off ? (size_t)(end - off) : 0, done = 0;
	struct iov v = IOV_BUF(buf, n);

	memset(buf + n, 0, len - n);
	while (done < n) {
		struct qcow2_run run;
		int r = qcow2_map_lock(q, off + done, n - done, &run);

		if (r < 0)
			return r;
		qcow2_unlock(q);
		r = qcow2_data_read(q, &run, off + done, &v, done, run.len);
		if (r < 0)
			return r;
		done += run.len;
	}
	return 0;
}

/* Write head, the guest's bytes and tail: in one write where that is cheap. */
static int
write_around(struct qcow2 *q, const struct step *s, uint8_t *head, size_t head_len,
	     uint8_t *tail, size_t tail_len)
{
	uint64_t host = s->host + (s->off - s->guest);
	struct iovec few[8], *vec = few;
	struct iov_part part;
	struct iov all;
	int n = 0, r;

	r = iov_part(&part, s->src, s->skip, s->len);
	if (r < 0)
		return r;
	if (part.iov.count + 2 > (int)ARRAY_SIZE(few)) {
		vec = malloc((size_t)(part.iov.count + 2) * sizeof(*vec));
		if (!vec) {
			iov_part_done(&part);
			return -ENOMEM;
		}
	}
	if (head_len)
		vec[n++] = (struct iovec){ head, head_len };
	memcpy(vec + n, part.iov.vec, (size_t)part.iov.count * sizeof(*vec));
	n += part.iov.count;
	if (tail_len)
		vec[n++] = (struct iovec){ tail, tail_len };
	all = (struct iov){ .vec = vec, .count = n, .len = head_len + s->len + tail_len };
	r = node_write(qcow2_data_file(q), host - head_len, &all, 0);
	if (vec != few)
		free(vec);
	iov_part_done(&part);
	return r;
}

/* Zero what surrounds the data, without moving zeroes about. */
static int
zero_around(struct qcow2 *q, const struct step *s, size_t head_len, size_t tail_len)
{
	uint64_t host = s->host + (s->lo - s->guest);
	int r = 0;

	if (head_len)
		r = node_zero(qcow2_data_file(q), host, head_len, 0);
	if (!r && tail_len)
		r = node_zero(qcow2_data_file(q), host + head_len + s->len, tail_len, 0);
	return r;
}

/* Nobody counts what an external data file holds: is it nothing there? */
static bool
is_hole(struct qcow2 *q, const struct step *s)
{
	struct node *data = qcow2_data_file(q);
	uint64_t host = s->host + (s->lo - s->guest);
	struct extent x = { 0 };

	if (host >= atomic_load(&data->size))
		return data->driver->caps & DRIVER_GROWS;
	return node_status(data, host, s->hi - s->lo, true, &x) == 0 &&
	       (x.flags & EXTENT_ZERO) && (x.len == s->hi - s->lo || (x.flags & EXTENT_EOF));
}

/* Fill the host clusters of s. */
static int
fill(struct qcow2 *q, const struct step *s)
{
	size_t head_len = (size_t)(s->off - s->lo);
	size_t tail_len = (size_t)(s->hi - s->off - s->len);
	bool zero = !s->mixed && qcow2_run_is_zero(q, &s->run);
	CLEANUP(cleanup_free) uint8_t *buf = NULL;
	uint64_t host = s->host + (s->off - s->guest);
	uint32_t align;
	int r;

	if ((!head_len && !tail_len) ||
	    (zero && (s->fresh || (q->external_data && is_hole(q, s)))))
		return write_part(q, host, s->src, s->skip, s->len);
	if (zero && head_len + tail_len > COW_ONE_WRITE_MAX) {
		r = zero_around(q, s, head_len, tail_len);
		return r < 0 ? r : write_part(q, host, s->src, s->skip, s->len);
	}
	align = qcow2_data_file(q)->limits.mem_align;
	buf = iov_alloc(align > 64 ? align : 64, head_len + tail_len);
	if (!buf)
		return -ENOMEM;
	r = head_len ? read_old(q, s->lo, buf, head_len) : 0;
	if (!r && tail_len && !PLANTED(cow_forgets_tail))
		r = read_old(q, s->off + s->len, buf + head_len, tail_len);
	return r < 0 ? r : write_around(q, s, buf, head_len, buf + head_len, tail_len);
}

/* Find clusters for s; there may be fewer than wanted. */
static int
place(struct qcow2 *q, struct step *s)
{
	uint64_t got, end;
	int r;

	if (s->reused)
		return 0;
	r = qcow2_refs_take(q, s->n, &s->host, &got, &s->fresh);
	if (r < 0)
		return r;
	s->n = got;
	end = s->guest + (got << q->cluster_bits);
	s->len = (size_t)min_u64(s->len, end - s->off);
	s->hi = min_u64(s->hi, end);
	return 0;
}

static int
step_run(struct qcow2 *q, struct qcow2_claim *claim, struct step *s)
{
	uint64_t linked = 0, end;
	int r = place(q, s);

	if (r < 0)
		return r;
	end = s->guest + (s->n << q->cluster_bits);
	if (end < claim->end)
		qcow2_claim_shrink(q, claim, end);
	if (PLANTED(link_before_data))
		(void)qcow2_map_link(q, s->guest, s->host, s->n, s->lo, s->hi, &linked);
	r = fill(q, s);
	if (!r)
		r = qcow2_map_link(q, s->guest, s->host, s->n, s->lo, s->hi, &linked);
	if (r < 0 && !s->reused)
		(void)qcow2_refs_give_back(q, s->host + (linked << q->cluster_bits),
					   s->n - linked);
	return r;
}

/* What has to be filled besides the subclusters that are written: the data that
 * the first and the last cluster have where they are now, and lose.  With the
 * lock held since the look-up. */
static void
widen(struct qcow2 *q, struct step *s)
{
	uint64_t last = s->guest + ((s->n - 1) << q->cluster_bits), run_end;
	uint32_t lo, hi;

	qcow2_map_data(q, s->guest, &lo, &hi);
	if (lo < hi)
		s->lo = min_u64(s->lo, s->guest + lo);
	qcow2_map_data(q, last, &lo, &hi);
	if (lo < hi)
		s->hi = max_u64(s->hi, last + hi);
	run_end = round_down(s->off, q->sub_size) + s->run.len;
	s->mixed = s->lo < round_down(s->off, q->sub_size) || s->hi > run_end;
}

/* Write what can be written in one step of src[skip, ...) at off; *ret_done: the
 * bytes.  Entered with the lock held, and run looked up at off's subcluster. */
static int
write_alloc(struct qcow2 *q, uint64_t off, const struct iov *src, size_t skip,
	    const struct qcow2_run *run, size_t *ret_done)
{
	struct qcow2_claim claim;
	struct step s = { .run = *run, .off = off, .src = src, .skip = skip };
	uint64_t end;
	int r;

	s.guest = round_down(off, q->cluster_size);
	s.lo = round_down(off, q->sub_size);
	end = min_u64(off + (src->len - skip), s.lo + min_u64(run->len, ALLOC_MAX));
	s.len = (size_t)(end - off);
	s.hi = round_up(end, q->sub_size);
	end = round_up(end, q->cluster_size);
	s.n = (end - s.guest) >> q->cluster_bits;
	if (!qcow2_claim_take(q, &claim, s.guest, end)) {
		*ret_done = 0;	/* the lock is released: look again */
		return 0;
	}
	/* For its data there is a cluster already. */
	s.reused = run->owned || q->external_data;
	if (q->external_data)
		s.host = s.guest;
	else if (s.reused)
		s.host = run->host - (s.lo - s.guest);
	else if (q->extended_l2)
		widen(q, &s);
	qcow2_unlock(q);
	r = step_run(q, &claim, &s);
	qcow2_claim_drop(q, &claim);
	*ret_done = s.len;
	return r;
}

static int
write_some(struct qcow2 *q, uint64_t off, const struct iov *src, size_t skip, size_t *ret_done)
{
	uint64_t start = round_down(off, q->sub_size);
	uint64_t end = round_up(off + (src->len - skip), q->sub_size);
	struct qcow2_run run;
	unsigned epoch;
	int r = qcow2_map_lock_write(q, off, src->len - skip, &run);

	if (r < 0)
		return r;
	/* A table says that a guest's cluster lies in a table. */
	if (run.owned && !q->external_data) {
		r = qcow2_overlap_check(q, QCOW2_OVERLAP_CONSTANT, run.host,
					min_u64(run.len, end - start));
		if (r < 0) {
			qcow2_unlock(q);
			return r;
		}
	}
	if (run.kind != QCOW2_RUN_NORMAL || !run.owned)
		return write_alloc(q, off, src, skip, &run, ret_done);
	epoch = qcow2_epoch_enter(q);
	qcow2_unlock(q);
	*ret_done = (size_t)min_u64(start + run.len - off, src->len - skip);
	r = write_part(q, run.host + (off - start), src, skip, *ret_done);
	qcow2_epoch_leave(q, epoch);
	return r;
}

int
qcow2_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct qcow2 *q = n->state;
	size_t done = 0;
	int r;

	if (flags & IO_COMPRESSED)
		return qcow2_write_compressed(q, off, src);
	r = qcow2_before_write(q);
	while (!r && done < src->len) {
		uint64_t seen = atomic_load_explicit(&q->reclaimed, memory_order_relaxed);
		size_t step = 0;

		r = write_some(q, off + done, src, done, &step);
		if (r == -ENOSPC && qcow2_reclaim(q, seen))
			r = 0;	/* once more */
		else
			done += step;
	}
	return r;
}
