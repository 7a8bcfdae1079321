/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/qemu.h - qemu-img's opinion of a state: a process for each question, so
 * that only some are asked, as many as take a given part of the time.
 *
 * Context    any.
 */
#ifndef TESTS_SIM_QEMU_H
#define TESTS_SIM_QEMU_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/setup.h"

struct qemu {
	const char *img;	/* the program; NULL: there is none */
	double share;		/* of the time since the start */
	double began, spent;	/* seconds */
	uint64_t checked, compared;
	char text[160];
};

void qemu_start(struct qemu *q, const char *img, double share);

/* May it be asked now? */
bool qemu_is_due(const struct qemu *q);

/* Layer l, on the disks as they are now: does qemu-img check find no more than leaks?
 * NULL, or what is wrong, with the name of a file that holds the image. */
const char *qemu_check(struct qemu *q, const struct setup *p, const struct stack *k,
		       enum layer l);
/* Does it see these bytes on it? */
const char *qemu_compare(struct qemu *q, const struct setup *p, const struct stack *k,
			 enum layer l, const uint8_t *view, uint64_t size);

#endif
