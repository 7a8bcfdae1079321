/* SPDX-License-Identifier: Apache-2.0 */
/* Requests from several loops while the graph changes under them.  A seed in
 * QUOIN_TEST_SEED repeats a run. */
#include <stdatomic.h>

#include "aio/co.h"
#include "tests/support/passfilter.h"
#include "tests/unit/block_test.h"

enum {
	CLIENTS	 = 12,
	AREA	 = 64 << 10,	/* of each client */
	CHANGES	 = 400,
};

struct client {
	struct root *r;
	uint64_t base;
	struct rng rng;
	uint8_t model[AREA];
	atomic_bool *stop;
};

static uint64_t
seed(void)
{
	const char *s = getenv("QUOIN_TEST_SEED");

	return s ? strtoull(s, NULL, 0) : 20;
}

static void
one_request(struct client *c)
{
	unsigned off = rng_below(&c->rng, AREA - 1);
	unsigned len = 1 + rng_below(&c->rng, (AREA - off) < 9000 ? AREA - off : 9000);
	uint8_t *buf = malloc(len);
	struct iov v = IOV_BUF(buf, len);
	int byte = (int)rng_below(&c->rng, 256);

	switch (rng_below(&c->rng, 8)) {
	case 0:
	case 1:
	case 2:
		memset(buf, byte, len);
		memset(c->model + off, byte, len);
		assert_int_equal(io_write(c->r, c->base + off, &v, 0), 0);
		break;
	case 3:
		memset(c->model + off, 0, len);
		assert_int_equal(io_zero(c->r, c->base + off, len, IO_MAY_UNMAP), 0);
		break;
	case 4:
		assert_int_equal(io_flush(c->r), 0);
		break;
	default:
		assert_int_equal(io_read(c->r, c->base + off, &v), 0);
		assert_memory_equal(buf, c->model + off, len);
	}
	free(buf);
}

static void
client_co(void *arg)
{
	struct client *c = arg;

	while (!atomic_load(c->stop))
		one_request(c);
}

/* Filters above and below, in and out, as fast as it goes. */
static void
shuffle(struct node *disk, struct node *raw, struct rng *rng)
{
	struct node *f = NULL, *g = NULL;

	MUST(passfilter_open(disk, "f", &f, &err));
	MUST(node_insert_above(disk, f, &err));
	if (rng_below(rng, 2))
		co_yield();
	MUST(passfilter_open(raw, "g", &g, &err));
	MUST(node_insert_above(raw, g, &err));
	if (rng_below(rng, 2))
		co_yield();
	MUST(node_remove_filter(f, &err));
	node_unref(f);
	MUST(node_remove_filter(g, &err));
	node_unref(g);
}

static void
start_clients(struct client **clients, struct co_group *g, struct root **roots,
	      atomic_bool *stop)
{
	co_group_init(g);
	for (unsigned i = 0; i < CLIENTS; i++) {
		struct client *c = calloc(1, sizeof(*c));
		struct loop *l = i % 4 == 3 ? loop_main() : loop_io(i % 4);

		*c = (struct client){ .r = roots[i % 2], .base = (uint64_t)i * AREA,
				      .rng = { seed() + i }, .stop = stop };
		clients[i] = c;
		assert_int_equal(co_group_spawn(g, l, client_co, c), 0);
	}
}

