/* SPDX-License-Identifier: Apache-2.0 */
#include "base/planted.h"

#include <string.h>

enum planted planted_now;

static const char *const names[PLANTED_BUGS] = {
#define NAME(bug) [PLANTED_##bug] = #bug
	NAME(no_barrier_before_reftable),
	NAME(no_barrier_before_reftable_switch),
	NAME(no_barrier_before_maps),
	NAME(no_barrier_before_free),
	NAME(no_barrier_before_field),
	NAME(no_data_file_flush),
	NAME(maps_before_counts),
	NAME(link_before_data),
	NAME(reuse_at_once),
	NAME(reuse_under_a_reader),
	NAME(fresh_is_zero),
	NAME(cow_forgets_tail),
	NAME(regrow_shows_old),
	NAME(size_before_zeroes),
	NAME(flush_forgives),
	NAME(snapshot_keeps_copied),
	NAME(no_dirty_mark),
	NAME(bitmap_not_in_use),
	NAME(bitmap_trusted_early),
	NAME(lazy_mark_late),
	NAME(packed_too_tight),
	NAME(pack_remembers_freed),
	NAME(discard_after_free),
	NAME(grown_table_last),
	NAME(shrink_frees_first),
	NAME(commit_unflushed),
	NAME(commit_misses_writes),
#undef NAME
};

const char *
planted_name(enum planted bug)
{
	return names[bug];
}

bool
planted_plant(const char *name)
{
	for (unsigned i = PLANTED_NONE + 1; i < PLANTED_BUGS; i++)
		if (!strcmp(names[i], name)) {
			planted_now = (enum planted)i;
			return true;
		}
	return false;
}
