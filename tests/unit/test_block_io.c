/* SPDX-License-Identifier: Apache-2.0 */
/* The request path over a disk in memory. */
#include "aio/co.h"
#include "block/ranges.h"
#include "tests/unit/block_test.h"

enum { MIB = 1 << 20, KIB = 1 << 10 };

struct world {
	struct memdisk *m;
	struct node *n;
	struct root *r;
};

static void
world_up(struct world *w, struct memdisk *m)
{
	w->m = m;
	w->n = must_mem(m, "disk");
	w->r = must_root(w->n, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
}

static void
world_down(struct world *w)
{
	root_free(w->r);
	node_unref(w->n);
	assert_null(node_find("disk"));
	memdisk_free(w->m);
}

static int
put(struct world *w, uint64_t off, int byte, size_t len, unsigned flags)
{
	uint8_t *buf = malloc(len);
	struct iov v = IOV_BUF(buf, len);
	int r;

	memset(buf, byte, len);
	r = io_write(w->r, off, &v, flags);
	free(buf);
	return r;
}

static int
get(struct world *w, uint64_t off, void *buf, size_t len)
{
	struct iov v = IOV_BUF(buf, len);

	return io_read(w->r, off, &v);
}

static void
reads_give_what_was_written_co(void *arg)
{
	uint8_t buf[100];
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	assert_int_equal(put(&w, 1000, 'x', sizeof(buf), 0), 0);
	assert_int_equal(get(&w, 1000, buf, sizeof(buf)), 0);
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 'x');
	world_down(&w);
}

static void
requests_out_of_bounds_fail_co(void *arg)
{
	uint8_t buf[16] = { 0 };
	struct iov v = IOV_BUF(buf, sizeof(buf));
	struct extent x;
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	assert_int_equal(get(&w, MIB - 15, buf, sizeof(buf)), -EIO);
	assert_int_equal(get(&w, UINT64_MAX - 7, buf, sizeof(buf)), -EIO);
	assert_int_equal(io_write(w.r, MIB, &v, 0), -EIO);
	assert_int_equal(io_zero(w.r, MIB - 1, 2, 0), -EIO);
	assert_int_equal(io_discard(w.r, UINT64_MAX, 1), -EIO);
	assert_int_equal(io_status(w.r, MIB, 1, true, &x), -EIO);
	assert_int_equal(w.m->calls[MEMDISK_READ] + w.m->calls[MEMDISK_WRITE], 0);
	assert_int_equal(node_size(w.n), MIB);
	world_down(&w);
}

static void
failed_reads_leave_no_stale_memory_co(void *arg)
{
	uint8_t buf[512];
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	memset(buf, 0xee, sizeof(buf));
	memdisk_fail(w.m, 1 << MEMDISK_READ, 1, -EIO, false);
	assert_int_equal(get(&w, 0, buf, sizeof(buf)), -EIO);
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 0);
	world_down(&w);
}

/* Random requests on disks with all sorts of limits, against a plain array. */
struct shape {
	uint32_t align, mem_align, zero_align;
	uint64_t max_transfer;
	bool no_zero;
};

static void
random_request(struct world *w, uint8_t *model, struct rng *rng, size_t size)
{
	size_t off = rng_below(rng, (unsigned)size);
	size_t len = 1 + rng_below(rng, (unsigned)(size - off) < 70000
					       ? (unsigned)(size - off) : 70000);
	uint8_t *buf = malloc(len + 1), *at = buf + rng_below(rng, 2);
	struct iovec vec[2] = { { at, len / 2 }, { at + len / 2, len - len / 2 } };
	struct iov v = { vec, 2, len };
	int byte = (int)rng_below(rng, 256);

	switch (rng_below(rng, 4)) {
	case 0:
		memset(at, byte, len);
		memset(model + off, byte, len);
		assert_int_equal(io_write(w->r, off, &v, rng_below(rng, 2)), 0);
		break;
	case 1:
		memset(model + off, 0, len);
		assert_int_equal(io_zero(w->r, off, len, rng_below(rng, 2) * 2), 0);
		break;
	default:
		assert_int_equal(io_read(w->r, off, &v), 0);
		assert_memory_equal(at, model + off, len);
	}
	free(buf);
}

