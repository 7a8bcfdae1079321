/* SPDX-License-Identifier: Apache-2.0 */
/* job/commit_plan.h - what a block-commit command means, checked. */
#ifndef JOB_COMMIT_PLAN_H
#define JOB_COMMIT_PLAN_H

#include <stdbool.h>

struct block_commit_args;
struct error;
struct node;

struct commit_plan {
	struct node *device;	/* where the chain begins */
	struct node *top, *base;
	bool active;		/* top is the active layer, or has a writer */
};

/* Loop 0.  Borrowed nodes.  0 or -1 with *errp. */
int commit_plan_make(const struct block_commit_args *a, struct commit_plan *p,
		     struct error **errp);

#endif
