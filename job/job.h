/* SPDX-License-Identifier: Apache-2.0 */
/* job/job.h - the life of a job: long work that clients watch and steer.
 *
 * A job is a coroutine on loop 0 with a state that moves only as job_status.c's
 * tables allow; each move is an event.  A kind of job (commit, backup, ...)
 * embeds struct job as its first member and fills a struct job_kind.
 *
 * The end, in this order: run() returns; the jobs of a group wait for each other
 * (waiting, pending); prepare() of all; then either commit() or abort(), and
 * clean(), of each; the events; concluded.  A job without a group is a group of
 * one.
 *
 * Context    loop 0; those that may wait for a disk or another job are marked
 *            (coroutine).  job_progress_* and job_should_stop: any thread.
 * Ownership  job_get() and job_next() return borrowed jobs; job_ref() to keep
 *            one across a wait.
 * Errors     0 or -1 with *errp; texts are QEMU's.
 */
#ifndef JOB_JOB_H
#define JOB_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "aio/colock.h"
#include "aio/timer.h"
#include "base/list.h"
#include "block/perm.h"
#include "job/ratelimit.h"
#include "schema/types.h"

struct error;
struct job;
struct job_group;
struct node;
struct root;

struct job_kind {
	enum JobType type;
	size_t size;		/* of the struct that begins with a struct job */
	/* The work: coroutine.  0, or -errno with or without *errp.  Returns soon
	 * after job_is_cancelled(), and passes job_pause_point() now and then. */
	int (*run)(struct job *j, struct error **errp);
	/* The last step that may fail: changes of the graph.  Coroutine; optional.
	 * 0, or -errno with or without *errp. */
	int (*prepare)(struct job *j, struct error **errp);
	/* Exactly one of these follows.  Coroutine; optional. */
	void (*commit)(struct job *j);
	void (*abort)(struct job *j);
	/* Then this; also for a job that was not started, however little of it was
	 * set up.  Coroutine; optional. */
	void (*clean)(struct job *j);
	/* Release what the kind's struct owns; loop 0.  Optional. */
	void (*free)(struct job *j);
	/* A ready job is to switch over and end.  Optional. */
	void (*complete)(struct job *j);
	/* The job was asked to end.  True: at once, as failed; false: it will end well
	 * by itself.  NULL: always at once. */
	bool (*cancel)(struct job *j, bool force);
};

struct job {
	const struct job_kind *kind;
	char *id;
	enum JobStatus status;
	bool auto_finalize, auto_dismiss;

	int64_t speed;			/* bytes a second; 0: no limit */
	struct ratelimit limit;
	enum BlockDeviceIoStatus io_status;
	_Atomic uint64_t progress, total;
	_Atomic bool throttled;		/* the speed limit holds it up */

	/* Private from here on. */
	struct list in_all, in_group, nodes;
	struct job_group *group;
	unsigned refs, pause_count;
	bool user_paused, paused, busy;
	bool started, done;		/* done: run() has returned */
	bool cancelled, forced;
	_Atomic bool stop;		/* pause or cancel is wanted */
	struct co_queue kick;		/* who sleeps in the job's own coroutine */
	struct co_queue *workers;	/* who sleeps elsewhere for it */
	struct timer hurry;		/* since it was cancelled; job_hurry.c */
	int ret;			/* 0 or -errno */
	struct error *err;
	char reason[64];		/* "block device is in use by block job: commit" */
};

/* What clients are told; set once by who passes it on.  Members may be NULL. */
struct job_events {
	void (*status_change)(const struct job *j);
	void (*completed)(const struct job *j);
	void (*cancelled)(const struct job *j);
	void (*ready)(const struct job *j);
	void (*pending)(const struct job *j);
	void (*error)(const struct job *j, enum IoOperationType op,
		      enum BlockErrorAction action);
};

void job_set_events(const struct job_events *events);	/* borrowed for good */

/* ---- life ---- */

struct job_options {
	const char *id;		/* NULL: as an empty one, which is refused */
	bool manual_finalize, manual_dismiss;
	int64_t speed;
	struct job_group *group;	/* NULL: one of its own */
};

