/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/states.h - every state of the disks that a power cut could leave.
 *
 * A cut comes at a moment.  What was safe by then is there; of all else that had been
 * submitted any part may be, from all disks.  A new state comes into being where
 * something is submitted, and is judged by a stricter rule where a flush is
 * acknowledged; between such moments there is nothing new to see.  Of what is pending:
 *
 *   - every subset, where it is at most `enumerate` writes;
 *   - else nothing, all, each alone and each left out, pairs, and seeded samples;
 *   - torn, in units of 512 and of 4096 bytes, any of which may be missing;
 *   - a file whose new length was lost, or came without the bytes.
 *
 * States that were seen already, under the same rule, are passed over.
 */
#ifndef TESTS_SIM_STATES_H
#define TESTS_SIM_STATES_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/disk.h"

struct states_plan {
	unsigned enumerate;	/* at most 16 */
	unsigned samples, tears;
	uint64_t seed;
};

struct states {
	const struct states_plan *plan;
	struct sim *sim;
	const long *promises;	/* moments at which something was acknowledged, in order */
	unsigned n_promises;
	long from;		/* cuts before this moment are left out */
	/* Look at work, which holds the disks as they are after the cut; what is done
	 * to it is undone.  false: stop. */
	bool (*judge)(struct states *s, long cut, void *arg);
	void *arg;

	struct image work[SIM_DISKS];
	uint64_t judged, skipped;
	char text[400];		/* what the state is made of, once a judge said no */
};

/* The fields up to arg are set, the rest zero.  Coroutine.  false: a judge said no. */
bool states_run(struct states *s);
void states_done(struct states *s);

#endif
