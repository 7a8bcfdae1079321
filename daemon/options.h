/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/options.h - the command line: QSD's options, and a few of our own.
 *
 * Parsing finds out what there is to do, and does nothing of it.  The steps are
 * then carried out in the order of the command line; the first that fails ends
 * the start.
 */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include <stdbool.h>

struct error;

struct option_step;

struct options {
	bool daemonize;
	const char *pidfile;		/* NULL: none */
	unsigned io_loops;		/* 0: by the machine */
	bool no_uring;
	bool no_follow;			/* open nothing that an image names */
	char **image_dirs;		/* absolute; what images name lies there; empty: anywhere */
	int n_image_dirs;
	struct option_step *steps;
	int n_steps;
};

/* Fill opts from the command line; other strings are borrowed from argv.  Returns -1
 * to go on, else the status to exit with at once, everything being said. */
int options_parse(struct options *opts, int argc, char **argv);

/* Carry the steps out.  Coroutine on loop 0.  -1: *errp names the option. */
int options_apply(const struct options *opts, struct error **errp);

/* Is there one that starts the default NBD server? */
bool options_start_nbd(const struct options *opts);

void options_done(struct options *opts);

#endif
