/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_job.c - commands on jobs, and their events. */
#include "daemon/cmd_job.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "aio/timer.h"
#include "base/error.h"
#include "base/log.h"
#include "job/backup.h"
#include "job/commit.h"
#include "job/job.h"
#include "schema/commands.h"
#include "schema/events.h"
#include "schema/types.h"

/* How long the end of the daemon waits for jobs to give up. */
static const int64_t stop_ns = INT64_C(20) * 1000000000;

/* ---- events ---- */

static void
on_status_change(const struct job *j)
{
	qmp_event_send_job_status_change(j->id, j->status);
}

static void
on_completed(const struct job *j)
{
	qmp_event_send_block_job_completed(j->kind->type, j->id, (int64_t)j->total,
					   (int64_t)j->progress, j->speed, job_error_text(j));
}

static void
on_cancelled(const struct job *j)
{
	qmp_event_send_block_job_cancelled(j->kind->type, j->id, (int64_t)j->total,
					   (int64_t)j->progress, j->speed);
}

static void
on_ready(const struct job *j)
{
	qmp_event_send_block_job_ready(j->kind->type, j->id, (int64_t)j->total,
				       (int64_t)j->progress, j->speed);
}

static void
on_pending(const struct job *j)
{
	qmp_event_send_block_job_pending(j->kind->type, j->id);
}

static void
on_error(const struct job *j, enum IoOperationType op, enum BlockErrorAction action)
{
	qmp_event_send_block_job_error(j->id, op, action);
}

static const struct job_events events = {
	.status_change = on_status_change,
	.completed = on_completed,
	.cancelled = on_cancelled,
	.ready = on_ready,
	.pending = on_pending,
	.error = on_error,
};

void
cmd_job_init(void)
{
	job_set_events(&events);
}

void
cmd_job_done(void)
{
	if (!job_cancel_all(clock_ns() + stop_ns))
		log_line(LOG_LEVEL_WARNING, "a job did not end in time and is abandoned");
}

/* ---- verbs ---- */

int
qmp_job_pause(const struct job_pause_args *args, struct error **errp)
{
	struct job *j = job_find(args->id, errp);

	return j ? job_user_pause(j, errp) : -1;
}

int
qmp_job_resume(const struct job_resume_args *args, struct error **errp)
{
	struct job *j = job_find(args->id, errp);

	return j ? job_user_resume(j, errp) : -1;
}

int
qmp_job_cancel(const struct job_cancel_args *args, struct error **errp)
{
	struct job *j = job_find(args->id, errp);

	return j ? job_user_cancel(j, true, errp) : -1;
}

int
qmp_job_complete(const struct job_complete_args *args, struct error **errp)
{
	struct job *j = job_find(args->id, errp);

	return j ? job_user_complete(j, errp) : -1;
}

int
qmp_job_finalize(const struct job_finalize_args *args, struct error **errp)
{
	struct job *j = job_find(args->id, errp);

	return j ? job_user_finalize(j, errp) : -1;
}

int
qmp_job_dismiss(const struct job_dismiss_args *args, struct error **errp)
{
	struct job *j = job_find(args->id, errp);

	return j ? job_user_dismiss(j, errp) : -1;
}

int
qmp_block_job_pause(const struct block_job_pause_args *args, struct error **errp)
{
	struct job *j = job_find_block(args->device, errp);

	return j ? job_user_pause(j, errp) : -1;
}

int
qmp_block_job_resume(const struct block_job_resume_args *args, struct error **errp)
{
	struct job *j = job_find_block(args->device, errp);

	return j ? job_user_resume(j, errp) : -1;
}

int
qmp_block_job_cancel(const struct block_job_cancel_args *args, struct error **errp)
{
	struct job *j = job_find_block(args->device, errp);
	bool force = args->has_force && args->force;

	if (!j)
		return -1;
	/* Who paused a job may not lose it by a polite cancel that cannot run. */
	if (j->user_paused && !force)
		return error_set(errp, "The block job for device '%s' is currently paused",
				 args->device);
	return job_user_cancel(j, force, errp);
}

