/* SPDX-License-Identifier: Apache-2.0 */
/* Single ways through the guest's data: what is read, written and copied for one
 * request, and what requests that meet leave behind. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/timer.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "block/check.h"
#include "block/driver.h"
#include "block/qcow2/check.h"
#include "block/qcow2/claim.h"
#include "block/qcow2/entry.h"
#include "block/qcow2/format.h"
#include "block/qcow2/invariants.h"
#include "block/qcow2/map.h"
#include "block/qcow2/refs.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { CLUSTER = 65536, SUB = CLUSTER / 32, SIZE = 16 * CLUSTER, SECTOR = 512 };

/* cmocka's assertions work on the main thread only. */
#define CHECK(what)                                                                \
	do {                                                                       \
		if (!(what)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			abort();                                                   \
		}                                                                  \
	} while (0)

struct world {
	struct node *file, *backing, *image;
	struct qcow2 *q;
};

static void
world_up(struct world *w, bool extended, bool backed)
{
	struct qcow2_format f = { .size = SIZE, .version = 3, .cluster_bits = 16,
				  .refcount_order = 4, .extended_l2 = extended };
	uint8_t *buf = malloc(SIZE);

	*w = (struct world){ .file = mem_new() };
	memset(buf, 'b', SIZE);
	if (backed) {
		w->backing = mem_new();
		assert_int_equal(node_pwrite(w->backing, 0, buf, SIZE), 0);
	}
	w->image = q2_make(w->file, &f, w->backing);
	w->q = w->image->state;
	free(buf);
}

/* Check finds nothing; so many clusters are in use. */
static void
judge(struct world *w, uint64_t allocated)
{
	struct check_result c;

	qcow2_invariants(w->q);
	assert_int_equal(qcow2_settle(w->q), 0);
	assert_int_equal(qcow2_check(w->q, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.leaks + c.errors, 0);
	assert_int_equal(c.allocated_clusters, allocated);
}

static void
world_down(struct world *w, uint64_t allocated)
{
	judge(w, allocated);
	assert_int_equal(q2_close(w->image), 0);
	mem_free(w->file);
	if (w->backing)
		mem_free(w->backing);
}

static void
put(struct world *w, uint64_t off, uint64_t len, int byte)
{
	uint8_t *buf = malloc(len);

	memset(buf, byte, len);
	CHECK(!node_pwrite(w->image, off, buf, len));
	free(buf);
}

/* All of [off, off + len) reads as this byte. */
static void
expect(struct world *w, uint64_t off, uint64_t len, int byte)
{
	uint8_t *buf = malloc(len);

	assert_int_equal(node_pread(w->image, off, buf, len), 0);
	for (uint64_t i = 0; i < len; i++)
		if (buf[i] != byte)
			fail_msg("byte %llx is %02x", (unsigned long long)(off + i), buf[i]);
	free(buf);
}

static struct qcow2_l2e
entry_of(struct world *w, uint64_t cluster)
{
	struct qcow2_slice *s;
	struct qcow2_run run;
	struct qcow2_l2e e;

	assert_int_equal(qcow2_map_lock(w->q, cluster * CLUSTER, CLUSTER, &run), 0);
	s = qcow2_cache_find(&w->q->l2_cache, w->q->l1[0] & QCOW2_OFFSET_MASK);
	assert_non_null(s);
	e = qcow2_l2e_get(w->q, s->data, cluster);
	qcow2_unlock(w->q);
	return e;
}

static void
set_entry(struct world *w, uint64_t cluster, struct qcow2_l2e e)
{
	struct qcow2_slice *s;

	qcow2_lock(w->q);
	s = qcow2_cache_find(&w->q->l2_cache, w->q->l1[0] & QCOW2_OFFSET_MASK);
	assert_non_null(s);
	qcow2_l2e_put(w->q, s->data, cluster, e);
	qcow2_unlock(w->q);
}

/* ---- subclusters ---- */

static void
a_write_fills_the_subclusters_that_it_touches(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, true, true);
	put(&w, 3 * SUB + 100, SUB, 'x');	/* parts of 3 and 4 */
	assert_int_equal(entry_of(&w, 0).bitmap, qcow2_sub_mask(3, 5));
	expect(&w, 0, 3 * SUB + 100, 'b');
	expect(&w, 3 * SUB + 100, SUB, 'x');
	expect(&w, 4 * SUB + 100, CLUSTER - 4 * SUB - 100, 'b');
	/* One more of the same cluster; what is there stays where it is. */
	put(&w, 5 * SUB, SUB, 'y');
	assert_int_equal(entry_of(&w, 0).bitmap, qcow2_sub_mask(3, 6));
	expect(&w, 3 * SUB + 100, SUB, 'x');
	expect(&w, 5 * SUB, SUB, 'y');
	world_down(&w, 1);
}