static void
all_limits_show_the_same_disk_co(void *arg)
{
	static const struct shape shapes[] = {
		{ 1, 1, 1, 0, false },	     { 512, 512, 512, 0, false },
		{ 4096, 4096, 4096, 0, false }, { 512, 1, 65536, 8192, false },
		{ 4096, 512, 1, 4096, true },  { 1, 4096, 3, 1000, false },
	};
	uint8_t *model = calloc(1, MIB);

	(void)arg;
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct memdisk *m = memdisk_new(MIB);
		struct rng rng = { i + 1 };
		struct world w;

		m->align = shapes[i].align;
		m->mem_align = shapes[i].mem_align;
		m->zero_align = is_pow2(shapes[i].zero_align) ? shapes[i].zero_align : 1;
		m->max_transfer = shapes[i].max_transfer;
		m->no_zero = shapes[i].no_zero;
		m->no_fua = i & 1;
		m->no_log = true;
		world_up(&w, m);
		memset(model, 0, MIB);
		for (int k = 0; k < 400; k++)
			random_request(&w, model, &rng, MIB);
		assert_memory_equal(m->content, model, MIB);
		assert_int_equal(m->size, MIB);
		world_down(&w);
	}
	free(model);
}

static void
drivers_see_only_aligned_requests_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct world w;

	(void)arg;
	m->align = 4096;
	m->max_transfer = 16384;
	world_up(&w, m);
	assert_int_equal(put(&w, 5000, 'a', 100000, 0), 0);
	assert_true(m->log_count > 1);
	for (size_t i = 0; i < m->log_count; i++) {
		assert_int_equal(m->log[i].off % 4096, 0);
		assert_int_equal(m->log[i].len % 4096, 0);
		assert_true(m->log[i].len <= 16384);
	}
	world_down(&w);
}

struct neighbour {
	struct world *w;
	unsigned index;
	int rounds;
};

/* Each owns 100 bytes of the same blocks. */
static void
write_own_bytes(void *arg)
{
	struct neighbour *nb = arg;

	for (int i = 0; i < nb->rounds; i++)
		assert_int_equal(put(nb->w, nb->index * 100, 'A' + (int)nb->index, 100, 0),
				 0);
}

static void
unaligned_neighbours_lose_nothing_co(void *arg)
{
	struct neighbour nb[40];
	struct co_group g;
	struct memdisk *m = memdisk_new(MIB);
	struct world w;

	(void)arg;
	m->align = 4096;
	m->yields = 3;
	m->no_log = true;
	world_up(&w, m);
	co_group_init(&g);
	for (unsigned i = 0; i < ARRAY_SIZE(nb); i++) {
		nb[i] = (struct neighbour){ &w, i, 20 };
		assert_int_equal(co_group_spawn(&g, loop_io(i % TEST_IO_LOOPS),
						write_own_bytes, &nb[i]), 0);
	}
	co_group_wait(&g);
	for (unsigned i = 0; i < ARRAY_SIZE(nb) * 100; i++)
		assert_int_equal(m->content[i], 'A' + i / 100);
	world_down(&w);
}

struct turn {
	struct world *w;
	uint64_t off;
	unsigned flags;
	bool reads, done;
};

static void
take_turn(void *arg)
{
	struct turn *t = arg;
	uint8_t buf[512];

	if (t->reads)
		assert_int_equal(get(t->w, t->off, buf, sizeof(buf)), 0);
	else
		assert_int_equal(put(t->w, t->off, 'x', sizeof(buf), t->flags), 0);
	t->done = true;
}

/* With the range [4096, 8192) claimed, who gets through, and who waits? */
static void
requests_behind_a_claim(struct world *w, bool exclusive, struct turn *turns, size_t count)
{
	struct claim claim;
	struct co_group g;

	ranges_claim(w->n->serial, &claim, 4096, 4096, exclusive);
	co_group_init(&g);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(co_group_start(&g, take_turn, &turns[i]), 0);
	for (int i = 0; i < 20; i++)
		co_yield();
	for (size_t i = 0; i < count; i++)
		assert_int_equal(turns[i].done, turns[i].off >= 8192);
	ranges_release(w->n->serial, &claim);
	co_group_wait(&g);
}

static void
tracked_requests_wait_for_each_other_co(void *arg)
{
	struct world w;
	struct turn writers[] = {
		{ &w, 4096, IO_SERIALISING, false, false },
		{ &w, 8192, IO_SERIALISING, false, false },
		{ &w, 9000, 0, true, false },
	};
	struct turn all[] = {
		{ &w, 4096, 0, false, false },
		{ &w, 7000, 0, true, false },
		{ &w, 16384, 0, true, false },
		{ &w, 12288, 0, false, false },
	};

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	MUST(node_track(w.n, &err));
	requests_behind_a_claim(&w, false, writers, ARRAY_SIZE(writers));
	requests_behind_a_claim(&w, true, all, ARRAY_SIZE(all));
	world_down(&w);
}

