/* SPDX-License-Identifier: Apache-2.0 */
/* Backups that a bitmap guides: what they copy, and what becomes of the bitmap. */
#include "tests/unit/backup_test.h"

#include <stdatomic.h>

#include "block/dirty.h"
#include "job/backup.h"
#include "tests/support/failheap.h"

enum { SIZE = 5 << 20, CLUSTER = 65536, OLD = 0xee };

static void
add_bitmap(struct disks *d)
{
	struct dirty_options o = { .name = "b", .granularity = 4096 };

	MUST(dirty_add(d->source_node, &o, &err));
	d->bitmap = dirty_find(d->source_node, "b");
}

static void
set_up(struct disks *d)
{
	disks_open(d, SIZE);
	memset(d->source->content, 0x11, SIZE);
	memset(d->target->content, OLD, SIZE);
	add_bitmap(d);
}

static void
put(struct disks *d, uint64_t off, int byte, size_t len)
{
	uint8_t *buf = malloc(len);
	struct iov v = IOV_BUF(buf, len);

	memset(buf, byte, len);
	assert_int_equal(io_write(d->guest, off, &v, 0), 0);
	free(buf);
}

static uint64_t
count(struct dirty_bitmap *b)
{
	uint64_t off = 0, len = 0, sum = 0;

	for (; dirty_next_run(b, off, UINT64_MAX, &off, &len); off += len)
		sum += len;
	return sum;
}

static struct BlockdevBackup
guided(enum BitmapSyncMode mode)
{
	return (struct BlockdevBackup){
		.job_id = (char *)"j", .device = (char *)"source", .target = (char *)"target",
		.bitmap = (char *)"b", .sync = MIRROR_SYNC_MODE_BITMAP,
		.has_bitmap_mode = true, .bitmap_mode = mode,
	};
}

static void
run_backup(const struct BlockdevBackup *a)
{
	MUST(backup_start(a, &err));
	wait_for_job("j", JOB_STATUS_NULL);
}

static void
check_equal(const struct disks *d)
{
	assert_memory_equal(d->source->content, d->target->content, SIZE);
}

#define CASE(name) FIXTURE_CASE(name, struct disks, d, set_up(d), disks_close(d))

CASE(only_clusters_with_marks_are_copied)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);

	put(d, CLUSTER + 5, 0x22, 1);
	put(d, 10 * CLUSTER - 1, 0x33, 2);
	run_backup(&a);
	assert_string_equal(seen.text, "");
	assert_int_equal(job_history(0)->total, 3 * CLUSTER);
	for (uint64_t c = 0; c < SIZE / CLUSTER; c++) {
		const uint8_t *is = d->target->content + c * CLUSTER;
		bool copied = c == 1 || c == 9 || c == 10;

		assert_int_equal(is[CLUSTER / 2], copied ? 0x11 : OLD);
		if (copied)
			assert_memory_equal(is, d->source->content + c * CLUSTER, CLUSTER);
	}
	assert_int_equal(count(d->bitmap), 0);
}

CASE(nothing_marked_nothing_copied)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);

	run_backup(&a);
	assert_string_equal(seen.text, "");
	assert_int_equal(job_history(0)->total, 0);
	assert_int_equal(d->target->content[0], OLD);
}

CASE(incremental_clears_on_success)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);

	a.sync = MIRROR_SYNC_MODE_INCREMENTAL;
	a.has_bitmap_mode = false;
	put(d, 0, 0x22, 1);
	run_backup(&a);
	assert_int_equal(count(d->bitmap), 0);
	assert_memory_equal(d->source->content, d->target->content, CLUSTER);
}

CASE(never_leaves_the_bitmap_as_it_is)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_NEVER);

	put(d, 0, 0x22, 1);
	run_backup(&a);
	assert_int_equal(count(d->bitmap), 4096);
	assert_memory_equal(d->source->content, d->target->content, CLUSTER);
}

CASE(a_full_backup_starts_a_chain_with_its_bitmap)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);

	a.sync = MIRROR_SYNC_MODE_FULL;
	put(d, 0, 0x22, 1);
	run_backup(&a);
	check_equal(d);
	assert_int_equal(count(d->bitmap), 0);
}

