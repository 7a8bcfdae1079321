/* SPDX-License-Identifier: Apache-2.0 */
/* A job from its making to the end of its work.  How it ends is in job_end.c,
 * what clients may ask of it in job_user.c. */
#include "job/job.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "aio/loop.h"
#include "aio/timer.h"
#include "base/error.h"
#include "base/id.h"
#include "block/node.h"
#include "block/root.h"
#include "job/job_int.h"

static const struct job_events no_events;
const struct job_events *job_events_out = &no_events;
struct list job_list = LIST_INIT(job_list);
struct co_queue job_gone, job_moved;

void
job_set_events(const struct job_events *events)
{
	job_events_out = events;
}

void
job_move(struct job *j, enum JobStatus to)
{
	enum JobStatus from = j->status;

	assert(job_status_may_follow(from, to));
	j->status = to;
	if (from == to)
		return;
	if (job_events_out->status_change)
		job_events_out->status_change(j);
	co_queue_wake_all(&job_moved);
}

/* ---- life ---- */

static struct job *
lookup(const char *id)
{
	struct job *j;

	LIST_FOREACH(j, &job_list, in_all)
		if (!strcmp(j->id, id))
			return j;
	return NULL;
}

static int
check_id(const char *id, struct error **errp)
{
	if (!id_is_well_formed(id))
		return error_set(errp, "Invalid job ID '%s'", id);
	if (lookup(id))
		return error_set(errp, "Job ID '%s' already in use", id);
	return 0;
}

static struct job *
make(const struct job_kind *kind, const char *id, struct job_group *group)
{
	struct job *j = calloc(1, kind->size);

	if (!j)
		return NULL;
	j->id = strdup(id);
	j->group = group ? group : job_group_new();
	if (!j->id || !j->group) {
		if (!group)
			job_group_unref(j->group);
		free(j->id);
		free(j);
		return NULL;
	}
	if (group)
		group->refs++;
	j->kind = kind;
	j->refs = 1;
	list_init(&j->nodes);
	ratelimit_init(&j->limit);
	snprintf(j->reason, sizeof(j->reason), "block device is in use by block job: %s",
		 JobType_str(kind->type));
	list_append(&j->group->jobs, &j->in_group);
	list_push(&job_list, &j->in_all);
	return j;
}

int
job_new(const struct job_kind *kind, const struct job_options *o, struct job **ret,
	struct error **errp)
{
	const char *id = o->id ? o->id : "";
	struct job *j;

	if (check_id(id, errp) < 0)
		return -1;
	j = make(kind, id, o->group);
	if (!j)
		return error_set(errp, "Cannot allocate memory");
	j->auto_finalize = !o->manual_finalize;
	j->auto_dismiss = !o->manual_dismiss;
	job_move(j, JOB_STATUS_CREATED);
	if (o->speed && job_user_set_speed(j, o->speed, errp) < 0) {
		job_fail_early(j);
		return -1;
	}
	*ret = j;
	return 0;
}

struct job *
job_ref(struct job *j)
{
	j->refs++;
	return j;
}

void
job_unref(struct job *j)
{
	if (--j->refs)
		return;
	assert(j->status == JOB_STATUS_NULL && list_empty(&j->nodes));
	if (j->kind->free)
		j->kind->free(j);
	error_free(j->err);
	free(j->id);
	free(j);
}

struct job_group *
job_group_new(void)
{
	struct job_group *g = calloc(1, sizeof(*g));

	if (g) {
		list_init(&g->jobs);
		g->refs = 1;
	}
	return g;
}

void
job_group_unref(struct job_group *g)
{
	if (g && --g->refs == 0)
		free(g);
}

/* Off the list, with a last event; the caller's pointer dies with it. */
void
job_dismiss(struct job *j)
{
	struct job_group *g = j->group;

	j->group = NULL;
	if (g) {
		list_remove(&j->in_group);
		job_group_unref(g);
	}
	job_drop_nodes(j);
	job_move(j, JOB_STATUS_NULL);
	list_remove(&j->in_all);
	co_queue_wake_all(&job_gone);
	job_unref(j);
}

void
job_fail_early(struct job *j)
{
	assert(j->status == JOB_STATUS_CREATED);
	if (j->kind->clean)
		j->kind->clean(j);
	job_dismiss(j);
}

static void
work(void *arg)
{
	struct job *j = arg;

	j->busy = true;
	if (j->status == JOB_STATUS_RUNNING) {
		job_pause_point(j);
		if (!j->forced)
			j->ret = j->kind->run(j, &j->err);
		j->busy = false;
		j->done = true;
		job_completed(j);
	}
	job_unref(j);
}

