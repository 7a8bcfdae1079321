/* SPDX-License-Identifier: Apache-2.0 */
/* Disks that change their size, both ways, while clients write: on other areas, and
 * right where the end comes and goes.  A seed in QUOIN_TEST_SEED repeats a run. */
#include <stdatomic.h>

#include "aio/co.h"
#include "aio/timer.h"
#include "block/check.h"
#include "tests/unit/block_test.h"

enum {
	SECTOR	 = 512,
	INNER	 = 128 << 10,	/* never cut off */
	LOW	 = INNER,	/* the size moves between these */
	HIGH	 = LOW + (96 << 10),
	CLIENTS	 = 6,		/* the first half within INNER, the others at the end */
#ifdef TEST_TSAN
	RESIZES	 = 40,
#else
	RESIZES	 = 250,
#endif
	RUN	 = 3,		/* sectors that a request has at most */
};

struct shape {
	const char *name;
	bool raw, backed, extended_l2;
	uint64_t cluster;
};

static const struct shape shapes[] = {
	{ .name = "raw", .raw = true },
	{ .name = "512", .cluster = 512 },
	{ .name = "4096, backed", .cluster = 4096, .backed = true },
	{ .name = "64K", .cluster = 65536 },
	{ .name = "subclusters", .cluster = 16384, .extended_l2 = true },
	{ .name = "subclusters, backed", .cluster = 16384, .extended_l2 = true, .backed = true },
};

/* What a sector holds: the number of the write that filled it, in each of its words,
 * beside the sector's own.  0: zeroes. */
struct sector {
	uint32_t tag;
	unsigned since;		/* cuts that had ended when it was written */
};

struct world {
	const struct shape *s;
	struct memdisk *disk, *base;
	struct node *file, *backing, *image;
	struct root *root;
	struct sector sectors[HIGH / SECTOR];
	atomic_uint cuts_begun, cuts_ended;
	atomic_uint next_tag;
	atomic_uint requests;
	atomic_bool stop;
	atomic_uint refused, zeroed;
};

struct client {
	struct world *w;
	unsigned number;
	struct rng rng;
};

static uint64_t
seed(void)
{
	const char *s = getenv("QUOIN_TEST_SEED");

	return s ? strtoull(s, NULL, 0) : 47;
}

/* ---- the disk ---- */

static struct BlockdevRef
ref(const char *name)
{
	return (struct BlockdevRef){ .type = BLOCKDEV_REF_REFERENCE,
				     .u.reference = (char *)name };
}

static void
open_image(struct world *w)
{
	struct BlockdevRef file = ref("file");
	struct BlockdevRefOrNull under = { .type = BLOCKDEV_REF_OR_NULL_NULL };
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_QCOW2,
				     .node_name = (char *)"image",
				     .has_discard = true,
				     .discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
				     .u.qcow2 = { .file = &file, .backing = &under } };

	if (w->s->raw) {
		MUST(open_raw("image", "file", false, &w->image, &err));
		return;
	}
	if (w->s->backed) {
		under.type = BLOCKDEV_REF_OR_NULL_REFERENCE;
		under.u.reference = (char *)"base";
	}
	MUST(node_open(&o, NULL, &w->image, &err));
}

static void
make_image(struct world *w)
{
	struct BlockdevRef file = ref("file");
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = { .file = &file, .size = LOW,
			     .has_cluster_size = true, .cluster_size = w->s->cluster,
			     .has_extended_l2 = true, .extended_l2 = w->s->extended_l2 },
	};

	MUST(driver_find("qcow2")->create(&o, &err));
}

