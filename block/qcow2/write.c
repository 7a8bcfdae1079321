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
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/data.h"
#include "block/qcow2/map.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/refs.h"

enum {
	ALLOC_MAX = 16 << 20,		/* bytes mapped in one step */
	COW_ONE_WRITE_MAX = 128 << 10,	/* surroundings that go with the data */
};

/* A step of an allocating write: guest clusters [guest, guest + n) get
 * [host, ...), and src[skip, skip + len) goes to guest byte off. */
struct step {
	struct qcow2_run run;	/* what guest was, looked up at `guest` */
	uint64_t guest, n, host;
	uint64_t off;
	const struct iov *src;
	size_t skip, len;
	bool fresh;		/* host was never written: reads as zeroes */
	bool reused;		/* host was ours before, behind a zero cluster */
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
 * the disk, zeroes.  *ret_zero: it is all zeroes, known without a look. */
static int
read_old(struct qcow2 *q, const struct step *s, uint64_t off, uint8_t *buf, size_t len)
{
	struct qcow2_run run = s->run;
	uint64_t end = min_u64(off + len, atomic_load(&q->node->size));
	size_t n = end > off ? (size_t)(end - off) : 0;
	struct iov v = IOV_BUF(buf, n);

	memset(buf + n, 0, len - n);
	if (!n)
		return 0;
	if (run.kind == QCOW2_RUN_NORMAL)
		run.host += off - s->guest;
	return qcow2_data_read(q, &run, off, &v, 0, n);
}

static bool
old_is_zero(struct qcow2 *q, const struct step *s)
{
	switch (s->run.kind) {
	case QCOW2_RUN_UNALLOCATED:
	case QCOW2_RUN_UNFILLED:
		return !qcow2_backing(q);
	case QCOW2_RUN_ZERO:
	case QCOW2_RUN_ZERO_ALLOC:
		return true;
	default:
		return false;
	}
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
	int r = 0;

	if (head_len)
		r = node_zero(qcow2_data_file(q), s->host, head_len, 0);
	if (!r && tail_len)
		r = node_zero(qcow2_data_file(q), s->host + (s->n << q->cluster_bits) - tail_len,
			      tail_len, 0);
	return r;
}

/* Fill the host clusters of s. */
static int
fill(struct qcow2 *q, const struct step *s)
{
	size_t head_len = (size_t)(s->off - s->guest);
	size_t tail_len = (size_t)((s->n << q->cluster_bits) - head_len - s->len);
	CLEANUP(cleanup_free) uint8_t *buf = NULL;
	bool zero = old_is_zero(q, s);
	uint32_t align;
	int r;

	if ((!head_len && !tail_len) || (zero && s->fresh))
		return write_part(q, s->host + head_len, s->src, s->skip, s->len);
	if (zero && head_len + tail_len > COW_ONE_WRITE_MAX) {
		r = zero_around(q, s, head_len, tail_len);
		return r < 0 ? r : write_part(q, s->host + head_len, s->src, s->skip, s->len);
	}
	align = qcow2_data_file(q)->limits.mem_align;
	buf = iov_alloc(align > 64 ? align : 64, head_len + tail_len);
	if (!buf)
		return -ENOMEM;
	r = head_len ? read_old(q, s, s->guest, buf, head_len) : 0;
	if (!r && tail_len)
		r = read_old(q, s, s->off + s->len, buf + head_len, tail_len);
	return r < 0 ? r : write_around(q, s, buf, head_len, buf + head_len, tail_len);
}

/* Find clusters for s; there may be fewer than wanted. */
static int
place(struct qcow2 *q, struct step *s)
{
	uint64_t got, room;
	int r;

	s->reused = s->run.kind == QCOW2_RUN_ZERO_ALLOC && s->run.owned;
	if (s->reused) {
		s->host = s->run.host;
		return 0;
	}
	r = qcow2_refs_take(q, s->n, &s->host, &got, &s->fresh);
	if (r < 0)
		return r;
	s->n = got;
	room = s->guest + (got << q->cluster_bits) - s->off;
	s->len = (size_t)min_u64(s->len, room);
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
	r = fill(q, s);
	if (!r)
		r = qcow2_map_link(q, s->guest, s->host, s->n, &linked);
	if (r < 0 && !s->reused)
		(void)qcow2_refs_give_back(q, s->host + (linked << q->cluster_bits),
					   s->n - linked);
	return r;
}

/* Write what can be written in one step of src[skip, ...) at off; *ret_done: the
 * bytes.  Entered with the lock held, and run looked up at off's cluster. */
static int
write_alloc(struct qcow2 *q, uint64_t off, const struct iov *src, size_t skip,
	    const struct qcow2_run *run, size_t *ret_done)
{
	struct qcow2_claim claim;
	struct step s = { .run = *run, .off = off, .src = src, .skip = skip };
	uint64_t end;
	int r;

	s.guest = round_down(off, q->cluster_size);
	end = min_u64(off + (src->len - skip), s.guest + min_u64(run->len, ALLOC_MAX));
	s.len = (size_t)(end - off);
	end = round_up(end, q->cluster_size);
	s.n = (end - s.guest) >> q->cluster_bits;
	if (!qcow2_claim_take(q, &claim, s.guest, end)) {
		*ret_done = 0;	/* the lock is released: look again */
		return 0;
	}
	qcow2_unlock(q);
	r = step_run(q, &claim, &s);
	qcow2_claim_drop(q, &claim);
	*ret_done = s.len;
	return r;
}

static int
write_some(struct qcow2 *q, uint64_t off, const struct iov *src, size_t skip, size_t *ret_done)
{
	uint64_t guest = round_down(off, q->cluster_size);
	uint64_t end = round_up(off + (src->len - skip), q->cluster_size);
	struct qcow2_run run;
	unsigned epoch;
	int r = qcow2_map_lock(q, guest, end - guest, &run);

	if (r < 0)
		return r;
	/* A table says that a guest's cluster lies in a table. */
	if (run.owned && qcow2_overlaps_fixed(q, run.host, run.len)) {
		qcow2_unlock(q);
		return -EIO;
	}
	if (run.kind != QCOW2_RUN_NORMAL || !run.owned)
		return write_alloc(q, off, src, skip, &run, ret_done);
	epoch = qcow2_epoch_enter(q);
	qcow2_unlock(q);
	*ret_done = (size_t)min_u64(guest + run.len - off, src->len - skip);
	r = write_part(q, run.host + (off - guest), src, skip, *ret_done);
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
		return -ENOTSUP;
	r = qcow2_before_write(q);
	while (!r && done < src->len) {
		size_t step = 0;

		r = write_some(q, off + done, src, done, &step);
		done += step;
	}
	return r;
}
