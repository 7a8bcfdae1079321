/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps that an image stores.
 *
 * What a bitmap has to mark is known from the disk itself: each write has a value of
 * its own, so whatever differs from the content when the bitmap was made must be
 * marked, or the bitmap has to say that it is inconsistent. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/dirty.h"
#include "block/driver.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/check.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "tests/support/failheap.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { SIZE = 1 << 20 };

static const struct qcow2_format plain = {
	.size = SIZE, .version = 3, .cluster_bits = 12, .refcount_order = 4,
};

#define MUST(expr)                                                             \
	do {                                                                   \
		struct error *err = NULL;                                      \
		if ((expr) < 0)                                                \
			fail_msg("%s: %s", #expr, err ? error_text(err) : "?"); \
	} while (0)

static int
try_add(struct node *n, const char *name, uint64_t granularity, struct error **errp)
{
	struct dirty_options o = { .name = name, .granularity = granularity,
				   .persistent = true };

	return dirty_add(n, &o, errp);
}

static struct dirty_bitmap *
add(struct node *n, const char *name, uint64_t granularity)
{
	MUST(try_add(n, name, granularity, &err));
	return dirty_find(n, name);
}

static struct node *
reopen(struct node *file, bool read_only)
{
	char *text = NULL;
	struct node *n;

	atomic_store(&file->flush_error, 0);
	n = q2_open(file, NULL, read_only, &text);
	if (!n)
		fail_msg("open: %s", text);
	return n;
}

static bool
is_marked(struct dirty_bitmap *b, uint64_t at)
{
	uint64_t off, len;

	return dirty_next_run(b, at, at + 1, &off, &len);
}

static uint64_t
count(struct dirty_bitmap *b)
{
	uint64_t off = 0, len = 0, sum = 0;

	for (; dirty_next_run(b, off, UINT64_MAX, &off, &len); off += len)
		sum += len;
	return sum;
}

static void
check_clean(struct node *n)
{
	struct check_result c;

	assert_int_equal(qcow2_settle(n->state), 0);
	assert_int_equal(qcow2_check(n->state, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.leaks + c.errors, 0);
}

/* ---- storing and loading ---- */

static void
round_trip(unsigned cluster_bits, uint64_t size, uint64_t granularity)
{
	struct qcow2_format f = plain;
	struct node *file = mem_new(), *n;
	struct dirty_bitmap *b;
	struct rng rng = { cluster_bits };
	uint8_t *marks = calloc(1, size / granularity + 1);

	f.cluster_bits = cluster_bits;
	f.size = size;
	n = q2_make(file, &f, NULL);
	b = add(n, "b", granularity);
	for (int i = 0; i < 12; i++) {
		uint64_t at = rng_below(&rng, (unsigned)(size - 1));

		assert_int_equal(node_pwrite(n, at, "x", 1), 0);
		marks[at / granularity] = 1;
	}
	check_clean(n);
	assert_int_equal(q2_close(n), 0);

	for (int round = 0; round < 3; round++) {
		n = reopen(file, round == 0);
		b = dirty_find(n, "b");
		assert_non_null(b);
		assert_null(dirty_reason(b));
		assert_true(dirty_is_enabled(b));
		for (uint64_t g = 0; g * granularity < size; g++)
			assert_int_equal(is_marked(b, g * granularity), marks[g]);
		if (round == 1) {
			assert_int_equal(node_pwrite(n, size - 1, "y", 1), 0);
			marks[(size - 1) / granularity] = 1;
		}
		if (round)
			check_clean(n);
		assert_int_equal(q2_close(n), 0);
	}
	mem_free(file);
	free(marks);
}

static void
round_trips(void *arg)
{
	(void)arg;
	round_trip(9, 3 << 20, 512);	/* several clusters of bits */
	round_trip(9, (3 << 20) + 512, 4096);
	round_trip(12, SIZE, 512);
	round_trip(16, SIZE + 512, 65536);
	round_trip(16, SIZE, UINT64_C(1) << 31);
	round_trip(21, SIZE, 4096);
}

static void
what_is_off_stays_off(void *arg)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
	struct dirty_options o = { .name = "off", .persistent = true, .disabled = true };

	(void)arg;
	MUST(dirty_add(n, &o, &err));
	add(n, "on", 4096);
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	assert_false(dirty_is_enabled(dirty_find(n, "off")));
	assert_true(dirty_is_enabled(dirty_find(n, "on")));
	/* The switch alone is stored as well. */
	MUST(dirty_enable(dirty_find(n, "off"), true, &err));
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	assert_true(dirty_is_enabled(dirty_find(n, "off")));
	assert_int_equal(count(dirty_find(n, "off")), 0);
	assert_int_equal(count(dirty_find(n, "on")), 4096);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);
}

