/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/survey.h - finding what of a layer is to be read otherwise (rescue/mixed.h).
 *
 * All that the layer stores encrypted is read once, cluster by cluster.  Damaged places
 * are passed over: whoever copies them will say so.
 *
 * Context    coroutine on loop 0.
 * Errors     0 or -1 with *errp; without it if it was stopped.
 */
#ifndef RESCUE_SURVEY_H
#define RESCUE_SURVEY_H

struct error;
struct layer;
struct progress;

struct survey {
	struct layer *layer;		/* encrypted with AES, and has its key */
	struct progress *progress;	/* gets the bytes of the disk that were passed */
	const int *stop;		/* ends it when it is not 0 */
};

/* Look at all of the layer, and let it be read as it was found to be stored. */
int survey_run(const struct survey *s, struct error **errp);

#endif
