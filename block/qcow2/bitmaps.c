/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/bitmaps.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/qcow2.h"

void
qcow2_bitmaps_watch(struct qcow2 *q)
{
	atomic_store(&q->autoclear_due, q->header.autoclear != 0);
}

int
qcow2_bitmaps_invalidate(struct qcow2 *q)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->checkpoint;
	uint8_t none[8] = { 0 };
	int r;

	co_mutex_lock(held);
	if (!atomic_load(&q->autoclear_due))
		return 0;
	r = qcow2_write_field(q, QCOW2_OFF_AUTOCLEAR, none, sizeof(none));
	if (r < 0)
		return r;
	qcow2_lock(q);
	q->header.autoclear = 0;
	qcow2_unlock(q);
	atomic_store_explicit(&q->autoclear_due, false, memory_order_release);
	return 0;
}