static void
an_image_that_is_not_written_to_stays_as_it_is(void *arg)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
	size_t size;
	uint8_t *was;

	(void)arg;
	add(n, "b", 4096);
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	assert_int_equal(q2_close(n), 0);
	size = atomic_load(&file->size);
	was = malloc(size);
	memcpy(was, mem_data(file), size);
	n = reopen(file, false);
	assert_int_equal(node_flush(n), 0);
	assert_int_equal(q2_close(n), 0);
	assert_int_equal(atomic_load(&file->size), size);
	assert_memory_equal(mem_data(file), was, size);
	free(was);
	mem_free(file);
}

/* What is on disk while a node is open for writing, seen by somebody else. */
static const char *
seen_by_others(struct node *file, const char *name)
{
	size_t size = atomic_load(&file->size);
	struct node *copy = mem_new(), *n;
	const char *why;

	assert_int_equal(node_pwrite(copy, 0, mem_data(file), size), 0);
	n = reopen(copy, true);
	why = dirty_reason(dirty_find(n, name));
	assert_int_equal(q2_close(n), 0);
	mem_free(copy);
	return why;
}

static void
from_the_first_change_on_it_is_in_use(void *arg)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
	struct dirty_bitmap *b = add(n, "b", 4096);

	(void)arg;
	assert_non_null(seen_by_others(file, "b"));
	assert_int_equal(q2_close(n), 0);
	assert_null(seen_by_others(file, "b"));
	n = reopen(file, false);
	assert_null(seen_by_others(file, "b"));
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	assert_non_null(seen_by_others(file, "b"));
	assert_int_equal(q2_close(n), 0);

	/* By a command alone, too; and while it is read-only, never. */
	n = reopen(file, false);
	b = dirty_find(n, "b");
	MUST(dirty_clear(b, &err));
	assert_non_null(seen_by_others(file, "b"));
	n->read_only = true;
	MUST(qcow2_set_read_only(n, true, &err));
	assert_null(seen_by_others(file, "b"));
	assert_int_equal(dirty_clear(b, NULL), -1);
	n->read_only = false;
	MUST(qcow2_set_read_only(n, false, &err));
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	assert_non_null(seen_by_others(file, "b"));
	assert_int_equal(count(b), 4096);
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);
}

static void
removing_takes_it_out_of_the_image(void *arg)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
	struct dirty_bitmap *b;

	(void)arg;
	add(n, "a", 4096);
	add(n, "b", 512);
	add(n, "c", 65536);
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	MUST(dirty_remove(dirty_find(n, "b"), &err));
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	assert_null(dirty_find(n, "b"));
	b = dirty_find(n, "c");
	assert_non_null(b);
	assert_int_equal(count(b), 65536);
	MUST(dirty_remove(b, &err));
	MUST(dirty_remove(dirty_find(n, "a"), &err));
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	assert_null(dirty_after(n, NULL));
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);
}

