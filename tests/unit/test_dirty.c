/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps of a node over a disk in memory. */
#include <stdatomic.h>

#include "aio/co.h"
#include "base/bitmap.h"
#include "block/dirty.h"
#include "tests/unit/block_test.h"

enum { MIB = 1 << 20, KIB = 1 << 10 };

struct world {
	struct memdisk *m;
	struct node *n;
	struct root *r;
};

static void
world_up(struct world *w, uint64_t size)
{
	w->m = memdisk_new(size);
	w->n = must_mem(w->m, "disk");
	w->r = must_root(w->n, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
}

static void
world_down(struct world *w)
{
	root_free(w->r);
	node_unref(w->n);
	memdisk_free(w->m);
}

static struct dirty_bitmap *
add(struct node *n, const char *name, uint64_t granularity)
{
	struct dirty_options o = { .name = name, .granularity = granularity };

	MUST(dirty_add(n, &o, &err));
	return dirty_find(n, name);
}

static int
put(struct world *w, uint64_t off, size_t len)
{
	uint8_t *buf = calloc(1, len);
	struct iov v = IOV_BUF(buf, len);
	int r = io_write(w->r, off, &v, 0);

	free(buf);
	return r;
}

static uint64_t
count(struct dirty_bitmap *b)
{
	uint64_t off = 0, len = 0, sum = 0;

	for (; dirty_next_run(b, off, UINT64_MAX, &off, &len); off += len)
		sum += len;
	return sum;
}

static bool
is_marked(struct dirty_bitmap *b, uint64_t at)
{
	uint64_t off, len;

	return dirty_next_run(b, at, at + 1, &off, &len);
}

static void
each_kind_of_change_is_marked_co(void *arg)
{
	struct dirty_bitmap *b;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 4096);
	assert_int_equal(count(b), 0);
	assert_int_equal(put(&w, 4095, 2), 0);
	assert_int_equal(count(b), 8192);
	assert_int_equal(io_zero(w.r, 100 * KIB, 1, 0), 0);
	assert_true(is_marked(b, 100 * KIB));
	assert_int_equal(io_discard(w.r, 200 * KIB, 4 * KIB), 0);
	assert_true(is_marked(b, 200 * KIB));
	assert_int_equal(count(b), 4 * 4096);
	MUST(dirty_remove(b, &err));
	assert_int_equal(put(&w, 0, 1), 0);
	world_down(&w);
}

static void
reading_and_flushing_mark_nothing_co(void *arg)
{
	struct dirty_bitmap *b;
	struct world w;
	uint8_t buf[100];
	struct iov v = IOV_BUF(buf, sizeof(buf));

	(void)arg;
	world_up(&w, MIB);
	w.n->discard_unmap = false;
	b = add(w.n, "b", 4096);
	assert_int_equal(io_read(w.r, 5, &v), 0);
	assert_int_equal(io_flush(w.r), 0);
	assert_int_equal(io_discard(w.r, 0, 4 * KIB), 0);	/* ignored */
	assert_int_equal(count(b), 0);
	world_down(&w);
}

static void
a_failed_write_is_marked_co(void *arg)
{
	struct dirty_bitmap *b;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 4096);
	memdisk_fail(w.m, 1 << MEMDISK_WRITE, 1, -EIO, false);
	assert_int_equal(put(&w, 8192, 100), -EIO);
	assert_int_equal(count(b), 4096);
	world_down(&w);
}

static void
a_refused_write_is_not_co(void *arg)
{
	struct dirty_bitmap *b;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	w.m->no_grow = true;
	b = add(w.n, "b", 4096);
	assert_int_equal(put(&w, MIB - 1, 2), -EIO);
	assert_int_equal(count(b), 0);
	world_down(&w);
}

