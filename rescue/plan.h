/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/plan.h - the copies that a rescue is made of, and how they appear.
 *
 * A flattened rescue is one copy, of what a guest sees.  A kept chain is a copy of each
 * layer, the lowest first, into a folder that appears when all of them are whole: each
 * file is called as the layer's is (a number in front tells namesakes apart), and names
 * the one below it as its backing file, with its format.
 *
 * Units      bytes.
 * Context    plan_check(), and plan_done() of no copies: any thread; the rest:
 *            coroutine on loop 0.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_PLAN_H
#define RESCUE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "aio/colock.h"
#include "rescue/copy.h"
#include "rescue/resume.h"

struct error;
struct folder;
struct layers;
struct run_options;

struct plan {
	const struct run_options *o;
	const struct image_chain *chain;
	struct copy *copy;		/* the lowest layer first */
	unsigned count;
	struct folder *folder;		/* of a kept chain */
	struct resume *resume;		/* NULL: nothing outlives the run */
	struct resume_copy *resumed;	/* one for each copy */
	_Atomic size_t lost;		/* ranges, of all copies */
	uint64_t kept;			/* bytes that the last record speaks of */
	struct co_mutex sinks;		/* who flushes or closes them */
	int stop;			/* can be read from after plan_stop() */
};

int plan_init(struct plan *p, struct error **errp);	/* any thread; of no copies yet */

/* Before anything is opened: could the target be made? */
int plan_check(const struct run_options *o, const struct image_chain *chain,
	       struct error **errp);

/* top is the open chain; layers have their keys. */
int plan_make(struct plan *p, const struct run_options *o, const struct image_chain *chain,
	      const struct layers *layers, struct node *top, struct progress *progress,
	      struct error **errp);

/* Look what there is to do, see that there is room for it, and make the targets. */
int plan_open(struct plan *p, struct error **errp);

/* Bytes that the copies have to deal with, to be made or to be read back. */
uint64_t plan_work(const struct plan *p, bool verify);

/* Make copy i ready to be run, when the one before it is finished: writing takes memory,
 * which a kept chain has for one layer at a time. */
int plan_begin(struct plan *p, unsigned i, struct error **errp);

/* Wait until copy i is on stable storage, and let go of what writing it took.  Nothing if
 * that was done before. */
int plan_finish(struct plan *p, unsigned i, struct error **errp);

/* Make what was copied so far survive, and write that down. */
int plan_record(struct plan *p, struct error **errp);

/* Bytes of the disk, or of each layer's, that another run need not copy again. */
uint64_t plan_kept(const struct plan *p);

/* What was written proved wrong: the next run begins anew. */
void plan_forget(struct plan *p);

/* All is on stable storage: give it its name, the maps first. */
int plan_publish(struct plan *p, struct error **errp);

/* The places of all copies that were lost, and their bytes. */
uint64_t plan_lost(struct plan *p, uint64_t *ret_places);

/* Let what runs end soon, whatever it waits for.  Anywhere on loop 0. */
void plan_stop(struct plan *p);

void plan_done(struct plan *p);		/* leaves one of no copies */

#endif
