/* SPDX-License-Identifier: Apache-2.0 */
/* What qcow2's cache options mean: how much of the tables is kept in memory, in which
 * pieces, and for how long. */
#include "aio/timer.h"
#include "block/qcow2/map.h"
#include "tests/unit/block_test.h"

enum {
	CLUSTER	 = 4096,
	TABLE	 = CLUSTER / 8 * CLUSTER,	/* bytes of the disk that an L2 table maps */
	TABLES	 = 128,
	ALL	 = TABLES * CLUSTER,		/* bytes of all L2 tables */
	LEAST	 = 16,				/* slices that there is always room for */
};

struct world {
	struct memdisk *disk;
	struct node *file, *image;
	struct qcow2 *q;
	struct root *root;
};

/* ---- an image with all its L2 tables ---- */

static void
open_image(struct world *w, struct BlockdevOptionsQcow2 o)
{
	struct BlockdevRef file = { .type = BLOCKDEV_REF_REFERENCE,
				    .u.reference = (char *)"file" };
	struct BlockdevOptions options = { .driver = BLOCKDEV_DRIVER_QCOW2,
					   .node_name = (char *)"image", .u.qcow2 = o };

	options.u.qcow2.file = &file;
	MUST(node_open(&options, NULL, &w->image, &err));
	w->q = w->image->state;
	w->root = must_root(w->image, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
}

static void
close_image(struct world *w)
{
	root_free(w->root);
	node_unref(w->image);
}

static void
write_at(struct world *w, uint64_t off)
{
	uint8_t buf[CLUSTER];
	struct iov v = IOV_BUF(buf, sizeof(buf));

	memset(buf, 1 + (int)(off / TABLE), sizeof(buf));
	assert_int_equal(io_write(w->root, off, &v, 0), 0);
}

static void
set_up(struct world *w)
{
	struct BlockdevRef file = { .type = BLOCKDEV_REF_REFERENCE,
				    .u.reference = (char *)"file" };
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = { .file = &file, .size = (uint64_t)TABLES * TABLE,
			     .has_cluster_size = true, .cluster_size = CLUSTER,
			     .has_refcount_bits = true, .refcount_bits = 64 },
	};

	w->disk = memdisk_new(0);
	w->disk->no_log = true;
	w->file = must_mem(w->disk, "file");
	MUST(driver_find("qcow2")->create(&o, &err));
	open_image(w, (struct BlockdevOptionsQcow2){ 0 });
	/* The second half of a table is used too: pieces of it are a choice. */
	for (uint64_t i = 0; i < TABLES; i++) {
		write_at(w, i * TABLE);
		write_at(w, i * TABLE + TABLE / 2);
	}
	close_image(w);
}

static void
tear_down(struct world *w)
{
	node_unref(w->file);
	memdisk_free(w->disk);
}

/* ---- looking ---- */

static void
read_at(struct world *w, uint64_t off)
{
	uint8_t byte = 0;
	struct iov v = IOV_BUF(&byte, 1);

	assert_int_equal(io_read(w->root, off, &v), 0);
	assert_int_equal(byte, 1 + off / TABLE);
}

/* Read once in each table from `first` on; how many calls of the file that took besides
 * the one for the data. */
static unsigned
read_tables(struct world *w, unsigned first, unsigned count)
{
	unsigned before = w->disk->calls[MEMDISK_READ];

	for (unsigned i = 0; i < count; i++)
		read_at(w, (uint64_t)(first + i) * TABLE);
	return w->disk->calls[MEMDISK_READ] - before - count;
}

static uint64_t
bytes_of(const struct world *w, const struct qcow2_cache *c)
{
	return (uint64_t)c->n << w->q->slice_bits;
}

#define CACHE_CASE(name)                                                       \
	static void name##_in(struct world *w);                                \
	static void name##_co(void *arg)                                       \
	{                                                                      \
		struct world w = { 0 };                                        \
		(void)arg;                                                     \
		set_up(&w);                                                    \
		name##_in(&w);                                                 \
		tear_down(&w);                                                 \
	}                                                                      \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}                                                                      \
	static void name##_in(struct world *w)

/* ---- sizes ---- */

CACHE_CASE(l2_cache_size_is_how_much_of_the_tables_stays)
{
	const unsigned tables[] = { 0, LEAST, 40, 100, TABLES, 2 * TABLES };

	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		unsigned room = tables[i] < LEAST ? LEAST : tables[i];
		unsigned fit = room < TABLES ? room : TABLES;

		open_image(w, (struct BlockdevOptionsQcow2){
			.has_l2_cache_size = true,
			.l2_cache_size = (int64_t)tables[i] * CLUSTER });
		assert_int_equal(read_tables(w, 0, fit), fit);
		/* They are all there, and then some of them have to go. */
		assert_int_equal(read_tables(w, 0, fit), 0);
		assert_int_equal(read_tables(w, fit, TABLES - fit), TABLES - fit);
		assert_int_equal(bytes_of(w, &w->q->l2_cache), (uint64_t)fit * CLUSTER);
		if (fit < TABLES)
			assert_true(read_tables(w, 0, TABLES) > 0);
		close_image(w);
	}
}