static void
set_up(struct world *w)
{
	w->disk = memdisk_new(w->s->raw ? LOW : 0);
	w->disk->no_log = true;
	w->disk->yields = 1;
	w->file = must_mem(w->disk, "file");
	if (w->s->backed) {
		w->base = memdisk_new(HIGH);
		memset(w->base->content, 0xbb, HIGH);
		w->backing = must_mem(w->base, "base");
	}
	if (!w->s->raw)
		make_image(w);
	open_image(w);
	w->root = must_root(w->image, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	/* Let nothing of the backing file be left to show: only its part behind the
	 * end could, where it must not. */
	assert_int_equal(io_zero(w->root, 0, LOW, 0), 0);
}

static void
check_image(struct world *w)
{
	struct check_result c;

	if (w->s->raw)
		return;
	assert_int_equal(w->image->driver->check(w->image, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors + c.leaks, 0);
}

static void
tear_down(struct world *w)
{
	root_free(w->root);
	node_unref(w->image);
	node_unref(w->backing);
	node_unref(w->file);
	memdisk_free(w->disk);
	if (w->base)
		memdisk_free(w->base);
}

/* ---- clients ---- */

static void
fill(uint32_t *p, unsigned sector, uint32_t tag)
{
	for (unsigned i = 0; i < SECTOR / 4; i++)
		p[i] = i % 2 ? tag : sector + 1;
}

/* What was read of a sector is what was written there last, or zeroes if the end has
 * been below it since. */
static void
judge(struct world *w, unsigned sector, const uint32_t *p)
{
	struct sector *s = &w->sectors[sector];
	uint32_t want[SECTOR / 4];

	fill(want, sector, s->tag);
	if (s->tag && !memcmp(p, want, SECTOR))
		return;
	if (!bytes_are_zero(p, SECTOR))
		fail_msg("%s: sector %u holds %#x %#x, not write %u", w->s->name, sector, p[0],
			 p[1], s->tag);
	if (s->tag) {
		if (sector < INNER / SECTOR || atomic_load(&w->cuts_begun) <= s->since)
			fail_msg("%s: write %u of sector %u is lost", w->s->name, s->tag, sector);
		atomic_fetch_add(&w->zeroed, 1);
	}
	s->tag = 0;
}

/* A run of sectors that belongs to this client alone, among others' in its cluster. */
static void
pick(struct client *c, unsigned *first, unsigned *count)
{
	unsigned half = CLIENTS / 2, at_end = c->number >= half;
	unsigned base = at_end ? INNER / SECTOR : 0;
	unsigned runs = (at_end ? HIGH - INNER : INNER) / SECTOR / RUN / half;

	*first = base + (rng_below(&c->rng, runs) * half + c->number % half) * RUN;
	*count = 1 + rng_below(&c->rng, RUN);
}

static void
write_some(struct client *c, unsigned first, unsigned count)
{
	struct world *w = c->w;
	uint32_t buf[RUN * SECTOR / 4];
	struct iov v = IOV_BUF(buf, count * SECTOR);
	unsigned since = atomic_load(&w->cuts_ended);
	uint32_t tag = 1 + atomic_fetch_add(&w->next_tag, 1);
	int err;

	for (unsigned i = 0; i < count; i++)
		fill(buf + i * SECTOR / 4, first + i, tag);
	err = io_write(w->root, first * SECTOR, &v, 0);
	assert_true(!err || (err == -EIO && c->number >= CLIENTS / 2));
	if (err)
		atomic_fetch_add(&w->refused, 1);
	for (unsigned i = 0; i < count && !err; i++)
		w->sectors[first + i] = (struct sector){ tag, since };
}

static void
zero_some(struct client *c, unsigned first, unsigned count)
{
	int err = io_zero(c->w->root, first * SECTOR, count * SECTOR, IO_MAY_UNMAP);

	assert_true(!err || (err == -EIO && c->number >= CLIENTS / 2));
	for (unsigned i = 0; i < count && !err; i++)
		c->w->sectors[first + i].tag = 0;
}

static void
read_some(struct client *c, unsigned first, unsigned count)
{
	struct world *w = c->w;
	uint32_t buf[RUN * SECTOR / 4];
	struct iov v = IOV_BUF(buf, count * SECTOR);
	int err = io_read(w->root, first * SECTOR, &v);

	assert_true(!err || (err == -EIO && c->number >= CLIENTS / 2));
	for (unsigned i = 0; i < count && !err; i++)
		judge(w, first + i, buf + i * SECTOR / 4);
}

static void
client_co(void *arg)
{
	struct client *c = arg;
	unsigned first, count;

	while (!atomic_load(&c->w->stop)) {
		atomic_fetch_add(&c->w->requests, 1);
		pick(c, &first, &count);
		switch (rng_below(&c->rng, 8)) {
		case 0:
			zero_some(c, first, count);
			break;
		case 1:
		case 2:
			read_some(c, first, count);
			break;
		case 3:
			assert_int_equal(rng_below(&c->rng, 4) ? 0 : io_flush(c->w->root), 0);
			break;
		default:
			write_some(c, first, count);
			if (rng_below(&c->rng, 2))
				read_some(c, first, count);
		}
	}
}

/* ---- the test ---- */

static void
let_clients_work(struct world *w, unsigned requests)
{
	unsigned from = atomic_load(&w->requests);

	while (atomic_load(&w->requests) - from < requests)
		assert_int_equal(co_sleep(50000), 0);
}

static void
move_end(struct world *w, struct rng *r)
{
	uint64_t size = LOW + SECTOR * rng_below(r, (HIGH - LOW) / SECTOR + 1);
	bool cut = size < node_size(w->image);

	if (cut)
		atomic_fetch_add(&w->cuts_begun, 1);
	MUST(node_resize(w->image, size, &err));
	assert_int_equal(node_size(w->image), size);
	if (cut)
		atomic_fetch_add(&w->cuts_ended, 1);
	let_clients_work(w, rng_below(r, 60));
}

static void
read_all(struct world *w)
{
	uint64_t size = node_size(w->image);
	uint8_t *buf = malloc(size);
	struct iov v = IOV_BUF(buf, size);

	assert_int_equal(io_read(w->root, 0, &v), 0);
	for (unsigned i = 0; i < size / SECTOR; i++)
		judge(w, i, (uint32_t *)(buf + (size_t)i * SECTOR));
	free(buf);
}

static void
run_shape_co(void *arg)
{
	struct world *w = calloc(1, sizeof(*w));
	struct client clients[CLIENTS];
	struct rng r = { seed() };
	struct co_group g;

	w->s = arg;
	set_up(w);
	co_group_init(&g);
	for (unsigned i = 0; i < CLIENTS; i++) {
		clients[i] = (struct client){ w, i, { seed() * 100 + i } };
		assert_int_equal(co_group_spawn(&g, loop_io(i % TEST_IO_LOOPS), client_co,
						&clients[i]), 0);
	}
	for (int i = 0; i < RESIZES; i++)
		move_end(w, &r);
	atomic_store(&w->stop, true);
	co_group_wait(&g);
	/* There were writes behind the end, and such that were cut off. */
	assert_true(atomic_load(&w->refused) > 0 && atomic_load(&w->zeroed) > 0);
	read_all(w);
	MUST(node_resize(w->image, HIGH, &err));
	read_all(w);
	assert_int_equal(io_flush(w->root), 0);
	check_image(w);
	tear_down(w);
	free(w);
}

static void
writers_and_a_moving_end_spare_each_other(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		run(run_shape_co, (void *)&shapes[i]);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(writers_and_a_moving_end_spare_each_other),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
