/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/checkpoint.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aio/timer.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/planted.h"
#include "block/io.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/map.h"
#include "block/qcow2/mark.h"
#include "block/qcow2/refs.h"

enum {
	/* Slices of a cache: as many as it holds anyway, within reason, for a checkpoint
	 * copies them all at once. */
	DIRTY_MIN = 256,
	DIRTY_MAX = 4096,
	FREED_RUNS_MAX = 1024,		/* runs set aside, before a checkpoint frees them */
	FREED_BYTES_MAX = 256 << 20,
	RECLAIM_TRIES = 64,
	RECLAIM_WAIT_NS = 1000000,
};

int
qcow2_barrier(struct qcow2 *q)
{
	/* The data first: what is flushed behind it may point there. */
	int r = 0;

	if (q->data_edge && !PLANTED(no_data_file_flush))
		r = node_flush(qcow2_data_file(q));
	if (!r)
		r = node_flush(qcow2_file(q));
	if (r < 0 && !PLANTED(flush_forgives))
		atomic_store(&q->failed, r);
	return r;
}

/* What is dirty at one instant. */
struct snapshot {
	struct qcow2_batch refs, l2;
	struct qcow2_dirty l1, reftable;
	uint8_t *l1_data, *reftable_data;
	size_t l1_room, reftable_room;	/* entries */
	size_t freed;			/* runs of q->freed until then */
};

static void
snapshot_done(struct snapshot *s)
{
	qcow2_batch_done(&s->refs);
	qcow2_batch_done(&s->l2);
	free(s->l1_data);
	free(s->reftable_data);
}

static size_t
entries_of(const struct qcow2_dirty *d)
{
	return d->lo < d->hi ? (size_t)(d->hi - d->lo) : 0;
}

static int
room_for(uint8_t **data, size_t *room, size_t n)
{
	if (n <= *room)
		return 0;
	free(*data);
	*data = malloc(n * 8);
	*room = *data ? n : 0;
	return *data ? 0 : -ENOMEM;
}

static void
copy_entries(uint8_t *to, const uint64_t *table, const struct qcow2_dirty *d)
{
	for (uint64_t i = d->lo; i < d->hi; i++, to += 8)
		put_be64(to, table[i]);
}

enum { COUNTS = 1, MAPS = 2 };

/* Take the instant, of counts, of maps, or of both.  Clusters unmapped until now go
 * aside: those whose unmapping is among what will be written. */
static int
snapshot_take(struct qcow2 *q, struct snapshot *s, unsigned what)
{
	for (;;) {
		size_t refs, l2, l1, reftable;
		int r;

		qcow2_lock(q);
		refs = what & COUNTS ? q->ref_cache.n_dirty : 0;
		l2 = what & MAPS ? q->l2_cache.n_dirty : 0;
		l1 = what & MAPS ? entries_of(&q->l1_dirty) : 0;
		reftable = what & COUNTS ? entries_of(&q->reftable_dirty) : 0;
		if (refs <= s->refs.room && l2 <= s->l2.room && l1 <= s->l1_room &&
		    reftable <= s->reftable_room)
			break;
		qcow2_unlock(q);
		r = qcow2_batch_reserve(q, &s->refs, refs + refs / 4);
		if (!r)
			r = qcow2_batch_reserve(q, &s->l2, l2 + l2 / 4);
		if (!r)
			r = room_for(&s->l1_data, &s->l1_room, l1);
		if (!r)
			r = room_for(&s->reftable_data, &s->reftable_room, reftable);
		if (r < 0)
			return r;
	}
	if (what & COUNTS) {
		qcow2_batch_collect(q, &q->ref_cache, &s->refs);
		s->reftable = q->reftable_dirty;
		q->reftable_dirty = (struct qcow2_dirty){ 0, 0 };
		copy_entries(s->reftable_data, q->reftable, &s->reftable);
	}
	if (what & MAPS) {
		qcow2_batch_collect(q, &q->l2_cache, &s->l2);
		s->l1 = q->l1_dirty;
		q->l1_dirty = (struct qcow2_dirty){ 0, 0 };
		copy_entries(s->l1_data, q->l1, &s->l1);
		s->freed = q->freed.sealed = q->freed.n;
	}
	qcow2_unlock(q);
	return 0;
}

static int
write_entries(struct qcow2 *q, uint64_t table, const struct qcow2_dirty *d, const uint8_t *data)
{
	size_t n = entries_of(d);

	return n ? node_pwrite(qcow2_file(q), table + 8 * d->lo, data, 8 * n) : 0;
}

