/* SPDX-License-Identifier: Apache-2.0 */
#include "block/open.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/mark.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/refs.h"

static int
settle(struct qcow2 *q)
{
	int r = qcow2_checkpoint(q);

	if (r < 0)
		return r;
	co_mutex_lock(&q->checkpoint);
	(void)qcow2_refs_drop_now(q, true);
	co_mutex_unlock(&q->checkpoint);
	r = qcow2_checkpoint(q);
	return r < 0 ? r : qcow2_barrier(q);
}

int
qcow2_settle(struct qcow2 *q)
{
	bool lazy = q->lazy;
	int r;

	q->lazy = false;	/* nobody else looks at it now */
	r = settle(q);
	q->lazy = lazy;
	return r;
}

int
qcow2_settle_clean(struct qcow2 *q)
{
	int r = qcow2_settle(q);

	if (r < 0 || !q->lazy_marked)
		return r;
	r = qcow2_unmark(q, QCOW2_INCOMPAT_DIRTY);
	if (!r)
		q->lazy_marked = false;
	return r;
}

int
qcow2_close(struct node *n)
{
	struct qcow2 *q = n->state;
	int r = 0, bitmaps = 0;

	if (q->clean_ns)
		timer_cancel(&q->clean_timer);
	if (!n->read_only && !q->encrypted && !q->checking) {
		bitmaps = qcow2_bitmaps_store(q, true);
		r = qcow2_corrupt_end(q, qcow2_settle_clean(q));
	}
	if (q->key)
		q->decryptor->forget(q->key);
	qcow2_unload(q);
	return r ? r : bitmaps;
}
