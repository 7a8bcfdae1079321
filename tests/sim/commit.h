/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/commit.h - a commit job, from its start to its end.
 *
 * Context    coroutine on loop 0.
 */
#ifndef TESTS_SIM_COMMIT_H
#define TESTS_SIM_COMMIT_H

struct node;
struct sim;

/* Move what is above base, from top down, into base.  If top is device, which the guest
 * writes to, the job is completed some moments after it is ready.  Whether it starts,
 * and ends well, is seen from the graph alone. */
void commit_run(struct sim *s, struct node *device, struct node *top, struct node *base);

#endif