static void
zeroes_are_emulated_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct world w;

	(void)arg;
	m->no_zero = true;
	world_up(&w, m);
	assert_int_equal(put(&w, 0, 'x', MIB, 0), 0);
	assert_int_equal(io_zero(w.r, 100, 200000, IO_FAST), -EOPNOTSUPP);
	assert_int_equal(m->content[100], 'x');
	assert_int_equal(io_zero(w.r, 100, 200000, 0), 0);
	assert_int_equal(m->content[99], 'x');
	assert_int_equal(m->content[100], 0);
	assert_int_equal(m->content[200099], 0);
	assert_int_equal(m->content[200100], 'x');
	world_down(&w);
}

static void
fua_is_emulated_by_a_flush_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct world w;

	(void)arg;
	m->no_fua = true;
	world_up(&w, m);
	assert_int_equal(put(&w, 0, 'x', 512, IO_FUA), 0);
	assert_int_equal(m->log_count, 2);
	assert_int_equal(m->log[0].flags & IO_FUA, 0);
	assert_int_equal(m->log[1].op, MEMDISK_FLUSH);
	world_down(&w);
}

static void
fua_is_passed_on_where_known_co(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	assert_int_equal(put(&w, 0, 'x', 512, IO_FUA), 0);
	assert_int_equal(w.m->log_count, 1);
	assert_int_equal(w.m->log[0].flags, IO_FUA);
	world_down(&w);
}

static void
nothing_written_needs_no_flush_co(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	assert_int_equal(io_flush(w.r), 0);
	assert_int_equal(w.m->calls[MEMDISK_FLUSH], 0);
	assert_int_equal(put(&w, 0, 'x', 512, 0), 0);
	assert_int_equal(io_flush(w.r), 0);
	assert_int_equal(io_flush(w.r), 0);
	assert_int_equal(w.m->calls[MEMDISK_FLUSH], 1);
	world_down(&w);
}

static void
a_failed_flush_is_final_co(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	assert_int_equal(put(&w, 0, 'x', 512, 0), 0);
	memdisk_fail(w.m, 1 << MEMDISK_FLUSH, 1, -EIO, false);
	assert_int_equal(io_flush(w.r), -EIO);
	assert_int_equal(io_flush(w.r), -EIO);
	assert_int_equal(put(&w, 0, 'x', 512, 0), 0);
	assert_int_equal(io_flush(w.r), -EIO);
	assert_int_equal(w.m->calls[MEMDISK_FLUSH], 1);
	world_down(&w);
}

static void
a_failed_flush_is_final_above_too_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *n = must_mem(m, "disk"), *raw = NULL;
	struct world w = { .m = m, .n = n };

	(void)arg;
	MUST(open_raw("raw", "disk", false, &raw, &err));
	w.r = must_root(raw, PERM_WRITE, PERM_ALL);
	assert_int_equal(put(&w, 0, 'x', 512, 0), 0);
	memdisk_fail(m, 1 << MEMDISK_FLUSH, 1, -ENOSPC, false);
	assert_int_equal(io_flush(w.r), -ENOSPC);
	assert_int_equal(io_flush(w.r), -ENOSPC);
	node_unref(raw);
	world_down(&w);
}

/* The kernel tells of a page that it could not store once, and the write that came
 * by is told: no later flush will hear of it. */
static void
a_write_that_could_not_be_stored_is_final_co(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	assert_int_equal(put(&w, 0, 'x', 512, 0), 0);
	memdisk_fail(w.m, 1 << MEMDISK_WRITE, 1, -ENOSPC, false);
	assert_int_equal(put(&w, 4096, 'y', 512, IO_FUA), -ENOSPC);
	assert_int_equal(io_flush(w.r), 0);
	memdisk_fail(w.m, 1 << MEMDISK_WRITE, 1, -EIO, false);
	assert_int_equal(put(&w, 4096, 'y', 512, IO_FUA), -EIO);
	assert_int_equal(io_flush(w.r), -EIO);
	world_down(&w);
}