static void
zeroes_and_data_lie_side_by_side(void *arg)
{
	struct world w;
	uint64_t host;

	(void)arg;
	world_up(&w, true, true);
	put(&w, 0, CLUSTER, 'x');
	host = entry_of(&w, 0).entry;
	assert_int_equal(node_zero(w.image, 4 * SUB, 2 * SUB, IO_MAY_UNMAP), 0);
	assert_int_equal(entry_of(&w, 0).entry, host);
	assert_int_equal(entry_of(&w, 0).bitmap,
			 qcow2_sub_mask(4, 6) << 32 | (UINT32_MAX & ~qcow2_sub_mask(4, 6)));
	expect(&w, 4 * SUB, 2 * SUB, 0);
	/* Back to data: what the write leaves of the subcluster is zeroes. */
	put(&w, 5 * SUB + 10, 10, 'y');
	expect(&w, 4 * SUB, SUB + 10, 0);
	expect(&w, 5 * SUB + 20, SUB - 20, 0);
	assert_int_equal(entry_of(&w, 0).bitmap,
			 qcow2_sub_mask(4, 5) << 32 | (UINT32_MAX & ~qcow2_sub_mask(4, 5)));
	world_down(&w, 1);
}

/* A cluster whose other reference is a snapshot's, as far as a writer sees. */
static void
a_copy_takes_along_the_data_and_no_more(void *arg)
{
	struct world w;
	struct qcow2_l2e e;

	(void)arg;
	world_up(&w, true, true);
	put(&w, 8 * SUB, 2 * SUB, 'x');
	put(&w, 12 * SUB, SUB, 'y');
	assert_int_equal(node_zero(w.image, 20 * SUB, SUB, 0), 0);
	e = entry_of(&w, 0);
	e.entry &= ~QCOW2_COPIED;
	set_entry(&w, 0, e);
	put(&w, 9 * SUB + 7, 1, 'z');
	/* From the first to the last that has data; zeroes and the rest as they were. */
	assert_int_equal(entry_of(&w, 0).bitmap,
			 qcow2_sub_mask(20, 21) << 32 | qcow2_sub_mask(8, 13));
	assert_int_not_equal(entry_of(&w, 0).entry & QCOW2_OFFSET_MASK,
			     e.entry & QCOW2_OFFSET_MASK);
	expect(&w, 0, 8 * SUB, 'b');
	expect(&w, 8 * SUB, SUB + 7, 'x');
	expect(&w, 9 * SUB + 7, 1, 'z');
	expect(&w, 9 * SUB + 8, SUB - 8, 'x');
	expect(&w, 10 * SUB, 2 * SUB, 'b');
	expect(&w, 12 * SUB, SUB, 'y');
	expect(&w, 13 * SUB, 7 * SUB, 'b');
	expect(&w, 20 * SUB, SUB, 0);
	expect(&w, 21 * SUB, CLUSTER - 21 * SUB, 'b');
	world_down(&w, 1);
}