static void
an_inconsistent_one_can_only_be_removed(void *arg)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL), *copy = mem_new();
	struct dirty_bitmap *b;

	(void)arg;
	add(n, "b", 4096);
	assert_int_equal(node_pwrite(copy, 0, mem_data(file), atomic_load(&file->size)), 0);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);

	n = reopen(copy, false);
	b = dirty_find(n, "b");
	assert_non_null(strstr(dirty_reason(b), "in use"));
	assert_int_equal(dirty_clear(b, NULL), -1);
	assert_int_equal(dirty_enable(b, true, NULL), -1);
	assert_int_equal(dirty_merge(b, &b, 1, NULL), -1);
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	assert_int_equal(count(b), 0);
	assert_int_equal(q2_close(n), 0);
	n = reopen(copy, false);	/* it stays so */
	b = dirty_find(n, "b");
	assert_non_null(dirty_reason(b));
	MUST(dirty_remove(b, &err));
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	mem_free(copy);
}

static void
limits(void *arg)
{
	struct qcow2_format v2 = plain, large = plain;
	struct node *file = mem_new(), *n;
	struct error *err = NULL;
	char name[1025];

	(void)arg;
	v2.version = 2;
	n = q2_make(file, &v2, NULL);
	assert_int_equal(try_add(n, "b", 4096, &err), -1);
	assert_non_null(strstr(error_text(err), "Cannot store dirty bitmaps in qcow2 v2 files"));
	error_free(err);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);

	err = NULL;
	file = mem_new();
	large.size = UINT64_C(8) << 40;
	large.cluster_bits = 21;
	n = q2_make(file, &large, NULL);
	assert_int_equal(try_add(n, "b", 512, &err), -1);
	assert_non_null(strstr(error_text(err), "Too much space will be occupied by the bitmap"));
	error_free(err);
	memset(name, 'n', sizeof(name));
	name[1024] = 0;
	assert_int_equal(try_add(n, name, UINT64_C(1) << 31, NULL), -1);
	name[1023] = 0;
	add(n, name, UINT64_C(1) << 31);
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	assert_non_null(dirty_find(n, name));
	assert_int_equal(q2_close(n), 0);
	mem_free(file);
}

static void
a_bitmap_follows_the_disks_size(void *arg)
{
	struct qcow2_format f = plain;
	struct node *file = mem_new(), *n;
	struct dirty_bitmap *b;

	(void)arg;
	f.cluster_bits = 9;	/* a cluster of bits is for 2 MiB at 512 */
	n = q2_make(file, &f, NULL);
	b = add(n, "b", 512);
	assert_int_equal(node_pwrite(n, SIZE - 1, "x", 1), 0);
	MUST(node_truncate(n, 9 << 20, true, PREALLOC_OFF, &err));
	assert_int_equal(node_pwrite(n, (9 << 20) - 1, "x", 1), 0);
	assert_int_equal(count(b), 1024);
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	b = dirty_find(n, "b");
	assert_int_equal(count(b), 1024);
	assert_true(is_marked(b, SIZE - 1) && is_marked(b, (9 << 20) - 1));
	MUST(node_truncate(n, 512, true, PREALLOC_OFF, &err));
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	assert_int_equal(count(dirty_find(n, "b")), 0);
	/* How far it once reached is not known any more. */
	MUST(node_truncate(n, 1024, true, PREALLOC_OFF, &err));
	assert_int_equal(count(dirty_find(n, "b")), 512);
	check_clean(n);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);
}

/* Every call of it fails in turn: what it has taken away by then was changed. */
static void
a_shrink_that_fails_is_marked(void *arg)
{
	bool failed = true;

	(void)arg;
	for (long at = 1; failed; at++) {
		struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
		uint8_t *before = malloc(SIZE), *now = malloc(SIZE);
		struct dirty_bitmap *b;

		memset(before, 'x', SIZE);
		assert_int_equal(node_pwrite(n, 0, before, SIZE), 0);
		b = add(n, "b", 512);
		*mem_faults(file) = (struct mem_faults){ .fail_at = at, .error = -EIO };
		failed = node_truncate(n, 137 * 512, true, PREALLOC_OFF, NULL) < 0;
		*mem_faults(file) = (struct mem_faults){ 0 };
		assert_int_equal(node_pread(n, 0, now, node_size(n)), 0);
		for (uint64_t i = 0; i < node_size(n); i++)
			if (now[i] != before[i] && !is_marked(b, i))
				fail_msg("call %ld: %llx is not marked", at, (unsigned long long)i);
		assert_true(!failed || at < 100);
		(void)q2_close(n);
		free(before);
		free(now);
		mem_free(file);
	}
}