static void
run_shape(uint32_t align)
{
	struct memdisk *m = memdisk_new((uint64_t)CLIENTS * AREA);
	struct client *clients[CLIENTS];
	struct rng rng = { seed() };
	struct node *disk, *raw = NULL;
	struct root *roots[2];
	atomic_bool stop = false;
	struct co_group g;

	m->align = align;
	m->yields = 2;
	m->no_log = true;
	disk = must_mem(m, "disk");
	MUST(open_raw("raw", "disk", false, &raw, &err));
	roots[0] = must_root(raw, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	roots[1] = must_root(disk, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	start_clients(clients, &g, roots, &stop);
	for (int i = 0; i < CHANGES; i++)
		shuffle(disk, raw, &rng);
	atomic_store(&stop, true);
	co_group_wait(&g);
	for (unsigned i = 0; i < CLIENTS; i++) {
		assert_memory_equal(m->content + (size_t)i * AREA, clients[i]->model,
				    AREA);
		free(clients[i]);
	}
	root_free(roots[0]);
	root_free(roots[1]);
	node_unref(raw);
	node_unref(disk);
	memdisk_free(m);
}

static void
requests_survive_changes_co(void *arg)
{
	(void)arg;
	run_shape(1);
}

static void
padded_requests_survive_changes_co(void *arg)
{
	(void)arg;
	run_shape(512);
}

/* Roots come and go while requests of their own and of others run. */
struct visitor {
	struct node *n;
	struct root *r;
	atomic_uint refused;
};

static void
visit_until_refused(void *arg)
{
	struct visitor *v = arg;
	uint8_t byte;
	struct iov iov = IOV_BUF(&byte, 1);
	int err;

	while (!(err = io_read(v->r, 0, &iov)))
		;
	assert_int_equal(err, -ESHUTDOWN);
	atomic_fetch_add(&v->refused, 1);
}

static void
roots_close_under_load_co(void *arg)
{
	struct memdisk *m = memdisk_new(AREA);
	struct visitor v = { 0 };

	(void)arg;
	m->yields = 1;
	v.n = must_mem(m, "disk");
	for (int i = 0; i < 40; i++) {
		struct co_group g;

		v.r = must_root(v.n, PERM_CONSISTENT_READ, PERM_ALL);
		atomic_store(&v.refused, 0);
		co_group_init(&g);
		for (unsigned k = 0; k < 2 * TEST_IO_LOOPS; k++)
			assert_int_equal(co_group_spawn(&g, loop_io(k % TEST_IO_LOOPS),
							visit_until_refused, &v), 0);
		co_yield();
		root_stop(v.r);
		root_wait_idle(v.r);
		root_resume(v.r);
		root_shutdown(v.r);
		co_group_wait(&g);
		assert_int_equal(atomic_load(&v.refused), 2 * TEST_IO_LOOPS);
		root_free(v.r);
	}
	node_unref(v.n);
	memdisk_free(m);
}

/* While a root is stopped nothing of it is under way, on any loop. */
struct counted {
	struct root *r;
	atomic_int inside;
	atomic_bool stop;
};

static void
count_inside(void *arg)
{
	struct counted *c = arg;

	while (!atomic_load(&c->stop)) {
		assert_int_equal(root_enter(c->r), 0);
		atomic_fetch_add_explicit(&c->inside, 1, memory_order_relaxed);
		co_yield();
		atomic_fetch_sub_explicit(&c->inside, 1, memory_order_relaxed);
		root_leave(c->r);
	}
}

static void
a_stopped_root_is_empty_co(void *arg)
{
	struct memdisk *m = memdisk_new(AREA);
	struct node *n = must_mem(m, "disk");
	struct counted c = { .r = must_root(n, 0, PERM_ALL) };
	struct co_group g;

	(void)arg;
	co_group_init(&g);
	for (unsigned k = 0; k < 2 * TEST_IO_LOOPS; k++)
		assert_int_equal(co_group_spawn(&g, loop_io(k % TEST_IO_LOOPS),
						count_inside, &c), 0);
	for (int i = 0; i < 500; i++) {
		root_stop(c.r);
		root_wait_idle(c.r);
		assert_int_equal(atomic_load(&c.inside), 0);
		root_resume(c.r);
		co_yield();
	}
	atomic_store(&c.stop, true);
	co_group_wait(&g);
	root_free(c.r);
	node_unref(n);
	memdisk_free(m);
}

#define STRESS_TESTS(X)                                                        \
	X(requests_survive_changes)                                            \
	X(padded_requests_survive_changes)                                     \
	X(roots_close_under_load)                                              \
	X(a_stopped_root_is_empty)

#define DEFINE(name)                                                           \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}
STRESS_TESTS(DEFINE)
#define LIST_TEST(name) CO_TEST(name),

int
main(void)
{
	const struct CMUnitTest tests[] = { STRESS_TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
