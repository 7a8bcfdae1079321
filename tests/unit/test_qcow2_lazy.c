/* SPDX-License-Identifier: Apache-2.0 */
/* Lazy refcounts: the image is marked before counts are left behind, repaired by who
 * finds it so, and unmarked at the end. */
#include <string.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/qcow2/check.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "block/snapshot.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { SIZE = 4 << 20 };

static bool
is_marked(struct node *file)
{
	return get_be64(mem_data(file) + 72) & QCOW2_INCOMPAT_DIRTY;
}

/* The file as it is now, as after a kill. */
static struct node *
copy_of(struct node *file)
{
	struct node *copy = mem_new();

	assert_int_equal(node_pwrite(copy, 0, mem_data(file), node_size(file)), 0);
	return copy;
}

static void
life(void *arg)
{
	struct qcow2_format f = { .size = SIZE, .version = 3, .cluster_bits = *(unsigned *)arg,
				  .refcount_order = 4, .lazy_refcounts = true };
	struct node *file = mem_new(), *image = q2_make(file, &f, NULL), *killed, *again;
	uint8_t *model = calloc(1, SIZE), *buf = malloc(SIZE);
	struct rng r = { f.cluster_bits };
	struct check_result c;

	assert_int_equal(node_flush(image), 0);
	assert_false(is_marked(file));
	for (unsigned i = 1; i <= 40; i++) {
		uint64_t off = rng_below(&r, SIZE), len = 1 + rng_below(&r, 200000);

		len = min_u64(len, SIZE - off);
		if (i % 5) {
			memset(model + off, (int)i, len);
			assert_int_equal(node_pwrite(image, off, model + off, len), 0);
		} else {
			memset(model + off, 0, len);
			assert_int_equal(node_zero(image, off, len, IO_MAY_UNMAP), 0);
		}
		if (i == 20)
			assert_int_equal(qcow2_snapshot_ops.take(image, "s"), 0);
		if (i % 4)
			continue;
		assert_int_equal(node_flush(image), 0);
		assert_true(is_marked(file));
		killed = copy_of(file);
		again = q2_open(killed, NULL, false, NULL);
		assert_non_null(again);
		assert_int_equal(qcow2_repair_dirty(again->state, NULL), 0);
		assert_false(is_marked(killed));
		assert_int_equal(qcow2_check(again->state, 0, NULL, &c), 0);
		assert_int_equal(c.corruptions + c.errors + c.leaks, 0);
		assert_int_equal(node_pread(again, 0, buf, SIZE), 0);
		assert_memory_equal(buf, model, SIZE);
		assert_int_equal(q2_close(again), 0);
		mem_free(killed);
	}
	assert_int_equal(q2_close(image), 0);
	assert_false(is_marked(file));
	image = q2_open(file, NULL, false, NULL);
	assert_int_equal(qcow2_check(image->state, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors + c.leaks, 0);
	assert_int_equal(node_pread(image, 0, buf, SIZE), 0);
	assert_memory_equal(buf, model, SIZE);
	assert_int_equal(q2_close(image), 0);
	mem_free(file);
	free(model);
	free(buf);
}

static void
a_kill_at_any_flush_is_repaired(void **state)
{
	(void)state;
	for (unsigned bits = 9; bits <= 17; bits += 4)
		run(life, &bits);
}

static void
repair(void *arg)
{
	struct qcow2_format f = { .size = SIZE, .version = 3, .cluster_bits = 12,
				  .refcount_order = 4, .lazy_refcounts = true };
	struct node *file = mem_new(), *image = q2_make(file, &f, NULL), *killed;
	uint8_t byte = 1;
	uint64_t table;

	(void)arg;
	assert_int_equal(node_pwrite(image, 0, &byte, 1), 0);
	assert_int_equal(node_flush(image), 0);
	killed = copy_of(file);
	assert_int_equal(q2_close(image), 0);
	table = get_be64(mem_data(killed) + 48);
	put_be64(mem_data(killed) + table, get_be64(mem_data(killed) + table) + 512);
	image = q2_open(killed, NULL, false, NULL);
	assert_int_equal(qcow2_repair_dirty(image->state, NULL), 0);
	assert_int_equal(((struct qcow2 *)image->state)->corrupt, QCOW2_SOUND);
	assert_int_equal(node_pwrite(image, 100000, &byte, 1), 0);
	assert_int_equal(q2_close(image), 0);
	mem_free(killed);
	mem_free(file);
}

static void
what_a_repair_found_is_not_held_against_the_image(void **state)
{
	(void)state;
	run(repair, NULL);
}

/* Fewer writes is what it is for. */
static long
calls_of(bool lazy)
{
	struct qcow2_format f = { .size = SIZE, .version = 3, .cluster_bits = 12,
				  .refcount_order = 4, .lazy_refcounts = lazy };
	struct node *file = mem_new(), *image = q2_make(file, &f, NULL);
	uint8_t byte = 1;
	long calls;

	assert_int_equal(node_pwrite(image, 0, &byte, 1), 0);
	assert_int_equal(node_flush(image), 0);
	(void)mem_calls(file);
	for (unsigned i = 1; i < 50; i++) {
		assert_int_equal(node_pwrite(image, i * 8192, &byte, 1), 0);
		assert_int_equal(node_flush(image), 0);
	}
	calls = mem_calls(file);
	assert_int_equal(q2_close(image), 0);
	mem_free(file);
	return calls;
}

static void
compare_calls(void *arg)
{
	(void)arg;
	assert_true(calls_of(true) <= calls_of(false) - 40);
}

static void
a_flush_writes_no_counts(void **state)
{
	(void)state;
	run(compare_calls, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(a_kill_at_any_flush_is_repaired),
		CO_TEST(what_a_repair_found_is_not_held_against_the_image),
		CO_TEST(a_flush_writes_no_counts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
