/* SPDX-License-Identifier: Apache-2.0 */
/* base/planted.h - bugs planted on purpose, to see whether the tests find them.
 *
 * Only a build configured with --enable-faults has any: in all others PLANTED() is
 * false, and no trace of a bug is compiled.
 *
 * Context    PLANTED: any thread.  planted_now is set before threads start.
 */
#ifndef BASE_PLANTED_H
#define BASE_PLANTED_H

#include <stdbool.h>

#ifdef ENABLE_FAULTS

enum planted {
	PLANTED_NONE,
	PLANTED_no_barrier_before_reftable,	/* entries for blocks that are not on disk */
	PLANTED_no_barrier_before_reftable_switch,	/* nor is the new table */
	PLANTED_no_barrier_before_maps,	/* mapped before counted and filled */
	PLANTED_no_barrier_before_free,	/* freed before it is unmapped on disk */
	PLANTED_no_barrier_before_field,	/* the header before what it points at */
	PLANTED_no_data_file_flush,	/* mapped before filled, there */
	PLANTED_maps_before_counts,
	PLANTED_link_before_data,
	PLANTED_reuse_at_once,	/* of clusters that old entries point at */
	PLANTED_reuse_under_a_reader,	/* whose look-up was before the unmapping */
	PLANTED_fresh_is_zero,	/* where a cluster had an owner before */
	PLANTED_cow_forgets_tail,
	PLANTED_regrow_shows_old,	/* what was behind the end of a smaller disk */
	PLANTED_size_before_zeroes,	/* where a backing file is longer */
	PLANTED_flush_forgives,	/* a barrier that failed is tried again */
	PLANTED_snapshot_keeps_copied,	/* writes go into what it shares */
	PLANTED_no_dirty_mark,	/* while counts and flags do not agree */
	PLANTED_bitmap_not_in_use,	/* before the first write */
	PLANTED_bitmap_trusted_early,	/* before its bits are on disk */
	PLANTED_lazy_mark_late,	/* counts are left behind before it says so */
	PLANTED_packed_too_tight,	/* over the end of the one before */
	PLANTED_pack_remembers_freed,	/* and goes on in a cluster that is another's now */
	PLANTED_discard_after_free,	/* of what somebody else may have taken */
	PLANTED_grown_table_last,	/* the header points at it before it is there */
	PLANTED_shrink_frees_first,	/* what the table on disk still points at */
	PLANTED_commit_unflushed,	/* the guest uses base before all is on disk there */
	PLANTED_commit_misses_writes,	/* of the guest, while the bulk is copied */
	PLANTED_BUGS,
};

extern enum planted planted_now;
#define PLANTED(bug) (planted_now == PLANTED_##bug)

const char *planted_name(enum planted bug);
/* By its name; false: there is none such. */
bool planted_plant(const char *name);

#else

#define PLANTED(bug) false

static inline bool
planted_plant(const char *name)
{
	(void)name;
	return false;
}

#endif

#endif
