/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/mark.h"

#include "base/bytes.h"
#include "base/planted.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/qcow2.h"

int
qcow2_mark_locked(struct qcow2 *q, uint64_t set, uint64_t clear)
{
	uint64_t marks = (q->header.incompat | set) & ~clear;
	uint8_t field[8];
	int r;

	if (q->version < 3 || marks == q->header.incompat || PLANTED(no_dirty_mark))
		return 0;
	put_be64(field, marks);
	r = qcow2_write_field(q, QCOW2_OFF_INCOMPAT, field, sizeof(field));
	/* A write that failed may have been done: who needs a mark sets it again. */
	if (r < 0)
		marks = q->header.incompat & ~(set | clear);
	qcow2_lock(q);
	q->header.incompat = marks;
	qcow2_unlock(q);
	return r;
}

int
qcow2_mark(struct qcow2 *q, uint64_t marks)
{
	int r;

	co_mutex_lock(&q->checkpoint);
	r = qcow2_mark_locked(q, marks, 0);
	co_mutex_unlock(&q->checkpoint);
	return r;
}

int
qcow2_unmark(struct qcow2 *q, uint64_t marks)
{
	int r;

	co_mutex_lock(&q->checkpoint);
	r = qcow2_mark_locked(q, 0, marks);
	co_mutex_unlock(&q->checkpoint);
	return r;
}