int
job_start(struct job *j, struct error **errp)
{
	job_ref(j);
	if (co_spawn(loop_main(), work, j) < 0) {
		job_unref(j);
		job_fail_early(j);
		return error_set(errp, "Cannot allocate memory");
	}
	j->started = true;
	job_move(j, JOB_STATUS_RUNNING);
	return 0;
}

/* ---- for the kinds ---- */

bool
job_is_cancelled(const struct job *j)
{
	return j->forced;
}

bool
job_cancel_requested(const struct job *j)
{
	return j->cancelled;
}

bool
job_should_stop(const struct job *j)
{
	return atomic_load_explicit(&j->stop, memory_order_relaxed);
}

void
job_kick(struct job *j)
{
	co_queue_wake_all(&j->kick);
}

void
job_poke(struct job *j)
{
	atomic_store(&j->stop, j->pause_count || j->cancelled);
	if (j->workers)
		co_queue_wake_all(j->workers);
	job_kick(j);
}

static void
rest(struct job *j, int64_t deadline)
{
	j->busy = false;
	(void)co_queue_timedwait(&j->kick, NULL, deadline);
	j->busy = true;
}

void
job_pause_point(struct job *j)
{
	enum JobStatus before = j->status;

	if (!j->pause_count || j->forced)
		return;
	job_move(j, before == JOB_STATUS_READY ? JOB_STATUS_STANDBY : JOB_STATUS_PAUSED);
	j->paused = true;
	while (j->pause_count && !j->forced)
		rest(j, INT64_MAX);
	j->paused = false;
	job_move(j, before);
}

void
job_sleep(struct job *j, int64_t ns)
{
	if (!j->pause_count && !j->cancelled)
		rest(j, clock_ns() + ns);
	job_pause_point(j);
}

void
job_set_ready(struct job *j)
{
	job_move(j, JOB_STATUS_READY);
	if (job_events_out->ready)
		job_events_out->ready(j);
}

void
job_progress_add(struct job *j, uint64_t bytes)
{
	atomic_fetch_add_explicit(&j->progress, bytes, memory_order_relaxed);
}

void
job_progress_set(struct job *j, uint64_t done, uint64_t total)
{
	atomic_store_explicit(&j->progress, done, memory_order_relaxed);
	atomic_store_explicit(&j->total, total, memory_order_relaxed);
}

static enum BlockErrorAction
action_of(enum BlockdevOnError policy, int err)
{
	switch (policy) {
	case BLOCKDEV_ON_ERROR_IGNORE:
		return BLOCK_ERROR_ACTION_IGNORE;
	case BLOCKDEV_ON_ERROR_STOP:
		return BLOCK_ERROR_ACTION_STOP;
	case BLOCKDEV_ON_ERROR_ENOSPC:
	case BLOCKDEV_ON_ERROR_AUTO:
		return err == -ENOSPC ? BLOCK_ERROR_ACTION_STOP
				      : BLOCK_ERROR_ACTION_REPORT;
	default:
		return BLOCK_ERROR_ACTION_REPORT;
	}
}

enum BlockErrorAction
job_io_error(struct job *j, enum BlockdevOnError policy, enum IoOperationType op, int err)
{
	enum BlockErrorAction action = action_of(policy, err);

	if (job_events_out->error)
		job_events_out->error(j, op, action);
	if (action != BLOCK_ERROR_ACTION_STOP)
		return action;
	if (!j->user_paused) {
		j->user_paused = true;
		j->pause_count++;
		job_poke(j);
	}
	if (j->io_status == BLOCK_DEVICE_IO_STATUS_OK)
		j->io_status = err == -ENOSPC ? BLOCK_DEVICE_IO_STATUS_NOSPACE
					      : BLOCK_DEVICE_IO_STATUS_FAILED;
	return action;
}

/* ---- nodes ---- */

struct held_node {
	struct list link;
	struct node *node;
	struct root *root;
	bool tight;		/* the root asks for or forbids something */
};

static char *
describe(void *user)
{
	struct job *j = user;
	char *text;

	return asprintf(&text, "%s job '%s'", JobType_str(j->kind->type), j->id) < 0
		       ? NULL
		       : text;
}

static const struct root_ops root_ops = { .describe = describe, .is_job = true };

static int
hold(struct job *j, struct node *n, struct root *r)
{
	struct held_node *h = calloc(1, sizeof(*h));

	if (!h)
		return -1;
	h->root = r;
	h->node = node_ref(n);
	node_set_busy(n, j->reason);
	list_push(&j->nodes, &h->link);
	return 0;
}

