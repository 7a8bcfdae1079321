/* SPDX-License-Identifier: Apache-2.0 */
/* block/ranges.h - byte ranges of requests under way, so that those that would
 * disturb each other take turns.
 *
 * Two claims conflict where they overlap and at least one is exclusive: a
 * read-modify-write of a block against a write beside it in the same block, a
 * copier against the guest.  Conflicting claims are granted in the order in
 * which they were made, so nobody starves.
 *
 * Context    coroutine, any loop.
 * Ownership  a claim lives in its maker's frame from ranges_claim() to
 *            ranges_release().  A struct ranges is valid after ranges_init()
 *            and needs no destructor.
 */
#ifndef BLOCK_RANGES_H
#define BLOCK_RANGES_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/colock.h"
#include "base/list.h"

struct ranges {
	pthread_mutex_t lock;
	struct list claims;	/* oldest first */
};

struct claim {
	struct list link;
	uint64_t off, len;
	bool exclusive;
	struct co_queue ended;
};

void ranges_init(struct ranges *rs);
void ranges_claim(struct ranges *rs, struct claim *c, uint64_t off, uint64_t len,
		  bool exclusive);
void ranges_release(struct ranges *rs, struct claim *c);

#endif
