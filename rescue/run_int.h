/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/run_int.h - a rescue under way; for run*.c.
 *
 * Context    coroutine on loop 0.
 * Errors     0 or -1 with *errp of the run, unless a signal ended it.
 */
#ifndef RESCUE_RUN_INT_H
#define RESCUE_RUN_INT_H

#include <stdbool.h>
#include <stdint.h>

#include "aio/timer.h"
#include "rescue/image.h"
#include "rescue/layer.h"
#include "rescue/plan.h"
#include "rescue/progress.h"

struct error;
struct node;
struct root;
struct run_options;

/* How far the target is, for who is told what a run leaves that ends early. */
enum run_stage {
	STAGE_NOTHING,		/* nothing was written that is of any use */
	STAGE_COPYING,
	STAGE_COPIED,		/* all of it is on stable storage */
};

struct run {
	const struct run_options *o;
	struct error **errp;
	int status;

	struct image_chain chain;
	struct layers layers;
	struct node *source_node;
	struct root *source;
	struct plan plan;
	enum run_stage stage;
	struct progress progress;
	struct timer timer;
	int signo;		/* that ended it; 0: none */
	struct error *changed;	/* the source was, which ends it too */
	bool reported;
};

/* Tell people, unless they want to hear nothing. */
void run_say(const struct run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* run_copy.c: show how far something is that deals with so many bytes; result is that of
 * it, and is returned. */
void run_start_progress(struct run *r, const char *what, uint64_t bytes);
int run_end_progress(struct run *r, int result);

/* run_copy.c: fill the targets that the plan has opened. */
int run_copy(struct run *r);
/* ... make them stable, read them back if that is wanted, and give them their names. */
int run_finish(struct run *r);

#endif
