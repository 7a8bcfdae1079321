/* SPDX-License-Identifier: Apache-2.0 */
/* The crash tests' program; docs/crash-testing.md tells what for.
 *
 *     crash                      the short set; TAP on standard output
 *     crash --minutes N          long random runs, from --seed S on
 *     crash --replay NAME        one workload, by its name
 *         --fault KINDS:N:ERRNO:FOR_GOOD
 *     crash --planted            find each planted bug (--enable-faults)
 *     crash --bug NAME           plant this one; with --planted: find it only
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "aio/loop.h"
#include "base/cleanup.h"
#include "base/planted.h"
#include "tests/sim/qemu.h"
#include "tests/sim/trial.h"

static const struct states_plan brief = { .enumerate = 6, .samples = 24, .tears = 6, .seed = 1 };
static const struct states_plan thorough = { .enumerate = 12, .samples = 2000, .tears = 64,
					     .seed = 1 };

struct totals {
	struct judge_counts judged;
	uint64_t workloads, faults;
};

enum { QEMU_PERCENT = 5 };	/* of the time, for qemu-img */

static struct totals totals;
static struct qemu qemu;

static double
seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void
report(double since)
{
	double took = seconds() - since;

	printf("# %llu workloads, %llu faults: %llu states judged (%.0f a second), of which "
	       "%llu repaired, %llu of cut-off repairs, %llu written on, %llu also checked and "
	       "%llu read by qemu-img\n",
	       (unsigned long long)totals.workloads, (unsigned long long)totals.faults,
	       (unsigned long long)totals.judged.judged, (double)totals.judged.judged / took,
	       (unsigned long long)totals.judged.repaired,
	       (unsigned long long)totals.judged.repair_states,
	       (unsigned long long)totals.judged.written, (unsigned long long)qemu.checked,
	       (unsigned long long)qemu.compared);
	fflush(stdout);
}

static void
prepare(struct trial *t, const struct states_plan *plan)
{
	*t = (struct trial){ .plan = *plan, .counts = &totals.judged, .qemu = &qemu };
}

static bool
try_one(struct trial *t)
{
	totals.workloads++;
	t->plan.seed = t->w.luck;
	return trial_run(t);
}

static bool
failed(struct trial *t)
{
	fprintf(stderr, "Replay: crash %s\n", trial_name(t));
	trial_explain(t);
	return false;
}

/* ---- sets ---- */

/* Each stride-th sequence of so many steps. */
static bool
short_ones(unsigned steps, uint64_t stride)
{
	struct trial t;

	for (uint64_t i = stride / 2; i < workload_shorts(steps); i += stride) {
		prepare(&t, &brief);
		if (workload_short(&t.w, steps, i) && !try_one(&t))
			return failed(&t);
	}
	return true;
}

static bool
long_ones(uint64_t from, uint64_t n, const struct states_plan *plan)
{
	struct trial t;

	for (uint64_t i = from; i < from + n; i++) {
		prepare(&t, plan);
		workload_long(&t.w, i);
		if (!try_one(&t))
			return failed(&t);
	}
	return true;
}

/* The n-th call of these kinds fails, for each n that it comes to. */
static bool
each_call_fails(struct trial *t, unsigned ops, int error, bool for_good)
{
	for (long n = 1;; n++) {
		t->fault = (struct sim_fault){ .ops = ops, .nth = n, .error = error,
					       .for_good = for_good };
		t->end_only = n % 5;
		t->plan.seed = (uint64_t)n;
		if (!trial_run(t))
			return false;
		if (!t->struck)
			return true;
		totals.faults++;
	}
}

static const struct states_plan few = { .enumerate = 2, .samples = 6, .tears = 2 };

/* Each kind of call in each place of one workload, which is t's. */
static bool
calls_fail(struct trial *t)
{
	static const unsigned kinds[] = { SIM_READ, SIM_WRITE | SIM_ZERO, SIM_DISCARD, SIM_FLUSH,
					  SIM_TRUNCATE };

	totals.workloads++;
	for (unsigned k = 0; k < 4 * ARRAY_SIZE(kinds); k++)
		if (!each_call_fails(t, kinds[k / 4], k & 2 ? -ENOSPC : -EIO, k & 1))
			return false;
	return true;
}

static bool
allocations_fail(struct trial *t)
{
	totals.workloads++;
	return each_call_fails(t, SIM_ALLOC, -ENOMEM, false) &&
	       each_call_fails(t, SIM_ALLOC, -ENOMEM, true);
}

static bool
faults(uint64_t from, uint64_t n)
{
	struct trial t;

	for (uint64_t i = from; i < from + n; i++) {
		prepare(&t, &few);
		workload_long(&t.w, i);
		if (!calls_fail(&t))
			return failed(&t);
	}
	return true;
}

/* Of each stride-th sequence of so many steps. */
static bool
heap_faults(unsigned steps, uint64_t stride, uint64_t from, uint64_t to)
{
	struct trial t;

	for (uint64_t i = from; i < to; i += stride) {
		prepare(&t, &few);
		if (workload_short(&t.w, steps, i) && !allocations_fail(&t))
			return failed(&t);
	}
	return true;
}

/* ---- planted bugs ---- */

#ifdef ENABLE_FAULTS
enum { HUNT_SECONDS = 120 };	/* of the processor's time, which may be a slow one */

static double
busy_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* It shows only where several workers share clusters. */
static bool
is_race(enum planted bug)
{
	return bug == PLANTED_reuse_under_a_reader || bug == PLANTED_pack_remembers_freed ||
	       bug == PLANTED_discard_after_free;
}