/* Counts: the blocks, and where there are new ones a barrier and the table. */
static int
write_counts(struct qcow2 *q, struct snapshot *s)
{
	int r = qcow2_batch_write(q, &s->refs);

	if (!r && entries_of(&s->reftable)) {
		if (!PLANTED(no_barrier_before_reftable))
			r = qcow2_barrier(q);
		if (!r)
			r = write_entries(q, q->header.reftable_off, &s->reftable,
					  s->reftable_data);
	}
	qcow2_lock(q);
	qcow2_batch_settle(q, &s->refs, !r);
	if (r < 0 && entries_of(&s->reftable))
		qcow2_dirty_add(&q->reftable_dirty, s->reftable.lo, s->reftable.hi);
	qcow2_unlock(q);
	return r;
}

static int
write_maps(struct qcow2 *q, struct snapshot *s, int r)
{
	if (!r)
		r = qcow2_batch_write(q, &s->l2);
	if (!r)
		r = write_entries(q, q->header.l1_off, &s->l1, s->l1_data);
	qcow2_lock(q);
	qcow2_batch_settle(q, &s->l2, !r);
	if (r < 0 && entries_of(&s->l1))
		qcow2_dirty_add(&q->l1_dirty, s->l1.lo, s->l1.hi);
	qcow2_unlock(q);
	return r;
}

/* Move what was unmapped to the list of what is so on disk; or, on failure, it
 * stays where it was. */
static int
move_freed(struct qcow2 *q, size_t n)
{
	struct qcow2_freelist *from = &q->freed, *to = &q->unmapped;
	size_t room = to->n + n;
	struct qcow2_freed *runs;

	if (room > to->room) {
		runs = realloc(to->runs, room * sizeof(*runs));
		if (!runs)
			return -ENOMEM;
		to->runs = runs;
		to->room = room;
	}
	qcow2_lock(q);
	memcpy(to->runs + to->n, from->runs, n * sizeof(*runs));
	to->n += n;
	for (size_t i = 0; i < n; i++) {
		to->clusters += from->runs[i].n;
		from->clusters -= from->runs[i].n;
	}
	from->n -= n;
	from->sealed = 0;
	memmove(from->runs, from->runs + n, from->n * sizeof(*runs));
	qcow2_unlock(q);
	return 0;
}

static uint64_t
dirty_limit(const struct qcow2_cache *c)
{
	return max_u64(DIRTY_MIN, min_u64(c->max, DIRTY_MAX));
}

static bool
leaves_counts(struct qcow2 *q)
{
	bool few;

	qcow2_lock(q);
	few = q->lazy && q->ref_cache.n_dirty < dirty_limit(&q->ref_cache);
	qcow2_unlock(q);
	return few;
}

/* Before counts are left behind for the first time.  0: the image is marked; 1: not
 * yet, as there are none; -errno. */
static int
mark_lazy(struct qcow2 *q)
{
	bool any;
	int r;

	qcow2_lock(q);
	any = q->ref_cache.n_dirty || entries_of(&q->reftable_dirty);
	qcow2_unlock(q);
	if (q->header.incompat & QCOW2_INCOMPAT_DIRTY)
		return 0;
	if (!any)
		return 1;
	r = qcow2_mark_locked(q, QCOW2_INCOMPAT_DIRTY, 0);
	if (!r)
		q->lazy_marked = true;
	return r;
}

static int
checkpoint(struct qcow2 *q, struct snapshot *s)
{
	bool late = PLANTED(lazy_mark_late) && leaves_counts(q), maps;
	int r = late ? 0 : leaves_counts(q) ? mark_lazy(q) : 1;

	/* Marked, the counts may stay where they are. */
	if (r >= 0)
		r = snapshot_take(q, s, r ? COUNTS | MAPS : MAPS);
	maps = s->l2.n || entries_of(&s->l1);

	if (r < 0)
		return r;
	if (PLANTED(reuse_at_once) && s->freed && !move_freed(q, s->freed)) {
		s->freed = 0;
		(void)qcow2_refs_drop_now(q, true);
	}
	if (PLANTED(maps_before_counts))
		r = write_maps(q, s, 0);
	r = write_counts(q, s);
	if (!r && maps && !PLANTED(no_barrier_before_maps))
		r = qcow2_barrier(q);
	r = write_maps(q, s, r);
	if (!r && s->freed && !PLANTED(no_barrier_before_free))
		r = qcow2_barrier(q);
	if (!r && s->freed)
		r = move_freed(q, s->freed);
	if (!r)
		(void)qcow2_refs_drop_now(q, false);
	if (!r && late)
		(void)mark_lazy(q);
	return r;
}

