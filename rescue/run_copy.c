/* SPDX-License-Identifier: Apache-2.0 */
/* The long part of a rescue: from targets that are open to those that have their names. */
#include "rescue/run.h"

#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/loop.h"
#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/phase.h"
#include "rescue/run_int.h"
#include "rescue/survey.h"

enum {
	RECORD_BYTES = 16 * 1024 * 1024,
	RECORD_POLL_NS = 20 * 1000 * 1000,
	WATCH_NS = 1000 * 1000 * 1000,
	SHOW_NS = 200 * 1000 * 1000,
};

/* ---- the display ---- */

static void
on_timer(struct timer *t)
{
	struct run *r = CONTAINER_OF(t, struct run, timer);

	progress_show(&r->progress);
	timer_set(t, clock_ns() + SHOW_NS);
}

static void
on_status_signal(int signo, void *arg)
{
	struct run *r = arg;

	(void)signo;
	progress_print_status(&r->progress);
}

void
run_start_progress(struct run *r, const char *what, uint64_t bytes)
{
	progress_start(&r->progress, r->o->progress, what, bytes);
	r->timer.fn = on_timer;
	timer_set(&r->timer, clock_ns() + SHOW_NS);
	/* Until run_end_progress(); then rescue/phase.h has the signal again. */
	(void)loop_signal(SIGUSR1, on_status_signal, r);
}

int
run_end_progress(struct run *r, int result)
{
	loop_signal(SIGUSR1, NULL, NULL);
	timer_cancel(&r->timer);
	if (result == 0)
		progress_end(&r->progress);
	else
		progress_clear(&r->progress);
	return result;
}

/* ---- the copy ---- */

static bool
is_stopped(const struct run *r)
{
	return r->signo || r->changed;
}

/* Something that goes on beside the work until that ends, and sleeps most of the time. */
struct beside {
	struct run *r;
	void (*fn)(struct run *r);
	struct co *co;		/* referenced */
};

static void
beside_main(void *arg)
{
	struct beside *b = arg;

	b->co = co_ref(co_self());
	b->fn(b->r);
}

static int
run_beside(struct run *r, void (*fn)(struct run *r), int (*work)(struct run *r))
{
	struct beside b = { r, fn, NULL };
	struct co_group group;
	int result;

	co_group_init(&group);
	if (co_group_start(&group, beside_main, &b) < 0)
		return error_set(r->errp, "Cannot allocate memory");
	result = work(r);
	if (b.co)
		co_cancel(b.co);
	co_group_wait(&group);
	if (b.co)
		co_unref(b.co);
	return result;
}

struct check {
	const struct image_chain *chain;
	struct error *err;
};

static int
check_work(void *arg)
{
	struct check *c = arg;

	return image_chain_check_same(c->chain, &c->err);
}

/* Is the source as it was? */
static bool
is_same(struct run *r)
{
	struct check c = { &r->chain, NULL };

	if (work_run(check_work, &c) == 0)
		return true;
	r->changed = c.err;
	return false;
}

/* What is written to the source makes all of the work vain: end at once. */
static void
watch_source(struct run *r)
{
	while (is_same(r))
		if (co_sleep(WATCH_NS) < 0)
			return;
	plan_stop(&r->plan);
	progress_clear(&r->progress);
	run_say(r, "the source was changed; ending");
}

/* While bytes move, write down now and then how many are safe.  What
 * fails here fails at the end of it too, where it is told. */
static void
keep_record(struct run *r)
{
	uint64_t noted = 0;

	while (co_sleep(RECORD_POLL_NS) == 0) {
		uint64_t done = atomic_load(&r->progress.done);

		if (done - noted < RECORD_BYTES)
			continue;
		noted = done;
		if (plan_record(&r->plan, NULL) < 0)
			break;
	}
}

static int
copy_all(struct run *r)
{
	for (unsigned i = 0; i < r->plan.count; i++) {
		if (i && plan_finish(&r->plan, i - 1, r->errp) < 0)
			return -1;
		if (is_stopped(r) || plan_begin(&r->plan, i, r->errp) < 0)
			return -1;
		if (is_stopped(r) || copy_run(&r->plan.copy[i], r->errp) < 0)
			return -1;
	}
	return 0;
}

static int
copy_recorded(struct run *r)
{
	int result;

	if (plan_record(&r->plan, r->errp) < 0)
		return -1;
	result = run_beside(r, keep_record, copy_all);
	/* Also of what ended too early; an error that there was comes first. */
	return plan_record(&r->plan, result < 0 ? NULL : r->errp) < 0 ? -1 : result;
}

int
run_copy(struct run *r)
{
	int result;

	r->stage = STAGE_COPYING;
	survey_watch(&r->layers, !r->o->mixed);
	run_start_progress(r, NULL, plan_work(&r->plan, false));
	result = run_end_progress(r, run_beside(r, watch_source,
					    r->plan.resume ? copy_recorded : copy_all));
	survey_watch(&r->layers, false);
	if (!r->o->mixed)
		survey_tell(&r->layers, r->o->say);
	return result;
}

/* ---- finishing ---- */

static int
verify_all(struct run *r)
{
	for (unsigned i = 0; i < r->plan.count; i++)
		if (is_stopped(r) || copy_verify(&r->plan.copy[i], r->errp) < 0)
			return -1;
	return 0;
}

static int
verify(struct run *r)
{
	/* All of it, whatever was copied by which run. */
	for (unsigned i = 0; i < r->plan.count; i++) {
		r->plan.copy[i].start = 0;
		if (copy_measure(&r->plan.copy[i], r->errp) < 0)
			return -1;
	}
	run_start_progress(r, "verify: ", plan_work(&r->plan, true));
	if (run_end_progress(r, run_beside(r, watch_source, verify_all)) < 0) {
		if (!is_stopped(r))
			plan_forget(&r->plan);
		return -1;
	}
	run_say(r, "verified: read back %s, it is the same", r->plan.copy[0].verified);
	return 0;
}

static void
say_lost(struct run *r)
{
	char text[PROGRESS_BYTES];
	uint64_t places, bytes = plan_lost(&r->plan, &places);

	if (!places)
		return;
	progress_format_bytes(bytes, text);
	run_say(r, "%s in %" PRIu64 " places could not be read; zeroes stand there, and the map says "
	     "where", text, places);
	r->status = RUN_INCOMPLETE;
}

int
run_finish(struct run *r)
{
	phase_set("waiting for the disk\n");
	for (unsigned i = 0; i < r->plan.count; i++)
		if (plan_finish(&r->plan, i, r->errp) < 0)
			return -1;
	r->stage = STAGE_COPIED;
	if (r->o->verify && verify(r) < 0)
		return -1;
	if (!is_same(r))
		return -1;
	/* The last moment for a signal to be in time. */
	if (r->signo || plan_publish(&r->plan, r->errp) < 0)
		return -1;
	r->status = RUN_OK;
	say_lost(r);
	return 0;
}
