/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/phase.h - what a run does while no bytes move, for who asks by SIGUSR1.
 *
 * The answer comes from the signal's handler, so that it comes also while loop 0 waits
 * for somebody to type, or computes for seconds.
 *
 * Context    any thread.
 */
#ifndef RESCUE_PHASE_H
#define RESCUE_PHASE_H

/* Answer from now on.  Before this, SIGUSR1 ends the process. */
void phase_watch(void);

/* A line with its end, which must live for ever. */
void phase_set(const char *line);

#endif