/* In a child: hunt the bug; the exit status says whether it was seen. */
static void
hunt(enum planted bug)
{
	struct trial t;

	planted_now = bug;
	if (loops_start(0, 0, NULL) < 0)
		_exit(3);
	for (uint64_t i = 1; busy_seconds() < HUNT_SECONDS; i++) {
		unsigned steps = i % 8 && !is_race(bug) ? 3 + 2 * (i & 1) : 0;
		uint64_t luck = sim_hash(i, "hunt", 4);

		prepare(&t, &brief);
		t.qemu = NULL;
		if (!steps)
			workload_long(&t.w, is_race(bug) ? i : i / 8);
		else if (!workload_short(&t.w, steps, luck % workload_shorts(steps)))
			continue;
		if (is_race(bug) && t.w.workers == 1)
			continue;
		if (!try_one(&t) || (i % 64 == 24 && !calls_fail(&t))) {
			printf("# %s in %.1f s: %s: %s\n", planted_name(bug), busy_seconds(),
			       t.w.name, t.text);
			fflush(stdout);
			_exit(1);
		}
	}
	_exit(0);
}

static bool
planted_bugs(void)
{
	unsigned missed = 0, n = 0;

	for (enum planted b = PLANTED_NONE + 1; b < PLANTED_BUGS; b++) {
		int status;
		pid_t pid;

		if (planted_now != PLANTED_NONE && b != planted_now)
			continue;
		pid = fork();
		if (!pid)
			hunt(b);
		waitpid(pid, &status, 0);
		n++;
		if (WIFEXITED(status) && WEXITSTATUS(status) == 1) {
			printf("ok %u - %s was found\n", n, planted_name(b));
		} else {
			missed++;
			printf("not ok %u - %s %s\n", n, planted_name(b),
			       WIFSIGNALED(status) ? "crashed the driver" : "was not found");
		}
		fflush(stdout);
	}
	return !missed;
}
#else
static bool
planted_bugs(void)
{
	printf("ok 1 # SKIP this build has no planted bugs (--enable-faults)\n");
	printf("SKIP: this build has no planted bugs (--enable-faults)\n");
	return true;
}
#endif

/* ---- main ---- */

static bool
tap(unsigned number, const char *what, bool ok)
{
	printf("%sok %u - %s\n", ok ? "" : "not ", number, what);
	fflush(stdout);
	return ok;
}

static bool
short_set(void)
{
	bool ok = true;

	ok &= tap(1, "every sequence of one step", short_ones(1, 1));
	ok &= tap(2, "every sequence of two steps", short_ones(2, 1));
	ok &= tap(3, "sequences of three steps", short_ones(3, 97));
	ok &= tap(4, "random workloads", long_ones(1, 150, &brief));
	ok &= tap(5, "disks that fail", faults(1, 2));
	ok &= tap(6, "memory that fails", heap_faults(2, 397, 198, workload_shorts(2)));
	return ok;
}

static bool
long_set(double minutes, uint64_t seed)
{
	double end = seconds() + 60 * minutes;
	uint64_t i = seed;

	for (; seconds() < end; i++) {
		struct trial t;

		if (!long_ones(i, 1, i % 8 ? &brief : &thorough) || (i % 16 == 0 && !faults(i, 1)))
			return false;
		prepare(&t, &few);
		workload_long(&t.w, i);
		if (i % 16 == 8 && !allocations_fail(&t))
			return failed(&t);
		for (uint64_t k = 0; k < 8 && seconds() < end; k++) {
			prepare(&t, &brief);
			if (workload_short(&t.w, 3, (i * 8 + k) * 7919 % workload_shorts(3)) &&
			    !try_one(&t))
				return failed(&t);
		}
	}
	printf("# seeds %llu to %llu\n", (unsigned long long)seed, (unsigned long long)i - 1);
	return true;
}

static bool
replay(const char *name, const char *fault)
{
	int error, for_good;
	struct trial t;

	prepare(&t, &thorough);
	if (fault && sscanf(fault, "%x:%ld:%d:%d", &t.fault.ops, &t.fault.nth, &error,
			    &for_good) == 4) {
		t.fault.error = -error;
		t.fault.for_good = for_good;
	}
	if (!workload_named(&t.w, name)) {
		fprintf(stderr, "no workload '%s'\n", name);
		return false;
	}
	workload_print(&t.w);
	if (try_one(&t))
		return true;
	return failed(&t);
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "minutes", required_argument, NULL, 'm' },
		{ "seed", required_argument, NULL, 's' },
		{ "replay", required_argument, NULL, 'r' },
		{ "fault", required_argument, NULL, 'f' },
		{ "planted", no_argument, NULL, 'p' },
		{ "bug", required_argument, NULL, 'b' },
		{ NULL, 0, NULL, 0 },
	};
	double minutes = 0, began = seconds();
	uint64_t seed = (uint64_t)time(NULL);
	const char *name = NULL, *fault = NULL, *program;
	bool planted = false, ok;

	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (c == 'm')
			minutes = strtod(optarg, NULL);
		else if (c == 's')
			seed = strtoull(optarg, NULL, 10);
		else if (c == 'r')
			name = optarg;
		else if (c == 'f')
			fault = optarg;
		else if (c == 'p')
			planted = true;
		else if (c != 'b' || !planted_plant(optarg))
			return 2;
	}
	program = getenv("QUOIN_QEMU_IMG");
	qemu_start(&qemu, program && *program ? program : NULL, QEMU_PERCENT / 100.0);
	if (planted)
		return !planted_bugs();
	if (loops_start(0, 0, NULL) < 0)
		return 2;
	if (minutes > 0)
		printf("# seed %llu\n", (unsigned long long)seed);
	ok = name ? replay(name, fault) : minutes > 0 ? long_set(minutes, seed) : short_set();
	report(began);
	loops_stop();
	return !ok;
}
