/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/judge.h - is what a power cut left a good image?
 *
 * Each state is opened by the driver.  Its check finds no corruption, or only such as
 * a dirty mark in the header admits and repair undoes; the guest sees what the model
 * allows.  Of some states, and of all that leak or are marked: repair makes them clean,
 * shows the guest the same, and so does whatever a power cut during the repair leaves;
 * the image can be written on; qemu-img check finds no more than leaks, and qemu-img
 * convert sees what we do.  Which states these are depends on their bytes alone, so that
 * a replay looks at the same, but qemu-img is asked as time allows.
 *
 * Context    coroutine on loop 0.
 */
#ifndef TESTS_SIM_JUDGE_H
#define TESTS_SIM_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/setup.h"
#include "tests/sim/states.h"

struct model;
struct qemu;

struct judge_counts {
	uint64_t judged, repaired, repair_states, written;
};

struct judge {
	const struct setup *setup;
	const struct model *model;
	struct judge_counts *counts;
	bool nested;		/* states of a repair: the cut is the one outside */
	long cut, covered;
	enum layer layer;	/* the guest's */
	struct qemu *qemu;	/* NULL: not asked */

	struct sim sim;
	struct stack stack;
	char text[320];		/* what is wrong */
};

/* The fields up to qemu are set, the rest zero. */
void judge_start(struct judge *j);
void judge_done(struct judge *j);

/* For struct states; arg is a struct judge. */
bool judge_state(struct states *s, long cut, void *arg);

#endif
