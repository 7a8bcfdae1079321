/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/commit.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/timer.h"
#include "base/error.h"
#include "block/driver.h"
#include "job/commit.h"
#include "job/job.h"
#include "schema/types.h"
#include "tests/sim/disk.h"

enum { JOB_SECONDS = 60, TURNS_READY = 40 };

static struct co_queue changed;

static void
saw_status(const struct job *j)
{
	(void)j;
	co_queue_wake_all(&changed);
}

/* Until it is ready, or gone: then NULL. */
static struct job *
wait_for(const char *id, bool ready)
{
	int64_t end = clock_ns() + (int64_t)JOB_SECONDS * 1000000000;
	struct job *j;

	while ((j = job_find(id, NULL)) && !(ready && j->status == JOB_STATUS_READY)) {
		int r = co_queue_timedwait(&changed, NULL, end);

		assert(r == 0);	/* it hangs */
	}
	return j;
}

void
commit_run(struct sim *s, struct node *device, struct node *top, struct node *base)
{
	static const struct job_events events = { .status_change = saw_status };
	struct block_commit_args a = {
		.job_id = device->name, .device = device->name,
		.top_node = top->name, .base_node = base->name,
	};
	struct error *err = NULL;
	char id[32];

	/* What headers call a layer is the end of its node's name. */
	if (top != device)
		a.backing_file = strrchr(base->name, '-') + 1;
	snprintf(id, sizeof(id), "%s", device->name);
	job_set_events(&events);
	if (commit_start(&a, &err)) {
		error_free(err);
		return;
	}
	if (top == device && wait_for(id, true)) {
		for (unsigned n = sim_below(s, TURNS_READY); n; n--)
			co_yield();
		if (job_find(id, NULL) && job_user_complete(job_find(id, NULL), &err))
			error_free(err);
	}
	(void)wait_for(id, false);
}
