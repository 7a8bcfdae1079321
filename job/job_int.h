/* SPDX-License-Identifier: Apache-2.0 */
/* job/job_int.h - what the files of the life cycle share; loop 0. */
#ifndef JOB_JOB_INT_H
#define JOB_JOB_INT_H

#include <stdbool.h>

#include "aio/colock.h"
#include "base/list.h"
#include "job/job.h"
#include "job/job_status.h"

/* Jobs that succeed or fail together. */
struct job_group {
	struct list jobs;
	unsigned refs;
	bool aborting, finalizing;
	struct co_queue changed;	/* one of the jobs has ended its work */
};

extern const struct job_events *job_events_out;
extern struct list job_list;		/* the youngest first */
extern struct co_queue job_gone;	/* a job left the list, or is concluded */
extern struct co_queue job_moved;	/* a job has another state */

void job_move(struct job *j, enum JobStatus to);
void job_dismiss(struct job *j);
/* Recompute whether work should stop, and tell all who sleep. */
void job_poke(struct job *j);

/* The nodes that it holds, borrowed; the number, at most JOB_NODES_MAX. */
enum { JOB_NODES_MAX = 64 };
size_t job_list_nodes(const struct job *j, struct node *ret_nodes[JOB_NODES_MAX]);

/* ---- job_hurry.c ---- */

/* j was told to leave off at once: see to it that it can, until it has a group no
 * more. */
void job_hurry(struct job *j);

/* ---- job_end.c; coroutine ---- */

bool job_has_ended_work(const struct job *j);
/* run() has returned, or never will: j->ret says how. */
void job_completed(struct job *j);
void job_finalize_group(struct job *j);
void job_cancel(struct job *j, bool force);

/* ---- job_history.c ---- */

void job_history_add(const struct job *j);

#endif
