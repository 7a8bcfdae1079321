/* SPDX-License-Identifier: Apache-2.0 */
/* Backup and copy-before-write: the target gets the disk as it was, whatever
 * clients write meanwhile. */
#include "tests/unit/backup_test.h"

#include <stdatomic.h>

#include "block/filters/cbw.h"
#include "job/backup.h"
#include "tests/support/failheap.h"

enum { SIZE = 5 << 20, ODD_SIZE = SIZE + 3 * 512 };

static void
scribble(uint8_t *p, size_t len, uint64_t seed)
{
	struct rng r = { seed };

	/* Some stretches stay zero. */
	for (size_t i = 0; i < len; i += 4096)
		if (rng_below(&r, 4))
			memset(p + i, (int)(1 + rng_below(&r, 255)),
			       min_u64(4096, len - i));
}

static void
set_up(struct disks *d, uint64_t size)
{
	disks_open(d, size);
	scribble(d->source->content, size, 7);
	d->before = malloc(size);
	memcpy(d->before, d->source->content, size);
}

static struct BlockdevBackup
full_backup(void)
{
	return (struct BlockdevBackup){ .job_id = (char *)"b", .device = (char *)"source",
					.target = (char *)"target",
					.sync = MIRROR_SYNC_MODE_FULL };
}

static void
check_target(const struct disks *d)
{
	assert_int_equal(d->target->size, d->source->size);
	for (uint64_t i = 0; i < d->source->size; i++)
		if (d->target->content[i] != d->before[i])
			fail_msg("byte %llu differs", (unsigned long long)i);
}

#define DISK_CASE(name, size)                                                  \
	FIXTURE_CASE(name, struct disks, d, set_up(d, size), disks_close(d))