CACHE_CASE(l2_cache_entry_size_is_read_and_kept_at_a_time)
{
	open_image(w, (struct BlockdevOptionsQcow2){
		.has_l2_cache_size = true, .l2_cache_size = 32 * 512,
		.has_l2_cache_entry_size = true, .l2_cache_entry_size = 512 });
	/* Twice as many pieces of tables as there would be tables in this room. */
	assert_int_equal(read_tables(w, 0, 32), 32);
	assert_int_equal(read_tables(w, 0, 32), 0);
	assert_int_equal(bytes_of(w, &w->q->l2_cache), 32 * 512);
	read_tables(w, 0, TABLES);
	assert_int_equal(bytes_of(w, &w->q->l2_cache), 32 * 512);
	close_image(w);
	/* Of a whole table the other half is there as well. */
	open_image(w, (struct BlockdevOptionsQcow2){ 0 });
	assert_int_equal(read_tables(w, 0, 1), 1);
	read_at(w, TABLE / 2);
	assert_int_equal(w->q->l2_cache.n, 1);
	close_image(w);
}

CACHE_CASE(refcount_cache_size_bounds_what_writers_need)
{
	open_image(w, (struct BlockdevOptionsQcow2){ .has_refcount_cache_size = true,
						     .refcount_cache_size = 20 * CLUSTER });
	/* A block of counts is for 512 clusters here. */
	for (uint64_t i = 0; i < 20 * 1024; i++) {
		uint64_t table = i % TABLES, cluster = 1 + i / TABLES;

		write_at(w, table * TABLE + cluster * CLUSTER);
		if (i % 512 == 0) {
			assert_int_equal(io_flush(w->root), 0);
			assert_true(bytes_of(w, &w->q->ref_cache) <= 21 * CLUSTER);
		}
	}
	close_image(w);
}

CACHE_CASE(cache_size_is_for_both)
{
	open_image(w, (struct BlockdevOptionsQcow2){ .has_cache_size = true,
						     .cache_size = 60 * CLUSTER });
	read_tables(w, 0, TABLES);
	assert_true(bytes_of(w, &w->q->l2_cache) <= 60 * CLUSTER);
	assert_true(bytes_of(w, &w->q->l2_cache) >= 50 * CLUSTER);
	close_image(w);
	/* What one of them is to have is taken off. */
	open_image(w, (struct BlockdevOptionsQcow2){
		.has_cache_size = true, .cache_size = 60 * CLUSTER,
		.has_refcount_cache_size = true, .refcount_cache_size = 30 * CLUSTER });
	read_tables(w, 0, TABLES);
	assert_int_equal(bytes_of(w, &w->q->l2_cache), 30 * CLUSTER);
	close_image(w);
}

/* ---- time ---- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LOOK_UP_NS = 20000 };
#else
enum { LOOK_UP_NS = 1000 };
#endif

static int64_t
cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* At places that nobody can guess, in as many tables as the cache holds. */
CACHE_CASE(a_look_up_in_a_cached_table_takes_less_than_a_microsecond)
{
	enum { LOOK_UPS = 20000, ROUNDS = 5 };
	int64_t best = INT64_MAX;
	struct rng r = { 1 };

	open_image(w, (struct BlockdevOptionsQcow2){ 0 });
	read_tables(w, 0, 32);
	for (int round = 0; round < ROUNDS; round++) {
		int64_t start = cpu_ns(), took;

		for (int i = 0; i < LOOK_UPS; i++) {
			uint64_t off = rng_below(&r, 32) * (uint64_t)TABLE +
				       rng_below(&r, TABLE / CLUSTER) * (uint64_t)CLUSTER;
			struct qcow2_run run;

			assert_int_equal(qcow2_map_lock(w->q, off, 4096, &run), 0);
			qcow2_unlock(w->q);
		}
		took = (cpu_ns() - start) / LOOK_UPS;
		best = took < best ? took : best;
	}
	print_message("%lld ns for each\n", (long long)best);
	assert_in_range(best, 1, LOOK_UP_NS - 1);
	close_image(w);
}

static bool
becomes_empty(struct world *w, const struct qcow2_cache *c, int64_t within_ns)
{
	int64_t end = clock_ns() + within_ns;
	bool empty = false;

	while (!empty && clock_ns() < end) {
		assert_int_equal(co_sleep(20000000), 0);
		qcow2_lock(w->q);
		empty = !c->n;
		qcow2_unlock(w->q);
	}
	return empty;
}

CACHE_CASE(cache_clean_interval_forgets_what_is_idle)
{
	open_image(w, (struct BlockdevOptionsQcow2){ .has_cache_clean_interval = true,
						     .cache_clean_interval = 1 });
	write_at(w, CLUSTER);
	assert_int_equal(io_flush(w->root), 0);
	assert_int_equal(read_tables(w, 0, TABLES), TABLES - 1);
	assert_true(becomes_empty(w, &w->q->l2_cache, INT64_C(10000000000)));
	assert_true(becomes_empty(w, &w->q->ref_cache, INT64_C(10000000000)));
	assert_int_equal(read_tables(w, 0, TABLES), TABLES);
	close_image(w);
}

CACHE_CASE(an_interval_of_0_is_for_ever)
{
	open_image(w, (struct BlockdevOptionsQcow2){ .has_cache_clean_interval = true });
	assert_int_equal(read_tables(w, 0, TABLES), TABLES);
	assert_false(becomes_empty(w, &w->q->l2_cache, INT64_C(2200000000)));
	assert_int_equal(w->q->l2_cache.n, TABLES);
	close_image(w);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(l2_cache_size_is_how_much_of_the_tables_stays),
		CO_TEST(l2_cache_entry_size_is_read_and_kept_at_a_time),
		CO_TEST(refcount_cache_size_bounds_what_writers_need),
		CO_TEST(cache_size_is_for_both),
		CO_TEST(a_look_up_in_a_cached_table_takes_less_than_a_microsecond),
		CO_TEST(cache_clean_interval_forgets_what_is_idle),
		CO_TEST(an_interval_of_0_is_for_ever),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