/* A job in the state created; memory of kind->size, zero beyond struct job.  It is
 * either started or failed by the caller. */
int job_new(const struct job_kind *kind, const struct job_options *o, struct job **ret,
	    struct error **errp);
/* Let its coroutine begin soon.  On failure the job is gone. */
int job_start(struct job *j, struct error **errp);
/* It did not come to a start: clean(), and gone.  Coroutine. */
void job_fail_early(struct job *j);

struct job *job_ref(struct job *j);
void job_unref(struct job *j);

struct job_group *job_group_new(void);	/* NULL: no memory */
void job_group_unref(struct job_group *g);

/* ---- for the kinds, in the job's coroutine ---- */

bool job_is_cancelled(const struct job *j);	/* at once, as failed */
bool job_cancel_requested(const struct job *j);	/* one way or the other */
/* Any thread: leave off soon, there is a pause or the end to be made. */
bool job_should_stop(const struct job *j);
/* Stay paused for as long as somebody wants it. */
void job_pause_point(struct job *j);
/* Sleep for ns, or until job_kick() or another reason; then job_pause_point(). */
void job_sleep(struct job *j, int64_t ns);
void job_kick(struct job *j);
void job_set_ready(struct job *j);

void job_progress_add(struct job *j, uint64_t bytes);
void job_progress_set(struct job *j, uint64_t done, uint64_t total);

/* An I/O error happened: decide by policy, raise the event, pause if that is the
 * policy.  err is a negative errno. */
enum BlockErrorAction job_io_error(struct job *j, enum BlockdevOnError policy,
				   enum IoOperationType op, int err);

/* ---- nodes of a block job ---- */

/* Hold n, mark it busy, and claim it where ret_root is not NULL.  Let go of by
 * job_drop_nodes(), at the latest when the job is gone.  Coroutine. */
int job_hold_node(struct job *j, struct node *n, const char *name, perm_set perm,
		  perm_set shared, struct root **ret_root, struct error **errp);
/* The same for a node that the job itself reads or writes, which clients are told
 * to be in use rather than busy. */
int job_use_node(struct job *j, struct node *n, struct error **errp);
/* Claim nothing on them any more, and forbid nothing: the graph is to be as it was
 * before.  They stay busy. */
void job_loosen_nodes(struct job *j);
void job_drop_nodes(struct job *j);

/* ---- finding ---- */

struct job *job_next(struct job *j);	/* NULL: the first, which is the youngest */
struct job *job_find(const char *id, struct error **errp);
/* A job on nodes; class DeviceNotActive. */
struct job *job_find_block(const char *id, struct error **errp);
bool job_is_block_job(const struct job *j);
bool job_is_ready(const struct job *j);
const char *job_error_text(const struct job *j);	/* NULL: none */

/* query-jobs and query-block-jobs for one. NULL: no memory. */
struct JobInfo *job_info(const struct job *j);
struct BlockJobInfo *job_block_info(const struct job *j);

/* ---- what clients ask for; coroutine ---- */

int job_user_pause(struct job *j, struct error **errp);
int job_user_resume(struct job *j, struct error **errp);
int job_user_cancel(struct job *j, bool force, struct error **errp);
int job_user_complete(struct job *j, struct error **errp);
int job_user_finalize(struct job *j, struct error **errp);
int job_user_dismiss(struct job *j, struct error **errp);
int job_user_set_speed(struct job *j, int64_t speed, struct error **errp);
/* Options of its own: no kind of job has any that can be changed. */
int job_user_change(struct job *j, struct error **errp);

/* Cancel and dismiss every job; false if some are left at deadline_ns. */
bool job_cancel_all(int64_t deadline_ns);

/* ---- the past: the last jobs that ended, the latest first ---- */

enum { JOB_HISTORY_MAX = 64 };

struct job_past {
	char *id;
	enum JobType type;
	uint64_t progress, total;
	char *error;			/* NULL: it ended well */
	int64_t ended_sec;		/* since 1970 */
};

/* The i-th, or NULL; borrowed until the next job ends. */
const struct job_past *job_history(unsigned i);

#endif
