/* SPDX-License-Identifier: Apache-2.0 */
/* Writing to qcow images, against a model. */
#include "tests/unit/qcow_test.h"

#include <stdatomic.h>

#include "aio/co.h"
#include "aio/loop.h"

enum { SIZE = 3 << 20, BACKING_BYTE = 0x5a, QCOW_HEADER_BYTES = 48 };

struct geometry {
	bool backed;
	unsigned cluster_bits;	/* 0: what creating chose */
	uint64_t size;
};

static const struct geometry geometries[] = {
	{ false, 0, SIZE },
	{ true, 0, SIZE },		/* clusters of a sector */
	{ true, 12, SIZE },
	{ true, 16, SIZE },
	{ false, 16, SIZE - 512 },	/* the last cluster is not whole */
	{ true, 16, SIZE - 512 },
};

struct world {
	const struct geometry *g;
	struct memdisk *disk, *base;
	struct node *file, *base_node, *image;
	struct root *root;
	uint8_t *model;
};

static void
open_image(struct world *w)
{
	MUST(qcow_test_open(w->g->backed, false, &w->image, &err));
	w->root = must_root(w->image, PERM_WRITE | PERM_CONSISTENT_READ, PERM_ALL);
}

static void
close_image(struct world *w)
{
	root_free(w->root);
	node_unref(w->image);
}

static void
world_make(struct world *w, const struct geometry *g)
{
	memset(w, 0, sizeof(*w));
	w->g = g;
	w->disk = memdisk_new(0);
	w->disk->no_log = true;
	w->disk->yields = 1;
	w->file = must_mem(w->disk, "file");
	w->base = qcow_test_base(SIZE, BACKING_BYTE);
	w->base_node = must_mem(w->base, "base");
	qcow_test_create(g->size, g->backed ? "base" : NULL);
	if (g->cluster_bits)
		qcow_test_set_cluster_bits(w->disk, g->cluster_bits);
	w->model = malloc(g->size);
	memset(w->model, g->backed ? BACKING_BYTE : 0, g->size);
	open_image(w);
}

static void
world_drop(struct world *w)
{
	close_image(w);
	node_unref(w->base_node);
	node_unref(w->file);
	memdisk_free(w->disk);
	memdisk_free(w->base);
	free(w->model);
}

static void
compare(struct world *w)
{
	uint8_t *buf = malloc(w->g->size);
	struct iov v = IOV_BUF(buf, w->g->size);

	assert_int_equal(io_read(w->root, 0, &v), 0);
	assert_memory_equal(buf, w->model, w->g->size);
	free(buf);
}

static void
write_some(struct world *w, struct rng *r, uint64_t most)
{
	uint64_t len = 1 + rng_below(r, (unsigned)most);
	uint64_t off = rng_below(r, (unsigned)(w->g->size - len + 1));
	uint8_t *buf = malloc(len);
	struct iov v = IOV_BUF(buf, len);

	memset(buf, 1 + (int)rng_below(r, 255), len);
	if (rng_below(r, 8)) {
		assert_int_equal(io_write(w->root, off, &v, 0), 0);
		memcpy(w->model + off, buf, len);
	} else {
		assert_int_equal(io_zero(w->root, off, len, IO_MAY_UNMAP), 0);
		memset(w->model + off, 0, len);
	}
	free(buf);
}

static void
random_writes_co(void *arg)
{
	(void)arg;
	for (size_t g = 0; g < ARRAY_SIZE(geometries); g++) {
		struct rng r = { g + 1 };
		struct world w;

		world_make(&w, &geometries[g]);
		compare(&w);
		for (int round = 0; round < 4; round++) {
			for (int i = 0; i < 40; i++)
				write_some(&w, &r, i % 4 ? 9000 : 300000);
			if (round % 2)
				assert_int_equal(io_flush(w.root), 0);
			compare(&w);
			close_image(&w);
			open_image(&w);
			compare(&w);
		}
		world_drop(&w);
	}
}

/* ---- several at once ---- */

struct writer {
	struct world *w;
	unsigned seed;
	atomic_uint *left;
	struct co *waits;
};

/* Each has every fourth sector for its own. */
static void
write_own_sectors(void *arg)
{
	struct writer *me = arg;
	struct rng r = { me->seed };
	uint8_t buf[QCOW_SECTOR];

	for (int i = 0; i < 300; i++) {
		uint64_t sector = rng_below(&r, 256) * 4 + me->seed;
		struct iov v = IOV_BUF(buf, sizeof(buf));

		memset(buf, 1 + (int)rng_below(&r, 255), sizeof(buf));
		assert_int_equal(io_write(me->w->root, sector * QCOW_SECTOR, &v, 0), 0);
		memcpy(me->w->model + sector * QCOW_SECTOR, buf, sizeof(buf));
		if (i % 50 == 49)
			assert_int_equal(io_flush(me->w->root), 0);
	}
	if (atomic_fetch_sub(me->left, 1) == 1)
		co_wake(me->waits);
}

