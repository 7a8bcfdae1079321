/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/copy.h - one disk, or one layer of it, to one output.
 *
 * A rescue is one copy, or one for each layer of a chain that is kept.  Fill in what
 * is public, then measure, open, run, finish, perhaps verify, and publish.
 *
 * Units      bytes.
 * Context    coroutine on loop 0; copy_stop() anywhere on loop 0.
 * Errors     0 or -1 with *errp, unless copy_stop() was called.
 */
#ifndef RESCUE_COPY_H
#define RESCUE_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "rescue/digest.h"
#include "rescue/lost.h"
#include "rescue/output.h"
#include "rescue/pipeline.h"

struct copy {
	const struct image_chain *chain;
	struct node *source, *base;	/* borrowed; base: see rescue/pipeline.h */
	unsigned layer;			/* the source's place in chain */
	struct output_spec spec;
	struct progress *progress;
	bool salvage;			/* go on at damaged places; see lost */
	bool want_digest;
	uint64_t start;			/* what lies before was copied by an earlier run */

	uint64_t resumed_at;		/* what start was at first; for reports */
	struct output *output;		/* from copy_open() on */
	struct pipeline_size size;	/* from copy_measure() on; behind start */
	struct lost lost;
	char digest[DIGEST_HEX];	/* of the content; "": not wanted, or not known yet */
	const char *verified;		/* how it was read back; NULL: it was not */

	/* Private. */
	bool copied;
	struct digest hash;
	struct pipeline *running;
};

void copy_init(struct copy *c);
int copy_measure(struct copy *c, struct error **errp);
int copy_open(struct copy *c, struct error **errp);
/* How many bytes copy_run(), or copy_verify(), will tell progress of. */
uint64_t copy_work(struct copy *c, bool verify);
/* All before this offset is with the sink; a flush makes it stable. */
uint64_t copy_position(struct copy *c);
/* Make it ready to be written to, then write it. */
int copy_begin(struct copy *c, struct error **errp);
int copy_run(struct copy *c, struct error **errp);

/* Read the source once more, and what was written, and compare.  After
 * output_finish(). */
int copy_verify(struct copy *c, struct error **errp);

/* The file at fault for a lost range. */
const char *copy_blamed(const struct copy *c, const struct lost_range *r);

void copy_stop(struct copy *c);

/* What was not published is gone. */
void copy_done(struct copy *c);

#endif