static void
read_only_nodes_refuse_writes_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *n = NULL;
	struct root *r;
	uint8_t buf[1] = { 0 };
	struct iov v = IOV_BUF(buf, 1);

	(void)arg;
	MUST(memdisk_open(m, "disk", true, &n, &err));
	r = must_root(n, PERM_CONSISTENT_READ, PERM_ALL);
	assert_int_equal(io_write(r, 0, &v, 0), -EPERM);
	assert_int_equal(io_zero(r, 0, 1, 0), -EPERM);
	assert_int_equal(io_discard(r, 0, 1), -EPERM);
	root_free(r);
	node_unref(n);
	memdisk_free(m);
}

static void
zero_writes_are_detected_co(void *arg)
{
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	w.n->detect_zeroes = true;
	assert_int_equal(put(&w, 0, 0, 4096, 0), 0);
	assert_int_equal(put(&w, 4096, 1, 4096, 0), 0);
	assert_int_equal(w.m->log[0].op, MEMDISK_ZERO);
	assert_int_equal(w.m->log[0].flags & IO_MAY_UNMAP, 0);
	assert_int_equal(w.m->log[1].op, MEMDISK_WRITE);
	w.n->detect_zeroes_unmap = true;
	assert_int_equal(put(&w, 0, 0, 4096, 0), 0);
	assert_int_equal(w.m->log[2].flags & IO_MAY_UNMAP, IO_MAY_UNMAP);
	world_down(&w);
}

static void
discards_keep_to_the_granularity_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct world w;

	(void)arg;
	m->discard_align = 65536;
	world_up(&w, m);
	assert_int_equal(io_discard(w.r, 1000, 200000), 0);
	assert_int_equal(m->log_count, 1);
	assert_int_equal(m->log[0].off, 65536);
	assert_int_equal(m->log[0].len, 131072);
	assert_int_equal(io_discard(w.r, 1, 65536), 0);
	assert_int_equal(m->log_count, 1);
	w.n->discard_unmap = false;
	assert_int_equal(io_discard(w.r, 0, 65536), 0);
	assert_int_equal(m->log_count, 1);
	world_down(&w);
}

static void
below_the_entrance_nodes_grow_co(void *arg)
{
	uint8_t buf[1024];
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(4096));
	memset(buf, 'g', sizeof(buf));
	assert_int_equal(node_pwrite(w.n, 8192, buf, 1024), 0);
	assert_int_equal(node_size(w.n), 9216);
	assert_int_equal(node_pread(w.n, 9000, buf, 1024), 0);
	assert_int_equal(buf[215], 'g');
	assert_int_equal(buf[216], 0);
	assert_int_equal(buf[1023], 0);
	world_down(&w);
}

static void
a_closed_entrance_says_so_co(void *arg)
{
	uint8_t buf[1];
	struct world w;

	(void)arg;
	world_up(&w, memdisk_new(MIB));
	root_shutdown(w.r);
	assert_int_equal(get(&w, 0, buf, 1), -ESHUTDOWN);
	assert_int_equal(io_flush(w.r), -ESHUTDOWN);
	world_down(&w);
}

#define IO_TESTS(X)                                                            \
	X(reads_give_what_was_written)                                         \
	X(requests_out_of_bounds_fail)                                         \
	X(failed_reads_leave_no_stale_memory)                                  \
	X(all_limits_show_the_same_disk)                                       \
	X(drivers_see_only_aligned_requests)                                   \
	X(unaligned_neighbours_lose_nothing)                                   \
	X(tracked_requests_wait_for_each_other)                                \
	X(zeroes_are_emulated)                                                 \
	X(fua_is_emulated_by_a_flush)                                          \
	X(fua_is_passed_on_where_known)                                        \
	X(nothing_written_needs_no_flush)                                      \
	X(a_failed_flush_is_final)                                             \
	X(a_failed_flush_is_final_above_too)                                   \
	X(a_write_that_could_not_be_stored_is_final)                           \
	X(read_only_nodes_refuse_writes)                                       \
	X(zero_writes_are_detected)                                            \
	X(discards_keep_to_the_granularity)                                    \
	X(below_the_entrance_nodes_grow)                                       \
	X(a_closed_entrance_says_so)

#define DEFINE(name)                                                           \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}
IO_TESTS(DEFINE)
#define LIST_TEST(name) CO_TEST(name),

int
main(void)
{
	const struct CMUnitTest tests[] = { IO_TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
