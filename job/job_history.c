/* SPDX-License-Identifier: Apache-2.0 */
/* The last jobs that ended: a ring, so that a client that asks too late still
 * learns how its job ended. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "job/job_int.h"

static struct job_past ring[JOB_HISTORY_MAX];
static unsigned latest, count;

void
job_history_add(const struct job *j)
{
	const char *text = job_error_text(j);
	struct job_past p = { .id = strdup(j->id), .type = j->kind->type };

	p.error = text ? strdup(text) : NULL;
	if (!p.id || (text && !p.error)) {
		free(p.id);
		free(p.error);
		return;
	}
	p.progress = atomic_load(&j->progress);
	p.total = atomic_load(&j->total);
	p.ended_sec = (int64_t)time(NULL);
	latest = (latest + 1) % JOB_HISTORY_MAX;
	free(ring[latest].id);
	free(ring[latest].error);
	ring[latest] = p;
	if (count < JOB_HISTORY_MAX)
		count++;
}

const struct job_past *
job_history(unsigned i)
{
	if (i >= count)
		return NULL;
	return &ring[(latest + JOB_HISTORY_MAX - i) % JOB_HISTORY_MAX];
}