/* ---- each call to the file fails in turn ---- */

struct fault_run {
	int error;
	bool for_good, spare_flush, lands;
};

static unsigned lost_told;

static void
count_lost(const char *node, const char *name, int err)
{
	(void)node;
	(void)name;
	assert_true(err < 0);
	lost_told++;
}

/* What the image's bitmaps say of it is true: compare with the content at first, which
 * was zero.  The one called `late` came when [0, before) had been written to. */
static void
judge(struct node *file, bool all_well, bool may_leak, const char *late, uint64_t before)
{
	struct node *n = reopen(file, true);
	uint8_t *now = malloc(SIZE);
	struct check_result c;
	struct dirty_bitmap *b = NULL;

	assert_int_equal(qcow2_check(n->state, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors, 0);
	if (!may_leak)
		assert_int_equal(c.leaks, 0);
	assert_int_equal(node_pread(n, 0, now, SIZE), 0);
	while ((b = dirty_after(n, b))) {
		uint64_t from = strcmp(dirty_name(b), late) ? 0 : before;

		if (all_well)
			assert_null(dirty_reason(b));
		for (uint64_t i = from; !dirty_reason(b) && i < SIZE; i += 512)
			for (int k = 0; k < 512; k++)
				if (now[i + k] && !is_marked(b, i))
					fail_msg("%s misses %llx", dirty_name(b),
						 (unsigned long long)i);
	}
	free(now);
	assert_int_equal(q2_close(n), 0);
}

/* A life with everything in it; whether all of it went well. */
static bool
live(struct node *n)
{
	struct dirty_bitmap *b;
	bool well = true;
	int r;

	well &= node_pwrite(n, 5000, "one", 3) == 0;
	well &= try_add(n, "new", 4096, NULL) == 0;
	well &= node_pwrite(n, 700000, "two", 3) == 0;
	b = dirty_find(n, "gone");
	well &= b && dirty_remove(b, NULL) == 0;
	well &= node_pwrite(n, 300000, "three", 5) == 0;
	n->read_only = true;
	r = qcow2_set_read_only(n, true, NULL);
	well &= r == 0;
	n->read_only = false;
	if (!r)
		well &= qcow2_set_read_only(n, false, NULL) == 0;
	well &= node_pwrite(n, 900000, "four", 4) == 0;
	lost_told = 0;
	r = q2_close(n);
	assert_true(!lost_told || r < 0);
	return well && !r;
}

/* False: it did not come to the n-th call. */
static bool
run_with_fault(const struct fault_run *p, long at)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
	struct mem_faults *f = mem_faults(file);
	bool well, struck;

	add(n, "old", 512);
	add(n, "gone", 65536);
	assert_int_equal(q2_close(n), 0);
	f->error = p->error;
	f->for_good = p->for_good;
	f->spare_flush = p->spare_flush;
	f->lands = p->lands;
	f->fail_at = at;
	n = q2_open(file, NULL, false, NULL);
	well = n && live(n);
	struck = f->fail_at <= (p->for_good ? 1 : 0);
	assert_true(well || struck);
	f->fail_at = 0;
	f->for_good = false;
	judge(file, well, struck, "new", 5120);
	mem_free(file);
	return struck;
}

static void
faults(void *arg)
{
	static const struct fault_run runs[] = {
		{ -EIO, false, false, false }, { -EIO, true, false, false },
		{ -ENOSPC, false, true, false }, { -ENOSPC, true, true, false },
		{ -EIO, false, false, true }, { -EIO, true, true, true },
	};

	(void)arg;
	dirty_store_failed = count_lost;
	for (size_t i = 0; i < ARRAY_SIZE(runs); i++) {
		long at = 1;

		while (run_with_fault(&runs[i], at))
			at++;
		assert_true(at > 30);
	}
	dirty_store_failed = NULL;
}