static void
a_disabled_bitmap_stays_as_it_is_co(void *arg)
{
	struct dirty_bitmap *b;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 4096);
	assert_int_equal(put(&w, 0, 1), 0);
	MUST(dirty_enable(b, false, &err));
	assert_int_equal(put(&w, 64 * KIB, 1), 0);
	assert_int_equal(count(b), 4096);
	MUST(dirty_enable(b, true, &err));
	assert_int_equal(put(&w, 128 * KIB, 1), 0);
	assert_int_equal(count(b), 8192);
	MUST(dirty_clear(b, &err));
	assert_int_equal(count(b), 0);
	world_down(&w);
}

static void
merging_adds_and_leaves_the_sources_co(void *arg)
{
	struct dirty_bitmap *a, *b, *from[2];
	struct memdisk *m = memdisk_new(MIB), *small = memdisk_new(MIB / 2);
	struct node *other, *half;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	other = must_mem(m, "other");
	half = must_mem(small, "half");
	a = add(w.n, "a", 65536);
	b = add(w.n, "b", 512);
	assert_int_equal(put(&w, 0, 1), 0);
	MUST(dirty_clear(a, &err));
	from[0] = b;
	from[1] = add(other, "o", 4096);
	assert_int_equal(node_zero(other, 300 * KIB, 1, 0), 0);
	MUST(dirty_merge(a, from, 2, &err));
	assert_int_equal(count(a), 2 * 65536);
	assert_true(is_marked(a, 0) && is_marked(a, 300 * KIB));
	assert_int_equal(count(b), 512);
	assert_int_equal(count(from[1]), 4096);

	/* All or nothing. */
	MUST(dirty_clear(a, &err));
	from[1] = add(half, "h", 4096);
	MUST_FAIL(dirty_merge(a, from, 2, &err),
		  "Bitmaps are of different sizes (destination size is 1048576, source "
		  "size is 524288) and can't be merged");
	assert_int_equal(count(a), 0);
	node_unref(other);
	node_unref(half);
	memdisk_free(m);
	memdisk_free(small);
	world_down(&w);
}

static void
wrong_ways_are_refused_in_words_co(void *arg)
{
	struct dirty_options o = { .name = "b" };
	struct dirty_bitmap *b;
	struct world w;
	char name[DIRTY_NAME_MAX + 2];

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 0);
	assert_int_equal(dirty_granularity(b), 65536);
	MUST_FAIL(dirty_add(w.n, &o, &err), "Bitmap already exists: b");
	o.name = "";
	MUST_FAIL(dirty_add(w.n, &o, &err), "Bitmap name cannot be empty");
	o = (struct dirty_options){ .name = "c", .granularity = 1536 };
	MUST_FAIL(dirty_add(w.n, &o, &err), "Granularity must be power of 2 and at least 512");
	o.granularity = 256;
	MUST_FAIL(dirty_add(w.n, &o, &err), "Granularity must be power of 2 and at least 512");
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	o = (struct dirty_options){ .name = name };
	assert_int_equal(dirty_add(w.n, &o, NULL), -1);
	name[DIRTY_NAME_MAX] = '\0';
	MUST(dirty_add(w.n, &o, &err));
	assert_null(dirty_lookup("disk", "none", NULL));
	assert_null(dirty_lookup("none", "b", NULL));
	assert_ptr_equal(dirty_lookup("disk", "b", NULL), b);
	assert_ptr_equal(dirty_after(w.n, dirty_after(w.n, NULL)), b);
	dirty_set_busy(b, true);
	MUST_FAIL(dirty_remove(b, &err), "Bitmap 'b' is currently in use by another operation "
					 "and cannot be used");
	MUST_FAIL(dirty_clear(b, &err), "Bitmap 'b' is currently in use by another operation "
					"and cannot be used");
	MUST_FAIL(dirty_freeze(b, &err), "Bitmap 'b' is currently in use by another operation "
					 "and cannot be used");
	assert_int_equal(put(&w, 0, 1), 0);
	assert_int_equal(count(b), 65536);	/* busy is not idle */
	dirty_set_busy(b, false);
	world_down(&w);
}

