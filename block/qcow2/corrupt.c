/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/corrupt.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "aio/loop.h"
#include "base/cleanup.h"
#include "block/qcow2/mark.h"
#include "block/qcow2/qcow2.h"

/* ---- telling ---- */

/* On its way to loop 0. */
struct report {
	struct loop_task task;
	struct node_corruption what;
	char node[NODE_NAME_MAX + 1];
	char text[QCOW2_CORRUPT_TEXT];
};

static void
deliver(struct loop_task *t)
{
	struct report *r = CONTAINER_OF(t, struct report, task);

	node_corrupted(r->node, &r->what);
	free(r);
}

/* With the lock held.  What cannot be told for want of memory is in the image all the
 * same. */
static void
tell(struct qcow2 *q, bool fatal)
{
	struct qcow2_corruption *c = &q->corruption;
	struct report *r = node_corrupted ? calloc(1, sizeof(*r)) : NULL;

	c->told = true;
	if (!r)
		return;
	snprintf(r->node, sizeof(r->node), "%s", q->node->name);
	snprintf(r->text, sizeof(r->text), "%s", c->text);
	r->what = (struct node_corruption){
		.text = r->text, .has_place = c->off != QCOW2_NOWHERE, .off = c->off,
		.len = c->len, .fatal = fatal,
	};
	r->task.fn = deliver;
	loop_post(loop_main(), &r->task);
}

/* ---- noting ---- */

int
qcow2_corrupt_note(struct qcow2 *q, uint64_t off, uint64_t len, const char *fmt, ...)
{
	struct qcow2_corruption *c = &q->corruption;
	va_list ap;

	/* The check judges for itself, and tells all. */
	if (q->checking || c->noted)
		return -EIO;
	c->noted = true;
	c->off = off;
	c->len = len;
	va_start(ap, fmt);
	vsnprintf(c->text, sizeof(c->text), fmt, ap);
	va_end(ap);
	atomic_store(&q->corrupt, QCOW2_CORRUPT_NOTED);
	return -EIO;
}

void
qcow2_corrupt_remark(struct qcow2 *q, const char *fmt, ...)
{
	struct qcow2_corruption *c = &q->corruption;
	va_list ap;

	if (q->checking || c->noted || c->told)
		return;
	c->off = QCOW2_NOWHERE;
	c->len = 0;
	va_start(ap, fmt);
	vsnprintf(c->text, sizeof(c->text), fmt, ap);
	va_end(ap);
	tell(q, false);
}

/* The first request that gets here does it all. */
static void
act(struct qcow2 *q)
{
	bool fatal = !q->node->read_only;
	int noted = QCOW2_CORRUPT_NOTED;

	if (!atomic_compare_exchange_strong(&q->corrupt, &noted,
					    fatal ? QCOW2_CORRUPT_DEAD : QCOW2_CORRUPT_TOLD))
		return;
	qcow2_lock(q);
	if (fatal || !q->corruption.told)
		tell(q, fatal);
	qcow2_unlock(q);
	if (!fatal)
		return;
	/* What fails here leaves an image that is as broken, and not marked. */
	(void)qcow2_mark(q, QCOW2_INCOMPAT_CORRUPT);
	atomic_store(&q->failed, -EIO);
}

/* ---- the driver's entrance ---- */

static bool
is_dead(const struct qcow2 *q)
{
	return atomic_load_explicit(&q->corrupt, memory_order_relaxed) == QCOW2_CORRUPT_DEAD;
}

int
qcow2_corrupt_end(struct qcow2 *q, int r)
{
	if (atomic_load_explicit(&q->corrupt, memory_order_relaxed) == QCOW2_CORRUPT_NOTED)
		act(q);
	return r;
}

void
qcow2_corrupt_forget(struct qcow2 *q)
{
	if (atomic_load(&q->corrupt) != QCOW2_CORRUPT_NOTED)
		return;
	q->corruption.noted = false;
	atomic_store(&q->corrupt, QCOW2_SOUND);
}

int
qcow2_guarded_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct qcow2 *q = n->state;

	return is_dead(q) ? -ENOMEDIUM : qcow2_corrupt_end(q, qcow2_read(n, off, dst));
}

int
qcow2_guarded_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct qcow2 *q = n->state;

	return is_dead(q) ? -ENOMEDIUM : qcow2_corrupt_end(q, qcow2_write(n, off, src, flags));
}

int
qcow2_guarded_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow2 *q = n->state;

	return is_dead(q) ? -ENOMEDIUM : qcow2_corrupt_end(q, qcow2_zero(n, off, len, flags));
}

int
qcow2_guarded_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct qcow2 *q = n->state;

	return is_dead(q) ? -ENOMEDIUM : qcow2_corrupt_end(q, qcow2_discard(n, off, len));
}

int
qcow2_guarded_flush(struct node *n)
{
	struct qcow2 *q = n->state;

	return is_dead(q) ? -ENOMEDIUM : qcow2_corrupt_end(q, qcow2_flush(n));
}

int
qcow2_guarded_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		     struct extent *ret_extent)
{
	struct qcow2 *q = n->state;

	return is_dead(q) ? -ENOMEDIUM
			  : qcow2_corrupt_end(q, qcow2_status(n, off, len, want_zero, ret_extent));
}
