/* SPDX-License-Identifier: Apache-2.0 */
/* Readers of the instant that copy-before-write keeps, while guests write: what they
 * see is what was there, to the byte, or an error.  A seed in QUOIN_TEST_SEED repeats
 * a run. */
#include <stdatomic.h>

#include "aio/co.h"
#include "block/filters/cbw.h"
#include "tests/support/passfilter.h"
#include "tests/unit/block_test.h"

enum { CLUSTER = 65536, CLUSTERS = 10, SIZE = CLUSTERS * CLUSTER + 3 * 512 };
enum { GUESTS = 4, READERS = 4 };
#ifdef TEST_TSAN
enum { ROUNDS = 12 };
#else
enum { ROUNDS = 50 };
#endif

struct world {
	struct memdisk *source, *target;
	struct node *source_node, *target_node, *cbw, *access;
	struct root *guest, *reader;
	uint8_t *before;
};

static uint64_t
seed(void)
{
	const char *s = getenv("QUOIN_TEST_SEED");

	return s ? strtoull(s, NULL, 0) : 31;
}

/* ---- the graph ---- */

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
		.has_discard = true, .discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
		.u.copy_before_write = { .file = &file, .target = &target,
					 .has_on_cbw_error = true,
					 .on_cbw_error = on_error },
	};

	return node_open(&o, NULL, ret, errp);
}

static int
open_access(const char *name, const char *file, struct node **ret, struct error **errp)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_REFERENCE,
				   .u.reference = (char *)file };
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_SNAPSHOT_ACCESS,
				     .node_name = (char *)name,
				     .has_discard = true,
				     .discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
				     .u.snapshot_access.file = &ref };

	return node_open(&o, NULL, ret, errp);
}