static void
a_frozen_bitmap_melts_with_or_without_what_it_marked_co(void *arg)
{
	struct dirty_bitmap *b;
	struct bitmap *left;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 4096);
	assert_int_equal(put(&w, 0, 1), 0);

	/* Not copied after all: old and new marks. */
	MUST(dirty_freeze(b, &err));
	assert_int_equal(put(&w, 8192, 1), 0);
	assert_int_equal(count(b), 4096);
	dirty_melt(b, true, NULL);
	assert_int_equal(count(b), 8192);

	/* Copied: new marks only. */
	MUST(dirty_freeze(b, &err));
	assert_int_equal(put(&w, 16384, 1), 0);
	dirty_melt(b, false, NULL);
	assert_int_equal(count(b), 4096);
	assert_true(is_marked(b, 16384));

	/* Copied in part. */
	assert_int_equal(bitmap_new(MIB, 65536, &left), 0);
	bitmap_set(left, 65536, 1);
	MUST(dirty_freeze(b, &err));
	dirty_melt(b, false, left);
	assert_int_equal(count(b), 65536);
	assert_int_equal(put(&w, 0, 1), 0);
	assert_int_equal(count(b), 65536 + 4096);
	bitmap_free(left);
	world_down(&w);
}

static void
space_that_went_and_came_back_is_marked_co(void *arg)
{
	struct dirty_bitmap *b, *off;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 4096);
	off = add(w.n, "off", 4096);
	MUST(dirty_enable(off, false, &err));

	/* What was never there before is known to be new: it needs no mark. */
	MUST(node_truncate(w.n, 2 * MIB, true, PREALLOC_OFF, &err));
	assert_int_equal(count(b), 0);
	assert_int_equal(put(&w, 2 * MIB - 1, 1), 0);
	assert_int_equal(count(b), 4096);

	MUST(node_truncate(w.n, MIB / 2, true, PREALLOC_OFF, &err));
	assert_int_equal(count(b), 0);
	MUST(node_truncate(w.n, 3 * MIB, true, PREALLOC_OFF, &err));
	assert_int_equal(count(b), 3 * MIB / 2);
	assert_true(is_marked(b, MIB / 2) && is_marked(b, 2 * MIB - 1));
	assert_int_equal(count(off), 0);

	/* A clear begins anew. */
	MUST(node_truncate(w.n, MIB, true, PREALLOC_OFF, &err));
	MUST(dirty_clear(b, &err));
	MUST(node_truncate(w.n, 2 * MIB, true, PREALLOC_OFF, &err));
	assert_int_equal(count(b), 0);
	world_down(&w);
}

static void
a_successor_is_resized_too_co(void *arg)
{
	struct dirty_bitmap *b;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 4096);
	MUST(dirty_freeze(b, &err));
	MUST(node_truncate(w.n, MIB / 2, true, PREALLOC_OFF, &err));
	MUST(node_truncate(w.n, MIB, true, PREALLOC_OFF, &err));
	assert_int_equal(count(b), 0);
	dirty_melt(b, false, NULL);
	assert_int_equal(count(b), MIB / 2);
	world_down(&w);
}

static void
a_node_that_grows_by_writes_has_marks_to_its_end_co(void *arg)
{
	struct dirty_bitmap *b;
	struct world w;

	(void)arg;
	world_up(&w, MIB);
	b = add(w.n, "b", 4096);
	for (uint64_t i = 0; i < 64; i++)
		assert_int_equal(node_pwrite(w.n, MIB + i * 65536, "x", 1), 0);
	assert_int_equal(count(b), 63 * 4096 + 1);
	world_down(&w);
}

/* ---- against a model, and from several loops at once ---- */

enum { WRITERS = 6, AREA = 256 * KIB, GRAIN = 512 };

struct writer {
	struct root *r;
	uint64_t base;
	struct rng rng;
	atomic_bool *stop;
	uint8_t dirty[AREA / GRAIN];	/* what was acknowledged as written */
};

