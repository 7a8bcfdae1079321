/* SPDX-License-Identifier: Apache-2.0 */
/* aio/loops.c - the set of loops: making them, their threads, ending them. */
#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "aio/loop.h"
#include "aio/loop_int.h"
#include "aio/ring.h"
#include "base/cleanup.h"
#include "base/error.h"

/* A slot, once made, lives until loops_stop(), with its eventfd and the structs
 * of its coroutines: somebody may be late with a wake for one that has ended.
 * loop_add() uses it again. */
static struct loop *slots[LOOP_MAX];
static unsigned n_io_loops;
static bool no_uring;
static struct event *signal_events[NSIG];

/* Guards started and start_error of a loop whose thread is starting. */
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t start_cond = PTHREAD_COND_INITIALIZER;

struct loop *
loop_main(void)
{
	return slots[0];
}

struct loop *
loop_io(unsigned i)
{
	assert(i < n_io_loops);
	return slots[1 + i];
}

unsigned
loop_io_count(void)
{
	return n_io_loops;
}

unsigned
loop_index(const struct loop *l)
{
	return l->index;
}

const char *
loop_uring_reason(void)
{
	if (no_uring)
		return "switched off";
	for (unsigned i = 0; i <= n_io_loops; i++)
		if (!slots[i]->ring)
			return slots[i]->ring_reason;
	return NULL;
}

bool
loop_has_uring(void)
{
	return !loop_uring_reason();
}

/* ---- one loop ---- */

static void
on_wake(evutil_socket_t fd, short what, void *arg)
{
	/* That it ended the sleep is all. */
	(void)fd;
	(void)what;
	(void)arg;
}

/* What belongs to the thread; on it, since the kernel ties a ring to it. */
static void
loop_close(struct loop *l)
{
	timer_loop_free(l);
	if (l->wake_event)
		event_free(l->wake_event);
	if (l->base)
		event_base_free(l->base);
	ring_free(l->ring);
	l->wake_event = NULL;
	l->base = NULL;
	l->ring = NULL;
}

/* A base that is used by its own thread only: no locks, no cached look at the
 * environment, and no timers of libevent's. */
static struct event_base *
base_new(void)
{
	struct event_config *config = event_config_new();
	struct event_base *base = NULL;

	if (!config)
		return NULL;
	event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
	event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
	event_config_set_flag(config, EVENT_BASE_FLAG_NO_CACHE_TIME);
	event_config_require_features(config, EV_FEATURE_ET);
	base = event_base_new_with_config(config);
	event_config_free(config);
	return base;
}

/* Whatever fails for libevent fails for us, with an errno.  It says so on
 * stderr too, unless told not to. */
static void
log_nothing(int severity, const char *message)
{
	(void)severity;
	(void)message;
}

/* On the loop's own thread. */
static int
loop_open(struct loop *l)
{
	loop_tls = l;
	co_loop_init(l);
	task_queue_init(&l->runnable);
	list_init(&l->deferred);
	atomic_store(&l->quit, false);
	l->base = base_new();
	if (!l->base)
		return -ENOMEM;
	l->wake_event = event_new(l->base, l->wake_fd, EV_READ | EV_PERSIST | EV_ET, on_wake, l);
	if (!l->wake_event || event_add(l->wake_event, NULL) < 0 || timer_loop_init(l) < 0)
		return -ENOMEM;
	/* Without a ring there are the workers. */
	if (!no_uring)
		(void)ring_new(l->wake_fd, &l->ring, l->ring_reason, sizeof(l->ring_reason));
	return 0;
}

static struct loop *
slot_new(unsigned index)
{
	struct loop *l = aligned_alloc(64, (sizeof(*l) + 63) & ~(size_t)63);

	if (!l)
		return NULL;
	memset(l, 0, sizeof(*l));
	l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (l->wake_fd < 0) {
		free(l);
		return NULL;
	}
	pthread_mutex_init(&l->spare_lock, NULL);
	l->index = index;
	l->timer_fd = -1;
	return l;
}

static void
slot_free(struct loop *l)
{
	co_loop_free(l);
	close(l->wake_fd);
	pthread_mutex_destroy(&l->spare_lock);
	free(l);
}

static struct loop *
slot_take(unsigned index, const char *name)
{
	struct loop *l = slots[index];

	if (!l)
		l = slots[index] = slot_new(index);
	if (!l)
		return NULL;
	l->in_use = true;
	l->started = false;
	l->start_error = 0;
	snprintf(l->name, sizeof(l->name), "%s", name);
	return l;
}

/* ---- threads ---- */

