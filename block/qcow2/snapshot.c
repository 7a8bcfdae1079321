/* SPDX-License-Identifier: Apache-2.0 */
/* Taking and dropping internal snapshots.
 *
 * A snapshot is a copy of the L1 table, an entry in the snapshot table, and one
 * more reference to all that the L1 table leads to.  No request is under way, and
 * all is on disk (qcow2_settle()) when either begins.  What makes it happen is one
 * write of twelve bytes of the header, within a sector: the number of snapshots
 * and the place of their table.
 *
 * Taking   mark      the image as dirty; barrier
 *          count     everything once more; barrier
 *          flags     off: nothing mapped is ours alone any more
 *          write     the copy of the L1 table, and the new snapshot table; barrier
 *          switch    the header to the new table; barrier
 *          drop      the old table; unmark
 *
 * Dropping mark      the image as dirty; barrier
 *          write     the new snapshot table; barrier
 *          switch    the header to it; barrier: nothing refers to the old L1 now
 *          count     everything once less
 *          flags     on where a count became one; barrier
 *          unmark
 *
 * Cut off before the switch, or when it fails, the old snapshots are there, behind
 * it the new ones: a table on disk never leads to a cluster that counts too little,
 * which is I1 of qcow2.h, and no cluster that two tables lead to is flagged as one's
 * own once the switch is on disk.  What a cut leaves are clusters that count too much,
 * and flags that do not agree with the counts: too few of them cost a copy, and too
 * many, before the switch, mean clusters that only the active table uses.  The dirty
 * mark has the next one who opens the image for writing put that right.
 *
 * Version 2 has no such mark, and no order of writes does without: a flag and the count
 * that it has to agree with lie in different sectors, so whichever is written first, a
 * cut leaves flagged clusters that count two, or clusters that count one without a flag.
 * Either way only the active table uses them, so writing in place and writing a copy
 * are both right, and the image can be used as it is; a check finds them, and
 * `quoin check --repair all` puts them right.  (Whole new tables and refcounts, with the
 * header switched to all of them in one sector, would leave nothing to find.  For a
 * format that is written today by request only that is not worth it.)
 *
 * Fails    Taking undoes what it did, in the reverse order, and the image is as it was.
 *          Should that fail too, or the switch in a way that leaves it unknown what
 *          the disk has, the mark stays.  Dropping fails as a whole up to the
 *          switch; behind it the snapshot is gone, the rest is leaked, and said. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/planted.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/mark.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/refs.h"
#include "block/qcow2/snapshots.h"
#include "block/qcow2/walk.h"
#include "block/snapshot.h"

enum { FIELD_LEN = 12 };	/* the number of snapshots, and their table's place */

/* A snapshot table on its way into the image. */
struct table {
	struct qcow2_snapshot *list;	/* shallow: entries belong to somebody else */
	uint32_t n;
	uint64_t off, len;
};

/* ---- the table ---- */

static void
encode_field(uint8_t field[FIELD_LEN], uint32_t n, uint64_t off)
{
	put_be32(field, n);
	put_be64(field + 4, off);
}

/* Write t's entries where there is room; nothing points there yet. */
static int
table_write(struct qcow2 *q, struct table *t)
{
	CLEANUP(cleanup_free) uint8_t *buf = NULL;
	int r;

	t->off = t->len = 0;
	if (!t->n)
		return 0;
	r = qcow2_snapshots_encode(t->list, t->n, &buf, &t->len);
	if (!r)
		r = qcow2_refs_take_all(q, qcow2_clusters(q, t->len), &t->off);
	if (r < 0)
		return r;
	r = node_pwrite(qcow2_file(q), t->off, buf, t->len);
	if (r < 0)
		(void)qcow2_refs_give_back(q, t->off, qcow2_clusters(q, t->len));
	return r;
}

static void
table_take_back(struct qcow2 *q, const struct table *t)
{
	if (t->n)
		(void)qcow2_refs_give_back(q, t->off, qcow2_clusters(q, t->len));
}

static void
table_adopt(struct qcow2 *q, struct table *t)
{
	qcow2_lock(q);
	free(q->snapshots);
	q->snapshots = STEAL(t->list);
	q->nb_snapshots = q->header.nb_snapshots = t->n;
	q->header.snapshots_off = t->off;
	q->snapshots_len = t->len;
	qcow2_unlock(q);
}

/* The switch on disk, and then in memory, where list replaces the old one. */
static int
table_switch(struct qcow2 *q, struct table *t)
{
	uint8_t old[FIELD_LEN], new[FIELD_LEN];
	uint64_t old_off = q->header.snapshots_off, old_len = q->nb_snapshots ? q->snapshots_len : 0;
	int r = qcow2_checkpoint(q);

	if (r < 0)
		return r;
	encode_field(old, q->header.nb_snapshots, old_off);
	encode_field(new, t->n, t->off);
	co_mutex_lock(&q->checkpoint);
	r = qcow2_switch_field(q, QCOW2_OFF_SNAPSHOTS, old, new, FIELD_LEN);
	if (!r)
		table_adopt(q, t);
	co_mutex_unlock(&q->checkpoint);
	if (r < 0)
		return r;
	if (old_len)
		(void)qcow2_refs_drop(q, old_off >> q->cluster_bits, qcow2_clusters(q, old_len),
				      QCOW2_FREE_SNAPSHOT);
	return 0;
}

