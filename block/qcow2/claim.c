/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/claim.h"

#include "aio/loop.h"
#include "base/bytes.h"
#include "block/qcow2/qcow2.h"

bool
qcow2_claim_take(struct qcow2 *q, struct qcow2_claim *c, uint64_t start, uint64_t end)
{
	struct qcow2_claim *other;
	struct co_waiter w;

	LIST_FOREACH(other, &q->claims, link) {
		if (other->start < end && start < other->end) {
			co_queue_join(&q->claim_queue, &w);
			qcow2_unlock(q);
			co_queue_sleep(&q->claim_queue, &w);
			return false;
		}
	}
	c->start = start;
	c->end = end;
	list_append(&q->claims, &c->link);
	return true;
}

void
qcow2_claim_shrink(struct qcow2 *q, struct qcow2_claim *c, uint64_t end)
{
	qcow2_lock(q);
	c->end = end;
	co_queue_wake_all(&q->claim_queue);
	qcow2_unlock(q);
}

void
qcow2_claim_drop(struct qcow2 *q, struct qcow2_claim *c)
{
	qcow2_lock(q);
	list_remove(&c->link);
	co_queue_wake_all(&q->claim_queue);
	qcow2_unlock(q);
}

/* ---- epochs ---- */

/* The token holds the parity of the epoch, and the shard, which is the loop's
 * own so that counting shares no cache line. */
unsigned
qcow2_epoch_enter(struct qcow2 *q)
{
	struct loop *l = loop_self();
	unsigned shard = l ? loop_index(l) % QCOW2_SHARDS : 0;
	unsigned parity = q->epoch & 1;

	atomic_fetch_add_explicit(&q->shards[shard].active[parity], 1, memory_order_relaxed);
	return shard << 1 | parity;
}

void
qcow2_epoch_leave(struct qcow2 *q, unsigned token)
{
	atomic_fetch_sub_explicit(&q->shards[token >> 1].active[token & 1], 1,
				  memory_order_release);
}

void
qcow2_epoch_advance(struct qcow2 *q)
{
	for (int i = 0; i < 2; i++) {
		/* Those of the epoch before this one; they can only become fewer. */
		unsigned parity = (q->epoch + 1) & 1;

		for (int s = 0; s < QCOW2_SHARDS; s++)
			if (atomic_load_explicit(&q->shards[s].active[parity],
						 memory_order_acquire))
				return;
		q->epoch++;
	}
}