static void
report_start(struct loop *l, int err)
{
	pthread_mutex_lock(&start_lock);
	l->started = true;
	l->start_error = err;
	pthread_cond_broadcast(&start_cond);
	pthread_mutex_unlock(&start_lock);
}

static void *
loop_thread(void *arg)
{
	struct loop *l = arg;
	int r = loop_open(l);

	if (r < 0)
		loop_close(l);
	report_start(l, r);
	if (r < 0)
		return NULL;
	loop_run_until(l, &l->quit);
	loop_close(l);
	return NULL;
}

/* Signals are loop 0's: every other thread starts with all of them blocked. */
static int
thread_start(struct loop *l)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&l->thread, NULL, loop_thread, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return -r;
	pthread_setname_np(l->thread, l->name);
	pthread_mutex_lock(&start_lock);
	while (!l->started)
		pthread_cond_wait(&start_cond, &start_lock);
	r = l->start_error;
	pthread_mutex_unlock(&start_lock);
	if (r < 0)
		pthread_join(l->thread, NULL);
	return r;
}

static int
add_at(unsigned index, const char *name, struct error **errp)
{
	struct loop *l = slot_take(index, name);
	int r = l ? thread_start(l) : -ENOMEM;

	if (r < 0) {
		if (l)
			l->in_use = false;
		error_set_errno(errp, r, "Cannot start I/O thread '%s'", name);
	}
	return r;
}

int
loop_add(const char *name, struct loop **ret, struct error **errp)
{
	int r;

	for (unsigned i = n_io_loops + 1; i < LOOP_MAX; i++) {
		if (slots[i] && slots[i]->in_use)
			continue;
		r = add_at(i, name, errp);
		if (r == 0)
			*ret = slots[i];
		return r;
	}
	error_set(errp, "Too many I/O threads, the limit is %d", LOOP_MAX - 1);
	return -ENOSPC;
}

void
loop_remove(struct loop *l)
{
	loop_stop(l);
	pthread_join(l->thread, NULL);
	co_loop_trim(l);
	l->in_use = false;
}

/* ---- all of them ---- */

int
loops_start(unsigned n_io, unsigned flags, struct error **errp)
{
	char name[16];
	struct loop *l;
	int r;

	assert(!slots[0] && n_io < LOOP_MAX);
	event_set_log_callback(log_nothing);
	no_uring = flags & LOOPS_NO_URING;
	l = slot_take(0, "main");
	r = l ? loop_open(l) : -ENOMEM;
	if (r < 0) {
		error_set_errno(errp, r, "Cannot start the main loop");
		loops_stop();
		return r;
	}
	for (unsigned i = 0; i < n_io; i++) {
		snprintf(name, sizeof(name), "io%u", i);
		r = add_at(1 + i, name, errp);
		if (r < 0) {
			loops_stop();
			return r;
		}
		n_io_loops++;
	}
	return 0;
}

void
loops_stop(void)
{
	for (unsigned i = 1; i < LOOP_MAX; i++)
		if (slots[i] && slots[i]->in_use)
			loop_remove(slots[i]);
	work_stop();
	for (int s = 0; s < NSIG; s++)
		if (signal_events[s])
			loop_signal(s, NULL, NULL);
	if (slots[0])
		loop_close(slots[0]);
	for (unsigned i = 0; i < LOOP_MAX; i++) {
		if (slots[i])
			slot_free(slots[i]);
		slots[i] = NULL;
	}
	n_io_loops = 0;
	loop_tls = NULL;
}

/* ---- signals ---- */

struct signal_watch {
	void (*fn)(int signo, void *arg);
	void *arg;
};

static struct signal_watch signal_watches[NSIG];

static void
on_signal(evutil_socket_t fd, short what, void *arg)
{
	struct signal_watch *w = arg;

	(void)what;
	w->fn((int)fd, w->arg);
}

int
loop_signal(int signo, void (*fn)(int signo, void *arg), void *arg)
{
	struct event *ev;

	assert(signo > 0 && signo < NSIG && loop_tls == slots[0]);
	if (signal_events[signo]) {
		event_free(signal_events[signo]);
		signal_events[signo] = NULL;
	}
	if (!fn)
		return 0;
	signal_watches[signo] = (struct signal_watch){ fn, arg };
	ev = evsignal_new(slots[0]->base, signo, on_signal, &signal_watches[signo]);
	if (!ev || event_add(ev, NULL) < 0) {
		if (ev)
			event_free(ev);
		return -ENOMEM;
	}
	signal_events[signo] = ev;
	return 0;
}
