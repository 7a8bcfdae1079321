/* SPDX-License-Identifier: Apache-2.0 */
#include "aio/work.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "aio/co.h"
#include "aio/loop_int.h"

enum { IDLE_SECONDS = 5 };
enum { WORKER_STACK = 512 * 1024 };

/* A call, on the stack of the coroutine that waits for it. */
struct job {
	int (*fn)(void *);
	void *arg;
	int result;
	atomic_bool done;
	struct co *co;
	struct job *next;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t work;		/* there is a job, or we stop */
	pthread_cond_t ended;		/* a worker has ended */
	struct job *head, **tail;
	unsigned n_threads, n_idle, n_queued;
	unsigned n_calls;		/* workers with a call: they may hang in it */
	bool stopping;
} pool = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.ended = PTHREAD_COND_INITIALIZER,
};

/* Those of n_calls that are through with it, from before they tell so: the coroutine
 * may be through as well, and the loops be stopped, before they have woken it. */
static atomic_uint n_through;

static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

static void
pool_init(void)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&pool.work, &attr);
	pthread_condattr_destroy(&attr);
	pool.tail = &pool.head;
}

/* Wait for a job; NULL: enough, end.  With the lock held. */
static struct job *
job_take(void)
{
	struct timespec until;
	struct job *job;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_SECONDS;
	pool.n_idle++;
	while (!pool.head && !pool.stopping && r == 0)
		r = pthread_cond_timedwait(&pool.work, &pool.lock, &until);
	pool.n_idle--;
	job = pool.head;
	if (job) {
		pool.head = job->next;
		if (!pool.head)
			pool.tail = &pool.head;
		pool.n_queued--;
		pool.n_calls++;
	}
	return job;
}

static void *
worker(void *arg)
{
	struct job *job;

	(void)arg;
	pthread_mutex_lock(&pool.lock);
	while ((job = job_take())) {
		struct co *co = job->co;

		pthread_mutex_unlock(&pool.lock);
		job->result = job->fn(job->arg);
		atomic_fetch_add(&n_through, 1);
		atomic_store(&job->done, true);
		co_wake(co);
		pthread_mutex_lock(&pool.lock);
		pool.n_calls--;
		atomic_fetch_sub(&n_through, 1);
	}
	pool.n_threads--;
	pthread_cond_broadcast(&pool.ended);
	pthread_mutex_unlock(&pool.lock);
	return NULL;
}

/* With the lock held. */
static bool
worker_start(void)
{
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t thread;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, WORKER_STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&thread, &attr, worker, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r)
		return false;
	pthread_setname_np(thread, "worker");
	pool.n_threads++;
	return true;
}

/* Queue job; false: there is nobody to do it. */
static bool
job_give(struct job *job)
{
	bool ok = true;

	pthread_mutex_lock(&pool.lock);
	pool.stopping = false;
	/* An idle worker may be promised to a job that waits already. */
	if (pool.n_queued >= pool.n_idle && pool.n_threads < WORK_THREADS_MAX)
		ok = worker_start() || pool.n_threads > 0;
	if (ok) {
		*pool.tail = job;
		pool.tail = &job->next;
		pool.n_queued++;
		pthread_cond_signal(&pool.work);
	}
	pthread_mutex_unlock(&pool.lock);
	return ok;
}

int
work_run(int (*fn)(void *arg), void *arg)
{
	struct job job = { .fn = fn, .arg = arg, .co = co_self() };

	if (!job.co)
		return fn(arg);
	pthread_once(&pool_once, pool_init);
	if (!job_give(&job))
		return fn(arg);
	while (!atomic_load(&job.done))
		co_park();
	return job.result;
}

/* End all workers but those that hang in a call, which are left to the process's own
 * end: nobody waits for their results any more.  The others are gone when it returns,
 * also those that had no time yet to become idle: who forks then finds the lock free,
 * and no worker counted who does not exist in the child. */
void
work_stop(void)
{
	pthread_once(&pool_once, pool_init);
	pthread_mutex_lock(&pool.lock);
	pool.stopping = true;
	pthread_cond_broadcast(&pool.work);
	while (pool.n_threads > pool.n_calls - atomic_load(&n_through))
		pthread_cond_wait(&pool.ended, &pool.lock);
	pthread_mutex_unlock(&pool.lock);
}
