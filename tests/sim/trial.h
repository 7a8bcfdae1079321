/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/trial.h - one workload, run and judged.
 *
 * Context    outside of coroutines, on loop 0.
 */
#ifndef TESTS_SIM_TRIAL_H
#define TESTS_SIM_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/judge.h"
#include "tests/sim/workload.h"

struct trial {
	/* Set before. */
	struct workload w;
	struct states_plan plan;
	struct judge_counts *counts;
	struct qemu *qemu;
	struct sim_fault fault;
	bool end_only;		/* cuts at the end only */

	/* Set by trial_run(). */
	bool struck;		/* the fault did */
	char text[800];		/* what is wrong, and where */
};

/* The arguments by which t is run again; in memory that the next call overwrites. */
const char *trial_name(const struct trial *t);

/* true: nothing is wrong.  Where the driver aborts, the trial's name is printed. */
bool trial_run(struct trial *t);

/* Say what is wrong, and take away steps as long as something still is. */
void trial_explain(struct trial *t);

#endif
