/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/run.h - a whole rescue: open the chain, find the keys, copy, publish.
 *
 * Context    the main thread, where no loops run; run_rescue() starts and stops
 *            them, and sets signal actions while it runs.
 */
#ifndef RESCUE_RUN_H
#define RESCUE_RUN_H

#include <stdbool.h>
#include <stdio.h>

struct error;
struct keyring;

/* The exit statuses of quoin rescue. */
enum run_status {
	RUN_OK = 0,
	RUN_FAILED = 1,		/* with *errp, like the next two; nothing was left behind */
	RUN_USAGE = 2,		/* not returned by run_rescue() */
	RUN_WRONG_KEY = 3,
	RUN_NOT_JUDGED = 4,
	RUN_INCOMPLETE = 5,	/* the target is there, with zeroes where data was lost */
	RUN_INTERRUPTED = 128,	/* plus the signal; no file was left behind */
};

enum run_format { RUN_RAW, RUN_QCOW2 };

struct run_options {
	const char *source;
	const char *target;		/* NULL: list the chain on stdout, try the keys */
	enum run_format format;
	bool force;
	bool keep_chain;		/* layer by layer, into a folder */
	bool resume;			/* leave a partial target, go on with one */
	bool verify;			/* read the target back and compare */
	bool salvage;			/* go on at damaged places */
	const char *map;		/* ddrescue's mapfile of what was lost; NULL: none */
	FILE *progress;			/* NULL: none */
	struct keyring *keys;
	void (*say)(const char *line);	/* NULL: nothing */
};

/* An enum run_status, or RUN_INTERRUPTED plus a signal's number. */
int run_rescue(const struct run_options *o, struct error **errp);

#endif