DISK_CASE(a_full_backup_equals_the_source, ODD_SIZE)
{
	struct BlockdevBackup a = full_backup();

	MUST(backup_start(&a, &err));
	wait_for_job("b", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	assert_int_equal(job_history(0)->progress, ODD_SIZE);
	assert_int_equal(job_history(0)->total, ODD_SIZE);
	check_target(d);
	/* The filter is gone. */
	assert_ptr_equal(root_node(d->guest), d->source_node);
}

DISK_CASE(zeroes_arrive_as_zeroes, SIZE)
{
	struct BlockdevBackup a = full_backup();

	memset(d->target->content, 0xee, SIZE);
	MUST(backup_start(&a, &err));
	wait_for_job("b", JOB_STATUS_NULL);
	check_target(d);
}

/* ---- guests that write while the job copies ---- */

enum { GUESTS = 6, GUEST_WRITES = 300 };

struct guest {
	struct disks *d;
	unsigned number;
	atomic_bool *stop;
	int err;
};

/* Each guest keeps to its own stripes, so that the end content is known. */
static void
guest_writes(void *arg)
{
	struct guest *g = arg;
	struct rng r = { g->number * 977 + 1 };
	uint8_t buf[9000];

	for (int i = 0; i < GUEST_WRITES || !atomic_load(g->stop); i++) {
		uint64_t len = 1 + rng_below(&r, sizeof(buf));
		uint64_t off = rng_below(&r, (unsigned)(g->d->source->size - len));
		struct iov v = IOV_BUF(buf, len);
		int err;

		memset(buf, 'A' + (int)g->number, len);
		switch (rng_below(&r, 8)) {
		case 0:
			err = io_zero(g->d->guest, off, len, IO_MAY_UNMAP);
			break;
		case 1:
			err = io_discard(g->d->guest, off, len);
			break;
		default:
			err = io_write(g->d->guest, off, &v, 0);
			break;
		}
		if (err)
			g->err = err;
		co_yield();
	}
}

static void
backup_under_fire(struct disks *d, struct BlockdevBackup *a)
{
	struct guest guests[GUESTS];
	atomic_bool stop = false;
	struct co_group group;

	co_group_init(&group);
	MUST(backup_start(a, &err));
	for (unsigned i = 0; i < GUESTS; i++) {
		guests[i] = (struct guest){ .d = d, .number = i, .stop = &stop };
		assert_int_equal(co_group_spawn(&group, loop_io(i % loop_io_count()),
						guest_writes, &guests[i]), 0);
	}
	wait_for_job("b", JOB_STATUS_NULL);
	atomic_store(&stop, true);
	co_group_wait(&group);
	for (unsigned i = 0; i < GUESTS; i++)
		assert_int_equal(guests[i].err, 0);
}

DISK_CASE(guests_on_several_loops_do_not_disturb_a_backup, ODD_SIZE)
{
	struct BlockdevBackup a = full_backup();

	backup_under_fire(d, &a);
	assert_string_equal(seen.text, "");
	check_target(d);
}

DISK_CASE(large_clusters_work_too, ODD_SIZE)
{
	struct BackupPerf perf = { .has_min_cluster_size = true,
				   .min_cluster_size = 2 << 20,
				   .has_max_workers = true, .max_workers = 3 };
	struct BlockdevBackup a = full_backup();

	a.x_perf = &perf;
	backup_under_fire(d, &a);
	check_target(d);
}

DISK_CASE(two_backups_of_one_disk_go_on_at_once, ODD_SIZE)
{
	struct BlockdevBackup a = full_backup(), b = full_backup();
	struct memdisk *second = memdisk_new(ODD_SIZE);
	struct node *n;

	second->no_log = true;
	n = must_mem(second, "second");
	b.job_id = (char *)"c";
	b.target = (char *)"second";
	b.has_speed = true;
	b.speed = 1 << 20;
	MUST(backup_start(&b, &err));
	backup_under_fire(d, &a);
	/* Where the guest wrote everywhere, nothing was left for it to copy. */
	if (job_find("c", NULL)) {
		MUST(job_user_set_speed(job_find("c", NULL), 0, &err));
		wait_for_job("c", JOB_STATUS_NULL);
	}
	assert_string_equal(seen.text, "");
	check_target(d);
	assert_memory_equal(second->content, d->before, ODD_SIZE);
	assert_ptr_equal(root_node(d->guest), d->source_node);
	node_unref(n);
	memdisk_free(second);
}

enum { STRIPE = 8192, STRIPES = 65536 / STRIPE };

/* Writes its stripe of each cluster once, at whatever moment. */
static void
write_stripes(void *arg)
{
	struct guest *g = arg;
	struct rng r = { g->number + 1 };
	uint8_t buf[STRIPE];
	struct iov v = IOV_BUF(buf, STRIPE);

	memset(buf, 'A' + (int)g->number, STRIPE);
	for (uint64_t off = g->number * STRIPE; off < SIZE; off += 65536) {
		int err;

		for (unsigned i = rng_below(&r, 9); i; i--)
			co_yield();
		err = io_write(g->d->guest, off, &v, 0);
		if (err)
			g->err = err;
	}
}

DISK_CASE(discarding_the_source_spares_what_guests_wrote, SIZE)
{
	struct BackupPerf perf = { .has_max_workers = true, .max_workers = 1,
				   .has_max_chunk = true, .max_chunk = 65536 };
	struct BlockdevBackup a = full_backup();
	struct guest guests[STRIPES];
	struct co_group group;

	a.x_perf = &perf;
	a.has_discard_source = a.discard_source = true;
	d->source->slow_discard = 200;
	co_group_init(&group);
	MUST(backup_start(&a, &err));
	for (unsigned i = 0; i < STRIPES; i++) {
		guests[i] = (struct guest){ .d = d, .number = i };
		assert_int_equal(co_group_start(&group, write_stripes, &guests[i]), 0);
	}
	co_group_wait(&group);
	wait_for_job("b", JOB_STATUS_NULL);
	for (unsigned i = 0; i < STRIPES; i++)
		assert_int_equal(guests[i].err, 0);
	for (uint64_t i = 0; i < SIZE; i++)
		if (d->source->content[i] != 'A' + i / STRIPE % STRIPES)
			fail_msg("byte %llu is lost", (unsigned long long)i);
	assert_string_equal(seen.text, "");
	check_target(d);
}

/* A guest's flush is about the guest's disk. */
DISK_CASE(a_target_that_cannot_flush_fails_the_job_and_no_guest, SIZE)
{
	struct BlockdevBackup a = full_backup();
	uint8_t byte = 'x';
	struct iov v = IOV_BUF(&byte, 1);

	memdisk_fail(d->target, 1u << MEMDISK_FLUSH, 1, -EIO, true);
	MUST(backup_start(&a, &err));
	assert_int_equal(io_write(d->guest, 17, &v, 0), 0);
	assert_int_equal(io_flush(d->guest), 0);
	wait_for_job("b", JOB_STATUS_NULL);
	assert_string_equal(seen.text, strerror(EIO));
	assert_int_equal(io_flush(d->guest), 0);
}

/* sync=none: what was overwritten is at the target, whole clusters of it. */
DISK_CASE(sync_none_keeps_what_is_overwritten, SIZE)
{
	struct BlockdevBackup a = full_backup();
	uint8_t byte = 'x';
	struct iov v = IOV_BUF(&byte, 1);

	a.sync = MIRROR_SYNC_MODE_NONE;
	memset(d->target->content, 0xee, SIZE);
	MUST(backup_start(&a, &err));
	assert_int_equal(io_write(d->guest, 65536 * 3 + 17, &v, 0), 0);
	assert_int_equal(io_write(d->guest, 65536 * 3 + 18, &v, 0), 0);
	for (uint64_t i = 0; i < SIZE; i++)
		assert_int_equal(d->target->content[i],
				 i / 65536 == 3 ? d->before[i] : 0xee);
	MUST(job_user_cancel(job_find("b", NULL), false, &err));
	wait_for_job("b", JOB_STATUS_NULL);
	assert_int_equal(seen.cancelled, 1);
	assert_int_equal(job_history(0)->progress, 65536);
}

DISK_CASE(a_cancelled_backup_leaves_the_graph_as_it_was, SIZE)
{
	struct BlockdevBackup a = full_backup();

	a.has_speed = true;
	a.speed = 65536;
	MUST(backup_start(&a, &err));
	assert_ptr_not_equal(root_node(d->guest), d->source_node);
	wait_for_job("b", JOB_STATUS_RUNNING);
	MUST(job_user_cancel(job_find("b", NULL), true, &err));
	wait_for_job("b", JOB_STATUS_NULL);
	assert_ptr_equal(root_node(d->guest), d->source_node);
	assert_int_equal(node_check_busy(d->target_node, NULL), 0);
}

DISK_CASE(a_slow_backup_pauses_at_once_and_goes_on, SIZE)
{
	struct BlockdevBackup a = full_backup();
	struct job *j;

	a.has_speed = true;
	a.speed = 1000;
	MUST(backup_start(&a, &err));
	j = job_find("b", NULL);
	MUST(job_user_pause(j, &err));
	wait_for_job("b", JOB_STATUS_PAUSED);
	MUST(job_user_set_speed(j, 0, &err));
	MUST(job_user_resume(j, &err));
	wait_for_job("b", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	check_target(d);
}

/* ---- refusals ---- */

DISK_CASE(nodes_in_use_by_a_job_are_busy, SIZE)
{
	struct BlockdevBackup a = full_backup(), b = full_backup();

	a.sync = MIRROR_SYNC_MODE_NONE;
	b.job_id = (char *)"c";
	MUST(backup_start(&a, &err));
	MUST_FAIL(backup_start(&b, &err), "Node 'target' is busy: block device is in use "
					  "by block job: backup");
	b.device = (char *)"target";
	b.target = (char *)"source";
	MUST_FAIL(backup_start(&b, &err), "Node 'target' is busy: block device is in use "
					  "by block job: backup");
	MUST(job_user_cancel(job_find("b", NULL), true, &err));
	wait_for_job("b", JOB_STATUS_NULL);
}

DISK_CASE(bad_arguments_are_refused_with_the_peers_words, SIZE)
{
	struct BlockdevBackup a = full_backup();
	struct BackupPerf perf = { .has_max_workers = true, .max_workers = 0 };

	a.target = (char *)"nope";
	MUST_FAIL(backup_start(&a, &err), "Cannot find device='nope' nor node-name='nope'");
	a.target = (char *)"source";
	MUST_FAIL(backup_start(&a, &err), "Source and target cannot be the same");
	a = full_backup();
	a.sync = MIRROR_SYNC_MODE_BITMAP;
	MUST_FAIL(backup_start(&a, &err),
		  "must provide a valid bitmap name for 'bitmap' sync mode");
	a.bitmap = (char *)"x";
	MUST_FAIL(backup_start(&a, &err), "Bitmap 'x' could not be found");
	a = full_backup();
	a.has_compress = a.compress = true;
	MUST_FAIL(backup_start(&a, &err), "Compression is not supported for this drive ");
	a = full_backup();
	a.x_perf = &perf;
	MUST_FAIL(backup_start(&a, &err), "max-workers must be between 1 and 2147483647");
	perf = (struct BackupPerf){ .has_max_chunk = true, .max_chunk = 512 };
	MUST_FAIL(backup_start(&a, &err), "Required max-chunk (512) is less than backup "
					  "cluster size (65536)");
	perf = (struct BackupPerf){ .has_min_cluster_size = true, .min_cluster_size = 3 };
	MUST_FAIL(backup_start(&a, &err),
		  "Could not create node: Cannot create block-copy-state: "
		  "min-cluster-size needs to be a power of 2");
	a = full_backup();
	a.filter_node_name = (char *)"source";
	MUST_FAIL(backup_start(&a, &err),
		  "Could not create node: Duplicate nodes with node-name='source'");
	a = full_backup();
	a.job_id = NULL;
	MUST_FAIL(backup_start(&a, &err), "Invalid job ID ''");
	a = full_backup();
	a.has_speed = true;
	a.speed = -1;
	MUST_FAIL(backup_start(&a, &err), "Parameter 'speed' expects a non-negative value");
	assert_ptr_equal(root_node(d->guest), d->source_node);
	assert_int_equal(node_check_busy(d->target_node, NULL), 0);
}

DISK_CASE(sizes_must_agree, SIZE)
{
	struct BlockdevBackup a = full_backup();
	struct memdisk *small = memdisk_new(512);
	struct node *n = must_mem(small, "small");

	(void)d;
	a.target = (char *)"small";
	MUST_FAIL(backup_start(&a, &err), "Source and target image have different sizes");
	node_unref(n);
	memdisk_free(small);
}

DISK_CASE(a_start_without_memory_leaves_nothing, 1 << 20)
{
	struct BlockdevBackup a = full_backup();
	unsigned nth = 0;
	bool failed;

	do {
		int r;

		failheap_arm(++nth);
		r = backup_start(&a, NULL);
		failed = failheap_disarm();
		if (r < 0) {
			assert_null(job_next(NULL));
			assert_int_equal(node_check_busy(d->target_node, NULL), 0);
		} else {
			MUST(job_user_cancel(job_find("b", NULL), true, &err));
			wait_for_job("b", JOB_STATUS_NULL);
		}
		assert_ptr_equal(root_node(d->guest), d->source_node);
	} while (failed);
	assert_true(nth > 10);
}

/* ---- errors ---- */

DISK_CASE(every_failing_read_and_write_is_reported, SIZE)
{
	struct BlockdevBackup a = full_backup();

	for (int side = 0; side < 2; side++) {
		struct memdisk *m = side ? d->target : d->source;
		unsigned ops = side ? 1u << MEMDISK_WRITE | 1u << MEMDISK_ZERO |
					      1u << MEMDISK_FLUSH
				    : 1u << MEMDISK_READ;
		unsigned n = 0, failed;

		do {
			seen.errors = 0;
			memdisk_fail(m, ops, ++n, -EIO, false);
			MUST(backup_start(&a, &err));
			wait_for_job("b", JOB_STATUS_NULL);
			failed = *seen.text != '\0';
			if (failed)
				assert_string_equal(seen.text, "Input/output error");
			else
				check_target(d);
		} while (failed);
		assert_true(n > 3);
		memdisk_fail(m, ops, 0, 0, false);
	}
}

DISK_CASE(ignored_errors_are_tried_again, SIZE)
{
	struct BlockdevBackup a = full_backup();

	a.has_on_source_error = a.has_on_target_error = true;
	a.on_source_error = a.on_target_error = BLOCKDEV_ON_ERROR_IGNORE;
	memdisk_fail(d->source, 1u << MEMDISK_READ, 3, -EIO, false);
	memdisk_fail(d->target, 1u << MEMDISK_WRITE, 5, -EIO, false);
	MUST(backup_start(&a, &err));
	wait_for_job("b", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	assert_in_range(seen.errors, 1, 2);
	check_target(d);
}

DISK_CASE(an_error_stops_the_job_and_resume_repeats_it, SIZE)
{
	struct BlockdevBackup a = full_backup();
	struct job *j;

	a.has_on_target_error = true;
	a.on_target_error = BLOCKDEV_ON_ERROR_ENOSPC;
	memdisk_fail(d->target, 1u << MEMDISK_WRITE, 4, -ENOSPC, false);
	MUST(backup_start(&a, &err));
	wait_for_job("b", JOB_STATUS_PAUSED);
	j = job_find("b", NULL);
	assert_int_equal(j->io_status, BLOCK_DEVICE_IO_STATUS_NOSPACE);
	MUST(job_user_resume(j, &err));
	assert_int_equal(j->io_status, BLOCK_DEVICE_IO_STATUS_OK);
	wait_for_job("b", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	check_target(d);
}

/* ---- the driver of its own ---- */

static int
open_cbw(enum OnCbwError on_error, struct node **ret, struct error **errp)
{
	struct BlockdevRef file = { .type = BLOCKDEV_REF_REFERENCE,
				    .u.reference = (char *)"source" };
	struct BlockdevRef target = { .type = BLOCKDEV_REF_REFERENCE,
				      .u.reference = (char *)"target" };
	struct BlockdevOptions o = {
		.driver = BLOCKDEV_DRIVER_COPY_BEFORE_WRITE,
		.node_name = (char *)"cbw",
		.u.copy_before_write = { .file = &file, .target = &target,
					 .has_on_cbw_error = true,
					 .on_cbw_error = on_error },
	};

	return node_open(&o, NULL, ret, errp);
}

static void
break_target(struct disks *d, enum OnCbwError on_error, int expected)
{
	struct node *cbw = NULL;
	struct root *r;
	uint8_t byte = 'x';
	struct iov v = IOV_BUF(&byte, 1);

	root_free(d->guest);
	MUST(open_cbw(on_error, &cbw, &err));
	r = must_root(cbw, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	assert_int_equal(io_write(r, 0, &v, 0), 0);
	assert_memory_equal(d->target->content, d->before, 65536);
	memdisk_fail(d->target, 1u << MEMDISK_WRITE | 1u << MEMDISK_ZERO, 1, -ENOSPC,
		     true);
	assert_int_equal(io_write(r, 65536, &v, 0), expected);
	assert_int_equal(cbw_broken(cbw), expected ? 0 : -ENOSPC);
	assert_int_equal(d->source->content[65536],
			 expected ? d->before[65536] : 'x');
	root_free(r);
	node_unref(cbw);
	d->guest = must_root(d->source_node, PERM_WRITE, PERM_ALL);
}

DISK_CASE(a_failed_copy_breaks_the_guests_write, SIZE)
{
	break_target(d, ON_CBW_ERROR_BREAK_GUEST_WRITE, -ENOSPC);
}

DISK_CASE(a_failed_copy_breaks_the_snapshot, SIZE)
{
	break_target(d, ON_CBW_ERROR_BREAK_SNAPSHOT, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(a_full_backup_equals_the_source),
		CO_TEST(zeroes_arrive_as_zeroes),
		CO_TEST(guests_on_several_loops_do_not_disturb_a_backup),
		CO_TEST(large_clusters_work_too),
		CO_TEST(two_backups_of_one_disk_go_on_at_once),
		CO_TEST(discarding_the_source_spares_what_guests_wrote),
		CO_TEST(a_target_that_cannot_flush_fails_the_job_and_no_guest),
		CO_TEST(sync_none_keeps_what_is_overwritten),
		CO_TEST(a_cancelled_backup_leaves_the_graph_as_it_was),
		CO_TEST(a_slow_backup_pauses_at_once_and_goes_on),
		CO_TEST(nodes_in_use_by_a_job_are_busy),
		CO_TEST(bad_arguments_are_refused_with_the_peers_words),
		CO_TEST(sizes_must_agree),
		CO_TEST(a_start_without_memory_leaves_nothing),
		CO_TEST(every_failing_read_and_write_is_reported),
		CO_TEST(ignored_errors_are_tried_again),
		CO_TEST(an_error_stops_the_job_and_resume_repeats_it),
		CO_TEST(a_failed_copy_breaks_the_guests_write),
		CO_TEST(a_failed_copy_breaks_the_snapshot),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
