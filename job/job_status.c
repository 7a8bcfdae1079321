/* SPDX-License-Identifier: Apache-2.0 */
#include "job/job_status.h"

#define S(x) (1u << JOB_STATUS_##x)

/* The states that may follow each (qemu, docs of JobStatus in qapi/job.json). */
static const unsigned successors[JOB_STATUS__MAX] = {
	[JOB_STATUS_UNDEFINED] = S(CREATED),
	[JOB_STATUS_CREATED]   = S(RUNNING) | S(ABORTING) | S(NULL),
	[JOB_STATUS_RUNNING]   = S(PAUSED) | S(READY) | S(WAITING) | S(ABORTING),
	[JOB_STATUS_PAUSED]    = S(RUNNING),
	[JOB_STATUS_READY]     = S(STANDBY) | S(WAITING) | S(ABORTING),
	[JOB_STATUS_STANDBY]   = S(READY),
	[JOB_STATUS_WAITING]   = S(PENDING) | S(ABORTING),
	[JOB_STATUS_PENDING]   = S(ABORTING) | S(CONCLUDED),
	[JOB_STATUS_ABORTING]  = S(ABORTING) | S(CONCLUDED),
	[JOB_STATUS_CONCLUDED] = S(NULL),
	[JOB_STATUS_NULL]      = 0,
};

#define AT_WORK (S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY))

static const unsigned acceptors[JOB_VERB_COUNT] = {
	[JOB_VERB_CANCEL]    = AT_WORK | S(WAITING) | S(PENDING),
	[JOB_VERB_PAUSE]     = AT_WORK,
	[JOB_VERB_RESUME]    = AT_WORK,
	[JOB_VERB_SET_SPEED] = AT_WORK,
	[JOB_VERB_COMPLETE]  = S(READY) | S(STANDBY),
	[JOB_VERB_FINALIZE]  = S(PENDING),
	[JOB_VERB_DISMISS]   = S(CONCLUDED),
	[JOB_VERB_CHANGE]    = AT_WORK,
};

static const char *const verbs[JOB_VERB_COUNT] = {
	[JOB_VERB_CANCEL]    = "cancel",
	[JOB_VERB_PAUSE]     = "pause",
	[JOB_VERB_RESUME]    = "resume",
	[JOB_VERB_SET_SPEED] = "set-speed",
	[JOB_VERB_COMPLETE]  = "complete",
	[JOB_VERB_FINALIZE]  = "finalize",
	[JOB_VERB_DISMISS]   = "dismiss",
	[JOB_VERB_CHANGE]    = "change",
};

const char *
job_verb_name(enum job_verb v)
{
	return verbs[v];
}

bool
job_status_may_follow(enum JobStatus from, enum JobStatus to)
{
	return successors[from] >> to & 1;
}

bool
job_status_accepts(enum JobStatus s, enum job_verb v)
{
	return acceptors[v] >> s & 1;
}