/* While it is copied the bitmap is busy; what is written meanwhile is for the next. */
CASE(writes_meanwhile_are_left_to_the_next_backup)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);

	a.has_auto_finalize = true;
	put(d, 0, 0x22, 1);
	MUST(backup_start(&a, &err));
	wait_for_job("j", JOB_STATUS_PENDING);
	MUST_FAIL(dirty_clear(d->bitmap, &err), "Bitmap 'b' is currently in use by another "
						"operation and cannot be used");
	put(d, 2 * CLUSTER, 0x33, 1);
	assert_int_equal(count(d->bitmap), 4096);
	MUST(job_user_finalize(job_find("j", NULL), &err));
	wait_for_job("j", JOB_STATUS_NULL);
	assert_int_equal(count(d->bitmap), 4096);
	a.has_auto_finalize = false;
	run_backup(&a);
	assert_memory_equal(d->source->content + 2 * CLUSTER,
			    d->target->content + 2 * CLUSTER, CLUSTER);
	assert_int_equal(count(d->bitmap), 0);
}

CASE(a_disabled_bitmap_guides_a_backup_too)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);

	put(d, 0, 0x22, 1);
	MUST(dirty_enable(d->bitmap, false, &err));
	put(d, CLUSTER, 0x22, 1);
	run_backup(&a);
	assert_int_equal(d->target->content[CLUSTER], OLD);
	assert_int_equal(count(d->bitmap), 0);
	assert_false(dirty_is_enabled(d->bitmap));
}

/* ---- ends that are no success ---- */

CASE(a_cancelled_backup_keeps_all_marks)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);

	a.has_speed = true;
	a.speed = 1;
	put(d, 0, 0x22, SIZE / 2);
	MUST(backup_start(&a, &err));
	wait_for_job("j", JOB_STATUS_RUNNING);
	put(d, SIZE - 1, 0x33, 1);
	MUST(job_user_cancel(job_find("j", NULL), true, &err));
	wait_for_job("j", JOB_STATUS_NULL);
	assert_int_equal(count(d->bitmap), SIZE / 2 + 4096);
	MUST(dirty_remove(d->bitmap, &err));
}

/* Whatever write to the target fails: the backup that follows makes up for it. */
static void
fail_each_write(struct disks *d, enum BitmapSyncMode mode)
{
	struct BlockdevBackup a = guided(mode), next = guided(BITMAP_SYNC_MODE_ON_SUCCESS);
	unsigned n = 0, failures = 0;
	bool failed;

	memcpy(d->target->content, d->source->content, SIZE);
	do {
		for (unsigned c = 0; c < 12; c++)
			put(d, c * 5 * CLUSTER, (int)(n + c), c * 1000 + 1);
		memdisk_fail(d->target, 1u << MEMDISK_WRITE | 1u << MEMDISK_ZERO, ++n, -EIO,
			     false);
		run_backup(&a);
		failed = *seen.text;
		failures += failed;
		memdisk_fail(d->target, 1u << MEMDISK_WRITE | 1u << MEMDISK_ZERO, 0, 0, false);
		assert_int_equal(count(d->bitmap) > 0, failed);
		run_backup(&next);
		assert_string_equal(seen.text, "");
		check_equal(d);
		assert_int_equal(count(d->bitmap), 0);
	} while (failed);
	assert_true(failures > 10);
}

CASE(after_a_failed_write_the_marks_are_all_there)
{
	fail_each_write(d, BITMAP_SYNC_MODE_ON_SUCCESS);
}

CASE(after_a_failed_write_always_keeps_the_marks_of_what_was_not_copied)
{
	fail_each_write(d, BITMAP_SYNC_MODE_ALWAYS);
}

CASE(what_always_counts_as_copied_is_safe)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ALWAYS);

	/* One cluster is copied, one fails: the first one's marks go. */
	put(d, 0, 0x22, 1);
	put(d, 20 * CLUSTER, 0x33, 1);
	memdisk_fail(d->target, 1u << MEMDISK_WRITE, 2, -EIO, true);
	run_backup(&a);
	assert_true(*seen.text);
	memdisk_fail(d->target, 1u << MEMDISK_WRITE, 0, 0, false);
	assert_true(count(d->bitmap) == CLUSTER || count(d->bitmap) == 0);

	/* The target cannot be flushed: nothing that was copied counts. */
	MUST(dirty_clear(d->bitmap, &err));
	put(d, 0, 0x22, 1);
	put(d, 20 * CLUSTER, 0x33, 1);
	memdisk_fail(d->target, 1u << MEMDISK_WRITE, 2, -EIO, true);
	memdisk_fail(d->target, 1u << MEMDISK_FLUSH, 1, -EIO, true);
	run_backup(&a);
	assert_true(*seen.text);
	assert_int_equal(count(d->bitmap), 2 * 4096);
	memdisk_fail(d->target, 1u << MEMDISK_WRITE | 1u << MEMDISK_FLUSH, 0, 0, false);
}

