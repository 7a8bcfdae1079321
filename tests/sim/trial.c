/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/trial.h"

#include <assert.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "aio/loop.h"

enum { SHRINK_SECONDS = 20 };

struct run {
	struct trial *t;
	bool ok;
};

static int
compare_longs(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return x < y ? -1 : x > y;
}

/* The moments behind which more is asked of a state than before: something was
 * acknowledged.  Returns their number. */
static unsigned
collect_promises(struct world *w, long **ret)
{
	const struct model *m = &w->model;
	long *p = sim_alloc((m->n_flushes + 2 * m->n_snapshots + m->n_moves + 1) * sizeof(*p));
	unsigned n = 0;

	for (size_t i = 0; i < m->n_flushes; i++)
		p[n++] = m->flushes[i].done;
	for (size_t i = 0; i < m->n_snapshots; i++) {
		if (m->snapshots[i].taken != LONG_MAX)
			p[n++] = m->snapshots[i].taken;
		if (m->snapshots[i].dropped != LONG_MAX)
			p[n++] = m->snapshots[i].dropped;
	}
	for (size_t i = 0; i < m->n_moves; i++)
		p[n++] = m->moves[i].at;
	/* The end, whatever came of it. */
	p[n++] = sim_tick(&w->sim);
	qsort(p, n, sizeof(*p), compare_longs);
	*ret = p;
	return n;
}

static bool
judge_world(struct trial *t, struct world *w)
{
	struct judge j = { .setup = &t->w.setup, .model = &w->model, .counts = t->counts,
			   .qemu = t->qemu };
	struct states s = { .plan = &t->plan, .sim = &w->sim, .judge = judge_state, .arg = &j,
			    .from = t->end_only ? w->sim.now : 0 };
	long *promises;
	bool ok;

	s.n_promises = collect_promises(w, &promises);
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
