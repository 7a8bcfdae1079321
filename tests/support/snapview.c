/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/snapview.h"

#include <stdlib.h>

#include "block/driver.h"
#include "block/io.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "block/qcow2/walk.h"

/* Reading goes through the snapshot's L1 table for as long as it takes. */
int
snapview_read(struct node *n, const struct qcow2_snapshot *s, uint8_t *buf, uint64_t len)
{
	struct qcow2 *q = n->state;
	uint64_t *l1, *own = q->l1, own_size = q->l1_size, size = atomic_load(&n->size);
	int r = qcow2_walk_read_l1(q, s->l1_off, s->l1_size, &l1);

	if (r < 0)
		return r;
	q->l1 = l1;
	q->l1_size = s->l1_size;
	atomic_store(&n->size, len);
	r = node_pread(n, 0, buf, len);
	atomic_store(&n->size, size);
	q->l1 = own;
	q->l1_size = own_size;
	free(l1);
	return r;
}
