/* SPDX-License-Identifier: Apache-2.0 */
/* The work goes in rounds.  In a round workers take pieces until there are none,
 * until one fails, or until the job is to pause or end; a round is over when all
 * workers have ended.  Only between rounds does the job's coroutine look at the
 * reasons, so pausing and failing need no further synchronisation: no request is in
 * flight then.  A piece that failed, or was taken but not begun, waits in `again`
 * and comes first in the next round.  There are never more of them than workers,
 * because new pieces are taken only when none is waiting. */
#include "job/copy.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/loop.h"
#include "aio/timer.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/root.h"
#include "job/job.h"

enum { BUFFER_ALIGN = 4096, NAP_NS = 100000000 };

struct copy {
	struct job *job;
	struct copy_options o;
	struct co_mutex lock;		/* of all below */
	struct co_queue sleepers;	/* workers that the speed limit holds up */
	uint64_t cursor;
	bool exhausted;
	struct copy_piece again[COPY_WORKERS_MAX];
	unsigned again_count;
	_Atomic uint64_t unflushed;	/* bytes of data since the target was flushed */
	int err;			/* the first of this round */
	enum IoOperationType op;
};

struct copy *
copy_new(struct job *j, const struct copy_options *o)
{
	struct copy *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->job = j;
	c->o = *o;
	if (!c->o.workers)
		c->o.workers = COPY_WORKERS;
	c->o.workers = (unsigned)min_u64(c->o.workers, COPY_WORKERS_MAX);
	c->o.chunk = max_u64(c->o.chunk ? c->o.chunk : COPY_CHUNK, c->o.granule);
	return c;
}

void
copy_free(struct copy *c)
{
	free(c);
}

uint64_t
copy_cut(uint64_t off, uint64_t len, uint64_t most)
{
	return min_u64(len, most - (off & (most - 1)));
}

/* ---- a worker; c->lock is held where it says so ---- */

/* As much data as may go in one piece now: less under a low speed limit, so that
 * the work goes evenly. */
static uint64_t
piece_limit(struct copy *c)
{
	uint64_t most = min_u64(c->o.chunk, ratelimit_portion(&c->job->limit));

	most = (uint64_t)1 << (63 - __builtin_clzll(most));
	return max_u64(most, c->o.granule);
}

/* Locked. */
static void
note_error(struct copy *c, int err, enum IoOperationType op)
{
	if (c->err)
		return;
	c->err = err;
	c->op = op;
}

static void
put_back(struct copy *c, const struct copy_piece *p, int err, enum IoOperationType op)
{
	co_mutex_lock(&c->lock);
	c->again[c->again_count++] = *p;
	if (err)
		note_error(c, err, op);
	co_mutex_unlock(&c->lock);
}

/* Locked. */
static bool
next_piece(struct copy *c, struct copy_piece *p)
{
	int r;

	if (c->again_count) {
		*p = c->again[--c->again_count];
		return true;
	}
	if (c->exhausted)
		return false;
	r = root_enter(c->o.root);
	if (!r) {
		r = c->o.next(c->o.user, &c->cursor, piece_limit(c), p);
		root_leave(c->o.root);
	}
	if (r < 0)
		note_error(c, r, IO_OPERATION_TYPE_READ);
	c->exhausted = r == 0;
	return r > 0;
}

static bool
take_piece(struct copy *c, struct copy_piece *p)
{
	bool taken;

	co_mutex_lock(&c->lock);
	taken = !c->err && !job_should_stop(c->job) && next_piece(c, p);
	co_mutex_unlock(&c->lock);
	return taken;
}

/* Sleep until the speed limit lets p pass; false: do not do it now. */
static bool
wait_for_turn(struct copy *c, const struct copy_piece *p)
{
	int64_t ns;

	while (!p->zero && (ns = ratelimit_take(&c->job->limit, p->len)) > 0) {
		atomic_store(&c->job->throttled, true);
		co_mutex_lock(&c->lock);
		if (!c->err && !job_should_stop(c->job))
			(void)co_queue_timedwait(&c->sleepers, &c->lock,
						 clock_ns() + (int64_t)min_u64(
							 (uint64_t)ns, NAP_NS));
		co_mutex_unlock(&c->lock);
		atomic_store(&c->job->throttled, false);
		if (job_should_stop(c->job))
			return false;
	}
	return true;
}

/* A failure is final, so the flush at the end reports it. */
static void
flush_now_and_then(struct copy *c, uint64_t len)
{
	if (!c->o.target ||
	    atomic_fetch_add(&c->unflushed, len) + len < COPY_FLUSH_EVERY)
		return;
	atomic_store(&c->unflushed, 0);
	(void)node_flush(c->o.target);
}

static int
move_piece(struct copy *c, const struct copy_piece *p, void **buf,
	   enum IoOperationType *op)
{
	int err;

	*op = IO_OPERATION_TYPE_READ;
	if (!p->zero && !*buf)
		*buf = iov_alloc(BUFFER_ALIGN, c->o.chunk);
	if (!p->zero && !*buf)
		return -ENOMEM;
	err = root_enter(c->o.root);
	if (err)
		return err;
	err = c->o.move(c->o.user, p, *buf, op);
	if (!err && !p->zero)
		flush_now_and_then(c, p->len);
	root_leave(c->o.root);
	return err;
}

static void
worker(void *arg)
{
	struct copy *c = arg;
	enum IoOperationType op = IO_OPERATION_TYPE_READ;
	struct copy_piece p;
	void *buf = NULL;

	while (take_piece(c, &p)) {
		bool begun = wait_for_turn(c, &p);
		int err = begun ? move_piece(c, &p, &buf, &op) : 0;

		if (err || !begun) {
			put_back(c, &p, err, op);
			break;
		}
		/* Others live on this loop. */
		co_yield();
	}
	free(buf);
}

/* ---- the job's coroutine ---- */

static int
round_of_work(struct copy *c)
{
	unsigned loops = loop_io_count(), started = 0;
	struct co_group g;

	c->err = 0;
	co_group_init(&g);
	for (unsigned i = 0; i < c->o.workers; i++) {
		int r = loops ? co_group_spawn(&g, loop_io(i % loops), worker, c)
			      : co_group_start(&g, worker, c);

		if (r < 0)
			break;
		started++;
	}
	co_group_wait(&g);
	return started ? 0 : -ENOMEM;
}

static int
run(struct copy *c)
{
	struct job *j = c->job;

	for (;;) {
		int r;

		job_pause_point(j);
		if (job_cancel_requested(j))
			return -ECANCELED;
		r = round_of_work(c);
		if (r < 0)
			return r;
		if (c->err) {
			switch (job_io_error(j, c->op == IO_OPERATION_TYPE_READ
							? c->o.on_source_error
							: c->o.on_target_error,
					     c->op, c->err)) {
			case BLOCK_ERROR_ACTION_REPORT:
				return c->err;
			case BLOCK_ERROR_ACTION_IGNORE:
				job_sleep(j, NAP_NS);
				break;
			default:
				break;
			}
		} else if (c->exhausted && !c->again_count) {
			return 0;
		}
	}
}

int
copy_run(struct copy *c)
{
	int r;

	c->cursor = 0;
	c->exhausted = false;
	c->job->workers = &c->sleepers;
	r = run(c);
	c->job->workers = NULL;
	return r;
}