static void
table_done(struct table *t)
{
	free(t->list);
}

int
qcow2_snapshots_rewrite(struct qcow2 *q)
{
	CLEANUP(table_done) struct table t = { .n = q->nb_snapshots };
	int r;

	t.list = malloc((t.n + 1) * sizeof(*t.list));
	if (!t.list)
		return -ENOMEM;
	memcpy(t.list, q->snapshots, t.n * sizeof(*t.list));
	r = table_write(q, &t);
	if (r < 0)
		return r;
	r = table_switch(q, &t);
	if (r < 0 && !q->header_unsure)
		table_take_back(q, &t);
	return r < 0 ? r : qcow2_settle(q);
}

/* ---- taking ---- */

/* One more than the largest number among the ids. */
static void
new_id(const struct qcow2 *q, char *id, size_t max)
{
	unsigned long largest = 0;

	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		unsigned long n = strtoul(q->snapshots[i].id, NULL, 10);

		if (n > largest)
			largest = n;
	}
	snprintf(id, max, "%lu", largest + 1);
}

/* Where the copy of the L1 table will be, and the entry that says so. */
static int
describe(struct qcow2 *q, const char *name, struct qcow2_snapshot *s)
{
	struct timespec now;
	char id[32];

	clock_gettime(CLOCK_REALTIME, &now);
	s->l1_size = (uint32_t)q->l1_size;
	s->date_sec = (uint32_t)now.tv_sec;
	s->date_nsec = (uint32_t)now.tv_nsec;
	s->vm_clock_nsec = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	s->disk_size = q->header.size;
	s->icount = UINT64_MAX;
	if (q->overlap_check & QCOW2_OVERLAP_INACTIVE_L2) {
		s->l1 = malloc(q->l1_size * 8 + 1);
		if (!s->l1)
			return -ENOMEM;
		memcpy(s->l1, q->l1, q->l1_size * 8);
	}
	new_id(q, id, sizeof(id));
	return qcow2_snapshot_init(s, id, name);
}

static int
write_l1(struct qcow2 *q, const struct qcow2_snapshot *s)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(q->l1_size * 8 + 1);

	if (!buf)
		return -ENOMEM;
	for (uint64_t i = 0; i < q->l1_size; i++)
		put_be64(buf + 8 * i, q->l1[i]);
	return node_pwrite(qcow2_file(q), s->l1_off, buf, q->l1_size * 8);
}

/* Everything is counted: flags, copy, table, switch. */
static int
publish(struct qcow2 *q, const struct qcow2_snapshot *s)
{
	CLEANUP(table_done) struct table t = { .n = q->nb_snapshots + 1 };
	int r;

	t.list = malloc(t.n * sizeof(*t.list));
	if (!t.list)
		return -ENOMEM;
	if (q->nb_snapshots)
		memcpy(t.list, q->snapshots, q->nb_snapshots * sizeof(*t.list));
	t.list[q->nb_snapshots] = *s;
	r = PLANTED(snapshot_keeps_copied) ? 0 : qcow2_walk_flags(q);
	if (!r)
		r = write_l1(q, s);
	if (!r)
		r = table_write(q, &t);
	if (r < 0)
		return r;
	r = table_switch(q, &t);
	if (r < 0 && !atomic_load(&q->failed))
		table_take_back(q, &t);
	return r;
}

/* *ret_sound: counts and flags are right, also after a failure. */
static int
count_and_publish(struct qcow2 *q, const struct qcow2_snapshot *s, bool *ret_sound)
{
	uint64_t added;
	int r = qcow2_walk_add(q, q->l1, q->l1_size, &added), undone;

	if (!r)
		r = qcow2_checkpoint(q);
	if (!r)
		r = publish(q, s);
	*ret_sound = !r;
	if (r < 0 && !atomic_load(&q->failed)) {
		undone = qcow2_walk_take_back(q, q->l1, q->l1_size, added);
		if (!undone)
			undone = qcow2_walk_flags(q);
		*ret_sound = !undone;
	}
	return r;
}

/* With making_l2 held, and the image marked. */
static int
take(struct qcow2 *q, const char *name, bool *ret_sound)
{
	uint64_t clusters = qcow2_clusters(q, q->l1_size * 8);
	struct qcow2_snapshot s = { 0 };
	int r = clusters ? qcow2_refs_take_all(q, clusters, &s.l1_off) : 0;

	if (r < 0)
		return r;
	r = describe(q, name, &s);
	if (!r)
		r = count_and_publish(q, &s, ret_sound);
	if (!r)
		return 0;
	if (clusters && !atomic_load(&q->failed))
		(void)qcow2_refs_give_back(q, s.l1_off, clusters);
	qcow2_snapshot_done(&s);
	return r;
}

/* ---- marking ---- */

static int
begin(struct qcow2 *q)
{
	int r = qcow2_settle(q);

	return r < 0 ? r : qcow2_mark(q, QCOW2_INCOMPAT_DIRTY);
}

