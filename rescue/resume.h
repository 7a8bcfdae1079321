/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/resume.h - what is known of a run that was cut short, and what it is bound to.
 *
 * Beside the partial target stands a state, ".NAME.rescue-state".  It says up to where
 * each copy is done, which was on stable storage before it was written down, and what
 * of that was lost.  And it says what it was done from and how: each file's size, time
 * and first bytes, a check of each key, and the options.  Another run takes it up only
 * if all of that is the same; or all but a time, but then what was done is in doubt until
 * it has been compared with the source, which later runs are told too.
 *
 * The state is replaced as a whole, by rename, and fsynced with its folder.
 *
 * The check of a key is a salted digest of what the layer's cipher makes of one sector
 * of zeroes: whoever has the image can test a guess on it as well.
 *
 * Context    loop 0 or a worker; blocks; one caller at a time.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_RESUME_H
#define RESCUE_RESUME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rescue/lost.h"

struct error;
struct image_chain;
struct layers;
struct resume;

/* One copy's part of it. */
struct resume_copy {
	uint64_t size;		/* of the disk */
	uint64_t done;
	struct lost *lost;	/* borrowed; ranges before done are what counts */
};

/* Read the state of target, if there is one and the partial target is there too, and
 * set what copies have done.  All others begin anew.  options is one line.  What is in
 * doubt is an error unless all will be compared. */
int resume_start(const char *target, const struct image_chain *chain,
		 const struct layers *layers, const char *options, bool compared,
		 struct resume_copy *copies, size_t n, struct resume **ret, struct error **errp);

/* Is what was done in doubt? */
bool resume_is_doubtful(const struct resume *r);

/* Write down what copies have done, which is on stable storage. */
int resume_record(struct resume *r, struct error **errp);

/* It is over: take the state away. */
int resume_end(struct resume *r, struct error **errp);

void resume_free(struct resume *r);	/* takes NULL */

#endif
