/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/progress.h - how far a long run is, on a terminal or in a log.
 *
 * On a terminal one line is drawn over and over: a bar, the rate, the time
 * left.  Anywhere else a line is printed when another ten percent are done.
 *
 * Units      bytes.
 * Context    progress_add() on any thread, all else on loop 0.
 */
#ifndef RESCUE_PROGRESS_H
#define RESCUE_PROGRESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { PROGRESS_BYTES = 24 };

struct progress {
	FILE *to;		/* NULL: say nothing but what is asked for */
	bool bar;		/* to is a terminal */
	const char *what;	/* stands before it; NULL: nothing */
	uint64_t total;
	_Atomic uint64_t done;
	int64_t started;	/* on clock_ns() */
	unsigned next_percent;	/* lines: the next to print */
	bool drawn;		/* a bar stands on the last line */
};

/* what is borrowed until progress_end(). */
void progress_start(struct progress *p, FILE *to, const char *what, uint64_t total);
void progress_add(struct progress *p, uint64_t bytes);

/* Draw, or print a line if it is due; for a timer. */
void progress_show(struct progress *p);

/* One full line now, as SIGUSR1 asks for it; to stderr. */
void progress_print_status(struct progress *p);

/* The last state, and then no more. */
void progress_end(struct progress *p);

/* Take a drawn bar away, so that something else can be printed. */
void progress_clear(struct progress *p);

/* "1.5 GiB" */
void progress_format_bytes(uint64_t bytes, char out[static PROGRESS_BYTES]);

#endif