static void
set_up(struct world *w, enum OnCbwError on_error, uint64_t with_seed)
{
	struct rng r = { with_seed };

	w->source = memdisk_new(SIZE);
	w->target = memdisk_new(SIZE);
	w->source->no_log = w->target->no_log = true;
	w->source->yields = rng_below(&r, 4);
	w->target->yields = rng_below(&r, 4);
	for (size_t i = 0; i < SIZE; i += 512)
		if (rng_below(&r, 4))
			memset(w->source->content + i, (int)(1 + rng_below(&r, 127)), 512);
	w->before = malloc(SIZE);
	memcpy(w->before, w->source->content, SIZE);
	w->source_node = must_mem(w->source, "source");
	w->target_node = must_mem(w->target, "target");
	MUST(open_cbw(on_error, &w->cbw, &err));
	MUST(open_access("access", "cbw", &w->access, &err));
	w->guest = must_root(w->cbw, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	w->reader = must_root(w->access, PERM_CONSISTENT_READ, PERM_ALL);
}

static void
tear_down(struct world *w)
{
	root_free(w->guest);
	root_free(w->reader);
	node_unref(w->access);
	node_unref(w->cbw);
	node_unref(w->source_node);
	node_unref(w->target_node);
	memdisk_free(w->source);
	memdisk_free(w->target);
	free(w->before);
}

/* Guests write bytes that were nowhere before. */
static int
guest_write(struct world *w, uint64_t off, uint64_t len)
{
	uint8_t *buf = malloc(len);
	struct iov v = IOV_BUF(buf, len);
	int err;

	memset(buf, 0xee, len);
	err = io_write(w->guest, off, &v, 0);
	free(buf);
	return err;
}

/* 0, after a comparison, or the error. */
static int
read_old(struct world *w, uint64_t off, uint64_t len)
{
	uint8_t *buf = malloc(len);
	struct iov v = IOV_BUF(buf, len);
	int err = io_read(w->reader, off, &v);

	for (uint64_t i = 0; i < len && !err; i++)
		if (buf[i] != w->before[off + i])
			fail_msg("byte %llu is %#x, was %#x", (unsigned long long)(off + i),
				 buf[i], w->before[off + i]);
	free(buf);
	return err;
}

/* ---- random interleavings ---- */

struct actor {
	struct world *w;
	struct rng rng;
	bool may_fail;		/* the copy may break */
	bool discards;
	atomic_bool *stop;
	unsigned good, bad;
};

static void
some_range(struct rng *r, unsigned most, uint64_t *off, uint64_t *len)
{
	*len = 1 + rng_below(r, most);
	*off = rng_below(r, SIZE - (unsigned)*len + 1);
}

static void
guest_co(void *arg)
{
	struct actor *a = arg;
	uint64_t off, len;

	/* Until each cluster has been hit, as good as surely. */
	for (int i = 0; i < 12 * CLUSTERS / GUESTS; i++) {
		some_range(&a->rng, rng_below(&a->rng, 6) ? 6000 : 3 * CLUSTER, &off, &len);
		switch (rng_below(&a->rng, 6)) {
		case 0:
			assert_int_equal(io_zero(a->w->guest, off, len, IO_MAY_UNMAP), 0);
			break;
		case 1:
			assert_int_equal(io_discard(a->w->guest, off, len), 0);
			break;
		default:
			assert_int_equal(guest_write(a->w, off, len), 0);
		}
	}
}

static void
read_or_ask(struct actor *a, uint64_t off, uint64_t len)
{
	struct extent x;
	int err;

	if (rng_below(&a->rng, 8)) {
		err = read_old(a->w, off, len);
	} else {
		err = io_status(a->w->reader, off, len, true, &x);
		if (!err && x.flags & EXTENT_ZERO)
			assert_true(bytes_are_zero(a->w->before + off, x.len));
	}
	assert_true(!err || (a->may_fail && err == -EACCES));
	if (err)
		a->bad++;
	else
		a->good++;
}

static void
reader_co(void *arg)
{
	struct actor *a = arg;
	uint64_t off, len;

	while (!atomic_load(a->stop)) {
		some_range(&a->rng, rng_below(&a->rng, 4) ? 9000 : 4 * CLUSTER, &off, &len);
		if (a->discards && !rng_below(&a->rng, 20))
			assert_int_equal(io_discard(a->w->reader, off, len), 0);
		else
			read_or_ask(a, off, len);
		co_yield();
	}
}

/* The graph above changes meanwhile. */
static void
shuffle(struct world *w)
{
	struct node *f = NULL;

	MUST(passfilter_open(w->cbw, "f", &f, &err));
	MUST(node_insert_above(w->cbw, f, &err));
	co_yield();
	MUST(node_remove_filter(f, &err));
	node_unref(f);
}

struct mix {
	bool breaks, discards, shuffles;
};

static void
run_round(struct mix mix, uint64_t with_seed, unsigned *good, unsigned *bad)
{
	struct world w = { 0 };
	struct actor guests[GUESTS], readers[READERS];
	struct co_group writing, reading;
	atomic_bool stop = false;

	set_up(&w, ON_CBW_ERROR_BREAK_SNAPSHOT, with_seed);
	if (mix.breaks)
		memdisk_fail(w.target, 1u << MEMDISK_WRITE | 1u << MEMDISK_ZERO,
			     1 + with_seed % CLUSTERS, -EIO, true);
	co_group_init(&writing);
	co_group_init(&reading);
	for (unsigned i = 0; i < READERS; i++) {
		readers[i] = (struct actor){ .w = &w, .rng = { with_seed * 64 + i },
					     .may_fail = mix.breaks || mix.discards,
					     .discards = mix.discards, .stop = &stop };
		assert_int_equal(co_group_spawn(&reading, loop_io(i % TEST_IO_LOOPS), reader_co,
						&readers[i]), 0);
	}
	for (unsigned i = 0; i < GUESTS; i++) {
		guests[i] = (struct actor){ .w = &w, .rng = { with_seed * 64 + 32 + i } };
		assert_int_equal(co_group_spawn(&writing, loop_io(i % TEST_IO_LOOPS), guest_co,
						&guests[i]), 0);
	}
	for (int i = 0; mix.shuffles && i < 10; i++)
		shuffle(&w);
	co_group_wait(&writing);
	atomic_store(&stop, true);
	co_group_wait(&reading);
	for (unsigned i = 0; i < READERS; i++) {
		*good += readers[i].good;
		*bad += readers[i].bad;
	}
	if (!mix.breaks && !mix.discards)
		assert_int_equal(read_old(&w, 0, SIZE), 0);
	tear_down(&w);
}

static void
run_rounds(struct mix mix)
{
	unsigned good = 0, bad = 0;

	for (uint64_t i = 0; i < ROUNDS; i++)
		run_round(mix, seed() + i, &good, &bad);
	assert_true(good > ROUNDS);
	assert_int_equal(bad > 0, mix.breaks || mix.discards);
}

static void
readers_never_see_what_guests_write_co(void *arg)
{
	(void)arg;
	run_rounds((struct mix){ 0 });
}

static void
nor_while_the_graph_changes_co(void *arg)
{
	(void)arg;
	run_rounds((struct mix){ .shuffles = true });
}

static void
nor_when_the_copy_breaks_co(void *arg)
{
	(void)arg;
	run_rounds((struct mix){ .breaks = true });
}

static void
nor_when_readers_discard_co(void *arg)
{
	(void)arg;
	run_rounds((struct mix){ .discards = true });
}

/* ---- one thing at a time ---- */

struct slow_read {
	struct world *w;
	atomic_bool done;
};

static void
read_slowly(void *arg)
{
	struct slow_read *s = arg;

	assert_int_equal(read_old(s->w, 100, 1000), 0);
	atomic_store(&s->done, true);
}

static void
a_write_waits_for_the_reader_of_its_cluster_co(void *arg)
{
	struct world w = { 0 };
	struct slow_read s = { .w = &w };
	struct co_group g;

	(void)arg;
	set_up(&w, ON_CBW_ERROR_BREAK_GUEST_WRITE, 0);
	w.source->yields = 1000;
	co_group_init(&g);
	assert_int_equal(co_group_start(&g, read_slowly, &s), 0);
	assert_false(atomic_load(&s.done));
	w.source->yields = 0;
	assert_int_equal(guest_write(&w, CLUSTER - 1, 1), 0);
	assert_true(atomic_load(&s.done));
	co_group_wait(&g);
	tear_down(&w);
}

static void
what_was_discarded_is_neither_shown_nor_kept_co(void *arg)
{
	struct world w = { 0 };
	unsigned calls;

	(void)arg;
	set_up(&w, ON_CBW_ERROR_BREAK_GUEST_WRITE, 3);
	assert_int_equal(guest_write(&w, CLUSTER, 1), 0);
	/* Whole clusters only: 1 and 2. */
	assert_int_equal(io_discard(w.reader, CLUSTER - 1, 2 * CLUSTER + 2), 0);
	assert_int_equal(read_old(&w, 0, CLUSTER), 0);
	assert_int_equal(read_old(&w, CLUSTER - 1, 2), -EACCES);
	assert_int_equal(read_old(&w, 3 * CLUSTER - 1, 1), -EACCES);
	assert_int_equal(read_old(&w, 3 * CLUSTER, SIZE - 3 * CLUSTER), 0);
	calls = w.target->calls[MEMDISK_WRITE] + w.target->calls[MEMDISK_ZERO];
	assert_int_equal(guest_write(&w, 2 * CLUSTER, CLUSTER), 0);
	assert_int_equal(w.target->calls[MEMDISK_WRITE] + w.target->calls[MEMDISK_ZERO], calls);
	tear_down(&w);
}

static void
a_disk_made_smaller_shows_what_it_was_co(void *arg)
{
	struct world w = { 0 };

	(void)arg;
	set_up(&w, ON_CBW_ERROR_BREAK_GUEST_WRITE, 4);
	MUST(node_resize(w.cbw, 2 * CLUSTER + 512, &err));
	assert_int_equal(node_size(w.source_node), 2 * CLUSTER + 512);
	assert_int_equal(read_old(&w, 0, SIZE), 0);
	MUST(node_resize(w.cbw, SIZE, &err));
	assert_int_equal(guest_write(&w, 0, SIZE), 0);
	assert_int_equal(read_old(&w, 0, SIZE), 0);
	tear_down(&w);
}

static void
a_disk_made_smaller_without_room_for_that_stays_as_it_is_co(void *arg)
{
	struct world w = { 0 };

	(void)arg;
	set_up(&w, ON_CBW_ERROR_BREAK_GUEST_WRITE, 5);
	memdisk_fail(w.target, 1u << MEMDISK_WRITE | 1u << MEMDISK_ZERO, 1, -ENOSPC, true);
	MUST_FAIL(node_resize(w.cbw, CLUSTER, &err),
		  "Could not keep what is cut off: No space left on device");
	assert_int_equal(node_size(w.source_node), SIZE);
	assert_int_equal(read_old(&w, 0, SIZE), 0);
	tear_down(&w);
}

/* A filter that keeps a later instant, put above, is none of a reader's business. */
static void
a_later_instant_above_changes_nothing_co(void *arg)
{
	struct world w = { 0 };
	struct memdisk *later = memdisk_new(SIZE);
	const struct cbw_options o = { .name = "later" };
	struct node *later_node, *filter = NULL;

	(void)arg;
	later_node = must_mem(later, "more");
	set_up(&w, ON_CBW_ERROR_BREAK_GUEST_WRITE, 6);
	assert_int_equal(guest_write(&w, 0, CLUSTER), 0);
	MUST(cbw_new(&o, w.cbw, later_node, &filter, &err));
	assert_int_equal(guest_write(&w, 0, 2 * CLUSTER), 0);
	assert_int_equal(read_old(&w, 0, SIZE), 0);
	MUST(cbw_remove(filter, &err));
	node_unref(filter);
	assert_int_equal(read_old(&w, 0, SIZE), 0);
	tear_down(&w);
	node_unref(later_node);
	memdisk_free(later);
}

static void
a_node_that_keeps_nothing_has_nothing_to_show_co(void *arg)
{
	struct memdisk *m = memdisk_new(SIZE);
	struct node *n = must_mem(m, "disk"), *access = NULL;
	struct root *r;
	uint8_t byte;
	struct iov v = IOV_BUF(&byte, 1);
	struct extent x;

	(void)arg;
	MUST(open_access("access", "disk", &access, &err));
	r = must_root(access, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	assert_int_equal(io_read(r, 0, &v), -ENOTSUP);
	assert_int_equal(io_status(r, 0, 1, true, &x), -ENOTSUP);
	assert_int_equal(io_write(r, 0, &v, 0), -ENOTSUP);
	assert_int_equal(io_zero(r, 0, 512, 0), -ENOTSUP);
	assert_int_equal(io_discard(r, 0, 512), 0);
	root_free(r);
	node_unref(access);
	node_unref(n);
	memdisk_free(m);
}

#define ACCESS_TESTS(X)                                                        \
	X(readers_never_see_what_guests_write)                                 \
	X(nor_while_the_graph_changes)                                         \
	X(nor_when_the_copy_breaks)                                            \
	X(nor_when_readers_discard)                                            \
	X(a_write_waits_for_the_reader_of_its_cluster)                         \
	X(what_was_discarded_is_neither_shown_nor_kept)                        \
	X(a_disk_made_smaller_shows_what_it_was)                               \
	X(a_disk_made_smaller_without_room_for_that_stays_as_it_is)            \
	X(a_later_instant_above_changes_nothing)                               \
	X(a_node_that_keeps_nothing_has_nothing_to_show)

#define DEFINE(name)                                                           \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}
ACCESS_TESTS(DEFINE)
#define LIST_TEST(name) CO_TEST(name),

int
main(void)
{
	const struct CMUnitTest tests[] = { ACCESS_TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
