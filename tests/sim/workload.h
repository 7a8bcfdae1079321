/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/workload.h - what guests and operators do to an image while it is recorded.
 *
 * A workload is data, made from its name alone: "short:N" is the N-th sequence of
 * a few steps of one worker, of all that there are over all setups; "long:N" is a
 * seeded random one of several workers, who share clusters but no sectors.
 *
 * Context    workload_run: coroutine on loop 0.
 */
#ifndef TESTS_SIM_WORKLOAD_H
#define TESTS_SIM_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/sim/disk.h"
#include "tests/sim/model.h"
#include "tests/sim/setup.h"

enum { WORKERS_MAX = 3, STEPS_MAX = 32 };

enum step_kind {
	STEP_WRITE,
	STEP_COMPRESSED,	/* whole clusters */
	STEP_READ,
	STEP_ZERO,
	STEP_UNMAP,
	STEP_DISCARD,
	STEP_FLUSH,
	STEP_CHECKPOINT,	/* as when caches are full of dirty tables */
	STEP_RESIZE,		/* to sector */
	STEP_REOPEN,
	STEP_BITMAP_ADD,
	STEP_BITMAP_REMOVE,
	STEP_SNAPSHOT,		/* taken under the name of sector % 2 */
	STEP_DROP,
	STEP_COMMIT,		/* sector: one of enum commit_kind */
	STEPS,
};

enum commit_kind {
	COMMIT_NEXT,		/* the guest's layer into the one below, which it uses then */
	COMMIT_BASE,		/* and into the lowest */
	COMMIT_MID,		/* the layer below the guest's into the next */
	COMMITS,
};

struct step {
	enum step_kind kind;
	uint64_t sector, n;
};

struct workload {
	struct setup setup;
	uint64_t luck;
	unsigned workers;
	unsigned n[WORKERS_MAX];
	struct step steps[WORKERS_MAX][STEPS_MAX];
	char name[40];
};

/* What came of it. */
struct world {
	struct sim sim;
	struct stack stack;
	struct model model;
	bool lost;		/* what the guest's layer should have flushed */
	const char *wrong;	/* seen while it ran; NULL: nothing */
	char text[200];
};

/* How many short ones of so many steps there are. */
uint64_t workload_shorts(unsigned steps);

/* false: there is no such, or its image has no layers for a step of it. */
bool workload_short(struct workload *w, unsigned steps, uint64_t number);
void workload_long(struct workload *w, uint64_t number);
/* By its name; false: there is no such. */
bool workload_named(struct workload *w, const char *name);
void workload_print(const struct workload *w);

/* Run it with the fault (ops 0: none) striking while it is recorded. */
void workload_run(const struct workload *w, const struct sim_fault *fault, struct world *ret);
void world_done(struct world *w);

#endif