/* As with a disk that fails: whatever could not be done, nothing wrong is said. */
static void
without_memory(void *arg)
{
	unsigned nth = 0;
	bool failed;

	(void)arg;
	dirty_store_failed = count_lost;
	do {
		struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
		bool well;

		add(n, "old", 512);
		add(n, "gone", 65536);
		assert_int_equal(q2_close(n), 0);
		/* The file itself needs no more memory. */
		assert_int_equal(node_pwrite(file, 2 * SIZE, "", 1), 0);
		n = reopen(file, false);
		failheap_arm(++nth);
		well = live(n);
		failed = failheap_disarm();
		assert_true(well || failed);
		judge(file, well, failed, "new", 5120);
		mem_free(file);
	} while (failed);
	assert_true(nth > 30);
	dirty_store_failed = NULL;
}

/* The disk fills up after the bitmaps had their places: they can be stored. */
static void
room_is_made_ahead(void *arg)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
	struct dirty_bitmap *b = add(n, "b", 512);
	char page[4096];
	uint64_t off = 0;

	(void)arg;
	assert_int_equal(q2_close(n), 0);
	n = reopen(file, false);
	b = dirty_find(n, "b");
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	mem_faults(file)->max = atomic_load(&file->size) + 16384;
	memset(page, 'y', sizeof(page));
	while (off < SIZE && node_pwrite(n, off, page, sizeof(page)) == 0)
		off += sizeof(page);
	assert_true(off < SIZE);
	assert_true(count(b) >= off);
	assert_int_equal(q2_close(n), 0);
	mem_faults(file)->max = 0;
	n = reopen(file, true);
	b = dirty_find(n, "b");
	assert_null(dirty_reason(b));
	assert_true(count(b) >= off);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);
}

/* ---- several loops ---- */

enum { WRITERS = 6 };

struct writer {
	struct node *n;
	unsigned number;
};

static void
writer_co(void *arg)
{
	struct writer *w = arg;

	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(node_pwrite(w->n, (w->number * 40 + i) * 4096, "w", 1), 0);
}

static void
the_first_writes_come_from_all_loops_at_once(void *arg)
{
	(void)arg;
	for (int round = 0; round < 10; round++) {
		struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
		struct writer w[WRITERS];
		struct co_group g;

		add(n, "b", 4096);
		assert_int_equal(q2_close(n), 0);
		n = reopen(file, false);
		mem_faults(file)->yields = true;
		co_group_init(&g);
		for (unsigned i = 0; i < WRITERS; i++) {
			w[i] = (struct writer){ n, i };
			assert_int_equal(co_group_spawn(&g, loop_io(i % loop_io_count()),
							writer_co, &w[i]), 0);
		}
		MUST(try_add(n, "c", 512, &err));
		co_group_wait(&g);
		mem_faults(file)->yields = false;
		assert_int_equal(count(dirty_find(n, "b")), WRITERS * 40 * 4096);
		assert_int_equal(q2_close(n), 0);
		judge(file, true, false, "c", SIZE);
		mem_free(file);
	}
}

#define TESTS(X)                                                               \
	X(round_trips)                                                         \
	X(what_is_off_stays_off)                                               \
	X(an_image_that_is_not_written_to_stays_as_it_is)                      \
	X(from_the_first_change_on_it_is_in_use)                               \
	X(removing_takes_it_out_of_the_image)                                  \
	X(an_inconsistent_one_can_only_be_removed)                             \
	X(limits)                                                              \
	X(a_bitmap_follows_the_disks_size)                                     \
	X(a_shrink_that_fails_is_marked)                                       \
	X(faults)                                                              \
	X(without_memory)                                                      \
	X(room_is_made_ahead)                                                  \
	X(the_first_writes_come_from_all_loops_at_once)

#define DEFINE(name)                                                           \
	static void name##_test(void **state)                                  \
	{                                                                      \
		(void)state;                                                   \
		run(name, NULL);                                               \
	}
TESTS(DEFINE)
#define LIST_TEST(name) CO_TEST(name##_test),

int
main(void)
{
	const struct CMUnitTest tests[] = { TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
