/* SPDX-License-Identifier: Apache-2.0 */
/* Reading the snapshot table, and counting what the internal snapshots refer to. */
#include <errno.h>
#include <inttypes.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/qcow2/check_int.h"
#include "block/qcow2/snapshots.h"

int
qcow2_check_read_snapshots(struct qcow2_checker *c)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct qcow2 *q = c->q;
	const struct qcow2_header *h = &q->header;

	if (!q->checking)
		return 0;	/* they are there */
	qcow2_snapshots_done(q);
	/* An entry of the table takes at least 40 bytes. */
	if (qcow2_table_check(h->snapshots_off, h->nb_snapshots, 40, 40 * QCOW2_SNAPSHOTS_MAX,
			      q->cluster_bits, "snapshot table", &err))
		qcow2_check_say(c, "ERROR %s", error_text(err));
	else if (qcow2_snapshots_read(q, &err))
		qcow2_check_say(c, "ERROR failed to read the snapshot table: %s", error_text(err));
	if (!err)
		return 0;
	c->result->errors++;
	return -EINVAL;
}

static int
check_snapshot(struct qcow2_checker *c, const struct qcow2_snapshot *s)
{
	if (!is_aligned(s->l1_off, c->q->cluster_size)) {
		qcow2_check_say(c, "ERROR snapshot %s (%s) l1_offset=0x%" PRIx64 ": L1 table is not "
				   "cluster aligned; snapshot table entry corrupted",
				s->id, s->name, s->l1_off);
		c->result->corruptions++;
		return 0;
	}
	if (s->l1_size > QCOW2_L1_MAX / 8) {
		qcow2_check_say(c, "ERROR snapshot %s (%s) l1_size=0x%" PRIx32 ": L1 table is too "
				   "large; snapshot table entry corrupted",
				s->id, s->name, s->l1_size);
		c->result->corruptions++;
		return 0;
	}
	return qcow2_check_inactive(c, s->l1_off, s->l1_size);
}

int
qcow2_check_snapshots(struct qcow2_checker *c)
{
	const struct qcow2 *q = c->q;
	int r = 0;

	for (uint32_t i = 0; i < q->nb_snapshots && !r; i++)
		r = check_snapshot(c, &q->snapshots[i]);
	if (!r && q->nb_snapshots)
		r = qcow2_check_count(c, q->header.snapshots_off, q->snapshots_len);
	return r;
}
