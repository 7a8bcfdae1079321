/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/claim.h - who is changing which guest clusters' place right now.
 *
 * A request that will change the mapping of guest clusters claims them, in the
 * same hold of q->lock in which it looked them up; requests that want to
 * change the same clusters wait, and look up again.  Requests into different
 * clusters don't meet.  Reading, and writing in place, need no claim: they use
 * an epoch (below).
 *
 * Context    with q->lock held, unless it says coroutine.
 */
#ifndef BLOCK_QCOW2_CLAIM_H
#define BLOCK_QCOW2_CLAIM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct qcow2;

struct qcow2_claim {
	struct list link;
	uint64_t start, end;	/* guest bytes, whole clusters */
};

/* Claim [start, end) and return true, lock still held; or, where somebody else
 * has some of it, wait for a claim to go away and return false, with the lock
 * released: look up again.  Coroutine. */
bool qcow2_claim_take(struct qcow2 *q, struct qcow2_claim *c, uint64_t start, uint64_t end);

/* Give up [end, c->end).  Takes the lock itself. */
void qcow2_claim_shrink(struct qcow2 *q, struct qcow2_claim *c, uint64_t end);
/* Takes the lock itself. */
void qcow2_claim_drop(struct qcow2 *q, struct qcow2_claim *c);

/* ---- epochs: host clusters that requests use without a claim ----
 *
 * A request that found a host cluster in a table enters the present epoch, in
 * the same hold of the lock, and leaves it when it is done with the cluster.
 * Clusters unmapped in epoch e are used by nobody from epoch e + 2 on. */

unsigned qcow2_epoch_enter(struct qcow2 *q);	/* lock held; returns a token */
void qcow2_epoch_leave(struct qcow2 *q, unsigned token);	/* any time, no lock */
/* Move on by as many epochs, at most two, as nobody hinders. */
void qcow2_epoch_advance(struct qcow2 *q);

#endif
