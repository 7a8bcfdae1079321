/* SPDX-License-Identifier: Apache-2.0 */
/* Changing a disk's size with the n-th call failing, for n from 1 until a run passes
 * clean: the image is sound, of the old size or the new, and what lies below both
 * is as it was, and what is new is zeroes.  Where only a write failed it is of the size
 * that the caller was told, even if that write got to the disk. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/qcow2/check.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "block/snapshot.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { LONGER = 200 << 10 };	/* a backing file, where the disk grows */

struct plan {
	struct qcow2_format f;
	uint64_t to;
	bool backed, snapshot, for_good;
	bool lands;		/* what fails to be written is there all the same */
};

struct world {
	const struct plan *p;
	struct node *file, *backing, *image;
	uint8_t *model;
};

static void
prepare(struct world *w)
{
	uint64_t size = w->p->f.size;
	uint64_t longer = max_u64(size, min_u64(w->p->to, size + LONGER));

	w->model = malloc(longer);
	w->file = mem_new();
	if (w->p->backed) {
		w->backing = mem_new();
		memset(w->model, 0xbb, longer);
		assert_int_equal(node_pwrite(w->backing, 0, w->model, longer), 0);
	}
	w->image = q2_make(w->file, &w->p->f, w->backing);
	for (uint64_t i = 0; i < size; i++)
		w->model[i] = (uint8_t)(1 + i / 700);
	assert_int_equal(node_pwrite(w->image, 0, w->model, size), 0);
	if (w->p->snapshot)
		assert_int_equal(qcow2_snapshot_ops.take(w->image, "s"), 0);
	assert_int_equal(node_flush(w->image), 0);
}

