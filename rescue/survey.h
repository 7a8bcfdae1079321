/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/survey.h - finding what of a chain is to be read otherwise (rescue/mixed.h).
 *
 * All that the layers with the old AES encryption store encrypted is read once, cluster by
 * cluster.  Damaged places are passed over: whoever copies them will say so.  Who does not
 * want that can have what is suspicious counted as it passes.
 *
 * Context    coroutine on loop 0.
 * Errors     0 or -1 with *errp; without it if it was stopped.
 */
#ifndef RESCUE_SURVEY_H
#define RESCUE_SURVEY_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct layers;
struct progress;

struct survey {
	struct layers *layers;		/* all have their keys */
	struct progress *progress;	/* gets the bytes of the disks that were passed */
	const int *stop;		/* ends it when it is not 0 */
};

/* The bytes that progress will get. */
uint64_t survey_work(const struct survey *s);

/* Look at all, and let each layer be read as it was found to be stored. */
int survey_run(const struct survey *s, struct error **errp);

/* Begin to count what seems to be stored otherwise, or end it. */
void survey_watch(struct layers *layers, bool on);

/* Say what was found, or what was counted, in lines without their ends.  say may be
 * NULL. */
void survey_tell(const struct layers *layers, void (*say)(const char *line));

#endif
