/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/map.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/qcow2/corrupt.h"
#include "block/qcow2/overlap.h"
#include "block/qcow2/refs.h"

/* ---- looking up ---- */

/* Where the entry of a guest cluster stands. */
struct place {
	uint64_t l1_index, table;
	uint64_t slice_off, index, entries;		/* index, entries: in the slice */
	bool owned;					/* no snapshot shares the table */
};

/* A piece of a table that has to be loaded. */
struct missing {
	struct qcow2_cache *cache;
	uint64_t off;
};

/* Entry i of an L1 table that comes in pieces.  false: *ret_missing has to be loaded. */
static bool
find_in_piece(struct qcow2 *q, uint64_t i, uint64_t *ret, struct missing *ret_missing)
{
	uint64_t at = 8 * i, start = round_down(at, UINT64_C(1) << q->l1_cache.slice_bits);
	struct qcow2_slice *s;

	*ret = i < q->l1_stored ? QCOW2_OFFSET_MASK : 0;
	if (i >= q->l1_stored || !range_within(q->l1_off + at, 8, node_size(qcow2_file(q))))
		return true;
	if (!q->l1_used[at >> q->l1_cache.slice_bits]) {
		*ret = 0;
		return true;
	}
	*ret_missing = (struct missing){ &q->l1_cache, q->l1_off + start };
	s = qcow2_cache_find(&q->l1_cache, ret_missing->off);
	if (s)
		*ret = get_be64(s->data + (at - start));
	return s;
}

enum { PLACE_NONE, PLACE_FOUND, PLACE_MISSING };

/* With the lock held.  An enum above, or -EIO.  NONE: there is no table; MISSING: not known
 * before *ret_missing was loaded. */
static int
find_place(struct qcow2 *q, uint64_t guest, struct place *p, struct missing *ret_missing)
{
	uint64_t cluster = guest >> q->cluster_bits, in_table, entry;
	unsigned slice_entry_bits = q->slice_bits - q->l2e_bits;

	p->l1_index = cluster >> q->l2_bits;
	in_table = cluster & ((UINT64_C(1) << q->l2_bits) - 1);
	p->index = in_table & ((UINT64_C(1) << slice_entry_bits) - 1);
	p->entries = UINT64_C(1) << slice_entry_bits;
	if (p->l1_index >= q->l1_size)
		return -EIO;
	if (q->l1)
		entry = q->l1[p->l1_index];
	else if (!find_in_piece(q, p->l1_index, &entry, ret_missing))
		return PLACE_MISSING;
	p->table = entry & QCOW2_OFFSET_MASK;
	if (!p->table)
		return PLACE_NONE;
	if (!is_aligned(p->table, q->cluster_size))
		return qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "L2 table offset %#" PRIx64
					  " unaligned (L1 index: %#" PRIx64 ")", p->table,
					  p->l1_index);
	p->owned = entry & QCOW2_COPIED;
	p->slice_off = p->table + (in_table >> slice_entry_bits << q->slice_bits);
	return PLACE_FOUND;
}

/* ---- entries that cannot be ---- */

/* The entry's index in its table. */
static unsigned
index_of(const struct qcow2 *q, const struct place *p)
{
	return (unsigned)(((p->slice_off - p->table) >> q->l2e_bits) + p->index);
}

static int
wrong_entry(struct qcow2 *q, const struct place *p, const char *what)
{
	return qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "%s (L2 offset: %#" PRIx64
				  ", L2 index: %#x)", what, p->table, index_of(q, p));
}

static int
unaligned_entry(struct qcow2 *q, const struct place *p, struct qcow2_l2e e)
{
	return qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "Cluster allocation offset %#" PRIx64
				  " unaligned (L2 offset: %#" PRIx64 ", L2 index: %#x)",
				  e.entry & QCOW2_OFFSET_MASK, p->table, index_of(q, p));
}