static void
judge(struct world *w, bool changed, bool said)
{
	uint64_t old = w->p->f.size, to = w->p->to, both = min_u64(old, to), size;
	uint8_t *buf = malloc(max_u64(old, to));
	struct check_result c;

	atomic_store(&w->file->flush_error, 0);
	w->image = q2_open(w->file, w->backing, false, NULL);
	assert_non_null(w->image);
	size = atomic_load(&w->image->size);
	assert_true(changed ? size == to : size == old || size == to);
	if (w->p->lands)
		assert_int_equal(size, said ? to : old);
	assert_int_equal(qcow2_check(w->image->state, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors, 0);
	assert_true(!changed || !c.leaks);
	assert_int_equal(node_pread(w->image, 0, buf, size), 0);
	assert_memory_equal(buf, w->model, both);
	/* Whatever came of it: nothing else shows there, not even a longer backing file. */
	if (size > old)
		assert_true(bytes_are_zero(buf + round_up(old, 512), size - round_up(old, 512)));
	if (w->p->snapshot) {
		uint8_t *shown = malloc(old);

		assert_int_equal(q2_read_snapshot(w->image, "s", shown, old), 0);
		assert_memory_equal(shown, w->model, old);
		free(shown);
	}
	assert_int_equal(q2_close(w->image), 0);
	free(buf);
}

static bool
run_once(const struct plan *p, long n)
{
	struct world w = { .p = p };
	struct mem_faults *faults;
	struct error *err = NULL;
	bool failed, changed;

	prepare(&w);
	faults = mem_faults(w.file);
	faults->error = n % 2 ? -EIO : -ENOSPC;
	faults->for_good = p->for_good;
	faults->lands = faults->spare_flush = p->lands;
	faults->fail_at = n;
	changed = !qcow2_truncate(w.image, p->to, false, PREALLOC_OFF, &err);
	assert_true(changed != (err != NULL));
	error_free(err);
	failed = p->for_good ? faults->fail_at == 1 : !faults->fail_at;
	assert_true(failed || changed);
	faults->fail_at = 0;
	(void)q2_close(w.image);
	judge(&w, changed && !failed, changed);
	mem_free(w.file);
	if (w.backing)
		mem_free(w.backing);
	free(w.model);
	return failed;
}

static void
run_plan(void *arg)
{
	const struct plan *p = arg;
	long n = 1;

	while (run_once(p, n))
		n++;
	assert_true(n > (p->lands ? 2 : 4));
}

static void
try_sizes(uint64_t from, uint64_t to)
{
	for (unsigned i = 0; i < 8; i++) {
		struct plan p = {
			.f = { .size = from, .version = 3, .cluster_bits = i & 1 ? 9 : 12,
			       .refcount_order = 4 },
			.to = to, .backed = i & 2, .snapshot = i & 4, .for_good = i & 1,
			.lands = !(i & 1),
		};

		run(run_plan, &p);
	}
}

/* Version 2 has no zero clusters: what hides a longer backing file is written. */
static void
try_version_2(void)
{
	struct plan p = { .f = { .size = 20 << 10, .version = 2, .cluster_bits = 12,
				 .refcount_order = 4 },
			  .to = 99 << 10, .backed = true };

	run(run_plan, &p);
	p.for_good = true;
	run(run_plan, &p);
}

static void
a_call_that_fails_while_growing_corrupts_nothing(void **state)
{
	(void)state;
	try_version_2();
	try_sizes(100 << 10, 3 << 20);
	try_sizes((64 << 10) + 512, 10 << 20);
}

static void
a_call_that_fails_while_shrinking_corrupts_nothing(void **state)
{
	(void)state;
	try_sizes(300 << 10, 20 << 10);
	try_sizes(200 << 10, (40 << 10) + 512);
}

/* ---- an L1 table of more clusters than a refcount block counts ---- */

enum { LARGE = 1 << 30, LAST = LARGE - 512 };

static void
check_clean(struct node *image, bool leaks_allowed)
{
	struct check_result c;

	assert_int_equal(qcow2_check(image->state, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors, 0);
	assert_true(leaks_allowed || !c.leaks);
}

/* Use the disk up to its end; each snapshot needs another such table. */
static void
use_large(struct node *file, struct node *image)
{
	uint64_t size = 0;
	uint8_t buf[512];

	memset(buf, 'x', sizeof(buf));
	assert_int_equal(node_pwrite(image, LAST, buf, sizeof(buf)), 0);
	for (int i = 0; i < 6; i++) {
		assert_int_equal(qcow2_snapshot_ops.take(image, "s"), 0);
		assert_int_equal(qcow2_snapshot_ops.drop(image, NULL, "s", NULL), 0);
		/* What one left is room for the next. */
		if (i == 1)
			size = atomic_load(&file->size);
	}
	assert_true(atomic_load(&file->size) <= size + (256 << 10));
	memset(buf, 0, sizeof(buf));
	assert_int_equal(node_pread(image, LAST, buf, sizeof(buf)), 0);
	assert_int_equal(buf[0], 'x');
}

static void
grow_large_co(void *arg)
{
	const struct qcow2_format f = { .size = 1 << 20, .version = 3, .cluster_bits = 9,
					.refcount_order = *(unsigned *)arg };
	bool failed = true;

	for (long n = 1; failed; n++) {
		struct node *file = mem_new(), *image = q2_make(file, &f, NULL);
		struct mem_faults *faults = mem_faults(file);
		bool changed;

		*faults = (struct mem_faults){ .fail_at = n, .error = -ENOSPC };
		changed = !qcow2_truncate(image, LARGE, false, PREALLOC_OFF, NULL);
		failed = !faults->fail_at;
		assert_true(failed || changed);
		faults->fail_at = 0;
		assert_true(atomic_load(&file->size) < 8 << 20);
		if (!failed) {
			use_large(file, image);
			assert_int_equal(qcow2_settle(image->state), 0);
			check_clean(image, false);
		}
		(void)q2_close(image);
		atomic_store(&file->flush_error, 0);
		image = q2_open(file, NULL, false, NULL);
		assert_non_null(image);
		check_clean(image, failed);
		assert_int_equal(q2_close(image), 0);
		mem_free(file);
	}
}

static void
tables_longer_than_a_range_of_counts_find_room(void **state)
{
	unsigned orders[] = { 4, 6 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(orders); i++)
		run(grow_large_co, &orders[i]);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(a_call_that_fails_while_growing_corrupts_nothing),
		CO_TEST(a_call_that_fails_while_shrinking_corrupts_nothing),
		CO_TEST(tables_longer_than_a_range_of_counts_find_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