/* What fails here leaves the mark, and with it nothing worse than a repair. */
static void
end(struct qcow2 *q, bool was_dirty, bool sound)
{
	if (!sound)
		q->lazy_marked = false;	/* dirty for more than lazy counts now */
	else if (!was_dirty && !qcow2_settle(q))
		(void)qcow2_unmark(q, QCOW2_INCOMPAT_DIRTY);
}

static int
snapshot_take(struct node *n, const char *name)
{
	struct qcow2 *q = n->state;
	CLEANUP(co_mutex_unlockp) struct co_mutex *making = &q->making_l2;
	bool was_dirty, sound = true;
	int r;

	co_mutex_lock(making);	/* the L1 table stands still */
	if (q->nb_snapshots >= QCOW2_SNAPSHOTS_MAX)
		return -EFBIG;
	was_dirty = q->header.incompat & QCOW2_INCOMPAT_DIRTY;
	r = begin(q);
	if (!r)
		r = take(q, name, &sound);
	end(q, was_dirty, sound);
	return qcow2_corrupt_end(q, r);
}

/* ---- dropping ---- */

/* Take entry i out of the table, on disk and in memory. */
static int
remove_entry(struct qcow2 *q, uint32_t i)
{
	CLEANUP(table_done) struct table t = { .n = q->nb_snapshots - 1 };
	int r;

	t.list = malloc((t.n + 1) * sizeof(*t.list));
	if (!t.list)
		return -ENOMEM;
	memcpy(t.list, q->snapshots, i * sizeof(*t.list));
	memcpy(t.list + i, q->snapshots + i + 1, (t.n - i) * sizeof(*t.list));
	r = table_write(q, &t);
	if (r < 0)
		return r;
	r = table_switch(q, &t);
	if (r < 0 && !atomic_load(&q->failed))
		table_take_back(q, &t);
	return r;
}

/* Nothing on disk refers to s any more: let go of what it referred to. */
static int
let_go(struct qcow2 *q, const struct qcow2_snapshot *s, const uint64_t *l1, struct error **errp)
{
	int r = qcow2_walk_drop(q, l1, s->l1_size);

	if (!r && s->l1_size)
		r = qcow2_refs_drop(q, s->l1_off >> q->cluster_bits,
				    qcow2_clusters(q, (uint64_t)s->l1_size * 8),
				    QCOW2_FREE_SNAPSHOT);
	if (!r)
		r = qcow2_checkpoint(q);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to free the cluster and L1 table"), -1;
	r = qcow2_walk_flags(q);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to update snapshot status in disk"), -1;
	return 0;
}

/* With making_l2 held. */
static int
drop(struct qcow2 *q, uint32_t i, struct error **errp)
{
	CLEANUP(qcow2_snapshot_done) struct qcow2_snapshot s = { 0 };
	bool was_dirty = q->header.incompat & QCOW2_INCOMPAT_DIRTY, sound = true;
	CLEANUP(cleanup_free) uint64_t *l1 = NULL;
	int r;

	if (qcow2_snapshot_check(q, &q->snapshots[i], errp))
		return -1;
	r = begin(q);
	if (!r)
		r = qcow2_walk_read_l1(q, q->snapshots[i].l1_off, q->snapshots[i].l1_size, &l1);
	if (!r) {
		struct qcow2_snapshot gone = q->snapshots[i];

		r = remove_entry(q, i);
		if (!r)
			s = gone;
	}
	if (r < 0)
		error_set_errno(errp, r, "Failed to remove snapshot from snapshot list");
	else
		sound = !let_go(q, &s, l1, errp);
	end(q, was_dirty, sound);
	(void)qcow2_corrupt_end(q, r);
	return r < 0 || !sound ? -1 : 0;
}

static bool
is_wanted(const struct qcow2_snapshot *s, const char *id, const char *name)
{
	return (!id || !strcmp(s->id, id)) && (!name || !strcmp(s->name, name));
}

static int
snapshot_drop(struct node *n, const char *id, const char *name, struct error **errp)
{
	struct qcow2 *q = n->state;
	CLEANUP(co_mutex_unlockp) struct co_mutex *making = &q->making_l2;

	co_mutex_lock(making);
	for (uint32_t i = 0; i < q->nb_snapshots; i++)
		if (is_wanted(&q->snapshots[i], id, name))
			return drop(q, i, errp);
	return error_set(errp, "Can't find the snapshot");
}

/* ---- looking ---- */

static int
snapshot_find(struct node *n, const char *id, const char *name, struct SnapshotInfo **ret_info)
{
	const struct qcow2 *q = n->state;

	if (q->data_edge)
		return -ENOTSUP;
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		if (!is_wanted(&q->snapshots[i], id, name))
			continue;
		*ret_info = qcow2_snapshot_info(&q->snapshots[i]);
		return *ret_info ? 1 : -ENOMEM;
	}
	return 0;
}

const struct snapshot_ops qcow2_snapshot_ops = {
	.find = snapshot_find,
	.take = snapshot_take,
	.drop = snapshot_drop,
};