static int
misplaced_entry(struct qcow2 *q, const struct place *p, struct qcow2_l2e e, uint64_t guest)
{
	return qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "External data file host cluster offset "
				  "%#" PRIx64 " does not match guest cluster offset: %#" PRIx64
				  ", L2 index: %#x)", e.entry & QCOW2_OFFSET_MASK, guest,
				  index_of(q, p));
}

/* Which a write is about to go to. */
static int
unaligned_target(struct qcow2 *q, struct qcow2_l2e e, uint64_t guest)
{
	return qcow2_corrupt_note(q, QCOW2_NOWHERE, 0, "%s cluster offset %#" PRIx64
				  " unaligned (guest offset: %#" PRIx64 ")",
				  e.entry & QCOW2_ZERO_BIT ? "Preallocated zero" : "Data",
				  e.entry & QCOW2_OFFSET_MASK, guest);
}

/* What one entry says about off within its cluster. */
static int
read_entry(struct qcow2 *q, const struct place *p, struct qcow2_l2e e, uint64_t off,
	   struct qcow2_run *run)
{
	uint64_t in_cluster = off & (q->cluster_size - 1);
	unsigned sub = qcow2_sub_of(q, off);

	run->kind = qcow2_l2e_kind(q, e, sub);
	run->owned = false;
	run->host = 0;
	run->len = qcow2_l2e_kind_end(q, e, sub) - in_cluster;
	switch (run->kind) {
	case QCOW2_RUN_INVALID:
		return wrong_entry(q, p, q->extended_l2 ? "Invalid cluster entry found "
							: "Zero cluster entry found in pre-v3 image");
	case QCOW2_RUN_COMPRESSED:
		if (q->external_data)
			return wrong_entry(q, p, "Compressed cluster entry found in image with "
						 "external data file");
		run->host = e.entry;
		break;
	case QCOW2_RUN_NORMAL:
	case QCOW2_RUN_ZERO_ALLOC:
	case QCOW2_RUN_UNFILLED:
		if (!is_aligned(e.entry & QCOW2_OFFSET_MASK, q->cluster_size))
			return unaligned_entry(q, p, e);
		run->host = (e.entry & QCOW2_OFFSET_MASK) + in_cluster;
		if (q->external_data && run->host != off)
			return misplaced_entry(q, p, e, off - in_cluster);
		run->owned = p->owned && (e.entry & QCOW2_COPIED);
		break;
	default:
		break;
	}
	return 0;
}

/* The same to a write, at guest, into the subcluster that starts at off. */
static int
write_entry(struct qcow2 *q, const struct place *p, struct qcow2_l2e e, uint64_t off,
	    uint64_t guest, struct qcow2_run *run)
{
	uint64_t in_cluster = off & (q->cluster_size - 1), host = e.entry & QCOW2_OFFSET_MASK;
	enum qcow2_kind kind = qcow2_l2e_kind(q, e, qcow2_sub_of(q, off));
	bool has_host = qcow2_l2e_has_host(q, e);
	bool owned = has_host && p->owned && (e.entry & QCOW2_COPIED);
	bool odd = has_host && !is_aligned(host, q->cluster_size);
	bool misplaced = q->external_data && has_host && host + in_cluster != off;

	if (owned && odd)
		return unaligned_target(q, e, guest);
	if (q->extended_l2 && kind == QCOW2_RUN_INVALID)
		return wrong_entry(q, p, "Invalid cluster entry found");
	if (kind != QCOW2_RUN_INVALID && (owned || (!odd && !misplaced)) &&
	    !(kind == QCOW2_RUN_COMPRESSED && q->external_data))
		return read_entry(q, p, e, off, run);
	*run = (struct qcow2_run){
		.kind = QCOW2_RUN_INVALID, .owned = owned,
		.len = q->cluster_size - in_cluster, .host = owned ? host + in_cluster : 0,
	};
	return 0;
}