static void
impossible_bitmaps_are_errors(void *arg)
{
	static const struct qcow2_l2e wrong[] = {
		{ 0, 1 },				/* data nowhere */
		{ 0, UINT64_C(1) << 63 | 2 },
		{ QCOW2_COPIED | 5 * CLUSTER, UINT64_C(1) << 32 | 1 },	/* zeroes and data */
		{ QCOW2_COPIED | 5 * CLUSTER, UINT64_MAX },
		{ QCOW2_COPIED | (5 * CLUSTER + 512), UINT32_MAX },	/* misplaced */
	};
	struct qcow2_l2e right;
	uint8_t buf[SUB];
	struct extent x;
	struct world w;

	(void)arg;
	memset(buf, 0, sizeof(buf));
	world_up(&w, true, false);
	put(&w, 0, CLUSTER, 'x');
	right = entry_of(&w, 0);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		set_entry(&w, 0, wrong[i]);
		assert_int_equal(node_pread(w.image, 0, buf, SUB), -EIO);
		assert_int_equal(node_pwrite(w.image, 0, buf, SUB), -EIO);
		assert_int_equal(node_zero(w.image, SUB, SUB, 0), -EIO);
		assert_int_equal(node_status(w.image, 0, SIZE, true, &x), -EIO);
	}
	set_entry(&w, 0, right);
	world_down(&w, 1);
}

/* ---- less than a subcluster, or a cluster, of zeroes ---- */

static void
zeroing_a_part_zeroes_all_where_that_is_no_change(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, false, false);
	assert_int_equal(node_zero(w.image, SECTOR, SECTOR, 0), 0);
	assert_int_equal(entry_of(&w, 0).entry, QCOW2_ZERO_BIT);
	/* Where there is data, or a backing file that shows some, zeroes are data. */
	put(&w, CLUSTER, SECTOR, 'x');
	assert_int_equal(node_zero(w.image, CLUSTER + SECTOR, SECTOR, 0), 0);
	expect(&w, CLUSTER, SECTOR, 'x');
	expect(&w, CLUSTER + SECTOR, CLUSTER - SECTOR, 0);
	world_down(&w, 1);

	world_up(&w, false, true);
	assert_int_equal(node_zero(w.image, SECTOR, SECTOR, 0), 0);
	expect(&w, 0, SECTOR, 'b');
	expect(&w, SECTOR, SECTOR, 0);
	expect(&w, 2 * SECTOR, CLUSTER - 2 * SECTOR, 'b');
	world_down(&w, 1);
}

/* ---- several at once ---- */

struct request {
	struct world *w;
	enum { WRITE, ZERO, UNMAP, DISCARD, READ, KINDS } kind;
	uint64_t off, len;
	int byte;
};

static void
carry_out(void *arg)
{
	struct request *r = arg;
	uint8_t *buf;

	switch (r->kind) {
	case WRITE:
		put(r->w, r->off, r->len, r->byte);
		break;
	case DISCARD:
		CHECK(!node_discard(r->w->image, r->off, r->len));
		break;
	case READ:
		buf = malloc(r->len);
		CHECK(!node_pread(r->w->image, r->off, buf, r->len));
		free(buf);
		break;
	default:
		CHECK(!node_zero(r->w->image, r->off, r->len,
				 r->kind == UNMAP ? IO_MAY_UNMAP : 0));
	}
}

static void
all_at_once(struct request *r, unsigned n)
{
	struct co_group group;

	co_group_init(&group);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(co_group_spawn(&group, loop_io(i % TEST_IO_LOOPS), carry_out,
						&r[i]), 0);
	co_group_wait(&group);
}

static void
writers_into_one_cluster_share_it(void *arg)
{
	bool extended = *(bool *)arg;
	struct request r[CLUSTER / 4096];
	struct world w;

	world_up(&w, extended, true);
	mem_faults(w.file)->yields = true;
	for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
		r[i] = (struct request){ &w, WRITE, i * 4096 + 1000, 1000, 1 + (int)i };
	all_at_once(r, ARRAY_SIZE(r));
	for (unsigned i = 0; i < ARRAY_SIZE(r); i++) {
		expect(&w, i * 4096, 1000, 'b');
		expect(&w, i * 4096 + 1000, 1000, 1 + (int)i);
		expect(&w, i * 4096 + 2000, 2096, 'b');
	}
	world_down(&w, 1);
}

/* Each sector is as one of the requests that touch it leaves it, or, where none
 * does, as it was. */
