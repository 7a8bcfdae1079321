/* SPDX-License-Identifier: Apache-2.0 */
/* How jobs end, alone or as a group.
 *
 * A job whose work succeeded waits until all of its group have; then they all
 * become pending, are prepared one after the other, and, if that went well,
 * committed.  The first that fails, is cancelled, or cannot be prepared takes the
 * whole group with it: it cancels the others, waits until each has left off, and
 * carries their end out along with its own.
 *
 * Whoever carries the end of a group out holds a reference to it: the last job
 * that is dismissed would take the group along. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "job/job_int.h"

bool
job_has_ended_work(const struct job *j)
{
	return j->status >= JOB_STATUS_WAITING;
}

/* Let ret, the error text and the state agree. */
static void
settle_result(struct job *j)
{
	if (!j->ret && j->forced)
		j->ret = -ECANCELED;
	if (!j->ret)
		return;
	if (!j->err)
		error_set(&j->err, "%s", strerror(-j->ret));
	job_move(j, JOB_STATUS_ABORTING);
}

static void
tell_end(const struct job *j)
{
	const struct job_events *ev = job_events_out;

	if (!j->started || !job_is_block_job(j))
		return;
	if (j->forced) {
		if (ev->cancelled)
			ev->cancelled(j);
	} else if (ev->completed) {
		ev->completed(j);
	}
}

/* The last step of one job. */
static void
finish(struct job *j)
{
	struct job_group *g = j->group;

	settle_result(j);
	if (!j->ret && j->kind->commit)
		j->kind->commit(j);
	if (j->ret && j->kind->abort)
		j->kind->abort(j);
	if (j->kind->clean)
		j->kind->clean(j);
	job_drop_nodes(j);
	tell_end(j);
	j->group = NULL;
	list_remove(&j->in_group);
	job_group_unref(g);
	timer_cancel(&j->hurry);
	job_history_add(j);
	job_move(j, JOB_STATUS_CONCLUDED);
	if (j->auto_dismiss || !j->started)
		job_dismiss(j);
	else
		co_queue_wake_all(&job_gone);
}

/* Ask j to leave off, one way or the other. */
static void
request_cancel(struct job *j, bool force)
{
	force = j->kind->cancel ? j->kind->cancel(j, force) : true;
	if (j->user_paused) {
		j->user_paused = false;
		j->pause_count--;
	}
	/* A soft cancel of what is done already comes too late. */
	if (force || !j->done) {
		j->cancelled = true;
		j->forced |= force;
	}
	if (j->forced && j->started && !j->done)
		job_hurry(j);
	job_poke(j);
}

/* j of the group failed or was cancelled. */
static void
abort_group(struct job *j)
{
	struct job_group *g = j->group;
	struct job *other;

	if (g->aborting) {
		co_queue_wake_all(&g->changed);
		return;
	}
	g->aborting = true;
	g->refs++;
	LIST_FOREACH(other, &g->jobs, in_group)
		if (other != j)
			request_cancel(other, true);
	while ((other = LIST_FIRST(&g->jobs, struct job, in_group))) {
		if (!other->started)
			settle_result(other);
		while (!job_has_ended_work(other))
			co_queue_wait(&g->changed, NULL);
		finish(other);
	}
	job_group_unref(g);
}

static int
prepare(struct job *j)
{
	if (!j->ret && j->kind->prepare) {
		j->ret = j->kind->prepare(j, &j->err);
		settle_result(j);
	}
	return j->ret;
}

void
job_finalize_group(struct job *j)
{
	struct job_group *g = j->group;
	int r = 0;

	g->refs++;
	g->finalizing = true;
	LIST_FOREACH(j, &g->jobs, in_group) {
		r = prepare(j);
		if (r)
			break;
	}
	if (r)
		abort_group(j);
	else
		while ((j = LIST_FIRST(&g->jobs, struct job, in_group)))
			finish(j);
	job_group_unref(g);
}

static void
succeeded(struct job *j)
{
	struct job_group *g = j->group;
	struct job *other;
	bool by_hand = false;

	job_move(j, JOB_STATUS_WAITING);
	LIST_FOREACH(other, &g->jobs, in_group)
		if (!job_has_ended_work(other))
			return;
	LIST_FOREACH(other, &g->jobs, in_group) {
		job_move(other, JOB_STATUS_PENDING);
		if (other->auto_finalize)
			continue;
		by_hand = true;
		if (job_is_block_job(other) && job_events_out->pending)
			job_events_out->pending(other);
	}
	if (!by_hand)
		job_finalize_group(j);
}

void
job_completed(struct job *j)
{
	settle_result(j);
	if (j->ret)
		abort_group(j);
	else
		succeeded(j);
}

void
job_cancel(struct job *j, bool force)
{
	if (j->status == JOB_STATUS_CONCLUDED) {
		job_dismiss(j);
		return;
	}
	if (j->group->finalizing)
		return;
	request_cancel(j, force);
	if (!j->started) {
		j->ret = -ECANCELED;
		job_completed(j);
	} else if (j->done && j->forced && !j->group->aborting) {
		abort_group(j);
	}
}

/* One that still has to be told; concluded ones are dismissed by that. */
static struct job *
next_to_cancel(void)
{
	struct job *j;

	LIST_FOREACH(j, &job_list, in_all)
		if (j->status == JOB_STATUS_CONCLUDED ||
		    (!j->forced && j->group && !j->group->finalizing))
			return j;
	return NULL;
}

bool
job_cancel_all(int64_t deadline_ns)
{
	struct job *j;

	for (;;) {
		while ((j = next_to_cancel()))
			job_cancel(j, true);
		if (list_empty(&job_list))
			return true;
		if (co_queue_timedwait(&job_gone, NULL, deadline_ns) < 0)
			return false;
	}
}