/* Does entry go on where run ends? */
static bool
continues(const struct qcow2 *q, const struct place *p, const struct qcow2_run *run,
	  struct qcow2_l2e e)
{
	if (qcow2_l2e_kind(q, e, 0) != run->kind)
		return false;
	switch (run->kind) {
	case QCOW2_RUN_UNALLOCATED:
	case QCOW2_RUN_ZERO:
		return true;
	case QCOW2_RUN_COMPRESSED:
	case QCOW2_RUN_INVALID:
		return false;
	default:
		return (e.entry & QCOW2_OFFSET_MASK) == run->host + run->len &&
		       (p->owned && (e.entry & QCOW2_COPIED)) == run->owned;
	}
}

/* Make run longer with the slice's entries from i on; true: to its end. */
static bool
extend(const struct qcow2 *q, const struct place *p, struct qcow2_run *run,
       const uint8_t *data, uint64_t i, uint64_t len)
{
	while (i < p->entries && run->len < len) {
		struct qcow2_l2e e = qcow2_l2e_get(q, data, i++);
		uint32_t part;

		if (!continues(q, p, run, e))
			return false;
		part = qcow2_l2e_kind_end(q, e, 0);
		run->len += part;
		if (part < q->cluster_size)
			return false;
	}
	return run->len < len;
}

/* What a run is looked up for: a write at guest, if it is one. */
struct purpose {
	bool write;
	uint64_t guest;
};

/* With the lock held.  1: *run; 0: *ret_missing has to be loaded; -EIO. */
static int
find_run(struct qcow2 *q, uint64_t off, uint64_t len, struct purpose why, struct qcow2_run *run,
	 struct missing *ret_missing)
{
	uint64_t next, l2_span = UINT64_C(1) << (q->l2_bits + q->cluster_bits);
	struct qcow2_slice *s;
	struct qcow2_l2e e;
	struct missing behind;
	struct place p;
	int r = find_place(q, off, &p, ret_missing);

	if (r < 0)
		return r;
	if (r == PLACE_MISSING)
		return 0;
	if (r == PLACE_NONE) {
		*run = (struct qcow2_run){ .kind = QCOW2_RUN_UNALLOCATED,
					   .len = l2_span - (off & (l2_span - 1)) };
	} else {
		s = qcow2_cache_find(&q->l2_cache, p.slice_off);
		if (!s) {
			*ret_missing = (struct missing){ &q->l2_cache, p.slice_off };
			return 0;
		}
		e = qcow2_l2e_get(q, s->data, p.index);
		r = why.write ? write_entry(q, &p, e, off, why.guest, run)
			      : read_entry(q, &p, e, off, run);
		if (r < 0)
			return r;
		if (!is_aligned(off + run->len, q->cluster_size) ||
		    !extend(q, &p, run, s->data, p.index + 1, len))
			goto out;
	}
	/* Into the next slices, as far as they are here and look all right. */
	while (run->len < len) {
		next = off + run->len;
		r = find_place(q, next, &p, &behind);
		if (r < 0 || r == PLACE_MISSING)
			break;
		if (r == PLACE_NONE) {
			if (run->kind != QCOW2_RUN_UNALLOCATED)
				break;
			run->len += l2_span - (next & (l2_span - 1));
			continue;
		}
		s = qcow2_cache_find(&q->l2_cache, p.slice_off);
		if (!s || !extend(q, &p, run, s->data, p.index, len))
			break;
	}
out:
	run->len = min_u64(run->len, len);
	return 1;
}

static int
lock_run(struct qcow2 *q, uint64_t off, uint64_t len, struct purpose why, struct qcow2_run *ret)
{
	for (;;) {
		struct missing missing;
		int r;

		qcow2_lock(q);
		r = find_run(q, off, len, why, ret, &missing);
		if (r > 0)
			return 0;
		qcow2_unlock(q);
		if (!r)
			r = qcow2_cache_load(q, missing.cache, missing.off);
		if (r < 0)
			return r;
	}
}

int
qcow2_map_lock(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_run *ret)
{
	return lock_run(q, off, len, (struct purpose){ .write = false }, ret);
}

int
qcow2_map_lock_write(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_run *ret)
{
	uint64_t start = round_down(off, q->sub_size), end = round_up(off + len, q->sub_size);

	return lock_run(q, start, end - start, (struct purpose){ .write = true, .guest = off },
			ret);
}