static void
expect_one_of(struct world *w, const struct request *r, unsigned n, int before)
{
	uint8_t *buf = malloc(SIZE);

	assert_int_equal(node_pread(w->image, 0, buf, SIZE), 0);
	for (uint64_t off = 0; off < SIZE; off += SECTOR) {
		bool touched = false, right = false;

		for (unsigned i = 0; i < n; i++) {
			if (r[i].kind == READ || r[i].off > off || r[i].off + r[i].len <= off)
				continue;
			touched = true;
			right |= buf[off] == (r[i].kind == WRITE ? r[i].byte : 0);
			/* A discard leaves out what is no whole cluster. */
			right |= r[i].kind == DISCARD && buf[off] == before;
		}
		assert_true(touched ? right : buf[off] == before);
		assert_memory_equal(buf + off, buf + off + 1, SECTOR - 1);
	}
	free(buf);
}

/* Allocating writes against zeroes, unmapping and discards of the same clusters. */
static void
requests_that_overlap_leave_one_or_the_other(void *arg)
{
	bool extended = *(bool *)arg;

	for (unsigned seed = 0; seed < 60; seed++) {
		struct rng rng = { seed };
		struct request r[12];
		struct world w;
		bool backed = seed & 1;
		struct check_result c;

		world_up(&w, extended, backed);
		mem_faults(w.file)->yields = true;
		for (unsigned i = 0; i < ARRAY_SIZE(r); i++) {
			uint64_t first = rng_below(&rng, 3 * CLUSTER / SECTOR);
			uint64_t n = 1 + rng_below(&rng, 2 * CLUSTER / SECTOR);

			r[i] = (struct request){ &w, rng_below(&rng, KINDS), first * SECTOR,
						 n * SECTOR, 1 + (int)i };
			if (rng_below(&rng, 2)) {
				r[i].off = round_down(r[i].off, CLUSTER);
				r[i].len = round_up(r[i].len, CLUSTER);
			}
		}
		all_at_once(r, ARRAY_SIZE(r));
		expect_one_of(&w, r, ARRAY_SIZE(r), backed ? 'b' : 0);
		assert_int_equal(qcow2_settle(w.q), 0);
		assert_int_equal(qcow2_check(w.q, 0, NULL, &c), 0);
		world_down(&w, c.allocated_clusters);
	}
}

/* ---- a table that goes while it is read ---- */

static void
load_table(void *arg)
{
	struct world *w = arg;

	CHECK(!qcow2_cache_load(w->q, &w->q->l2_cache, w->q->l1[0] & QCOW2_OFFSET_MASK));
}

/* Its place may be another's by the time that the read ends. */
static void
what_is_dropped_while_it_is_read_is_not_kept(void *arg)
{
	uint64_t table;
	struct co_group g;
	struct world w;

	(void)arg;
	world_up(&w, false, false);
	put(&w, 0, SECTOR, 'x');
	judge(&w, 1);
	table = w.q->l1[0] & QCOW2_OFFSET_MASK;
	qcow2_lock(w.q);
	qcow2_cache_drop(&w.q->l2_cache, table, CLUSTER);
	qcow2_unlock(w.q);
	mem_faults(w.file)->yields = true;
	co_group_init(&g);
	assert_int_equal(co_group_start(&g, load_table, &w), 0);
	qcow2_lock(w.q);
	assert_int_equal(w.q->l2_cache.n, 1);
	qcow2_cache_drop(&w.q->l2_cache, table, CLUSTER);
	qcow2_unlock(w.q);
	co_group_wait(&g);
	mem_faults(w.file)->yields = false;
	assert_int_equal(w.q->l2_cache.n, 0);
	expect(&w, 0, SECTOR, 'x');
	world_down(&w, 1);
}

/* ---- half failed ---- */

/* A write of four clusters for which there are two holes of two each: what the
 * second one needs fails.  The first two clusters are there, nothing is leaked. */
