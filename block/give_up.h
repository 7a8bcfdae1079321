/* SPDX-License-Identifier: Apache-2.0 */
/* block/give_up.h - how long a node that is being closed waits for its peers.
 *
 *	give_up_begin(&p, n, silent_ns);
 *	... wait for requests on n and below ...
 *	give_up_end(&p);
 *
 * Meanwhile a peer below n, or any peer where n is NULL, that is silent for silent_ns
 * while it owes an answer is given up: its requests fail.
 *
 * Context    coroutine on loop 0.
 * Ownership  p and n live until give_up_end().
 */
#ifndef BLOCK_GIVE_UP_H
#define BLOCK_GIVE_UP_H

#include <stdbool.h>
#include <stdint.h>

#include "aio/timer.h"

struct co;
struct node;

struct give_up_patience {
	struct node *node;
	int64_t silent_ns;
	struct timer timer;
	struct co *owner;
	bool looking, waiting;
};

void give_up_begin(struct give_up_patience *p, struct node *n, int64_t silent_ns);
void give_up_end(struct give_up_patience *p);

#endif
