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

#include "rescue/output.h"

struct error;
struct image_chain;
struct keyring;
struct layers;
struct plan;
struct run_options;

/* What there was, for a report; all is borrowed. */
struct run_view {
	const struct run_options *o;
	const struct image_chain *chain;
	const struct layers *layers;	/* the encrypted ones of chain */
	struct plan *plan;		/* of no copies, if it did not come that far */
	const struct error *error;	/* NULL: none */
};

/* The exit statuses of quoin rescue. */
enum run_status {
	RUN_OK = 0,
	RUN_FAILED = 1,		/* with *errp, like the next two; it says what was left */
	RUN_USAGE = 2,		/* not returned by run_rescue() */
	RUN_WRONG_KEY = 3,
	RUN_NOT_JUDGED = 4,
	RUN_INCOMPLETE = 5,	/* the target is there, with zeroes where data was lost */
	RUN_INTERRUPTED = 128,	/* plus the signal; with *errp, that says what was left */
};

enum run_format { RUN_RAW, RUN_QCOW2 };

/* An option that the command of a list repeats. */
struct run_again {
	const char *option, *value;	/* value NULL: it has none */
	bool is_key;			/* ... only if every key fits */
};

struct run_options {
	const char *source;
	const char *target;		/* NULL: list the chain on stdout, try the keys */
	enum run_format format;
	enum output_packing packing;	/* of what becomes qcow2 */
	bool force;
	bool keep_chain;		/* layer by layer, into a folder */
	bool resume;			/* leave a partial target, go on with one */
	bool verify;			/* read the target back and compare */
	bool salvage;			/* go on at damaged places */
	bool mixed;			/* find out how each sector is stored */
	const char *map;		/* ddrescue's mapfile of what was lost; NULL: none */
	FILE *progress;			/* NULL: none */
	struct keyring *keys;
	void (*say)(const char *line);	/* NULL: nothing */
	bool digest;			/* of the disk's content, or of each layer's */
	bool no_list;			/* without a target, only try the keys */
	const char *header;		/* of the lowest layer, a LUKS volume; NULL: none */
	const char *snapshot;		/* an internal one, in place of the active state */
	const struct run_again *again;	/* for a list, in their order */
	size_t again_count;
	bool keys_again;		/* false: keys are gone that others belong to */
	/* Called once at the end, if the chain could be read; NULL: not. */
	void (*report)(const struct run_view *v, void *user);
	void *report_user;
};

/* An enum run_status, or RUN_INTERRUPTED plus a signal's number. */
int run_rescue(const struct run_options *o, struct error **errp);

#endif