static void
parallel_writes_co(void *arg)
{
	static const struct geometry g = { true, 16, SIZE };
	struct writer me[4];
	atomic_uint left = 4;
	struct world w;

	(void)arg;
	world_make(&w, &g);
	for (unsigned i = 0; i < 4; i++) {
		me[i] = (struct writer){ &w, i, &left, co_self() };
		assert_int_equal(co_spawn(loop_io(i % TEST_IO_LOOPS), write_own_sectors, &me[i]), 0);
	}
	while (atomic_load(&left))
		co_park();
	compare(&w);
	close_image(&w);
	open_image(&w);
	compare(&w);
	world_drop(&w);
}

/* ---- more tables than are kept ---- */

static void
wide_writes_co(void *arg)
{
	enum { STRIDE = 2 << 20, COUNT = 600 };
	struct memdisk *disk = memdisk_new(0);
	struct node *file = must_mem(disk, "file"), *image = NULL;
	uint8_t buf[4096];

	(void)arg;
	disk->no_log = true;
	qcow_test_create((uint64_t)COUNT * STRIDE, NULL);
	MUST(qcow_test_open(false, false, &image, &err));
	for (unsigned i = 0; i < COUNT; i++) {
		memset(buf, (int)(i % 255) + 1, sizeof(buf));
		assert_int_equal(node_pwrite(image, (uint64_t)i * STRIDE, buf, sizeof(buf)), 0);
	}
	for (unsigned i = 0; i < COUNT; i++) {
		assert_int_equal(node_pread(image, (uint64_t)i * STRIDE, buf, sizeof(buf)), 0);
		assert_int_equal(buf[7], i % 255 + 1);
	}
	node_unref(image);
	MUST(qcow_test_open(false, true, &image, &err));
	for (unsigned i = 0; i < COUNT; i++) {
		assert_int_equal(node_pread(image, (uint64_t)i * STRIDE, buf, sizeof(buf)), 0);
		assert_int_equal(buf[7], i % 255 + 1);
	}
	node_unref(image);
	node_unref(file);
	memdisk_free(disk);
}

/* ---- tables that point at what is vital ---- */

/* The entry that leads to cluster 0, in a table of this level, points there. */
static void
point_at(unsigned level, uint64_t place)
{
	struct memdisk *disk = memdisk_new(0);
	struct node *file = must_mem(disk, "file"), *image = NULL;
	uint8_t buf[4096] = { 1 }, head[64];
	uint64_t l1 = QCOW_HEADER_BYTES;

	disk->no_log = true;
	qcow_test_create(1 << 20, NULL);
	MUST(qcow_test_open(false, false, &image, &err));
	assert_int_equal(node_pwrite(image, 0, buf, sizeof(buf)), 0);
	node_unref(image);
	put_be64(disk->content + (level == 1 ? l1 : get_be64(disk->content + l1)), place);
	memcpy(head, disk->content, sizeof(head));
	MUST(qcow_test_open(false, false, &image, &err));
	assert_int_equal(node_pwrite(image, 0, buf, sizeof(buf)), -EIO);
	assert_memory_equal(head, disk->content, sizeof(head));
	node_unref(image);
	node_unref(file);
	memdisk_free(disk);
}

static void
vital_places_co(void *arg)
{
	(void)arg;
	/* Fields that are zero: a table there would be empty. */
	point_at(1, 8);
	point_at(1, 16);
	/* The L1 table, which is its own L2 table then. */
	point_at(1, QCOW_HEADER_BYTES);
	point_at(2, 8);
	point_at(2, QCOW_HEADER_BYTES - 1);
	point_at(2, QCOW_HEADER_BYTES);
	point_at(2, QCOW_HEADER_BYTES + 7);
}

/* What was written is stored as the image becomes read-only, not only by a flush. */
static void
what_is_written_is_stored_as_writing_ends_co(void *arg)
{
	struct world w;
	struct rng r = { 11 };

	(void)arg;
	world_make(&w, &geometries[0]);
	for (int i = 0; i < 10; i++)
		write_some(&w, &r, 9000);
	root_free(w.root);
	MUST(node_set_read_only(w.image, true, &err));
	node_unref(w.image);
	open_image(&w);
	compare(&w);
	world_drop(&w);
}

#define QCOW_TEST(name)                                                        \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}

QCOW_TEST(random_writes)
QCOW_TEST(parallel_writes)
QCOW_TEST(wide_writes)
QCOW_TEST(vital_places)
QCOW_TEST(what_is_written_is_stored_as_writing_ends)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(random_writes),
		CO_TEST(parallel_writes),
		CO_TEST(wide_writes),
		CO_TEST(vital_places),
		CO_TEST(what_is_written_is_stored_as_writing_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
