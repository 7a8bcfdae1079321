/* SPDX-License-Identifier: Apache-2.0 */
/* A job that was cancelled ends when its requests have ended.  Where they wait for
 * a peer that does not answer, that would be never; so peers that owe an answer for
 * SILENT_NS are given up. */
#include "aio/co.h"
#include "base/cleanup.h"
#include "block/node.h"
#include "job/job_int.h"

#define TICK_NS INT64_C(1000000000)
#define SILENT_NS (3 * TICK_NS)

static void
hurry(void *job)
{
	struct job *j = job;
	struct node *nodes[JOB_NODES_MAX];
	size_t n = job_list_nodes(j, nodes);

	node_give_up(nodes, n, SILENT_NS);
	if (j->group)
		job_hurry(j);
	job_unref(j);
}

static void
time_is_up(struct timer *t)
{
	struct job *j = CONTAINER_OF(t, struct job, hurry);

	if (co_start(hurry, job_ref(j)) < 0) {
		job_unref(j);
		job_hurry(j);
	}
}

void
job_hurry(struct job *j)
{
	j->hurry.fn = time_is_up;
	timer_set(&j->hurry, clock_ns() + TICK_NS);
}
