/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/trial.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "aio/loop.h"

enum { QEMU_EVERY = 4001, SHRINK_SECONDS = 20 };

struct run {
	struct trial *t;
	bool ok;
};

static bool
judge_world(struct trial *t, struct world *w)
{
	struct judge j = { .setup = &t->w.setup, .model = &w->model, .counts = t->counts,
			   .qemu_img = t->qemu_img, .qemu_every = QEMU_EVERY };
	struct states s = { .plan = &t->plan, .sim = &w->sim, .judge = judge_state, .arg = &j,
			    .from = t->end_only ? w->sim.now : 0 };
	long *promises = calloc(w->model.n_flushes + 1, sizeof(*promises));
	bool ok;

	assert(promises);
	for (size_t i = 0; i < w->model.n_flushes; i++)
		promises[s.n_promises++] = w->model.flushes[i].done;
	/* The end, whatever came of it. */
	promises[s.n_promises++] = sim_tick(&w->sim);
	s.promises = promises;
	judge_start(&j);
	ok = states_run(&s);
	if (!ok)
		snprintf(t->text, sizeof(t->text), "%s (%s)", j.text, s.text);
	judge_done(&j);
	states_done(&s);
	free(promises);
	return ok;
}

static void
run_co(void *arg)
{
	struct run *r = arg;
	struct world w;

	workload_run(&r->t->w, r->t->fault.nth ? &r->t->fault : NULL, &w);
	r->t->struck = w.sim.fault.hit;
	if (w.wrong) {
		snprintf(r->t->text, sizeof(r->t->text), "%s", w.wrong);
		r->ok = false;
	} else {
		r->ok = judge_world(r->t, &w);
	}
	world_done(&w);
}

const char *
trial_name(const struct trial *t)
{
	static char text[120];
	const struct sim_fault *f = &t->fault;
	int at = snprintf(text, sizeof(text), "--replay %s", t->w.name);

	if (f->nth)
		snprintf(text + at, sizeof(text) - (size_t)at, " --fault %#x:%ld:%d:%d", f->ops,
			 f->nth, -f->error, f->for_good);
	return text;
}

static const struct trial *running;

static void
tell(int signo)
{
	(void)signo;
	dprintf(STDERR_FILENO, "The driver aborted: crash %s\n", trial_name(running));
}

bool
trial_run(struct trial *t)
{
	struct run r = { .t = t };
	int err;

	running = t;
	signal(SIGABRT, tell);
	err = loop_run_co(run_co, &r);

	assert(!err);
	return r.ok;
}

/* ---- failures ---- */

static bool
fails_without(const struct trial *t, unsigned worker, unsigned step, struct trial *ret)
{
	struct workload *w = &ret->w;

	*ret = *t;
	memmove(&w->steps[worker][step], &w->steps[worker][step + 1],
		(w->n[worker] - step - 1) * sizeof(struct step));
	w->n[worker]--;
	return !trial_run(ret);
}

void
trial_explain(struct trial *t)
{
	time_t end = time(NULL) + SHRINK_SECONDS;
	struct trial *less = malloc(sizeof(*less));

	assert(less);
	fprintf(stderr, "FAILED: %s\n", t->text);
	workload_print(&t->w);
	for (unsigned k = 0; k < t->w.workers; k++)
		for (unsigned i = t->w.n[k]; i-- > 0 && time(NULL) < end;)
			if (fails_without(t, k, i, less))
				*t = *less;
	fprintf(stderr, "With fewer steps: %s\n", t->text);
	workload_print(&t->w);
	free(less);
}