static void
write_once(struct writer *w)
{
	uint64_t off = rng_below(&w->rng, AREA - 1);
	uint64_t len = 1 + rng_below(&w->rng, AREA - off < 3000 ? (unsigned)(AREA - off) : 3000);
	uint8_t buf[3000] = { 0 };
	struct iov v = IOV_BUF(buf, len);
	int r = rng_below(&w->rng, 2) ? io_write(w->r, w->base + off, &v, 0)
				      : io_zero(w->r, w->base + off, len, 0);

	assert_int_equal(r, 0);
	for (uint64_t g = off / GRAIN; g <= (off + len - 1) / GRAIN; g++)
		w->dirty[g] = 1;
}

static void
writer_co(void *arg)
{
	struct writer *w = arg;

	while (!atomic_load(w->stop))
		write_once(w);
}

/* One bitmap is enabled all the time, others come and go, are frozen and melted;
 * one that was ever melted with its old marks, or never frozen, has all. */
static void
disturb(struct node *n, struct dirty_bitmap *frozen)
{
	struct dirty_bitmap *b = add(n, "brief", 4096);

	co_yield();
	MUST(dirty_merge(b, &frozen, 1, &err));
	MUST(dirty_clear(b, &err));
	MUST(dirty_freeze(frozen, &err));
	co_yield();
	dirty_melt(frozen, true, NULL);
	MUST(dirty_remove(b, &err));
}

static void
no_change_is_missed_from_several_loops_co(void *arg)
{
	struct writer *writers[WRITERS];
	struct dirty_bitmap *b, *frozen;
	atomic_bool stop = false;
	struct co_group g;
	struct world w;

	(void)arg;
	world_up(&w, (uint64_t)WRITERS * AREA);
	w.m->no_log = true;
	w.m->yields = 1;
	b = add(w.n, "b", GRAIN);
	frozen = add(w.n, "frozen", GRAIN);
	co_group_init(&g);
	for (unsigned i = 0; i < WRITERS; i++) {
		writers[i] = calloc(1, sizeof(**writers));
		*writers[i] = (struct writer){ .r = w.r, .base = (uint64_t)i * AREA,
					       .rng = { 77 + i }, .stop = &stop };
		assert_int_equal(co_group_spawn(&g, loop_io(i % TEST_IO_LOOPS), writer_co,
						writers[i]), 0);
	}
	for (int i = 0; i < 3000; i++)
		disturb(w.n, frozen);
	atomic_store(&stop, true);
	co_group_wait(&g);
	for (unsigned i = 0; i < WRITERS; i++) {
		for (uint64_t k = 0; k < AREA / GRAIN; k++) {
			uint64_t at = writers[i]->base + k * GRAIN;

			assert_int_equal(is_marked(b, at), writers[i]->dirty[k]);
			assert_int_equal(is_marked(frozen, at), writers[i]->dirty[k]);
		}
		free(writers[i]);
	}
	world_down(&w);
}

#define DIRTY_TESTS(X)                                                         \
	X(each_kind_of_change_is_marked)                                       \
	X(reading_and_flushing_mark_nothing)                                   \
	X(a_failed_write_is_marked)                                            \
	X(a_refused_write_is_not)                                              \
	X(a_disabled_bitmap_stays_as_it_is)                                    \
	X(merging_adds_and_leaves_the_sources)                                 \
	X(wrong_ways_are_refused_in_words)                                     \
	X(a_frozen_bitmap_melts_with_or_without_what_it_marked)                \
	X(space_that_went_and_came_back_is_marked)                             \
	X(a_successor_is_resized_too)                                          \
	X(a_node_that_grows_by_writes_has_marks_to_its_end)                    \
	X(no_change_is_missed_from_several_loops)

#define DEFINE(name)                                                           \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}
DIRTY_TESTS(DEFINE)
#define LIST_TEST(name) CO_TEST(name),

int
main(void)
{
	const struct CMUnitTest tests[] = { DIRTY_TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
