/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/work.h - worker threads, as the crash tests have them: none.
 *
 * Context    one thread; coroutines.
 */
#ifndef TESTS_SIM_WORK_H
#define TESTS_SIM_WORK_H

struct sim;

/* s, while it records, says how long work takes; NULL: none does, work is done at once. */
void sim_work_by(struct sim *s);

#endif