int
qcow2_checkpoint(struct qcow2 *q)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->checkpoint;
	CLEANUP(snapshot_done) struct snapshot s = { 0 };
	int r;

	co_mutex_lock(held);
	r = atomic_load(&q->failed);
	return r < 0 ? r : checkpoint(q, &s);
}

/* How much there is to write, or to free: as a multiple of what should be. */
static uint64_t
pressure(struct qcow2 *q)
{
	uint64_t l2, refs, runs, bytes;

	qcow2_lock(q);
	l2 = q->l2_cache.n_dirty / dirty_limit(&q->l2_cache);
	refs = q->ref_cache.n_dirty / dirty_limit(&q->ref_cache);
	runs = q->freed.n / FREED_RUNS_MAX;
	bytes = (q->freed.clusters << q->cluster_bits) / FREED_BYTES_MAX;
	qcow2_unlock(q);
	return max_u64(max_u64(l2, refs), max_u64(runs, bytes));
}

/* If there is too much to write, or to free, the first that finds so does it; the
 * others go on until it is twice as much, and only then wait. */
int
qcow2_throttle(struct qcow2 *q)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = NULL;
	CLEANUP(snapshot_done) struct snapshot s = { 0 };
	uint64_t much = pressure(q);
	int r;

	if (!much)
		return 0;
	if (much > 1)
		co_mutex_lock(&q->checkpoint);
	else if (!co_mutex_trylock(&q->checkpoint))
		return 0;
	held = &q->checkpoint;
	r = atomic_load(&q->failed);
	if (r < 0)
		return r;
	/* Somebody else may have done it while we waited. */
	return pressure(q) ? checkpoint(q, &s) : 0;
}

static bool
may_reclaim(struct qcow2 *q)
{
	bool any;

	qcow2_lock(q);
	any = q->freed.n || q->unmapped.n;
	qcow2_unlock(q);
	return any && !atomic_load(&q->failed);
}

bool
qcow2_reclaim(struct qcow2 *q, uint64_t seen)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->checkpoint;

	co_mutex_lock(held);
	for (int i = 0; i < RECLAIM_TRIES && atomic_load(&q->reclaimed) == seen; i++) {
		CLEANUP(snapshot_done) struct snapshot s = { 0 };

		if (i > 1)
			(void)co_sleep(RECLAIM_WAIT_NS);
		if (!may_reclaim(q) || checkpoint(q, &s) < 0)
			break;
	}
	return atomic_load(&q->reclaimed) != seen;
}

int
qcow2_before_write(struct qcow2 *q)
{
	int r = atomic_load_explicit(&q->failed, memory_order_relaxed);

	if (!r && atomic_load_explicit(&q->mark_due, memory_order_acquire) &&
	    !PLANTED(bitmap_not_in_use))
		r = qcow2_bitmaps_before_write(q);
	return r < 0 ? r : qcow2_throttle(q);
}

int
qcow2_write_refs(struct qcow2 *q)
{
	CLEANUP(snapshot_done) struct snapshot s = { 0 };
	int r = snapshot_take(q, &s, COUNTS);

	if (r < 0)
		return r;
	r = qcow2_batch_write(q, &s.refs);
	qcow2_lock(q);
	qcow2_batch_settle(q, &s.refs, !r);
	if (entries_of(&s.reftable))
		qcow2_dirty_add(&q->reftable_dirty, s.reftable.lo, s.reftable.hi);
	qcow2_unlock(q);
	return r;
}

int
qcow2_write_field(struct qcow2 *q, uint64_t off, const void *field, size_t len)
{
	int r = atomic_load(&q->failed);

	if (!r && !PLANTED(no_barrier_before_field))
		r = qcow2_barrier(q);
	if (!r)
		r = node_pwrite(qcow2_file(q), off, field, len);
	if (!r)
		r = qcow2_barrier(q);
	return r;
}

int
qcow2_switch_field(struct qcow2 *q, uint64_t off, const void *old, const void *field, size_t len)
{
	int r = qcow2_write_field(q, off, field, len);

	if (r < 0 && !atomic_load(&q->failed) && qcow2_write_field(q, off, old, len) < 0)
		atomic_store(&q->failed, r);
	return r;
}

int
qcow2_flush(struct node *n)
{
	struct qcow2 *q = n->state;

	return n->read_only ? 0 : qcow2_checkpoint(q);
}
