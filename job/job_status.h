/* SPDX-License-Identifier: Apache-2.0 */
/* job/job_status.h - which states follow which, and what each lets clients do. */
#ifndef JOB_JOB_STATUS_H
#define JOB_JOB_STATUS_H

#include <stdbool.h>

#include "schema/types.h"

enum job_verb {
	JOB_VERB_CANCEL,
	JOB_VERB_PAUSE,
	JOB_VERB_RESUME,
	JOB_VERB_SET_SPEED,
	JOB_VERB_COMPLETE,
	JOB_VERB_FINALIZE,
	JOB_VERB_DISMISS,
	JOB_VERB_CHANGE,
	JOB_VERB_COUNT,
};

const char *job_verb_name(enum job_verb v);
bool job_status_may_follow(enum JobStatus from, enum JobStatus to);
bool job_status_accepts(enum JobStatus s, enum job_verb v);

#endif