static void
a_write_that_fails_half_way_leaks_nothing(void *arg)
{
	bool extended = *(bool *)arg;
	uint8_t *buf = malloc(4 * CLUSTER);

	memset(buf, 'n', 4 * CLUSTER);
	for (int which = 1; which <= 2; which++) {
		struct world w;

		world_up(&w, extended, true);
		put(&w, 8 * CLUSTER, 5 * CLUSTER, 'o');
		assert_int_equal(node_discard(w.image, 8 * CLUSTER, 2 * CLUSTER), 0);
		assert_int_equal(node_discard(w.image, 11 * CLUSTER, 2 * CLUSTER), 0);
		assert_int_equal(qcow2_settle(w.q), 0);
		/* Each hole takes one write. */
		*mem_faults(w.file) = (struct mem_faults){ .fail_at = which, .error = -ENOSPC };
		assert_int_equal(node_pwrite(w.image, 0, buf, 4 * CLUSTER), -ENOSPC);
		assert_int_equal(mem_faults(w.file)->fail_at, 0);
		expect(&w, 0, 2 * CLUSTER, which == 1 ? 'b' : 'n');
		expect(&w, 2 * CLUSTER, 2 * CLUSTER, 'b');
		judge(&w, which == 1 ? 1 : 3);
		assert_int_equal(node_pwrite(w.image, 0, buf, 4 * CLUSTER), 0);
		expect(&w, 0, 4 * CLUSTER, 'n');
		expect(&w, 10 * CLUSTER, CLUSTER, 'o');
		world_down(&w, 5);
	}
	free(buf);
}

/* ---- no space ---- */

/* What a guest discards it may write elsewhere, flush or none, on a file that cannot
 * grow any more. */
static void
a_full_file_has_room_for_what_was_discarded(void *arg)
{
	bool extended = *(bool *)arg;
	struct world w;

	world_up(&w, extended, false);
	put(&w, 0, 8 * CLUSTER, 'x');
	judge(&w, 8);
	mem_faults(w.file)->max = atomic_load(&w.file->size);
	for (int round = 0; round < 4; round++) {
		uint64_t full = (round & 1) * 8 * CLUSTER, other = 8 * CLUSTER - full;
		uint8_t buf[SECTOR] = { 0 };

		assert_int_equal(node_pwrite(w.image, other, buf, sizeof(buf)), -ENOSPC);
		assert_int_equal(node_discard(w.image, full, 8 * CLUSTER), 0);
		put(&w, other, 8 * CLUSTER, 'a' + round);
		expect(&w, full, 8 * CLUSTER, 0);
		expect(&w, other, 8 * CLUSTER, 'a' + round);
	}
	world_down(&w, 8);
}

/* The same for compressed clusters, and for zeroes, which want a table where there is
 * none: the image is of two. */
static void
a_full_file_has_room_for_all_kinds_of_requests(void *arg)
{
	enum { COVERED = CLUSTER / 8 * CLUSTER };
	struct qcow2_format f = { .size = 2 * (uint64_t)COVERED, .version = 3,
				  .cluster_bits = 16, .refcount_order = 4 };
	struct world w = { .file = mem_new() };
	uint8_t *buf = calloc(1, CLUSTER);
	struct iov v = IOV_BUF(buf, CLUSTER);

	(void)arg;
	w.image = q2_make(w.file, &f, NULL);
	w.q = w.image->state;
	put(&w, 0, 2 * CLUSTER, 'x');
	judge(&w, 2);
	mem_faults(w.file)->max = atomic_load(&w.file->size);
	assert_int_equal(node_write(w.image, 4 * CLUSTER, &v, IO_COMPRESSED), -ENOSPC);
	assert_int_equal(node_zero(w.image, COVERED, CLUSTER, 0), -ENOSPC);
	assert_int_equal(node_discard(w.image, 0, CLUSTER), 0);
	memset(buf, 'c', CLUSTER);
	assert_int_equal(node_write(w.image, 4 * CLUSTER, &v, IO_COMPRESSED), 0);
	expect(&w, 4 * CLUSTER, CLUSTER, 'c');
	judge(&w, 2);
	assert_int_equal(node_discard(w.image, CLUSTER, CLUSTER), 0);
	assert_int_equal(node_zero(w.image, COVERED, CLUSTER, 0), 0);
	expect(&w, COVERED, CLUSTER, 0);
	free(buf);
	world_down(&w, 1);
}

static void
put_first(void *arg)
{
	put(arg, 0, CLUSTER, 'y');
}

