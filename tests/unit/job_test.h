/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/job_test.h - what the tests of jobs on disks share. */
#ifndef TESTS_UNIT_JOB_TEST_H
#define TESTS_UNIT_JOB_TEST_H

#include "aio/co.h"
#include "aio/loop.h"
#include "aio/timer.h"
#include "job/job.h"
#include "tests/unit/block_test.h"

enum { JOB_TEST_SECONDS = 60 };

/* Events and what became of the last job. */
static struct {
	char text[65536];	/* of the error that it ended with; empty: well */
	unsigned completed, cancelled, ready, errors;
	struct co_queue changed;
} seen;

static inline void
saw_status(const struct job *j)
{
	(void)j;
	co_queue_wake_all(&seen.changed);
}

static inline void
saw_completed(const struct job *j)
{
	seen.completed++;
	snprintf(seen.text, sizeof(seen.text), "%s",
		 job_error_text(j) ? job_error_text(j) : "");
}

static inline void
saw_cancelled(const struct job *j)
{
	(void)j;
	seen.cancelled++;
}

static inline void
saw_ready(const struct job *j)
{
	(void)j;
	seen.ready++;
}

static inline void
saw_error(const struct job *j, enum IoOperationType op, enum BlockErrorAction action)
{
	(void)j;
	(void)op;
	(void)action;
	seen.errors++;
}

static inline void
watch_jobs(void)
{
	static const struct job_events events = {
		.status_change = saw_status,
		.completed = saw_completed,
		.cancelled = saw_cancelled,
		.ready = saw_ready,
		.error = saw_error,
	};

	memset(&seen, 0, sizeof(seen));
	job_set_events(&events);
}

/* Wait until the job has that state; JOB_STATUS_NULL: until it is gone. */
static inline void
wait_for_job(const char *id, enum JobStatus status)
{
	int64_t end = clock_ns() + (int64_t)JOB_TEST_SECONDS * 1000000000;

	for (;;) {
		struct job *j = job_find(id, NULL);

		if (!j || j->status == status)
			break;
		if (co_queue_timedwait(&seen.changed, NULL, end) < 0)
			fail_msg("job '%s' is still %s", id, JobStatus_str(j->status));
	}
}

#endif