bool
qcow2_run_is_zero(const struct qcow2 *q, const struct qcow2_run *run)
{
	switch (run->kind) {
	case QCOW2_RUN_UNALLOCATED:
	case QCOW2_RUN_UNFILLED:
		return !qcow2_backing(q);
	case QCOW2_RUN_ZERO:
	case QCOW2_RUN_ZERO_ALLOC:
		return true;
	default:
		return false;
	}
}

void
qcow2_map_data(struct qcow2 *q, uint64_t guest, uint32_t *ret_lo, uint32_t *ret_hi)
{
	struct qcow2_slice *s;
	struct qcow2_l2e e = { 0, 0 };
	struct missing missing;
	struct place p;

	*ret_lo = *ret_hi = 0;
	if (find_place(q, guest, &p, &missing) != PLACE_FOUND)
		return;
	s = qcow2_cache_find(&q->l2_cache, p.slice_off);
	assert(s);	/* the run was found in it */
	e = qcow2_l2e_get(q, s->data, p.index);
	if (e.entry & QCOW2_COMPRESSED) {
		*ret_hi = q->cluster_size;
	} else if (q->extended_l2 && (uint32_t)e.bitmap) {
		*ret_lo = (uint32_t)__builtin_ctz((uint32_t)e.bitmap) << q->sub_bits;
		*ret_hi = (QCOW2_SUBCLUSTERS - (uint32_t)__builtin_clz((uint32_t)e.bitmap))
			  << q->sub_bits;
	}
}

/* ---- changing ---- */

/* Give L1 entry i a table of its own: an empty one, or a copy of the one that a
 * snapshot shares.  It is on its place, though not yet safe there, before the
 * entry changes. */
static int
make_table(struct qcow2 *q, uint64_t i)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->making_l2;
	CLEANUP(cleanup_free) uint8_t *data = NULL;
	uint32_t align = qcow2_file(q)->limits.mem_align;
	uint64_t old, host;
	int r;

	co_mutex_lock(held);
	qcow2_lock(q);
	old = q->l1[i];
	qcow2_unlock(q);
	if ((old & QCOW2_COPIED) && (old & QCOW2_OFFSET_MASK))
		return 0;	/* somebody was faster */
	old &= QCOW2_OFFSET_MASK;
	data = iov_alloc(align > 64 ? align : 64, q->cluster_size);
	if (!data)
		return -ENOMEM;
	memset(data, 0, q->cluster_size);
	if (old) {
		r = node_pread(qcow2_file(q), old, data, q->cluster_size);
		if (r < 0)
			return r;
	}
	r = qcow2_refs_take_all(q, 1, &host);
	if (r < 0)
		return r;
	qcow2_lock(q);
	r = qcow2_overlap_check(q, QCOW2_OVERLAP_CACHED, host, q->cluster_size);
	qcow2_unlock(q);
	if (!r)
		r = node_pwrite(qcow2_file(q), host, data, q->cluster_size);
	if (r < 0) {
		(void)qcow2_refs_give_back(q, host, 1);
		return r;
	}
	qcow2_lock(q);
	qcow2_cache_drop(&q->l2_cache, host, q->cluster_size);
	q->l1[i] = host | QCOW2_COPIED;
	qcow2_overlap_add(q, host, q->cluster_size);
	qcow2_dirty_add(&q->l1_dirty, i, i + 1);
	if (old) {
		/* It may have been ours alone, where a flag could not be put right. */
		qcow2_cache_drop(&q->l2_cache, old, q->cluster_size);
		qcow2_refs_drop_later(q, old, 1, QCOW2_FREE_OTHER);
	}
	qcow2_unlock(q);
	return 0;
}

/* Lock the slice that holds guest's entry, to change it.  1: with the lock held;
 * 0: there is no table, and skip (lock released, *p is set); -errno. */