CASE(a_start_without_memory_leaves_the_bitmap_alone)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);
	unsigned nth = 0;
	bool failed;

	do {
		int r;

		put(d, 0, (int)nth, 1);
		failheap_arm(++nth);
		r = backup_start(&a, NULL);
		failed = failheap_disarm();
		if (!r)
			wait_for_job("j", JOB_STATUS_NULL);
		MUST(dirty_check(d->bitmap, DIRTY_TO_CHANGE, &err));
		assert_int_equal(count(d->bitmap), r < 0 ? 4096 : 0);
		assert_ptr_equal(root_node(d->guest), d->source_node);
	} while (failed);
	assert_true(nth > 10);
}

/* ---- a chain, with guests that write all the time ---- */

enum { GUESTS = 4, ROUNDS = 12 };

struct guest {
	struct disks *d;
	struct rng rng;
	atomic_bool *stop;
};

static void
guest_co(void *arg)
{
	struct guest *g = arg;
	uint8_t buf[5000];

	while (!atomic_load(g->stop)) {
		uint64_t len = 1 + rng_below(&g->rng, sizeof(buf));
		uint64_t off = rng_below(&g->rng, (unsigned)(SIZE - len));
		struct iov v = IOV_BUF(buf, len);
		int r;

		memset(buf, (int)rng_below(&g->rng, 256), len);
		if (rng_below(&g->rng, 6))
			r = io_write(g->d->guest, off, &v, 0);
		else
			r = io_discard(g->d->guest, off, len);
		assert_int_equal(r, 0);
		co_yield();
	}
}

static void
start_guests(struct disks *d, struct guest *guests, struct co_group *group, atomic_bool *stop)
{
	co_group_init(group);
	for (unsigned i = 0; i < GUESTS; i++) {
		guests[i] = (struct guest){ .d = d, .rng = { 31 + i }, .stop = stop };
		assert_int_equal(co_group_spawn(group, loop_io(i % loop_io_count()), guest_co,
						&guests[i]), 0);
	}
}

CASE(no_write_is_missed_by_a_chain_of_backups)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS), full = a;
	struct guest guests[GUESTS];
	atomic_bool stop = false;
	struct co_group group;

	full.sync = MIRROR_SYNC_MODE_FULL;
	start_guests(d, guests, &group, &stop);
	run_backup(&full);
	for (int i = 0; i < ROUNDS; i++)
		run_backup(&a);
	atomic_store(&stop, true);
	co_group_wait(&group);
	run_backup(&a);
	assert_string_equal(seen.text, "");
	check_equal(d);
	assert_int_equal(count(d->bitmap), 0);
}

/* Each backup shows the disk as it was when it began. */
CASE(each_backup_of_a_chain_is_of_one_instant)
{
	struct BlockdevBackup a = guided(BITMAP_SYNC_MODE_ON_SUCCESS);
	uint8_t *before = malloc(SIZE);

	memcpy(d->target->content, d->source->content, SIZE);
	for (int i = 0; i < ROUNDS; i++) {
		struct guest guests[GUESTS];
		atomic_bool stop = false;
		struct co_group group;

		memcpy(before, d->source->content, SIZE);
		MUST(backup_start(&a, &err));
		start_guests(d, guests, &group, &stop);
		wait_for_job("j", JOB_STATUS_NULL);
		atomic_store(&stop, true);
		co_group_wait(&group);
		assert_memory_equal(d->target->content, before, SIZE);
	}
	free(before);
}

#define TESTS(X)                                                               \
	X(only_clusters_with_marks_are_copied)                                 \
	X(nothing_marked_nothing_copied)                                       \
	X(incremental_clears_on_success)                                       \
	X(never_leaves_the_bitmap_as_it_is)                                    \
	X(a_full_backup_starts_a_chain_with_its_bitmap)                        \
	X(writes_meanwhile_are_left_to_the_next_backup)                        \
	X(a_disabled_bitmap_guides_a_backup_too)                               \
	X(a_cancelled_backup_keeps_all_marks)                                  \
	X(after_a_failed_write_the_marks_are_all_there)                        \
	X(after_a_failed_write_always_keeps_the_marks_of_what_was_not_copied)  \
	X(what_always_counts_as_copied_is_safe)                                \
	X(a_start_without_memory_leaves_the_bitmap_alone)                      \
	X(no_write_is_missed_by_a_chain_of_backups)                            \
	X(each_backup_of_a_chain_is_of_one_instant)

#define LIST_TEST(name) CO_TEST(name),

int
main(void)
{
	const struct CMUnitTest tests[] = { TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
