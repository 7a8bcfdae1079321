/* SPDX-License-Identifier: Apache-2.0 */
/* Zeroing and discarding: entries change, no data is written.  Both claim the
 * clusters for the moment of the change, so that neither comes between the
 * look-up and the mapping of a writer.
 *
 * Zeroing goes by subclusters, discarding by clusters.  Zeroing less than a
 * subcluster is zeroing all of it, where the rest of it reads as zeroes and holds
 * no data; else the caller is told to write. */
#include <errno.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/map.h"

/* Clusters changed under one claim; writers into them wait that long. */
enum { CHANGE_MAX = 1 << 16 };

struct change {
	qcow2_map_fn fn;
	bool skip;		/* where there is no L2 table nothing needs to change */
	bool unmap;		/* the guest does not want the space kept */
	unsigned flags;		/* of io_zero(), for a raw data file */
	uint64_t guest;		/* the first cluster */
	bool backed;		/* an unallocated cluster may show something */
	unsigned lo, hi;	/* subclusters */
};

/* ---- entries ---- */

/* The same cluster, reading as zeroes. */
static struct qcow2_l2e
zero_kept(const struct qcow2 *q, struct qcow2_l2e old)
{
	uint64_t place = old.entry & (QCOW2_OFFSET_MASK | QCOW2_COPIED);

	return (struct qcow2_l2e){ place | qcow2_l2e_zero(q).entry, qcow2_l2e_zero(q).bitmap };
}

/* What a zeroed cluster's entry becomes. */
static struct qcow2_l2e
zero_entry(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	const struct change *c = arg;

	(void)index;
	if (!qcow2_l2e_has_host(q, old) || (c->unmap && !q->discard_no_unref))
		return qcow2_l2e_zero(q);
	return zero_kept(q, old);
}

/* And that of a cluster of which some subclusters are zeroed.  It keeps its place,
 * even if all of them are zeroes by now. */
static struct qcow2_l2e
zero_some(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	const struct change *c = arg;
	uint64_t mask = qcow2_sub_mask(c->lo, c->hi);

	(void)q;
	(void)index;
	return (struct qcow2_l2e){ old.entry, (old.bitmap & ~mask) | mask << 32 };
}

/* What a discarded one's becomes.  It must not show the backing file, or what
 * was there before. */
static struct qcow2_l2e
discard_entry(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	const struct change *c = arg;
	bool has_host = qcow2_l2e_has_host(q, old);

	(void)index;
	if (!has_host && !(old.entry & QCOW2_COMPRESSED) && !c->backed)
		return old;
	if (q->version < 3)
		return (struct qcow2_l2e){ 0, 0 };
	return has_host && q->discard_no_unref ? zero_kept(q, old) : qcow2_l2e_zero(q);
}

/* ---- changing ---- */

/* In an external data file that is a raw image of its own, zeroes are data like any
 * other: an entry never says more than that the data lies there, so that the two
 * views of it cannot come apart, whatever a crash leaves of the tables. */
static struct qcow2_l2e
raw_entry(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	const struct change *c = arg;
	uint64_t host = c->guest + (index << q->cluster_bits);

	(void)old;
	return (struct qcow2_l2e){ host | QCOW2_COPIED,
				   q->extended_l2 ? ~QCOW2_SUB_ZEROES : 0 };
}

/* Zero [off, off + len) of the data file, as far as it goes. */
static int
zero_data(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags)
{
	struct node *data = qcow2_data_file(q);
	uint64_t size = atomic_load(&data->size);

	return off < size ? node_zero(data, off, min_u64(len, size - off), flags) : 0;
}

/* Clusters that read as zeroes and keep their place: the file below may forget
 * the bytes.  They become zeroes there, not anything, so that it does not matter
 * what the tables on disk say of them yet; a copy that a snapshot has stays.
 * The clusters are claimed: nobody fills one meanwhile. */
static int
pass_on(struct qcow2 *q, uint64_t off, uint64_t len)
{
	while (len) {
		struct qcow2_run run;
		int r = qcow2_map_lock(q, off, len, &run);

		if (r < 0)
			return r;
		qcow2_unlock(q);
		if (run.kind == QCOW2_RUN_ZERO_ALLOC && run.owned)
			(void)node_zero(qcow2_data_file(q), run.host, run.len,
					IO_MAY_UNMAP | IO_FAST);
		off += run.len;
		len -= run.len;
	}
	return 0;
}

static int
change_claimed(struct qcow2 *q, uint64_t off, uint64_t len, struct change *c)
{
	uint64_t done;
	int r = 0;

	c->guest = off;
	if (c->fn == raw_entry)
		r = zero_data(q, off, len, c->flags);
	if (!r)
		r = qcow2_map_change(q, off, len >> q->cluster_bits, c->skip,
				     QCOW2_FREE_REQUEST, c->fn, c, &done);
	if (r || !c->unmap || c->fn == raw_entry || !q->pass_discard[QCOW2_FREE_REQUEST] ||
	    !qcow2_data_file(q)->discard_unmap)
		return r;
	if (q->external_data)
		(void)zero_data(q, off, len, IO_MAY_UNMAP | IO_FAST);
	else if (q->discard_no_unref)
		r = pass_on(q, off, len);
	return r;
}