static int
lock_slice(struct qcow2 *q, uint64_t guest, bool skip, struct place *p,
	   struct qcow2_slice **ret)
{
	for (;;) {
		struct missing missing;
		int r;

		qcow2_lock(q);
		r = find_place(q, guest, p, &missing);
		if (r == PLACE_FOUND && p->owned) {
			*ret = qcow2_cache_find(&q->l2_cache, p->slice_off);
			if (*ret)
				return 1;
			qcow2_unlock(q);
			r = qcow2_cache_load(q, &q->l2_cache, p->slice_off);
		} else {
			qcow2_unlock(q);
			if (r < 0 || (!r && skip))
				return r;
			r = make_table(q, p->l1_index);
		}
		if (r < 0)
			return r;
	}
}

/* Old gave way to new: what does the old entry refer to that the new does not?  From a
 * place that cannot be nothing is taken: it may be somebody else's. */
static void
drop_old(struct qcow2 *q, struct qcow2_l2e old, struct qcow2_l2e new, enum qcow2_free_why why)
{
	uint64_t old_host, new_host, n = qcow2_l2e_clusters(q, old, &old_host);

	if (!n)
		return;
	if (!(old.entry & QCOW2_COMPRESSED) && qcow2_l2e_clusters(q, new, &new_host) &&
	    old_host == new_host)
		return;
	if (!is_aligned(old_host, q->cluster_size)) {
		qcow2_corrupt_remark(q, "Cannot free unaligned cluster %#" PRIx64, old_host);
		return;
	}
	qcow2_refs_drop_later(q, old_host, n, why);
}

int
qcow2_map_change(struct qcow2 *q, uint64_t guest, uint64_t n, bool skip,
		 enum qcow2_free_why why, qcow2_map_fn fn, void *arg, uint64_t *ret_done)
{
	uint64_t done = 0;
	int r = 0;

	while (done < n) {
		uint64_t at = guest + (done << q->cluster_bits), m;
		struct qcow2_slice *s;
		struct place p;
		bool changed = false;

		r = lock_slice(q, at, skip, &p, &s);
		if (r < 0)
			break;
		m = min_u64(n - done, p.entries - p.index);
		if (!r) {
			done += m;
			continue;
		}
		for (uint64_t i = 0; i < m; i++) {
			struct qcow2_l2e old = qcow2_l2e_get(q, s->data, p.index + i);
			struct qcow2_l2e new = fn(q, old, done + i, arg);

			if (qcow2_l2e_equal(old, new))
				continue;
			qcow2_l2e_put(q, s->data, p.index + i, new);
			drop_old(q, old, new, why);
			changed = true;
		}
		if (changed)
			qcow2_cache_dirty(&q->l2_cache, s);
		qcow2_unlock(q);
		done += m;
	}
	*ret_done = done;
	return r < 0 ? r : 0;
}

struct link {
	uint64_t guest, host;
	uint64_t lo, hi;
};

static struct qcow2_l2e
link_entry(struct qcow2 *q, struct qcow2_l2e old, uint64_t index, void *arg)
{
	const struct link *l = arg;
	uint64_t host = l->host + (index << q->cluster_bits);
	uint64_t start = l->guest + (index << q->cluster_bits), end = start + q->cluster_size;
	uint64_t bitmap = old.entry & QCOW2_COMPRESSED ? 0 : old.bitmap;
	uint64_t lo = max_u64(l->lo, start), hi = min_u64(l->hi, end);

	if (q->extended_l2 && lo < hi) {
		uint64_t mask = qcow2_sub_mask(qcow2_sub_of(q, lo),
					       qcow2_sub_of(q, hi - 1) + 1);

		bitmap = (bitmap | mask) & ~(mask << 32);
	}
	return (struct qcow2_l2e){ host | QCOW2_COPIED, bitmap };
}

int
qcow2_map_link(struct qcow2 *q, uint64_t guest, uint64_t host, uint64_t n, uint64_t lo,
	       uint64_t hi, uint64_t *ret_done)
{
	struct link l = { guest, host, lo, hi };

	/* What was there is soon used again: the file keeps it. */
	return qcow2_map_change(q, guest, n, false, QCOW2_FREE_NEVER, link_entry, &l, ret_done);
}
