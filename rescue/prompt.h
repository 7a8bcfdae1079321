/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/prompt.h - asking for a password on the terminal.
 *
 * The terminal is as it was afterwards, also when a signal ends the program: one that
 * comes while the question stands takes its usual effect when echo is on again.  After
 * a stop the question is asked anew.
 *
 * Context    the one thread that takes signals; blocks.
 * Errors     -1 with *errp.
 */
#ifndef RESCUE_PROMPT_H
#define RESCUE_PROMPT_H

struct error;
struct key;

/* Ask on the controlling terminal, without echo, for one line; it may be empty.  The
 * end of the input is an error. */
int prompt_key(const char *question, struct key **ret, struct error **errp);

#endif
