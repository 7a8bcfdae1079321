/* SPDX-License-Identifier: Apache-2.0 */
/* cli/report.h - what a rescue did, as one JSON object.
 *
 * docs/quoin-rescue.1 describes the members; programs read them.
 *
 * Context    the main thread; report_say() too.
 * Errors     out of memory leaves members out, and report_print() fails.
 */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

struct report;
struct run_view;

struct report *report_new(void);	/* NULL on no memory */
void report_free(struct report *r);	/* takes NULL */

/* A line for people. */
void report_say(struct report *r, const char *line);

/* The run is over; v is valid until this returns.  For struct run_options. */
void report_take(const struct run_view *v, void *report);

/* On stdout, once.  0 or -1. */
int report_print(struct report *r, int exit_status);

#endif