static int
claim(struct job *j, struct node *n, const char *name, perm_set perm, perm_set shared,
      const struct root_ops *ops, struct root **ret_root, struct error **errp)
{
	struct root *r;

	if (root_new(n, name, perm, shared, ops, j, &r, errp) < 0)
		return -1;
	if (hold(j, n, r) < 0) {
		root_free(r);
		return error_set(errp, "Cannot allocate memory");
	}
	LIST_FIRST(&j->nodes, struct held_node, link)->tight = perm || shared != PERM_ALL;
	if (ret_root)
		*ret_root = r;
	return 0;
}

int
job_hold_node(struct job *j, struct node *n, const char *name, perm_set perm,
	      perm_set shared, struct root **ret_root, struct error **errp)
{
	if (ret_root)
		return claim(j, n, name, perm, shared, &root_ops, ret_root, errp);
	return hold(j, n, NULL) < 0 ? error_set(errp, "Cannot allocate memory") : 0;
}

int
job_use_node(struct job *j, struct node *n, struct error **errp)
{
	return claim(j, n, "root", 0, PERM_ALL, NULL, NULL, errp);
}

size_t
job_list_nodes(const struct job *j, struct node *ret_nodes[JOB_NODES_MAX])
{
	struct held_node *h;
	size_t n = 0;

	LIST_FOREACH(h, &j->nodes, link)
		if (n < JOB_NODES_MAX)
			ret_nodes[n++] = h->node;
	return n;
}

void
job_loosen_nodes(struct job *j)
{
	struct held_node *h;

	LIST_FOREACH(h, &j->nodes, link) {
		if (!h->tight || root_set_perm(h->root, 0, PERM_ALL, NULL) == 0)
			continue;
		/* No memory for that: letting go needs none. */
		root_free(h->root);
		h->root = NULL;
		h->tight = false;
	}
}

void
job_drop_nodes(struct job *j)
{
	struct held_node *h;

	while ((h = LIST_FIRST(&j->nodes, struct held_node, link))) {
		list_remove(&h->link);
		node_clear_busy(h->node, j->reason);
		root_free(h->root);
		node_unref(h->node);
		free(h);
	}
}

/* ---- finding ---- */

struct job *
job_next(struct job *j)
{
	struct list *l = j ? j->in_all.next : job_list.next;

	return l == &job_list ? NULL : LIST_ENTRY(l, struct job, in_all);
}

struct job *
job_find(const char *id, struct error **errp)
{
	struct job *j = lookup(id);

	if (!j)
		error_set(errp, "Job not found");
	return j;
}

struct job *
job_find_block(const char *id, struct error **errp)
{
	struct job *j = lookup(id);

	if (j && job_is_block_job(j))
		return j;
	error_set_class(errp, ERROR_DEVICE_NOT_ACTIVE, "Block job '%s' not found", id);
	return NULL;
}

bool
job_is_block_job(const struct job *j)
{
	switch (j->kind->type) {
	case JOB_TYPE_COMMIT:
	case JOB_TYPE_STREAM:
	case JOB_TYPE_MIRROR:
	case JOB_TYPE_BACKUP:
		return true;
	default:
		return false;
	}
}

bool
job_is_ready(const struct job *j)
{
	return j->status == JOB_STATUS_READY || j->status == JOB_STATUS_STANDBY;
}

const char *
job_error_text(const struct job *j)
{
	return j->err ? error_text(j->err) : NULL;
}

/* *to is to be a copy of from; false: no memory. */
static bool
copy_text(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return !from || *to;
}

struct JobInfo *
job_info(const struct job *j)
{
	struct JobInfo *i = calloc(1, sizeof(*i));

	if (!i)
		return NULL;
	i->type = j->kind->type;
	i->status = j->status;
	i->current_progress = (int64_t)atomic_load(&j->progress);
	i->total_progress = (int64_t)atomic_load(&j->total);
	if (copy_text(&i->id, j->id) && copy_text(&i->error, job_error_text(j)))
		return i;
	JobInfo_free(i);
	return NULL;
}

struct BlockJobInfo *
job_block_info(const struct job *j)
{
	struct BlockJobInfo *i = calloc(1, sizeof(*i));

	if (!i)
		return NULL;
	i->type = j->kind->type;
	i->len = (int64_t)atomic_load(&j->total);
	i->offset = (int64_t)atomic_load(&j->progress);
	i->busy = j->busy && !atomic_load(&j->throttled);
	i->paused = j->pause_count > 0;
	i->speed = j->speed;
	i->io_status = j->io_status;
	i->ready = job_is_ready(j);
	i->status = j->status;
	i->auto_finalize = j->auto_finalize;
	i->auto_dismiss = j->auto_dismiss;
	if (copy_text(&i->device, j->id) && copy_text(&i->error, job_error_text(j)))
		return i;
	BlockJobInfo_free(i);
	return NULL;
}
