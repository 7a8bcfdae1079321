/* SPDX-License-Identifier: Apache-2.0 */
/* What clients ask of jobs. */
#include <errno.h>

#include "aio/timer.h"
#include "base/error.h"
#include "job/job_int.h"

enum { PATIENCE_NS = 50000000 };

/* States in which a job does nothing until a client says so. */
#define QUIET                                                                  \
	(1u << JOB_STATUS_CREATED | 1u << JOB_STATUS_PAUSED |                  \
	 1u << JOB_STATUS_STANDBY | ~((1u << JOB_STATUS_WAITING) - 1))

static int
check_verb(const struct job *j, enum job_verb v, struct error **errp)
{
	if (job_status_accepts(j->status, v) &&
	    !(j->status == JOB_STATUS_PENDING && j->group->finalizing))
		return 0;
	return error_set(errp, "Job '%s' in state '%s' cannot accept command verb '%s'",
			 j->id, JobStatus_str(j->status), job_verb_name(v));
}

/* Give the job time to do what it can do at once, so that in the common case it
 * has happened when the client gets its answer. */
static void
let_it_act(struct job *j, unsigned until)
{
	int64_t end = clock_ns() + PATIENCE_NS;

	job_ref(j);
	while (!(until >> j->status & 1) &&
	       co_queue_timedwait(&job_moved, NULL, end) == 0)
		;
	job_unref(j);
}

int
job_user_pause(struct job *j, struct error **errp)
{
	if (check_verb(j, JOB_VERB_PAUSE, errp) < 0)
		return -1;
	if (j->user_paused)
		return error_set(errp, "Job is already paused");
	j->user_paused = true;
	j->pause_count++;
	job_poke(j);
	let_it_act(j, QUIET);
	return 0;
}

int
job_user_resume(struct job *j, struct error **errp)
{
	if (!j->user_paused)
		return error_set(errp, "Can't resume a job that was not paused");
	if (check_verb(j, JOB_VERB_RESUME, errp) < 0)
		return -1;
	j->io_status = BLOCK_DEVICE_IO_STATUS_OK;
	j->user_paused = false;
	j->pause_count--;
	job_poke(j);
	let_it_act(j, ~QUIET);
	return 0;
}

int
job_user_cancel(struct job *j, bool force, struct error **errp)
{
	if (check_verb(j, JOB_VERB_CANCEL, errp) < 0)
		return -1;
	job_ref(j);
	job_cancel(j, force);
	let_it_act(j, 1u << JOB_STATUS_CONCLUDED | 1u << JOB_STATUS_NULL);
	job_unref(j);
	return 0;
}

int
job_user_complete(struct job *j, struct error **errp)
{
	if (check_verb(j, JOB_VERB_COMPLETE, errp) < 0)
		return -1;
	if (j->cancelled || !j->kind->complete)
		return error_set(errp, "The active block job '%s' cannot be completed",
				 j->id);
	j->kind->complete(j);
	job_kick(j);
	return 0;
}

int
job_user_finalize(struct job *j, struct error **errp)
{
	if (check_verb(j, JOB_VERB_FINALIZE, errp) < 0)
		return -1;
	job_finalize_group(j);
	return 0;
}

int
job_user_dismiss(struct job *j, struct error **errp)
{
	if (check_verb(j, JOB_VERB_DISMISS, errp) < 0)
		return -1;
	job_dismiss(j);
	return 0;
}

int
job_user_set_speed(struct job *j, int64_t speed, struct error **errp)
{
	if (check_verb(j, JOB_VERB_SET_SPEED, errp) < 0)
		return -1;
	if (speed < 0)
		return error_set(errp, "Parameter 'speed' expects a non-negative value");
	j->speed = speed;
	ratelimit_set(&j->limit, (uint64_t)speed);
	job_poke(j);
	return 0;
}

int
job_user_change(struct job *j, struct error **errp)
{
	if (check_verb(j, JOB_VERB_CHANGE, errp) < 0)
		return -1;
	return error_set(errp, "Job type does not support change");
}