/* Whole clusters. */
static int
change_range(struct qcow2 *q, uint64_t off, uint64_t len, struct change *c)
{
	uint64_t max = (uint64_t)CHANGE_MAX << q->cluster_bits;
	int r = 0;

	while (!r && len) {
		uint64_t part = min_u64(len, max);
		struct qcow2_claim claim;

		r = qcow2_before_write(q);
		if (r < 0)
			break;
		qcow2_lock(q);
		if (!qcow2_claim_take(q, &claim, off, off + part))
			continue;
		qcow2_unlock(q);
		r = change_claimed(q, off, part, c);
		qcow2_claim_drop(q, &claim);
		off += part;
		len -= part;
	}
	return r;
}

static bool
reads_as_zeroes(struct qcow2 *q, uint64_t off, uint64_t end)
{
	end = min_u64(end, atomic_load(&q->node->size));
	while (off < end) {
		struct extent x;

		if (node_status_above(q->node, NULL, off, end - off, true, &x) < 0 ||
		    !(x.flags & EXTENT_ZERO))
			return false;
		off += x.len;
	}
	return true;
}

/* Does subcluster sub, whose run this is, hold nothing, and does it read as zeroes
 * but for [off, end)?  It is claimed. */
static bool
is_zero_around(struct qcow2 *q, const struct qcow2_run *run, uint64_t sub, uint64_t off,
	       uint64_t end)
{
	return run->kind != QCOW2_RUN_NORMAL && reads_as_zeroes(q, sub, off) &&
	       reads_as_zeroes(q, end, sub + q->sub_size);
}

/* Zero [off, end) of one cluster: subclusters, or less than one of them. */
static int
zero_within(struct qcow2 *q, uint64_t off, uint64_t end, struct change c)
{
	uint64_t guest = round_down(off, q->cluster_size), sub = round_down(off, q->sub_size);
	bool less = sub != off || !is_aligned(end, q->sub_size);
	struct qcow2_claim claim;
	struct qcow2_run run;
	int r;

	if (q->data_raw || (less && end - sub > q->sub_size))
		return -EOPNOTSUPP;
	for (;;) {
		r = qcow2_before_write(q);
		if (!r)
			r = qcow2_map_lock(q, sub, q->sub_size, &run);
		if (r < 0)
			return r;
		if (run.kind == QCOW2_RUN_COMPRESSED || (less && run.kind == QCOW2_RUN_NORMAL)) {
			qcow2_unlock(q);
			return -EOPNOTSUPP;
		}
		if (qcow2_claim_take(q, &claim, guest, guest + q->cluster_size))
			break;
	}
	qcow2_unlock(q);
	if (less && !is_zero_around(q, &run, sub, off, end)) {
		r = -EOPNOTSUPP;
	} else {
		if (q->extended_l2) {
			c.fn = zero_some;
			c.unmap = false;
		}
		c.lo = qcow2_sub_of(q, off);
		c.hi = qcow2_sub_of(q, end - 1) + 1;
		r = change_claimed(q, guest, q->cluster_size, &c);
	}
	qcow2_claim_drop(q, &claim);
	return r;
}

static int
zero_range(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow2 *q = n->state;
	struct change c = { .fn = zero_entry, .unmap = flags & IO_MAY_UNMAP };
	uint64_t end = off + len, head, tail;
	int r = 0;

	if (q->data_raw) {
		c.fn = raw_entry;
		c.flags = flags & (IO_MAY_UNMAP | IO_FAST);
	}
	/* Without zero clusters a hole does, if it shows no backing file. */
	if (q->version < 3) {
		if (qcow2_backing(q))
			return -EOPNOTSUPP;
		c.fn = discard_entry;
		c.skip = true;
	}
	/* Behind the end of the disk nothing needs to be kept. */
	if (end == atomic_load(&n->size))
		end = round_up(end, off <= round_down(end, q->cluster_size) ? q->cluster_size
									    : q->sub_size);
	head = min_u64(round_up(off, q->cluster_size), end);
	tail = max_u64(round_down(end, q->cluster_size), head);
	if (off < head)
		r = zero_within(q, off, head, c);
	if (!r && head < tail)
		r = change_range(q, head, tail - head, &c);
	if (!r && tail < end)
		r = zero_within(q, tail, end, c);
	return r;
}

int
qcow2_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow2 *q = n->state;
	uint64_t seen;
	int r;

	do {
		seen = atomic_load_explicit(&q->reclaimed, memory_order_relaxed);
		r = zero_range(n, off, len, flags);
	} while (r == -ENOSPC && qcow2_reclaim(q, seen));
	return r;
}

int
qcow2_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct qcow2 *q = n->state;
	bool backed = qcow2_backing(q) != NULL;
	struct change c = { .fn = discard_entry, .skip = !backed, .unmap = true,
			    .backed = backed };

	/* Without zero clusters a hole would show the backing file. */
	if (q->version < 3 && backed)
		return -EOPNOTSUPP;
	if (q->data_raw) {
		if (!q->pass_discard[QCOW2_FREE_REQUEST] || !qcow2_data_file(q)->discard_unmap)
			return 0;
		c = (struct change){ .fn = raw_entry, .flags = IO_MAY_UNMAP };
	}
	if (off + len == atomic_load(&n->size))
		len = round_up(off + len, q->cluster_size) - off;
	if (!is_aligned(off | len, q->cluster_size))
		return -EINVAL;
	return change_range(q, off, len, &c);
}
