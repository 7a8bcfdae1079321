/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/invariants.h - what must hold of an image's state in memory. */
#ifndef BLOCK_QCOW2_INVARIANTS_H
#define BLOCK_QCOW2_INVARIANTS_H

struct qcow2;

/* Assert all of it, as far as it is in memory; takes q->lock.  For tests: it looks
 * at every cached entry. */
void qcow2_invariants(struct qcow2 *q);

#endif
