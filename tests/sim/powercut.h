/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/powercut.h - what of a memdisk's writes a power cut leaves.
 *
 *     struct cut cut = { .how = how, .rng = { seed } };
 *     memdisk_image(m, count, cut_keeps, &cut, &size);
 */
#ifndef TESTS_SIM_POWERCUT_H
#define TESTS_SIM_POWERCUT_H

#include <stdbool.h>
#include <stddef.h>

#include "tests/unit/aio_test.h"

/* Of what no flush covers; higher numbers keep some too, with other luck. */
enum { KEEP_ALL, KEEP_NONE, KEEP_SOME };

struct cut {
	unsigned how;
	struct rng rng;
};

static inline bool
cut_keeps(size_t i, void *arg)
{
	struct cut *cut = arg;

	(void)i;
	return cut->how == KEEP_ALL || (cut->how >= KEEP_SOME && rng_below(&cut->rng, 2));
}

#endif
