/* SPDX-License-Identifier: Apache-2.0 */
/* Zeroing and discarding whole clusters: entries change, no data is written.
 * Both claim the clusters for the moment of the change, so that neither comes
 * between the look-up and the mapping of a writer. */
#include <errno.h>

#include "base/bytes.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/map.h"

/* Clusters changed under one claim; writers into them wait that long. */
enum { CHANGE_MAX = 1 << 16 };

struct change {
	bool unmap;		/* the guest does not want the space kept */
	bool backed;		/* an unallocated cluster may show something */
};

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
	if (!qcow2_l2e_has_host(old) || (c->unmap && !q->discard_no_unref))
		return qcow2_l2e_zero(q);
	return zero_kept(q, old);
}

/* What a discarded one's becomes.  It must not show the backing file, or what
 * was there before. */
static struct qcow2_l2e
discard_entry(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	const struct change *c = arg;
	bool has_host = qcow2_l2e_has_host(old);

	(void)index;
	if (!has_host && !(old.entry & QCOW2_COMPRESSED) && !c->backed)
		return old;
	if (q->version < 3)
		return (struct qcow2_l2e){ 0, 0 };
	return has_host && q->discard_no_unref ? zero_kept(q, old) : qcow2_l2e_zero(q);
}

static int
change_range(struct qcow2 *q, uint64_t off, uint64_t len, bool skip, enum qcow2_free_why why,
	     qcow2_map_fn fn, struct change *arg)
{
	uint64_t max = (uint64_t)CHANGE_MAX << q->cluster_bits;
	int r = 0;

	while (!r && len) {
		uint64_t part = min_u64(len, max), done;
		struct qcow2_claim claim;

		r = qcow2_before_write(q);
		if (r < 0)
			break;
		qcow2_lock(q);
		if (!qcow2_claim_take(q, &claim, off, off + part))
			continue;
		qcow2_unlock(q);
		r = qcow2_map_change(q, off, part >> q->cluster_bits, skip, why, fn, arg, &done);
		qcow2_claim_drop(q, &claim);
		off += part;
		len -= part;
	}
	return r;
}

int
qcow2_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow2 *q = n->state;
	struct change c = { .unmap = flags & IO_MAY_UNMAP };

	if (q->version < 3)
		return -EOPNOTSUPP;
	/* Behind the end of the disk nothing needs to be kept. */
	if (off + len == atomic_load(&n->size))
		len = round_up(off + len, q->cluster_size) - off;
	if (!is_aligned(off | len, q->cluster_size))
		return -EOPNOTSUPP;
	return change_range(q, off, len, false, QCOW2_FREE_REQUEST, zero_entry, &c);
}

int
qcow2_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct qcow2 *q = n->state;
	struct change c = { .backed = qcow2_backing(q) != NULL };

	/* Without zero clusters a hole would show the backing file. */
	if (q->version < 3 && c.backed)
		return -EOPNOTSUPP;
	if (off + len == atomic_load(&n->size))
		len = round_up(off + len, q->cluster_size) - off;
	if (!is_aligned(off | len, q->cluster_size))
		return -EINVAL;
	return change_range(q, off, len, !c.backed, QCOW2_FREE_REQUEST, discard_entry, &c);
}