int
qmp_block_job_complete(const struct block_job_complete_args *args, struct error **errp)
{
	struct job *j = job_find_block(args->device, errp);

	return j ? job_user_complete(j, errp) : -1;
}

int
qmp_block_job_finalize(const struct block_job_finalize_args *args, struct error **errp)
{
	struct job *j = job_find_block(args->id, errp);

	return j ? job_user_finalize(j, errp) : -1;
}

int
qmp_block_job_dismiss(const struct block_job_dismiss_args *args, struct error **errp)
{
	struct job *j = job_find_block(args->id, errp);

	return j ? job_user_dismiss(j, errp) : -1;
}

int
qmp_block_job_set_speed(const struct block_job_set_speed_args *args, struct error **errp)
{
	struct job *j = job_find_block(args->device, errp);

	return j ? job_user_set_speed(j, args->speed, errp) : -1;
}

int
qmp_block_job_change(const struct BlockJobChangeOptions *args, struct error **errp)
{
	struct job *j = job_find_block(args->id, errp);

	return j ? job_user_change(j, errp) : -1;
}

/* ---- looking ---- */

int
qmp_query_jobs(struct JobInfoList **ret, struct error **errp)
{
	struct JobInfoList *list = calloc(1, sizeof(*list));

	for (struct job *j = job_next(NULL); list && j; j = job_next(j)) {
		struct JobInfo *info = job_info(j);

		if (!info || JobInfoList_add(list, info) < 0) {
			JobInfo_free(info);
			JobInfoList_freep(&list);
			list = NULL;
		}
	}
	if (!list)
		return error_set(errp, "Cannot allocate memory");
	*ret = list;
	return 0;
}

int
qmp_query_block_jobs(struct BlockJobInfoList **ret, struct error **errp)
{
	struct BlockJobInfoList *list = calloc(1, sizeof(*list));

	for (struct job *j = job_next(NULL); list && j; j = job_next(j)) {
		struct BlockJobInfo *info;

		if (!job_is_block_job(j))
			continue;
		info = job_block_info(j);
		if (!info || BlockJobInfoList_add(list, info) < 0) {
			BlockJobInfo_free(info);
			BlockJobInfoList_freep(&list);
			list = NULL;
		}
	}
	if (!list)
		return error_set(errp, "Cannot allocate memory");
	*ret = list;
	return 0;
}

static struct JobPast *
past(const struct job_past *p)
{
	struct JobPast *info = calloc(1, sizeof(*info));

	if (!info)
		return NULL;
	info->id = strdup(p->id);
	info->error = p->error ? strdup(p->error) : NULL;
	info->type = p->type;
	info->current_progress = (int64_t)p->progress;
	info->total_progress = (int64_t)p->total;
	info->ended = p->ended_sec;
	if (info->id && (info->error || !p->error))
		return info;
	JobPast_free(info);
	return NULL;
}

int
qmp_x_quoin_query_job_history(struct JobPastList **ret, struct error **errp)
{
	struct JobPastList *list = calloc(1, sizeof(*list));
	const struct job_past *p;

	for (unsigned i = 0; list && (p = job_history(i)); i++) {
		struct JobPast *info = past(p);

		if (!info || JobPastList_add(list, info) < 0) {
			JobPast_free(info);
			JobPastList_freep(&list);
			list = NULL;
		}
	}
	if (!list)
		return error_set(errp, "Cannot allocate memory");
	*ret = list;
	return 0;
}

/* ---- starting ---- */

int
qmp_block_commit(const struct block_commit_args *args, struct error **errp)
{
	return commit_start(args, errp);
}

int
qmp_blockdev_backup(const struct BlockdevBackup *args, struct error **errp)
{
	return backup_start(args, errp);
}