/* It may still be read from when space is wanted: that is waited for. */
static void
a_full_file_waits_for_readers_of_what_was_discarded(void *arg)
{
	struct co_group g;
	struct world w;
	unsigned token;

	(void)arg;
	world_up(&w, false, false);
	put(&w, 8 * CLUSTER, CLUSTER, 'x');
	judge(&w, 1);
	mem_faults(w.file)->max = atomic_load(&w.file->size);
	qcow2_lock(w.q);
	token = qcow2_epoch_enter(w.q);
	qcow2_unlock(w.q);
	assert_int_equal(node_discard(w.image, 8 * CLUSTER, CLUSTER), 0);
	co_group_init(&g);
	assert_int_equal(co_group_start(&g, put_first, &w), 0);
	assert_int_equal(co_sleep(5000000), 0);
	qcow2_epoch_leave(w.q, token);
	co_group_wait(&g);
	expect(&w, 0, CLUSTER, 'y');
	world_down(&w, 1);
}

/* ---- what a request costs in calls ---- */

static void
only_what_is_missing_is_read(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, false, false);
	put(&w, 0, SECTOR, 'x');
	(void)mem_calls(w.file);
	/* Over nothing, in a fresh place: the data, and nothing else. */
	put(&w, 3 * CLUSTER + 5, 100, 'x');
	assert_int_equal(mem_calls(w.file), 1);
	/* Whole clusters: one call for all of them. */
	put(&w, 4 * CLUSTER, 6 * CLUSTER, 'x');
	assert_int_equal(mem_calls(w.file), 1);
	world_down(&w, 8);

	world_up(&w, false, true);
	put(&w, 0, SECTOR, 'x');
	(void)mem_calls(w.file);
	(void)mem_calls(w.backing);
	/* The surroundings come from the backing file, and go with the data. */
	put(&w, 3 * CLUSTER + SECTOR, SECTOR, 'x');
	assert_int_equal(mem_calls(w.file), 1);
	assert_int_equal(mem_calls(w.backing), 2);
	put(&w, 5 * CLUSTER, 2 * CLUSTER, 'x');
	assert_int_equal(mem_calls(w.file), 1);
	assert_int_equal(mem_calls(w.backing), 0);
	world_down(&w, 4);
}

#define PATH_TEST(name)                                                            \
	static void name##_test(void **state)                                      \
	{                                                                          \
		(void)state;                                                       \
		run(name, NULL);                                                   \
	}
#define BOTH_TEST(name)                                                            \
	static void name##_test(void **state)                                      \
	{                                                                          \
		bool no = false, yes = true;                                       \
                                                                                   \
		(void)state;                                                       \
		run(name, &no);                                                    \
		run(name, &yes);                                                   \
	}

PATH_TEST(a_write_fills_the_subclusters_that_it_touches)
PATH_TEST(zeroes_and_data_lie_side_by_side)
PATH_TEST(a_copy_takes_along_the_data_and_no_more)
PATH_TEST(impossible_bitmaps_are_errors)
PATH_TEST(zeroing_a_part_zeroes_all_where_that_is_no_change)
BOTH_TEST(writers_into_one_cluster_share_it)
BOTH_TEST(requests_that_overlap_leave_one_or_the_other)
BOTH_TEST(a_write_that_fails_half_way_leaks_nothing)
BOTH_TEST(a_full_file_has_room_for_what_was_discarded)
PATH_TEST(a_full_file_has_room_for_all_kinds_of_requests)
PATH_TEST(what_is_dropped_while_it_is_read_is_not_kept)
PATH_TEST(a_full_file_waits_for_readers_of_what_was_discarded)
PATH_TEST(only_what_is_missing_is_read)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(a_write_fills_the_subclusters_that_it_touches_test),
		CO_TEST(zeroes_and_data_lie_side_by_side_test),
		CO_TEST(a_copy_takes_along_the_data_and_no_more_test),
		CO_TEST(impossible_bitmaps_are_errors_test),
		CO_TEST(zeroing_a_part_zeroes_all_where_that_is_no_change_test),
		CO_TEST(writers_into_one_cluster_share_it_test),
		CO_TEST(requests_that_overlap_leave_one_or_the_other_test),
		CO_TEST(a_write_that_fails_half_way_leaks_nothing_test),
		CO_TEST(a_full_file_has_room_for_what_was_discarded_test),
		CO_TEST(a_full_file_has_room_for_all_kinds_of_requests_test),
		CO_TEST(what_is_dropped_while_it_is_read_is_not_kept_test),
		CO_TEST(a_full_file_waits_for_readers_of_what_was_discarded_test),
		CO_TEST(only_what_is_missing_is_read_test),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
