/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts while an image stores dirty bitmaps.
 *
 * After each write to the file, whatever of what was not flushed got there, torn
 * between sectors or not: the image is without corruption, and each bitmap in it marks
 * all that differs from the disk as it was when the bitmap was made or cleared, or says
 * that it is inconsistent. */
#include "tests/unit/block_test.h"

#include "block/dirty.h"
#include "block/qcow2/check.h"
#include "block/qcow2/qcow2.h"

enum { SIZE = 128 << 10, SECTOR = 512, BITMAPS = 3, GENERATIONS = 64, SAMPLES = 4, SEEDS = 12 };

static const char *const names[BITMAPS] = { "a", "b", "c" };

/* What a bitmap's marks count from, by the length of the log then. */
struct generation {
	size_t from;
	uint8_t base[SIZE];
};

struct world {
	struct memdisk *m;
	struct node *file, *image;
	uint8_t *before;	/* the file's content as the log began */
	uint64_t before_size;
	uint8_t disk[SIZE];	/* the guest's view */
	struct generation *generation[BITMAPS][GENERATIONS];
	unsigned generations[BITMAPS];
	struct rng rng;
	uint8_t value;
};

static struct node *
open_image(const char *file, const char *name, bool read_only)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_REFERENCE, .u.reference = (char *)file };
	struct BlockdevOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2, .node_name = (char *)name,
		.has_read_only = true, .read_only = read_only, .u.qcow2 = { .file = &ref },
	};
	struct node *n = NULL;

	MUST(node_open(&o, NULL, &n, &err));
	return n;
}

/* ---- the work ---- */

static void
begin_generation(struct world *w, unsigned i)
{
	struct generation *g = malloc(sizeof(*g));

	assert_true(w->generations[i] < GENERATIONS);
	g->from = w->m->log_count;
	memcpy(g->base, w->disk, SIZE);
	w->generation[i][w->generations[i]++] = g;
}

static void
change(struct world *w)
{
	uint64_t len = 1 + rng_below(&w->rng, 9000), off = rng_below(&w->rng, (unsigned)(SIZE - len));
	uint8_t buf[9000];

	w->value = (uint8_t)(w->value % 250 + 1);
	memset(buf, w->value, len);
	if (rng_below(&w->rng, 4)) {
		assert_int_equal(node_pwrite(w->image, off, buf, len), 0);
		memset(w->disk + off, w->value, len);
	} else {
		assert_int_equal(node_zero(w->image, off, len, IO_MAY_UNMAP), 0);
		memset(w->disk + off, 0, len);
	}
}

static void
add_or_remove(struct world *w, unsigned i)
{
	struct dirty_bitmap *b = dirty_find(w->image, names[i]);
	struct dirty_options o = { .name = names[i], .persistent = true,
				   .granularity = UINT64_C(512) << 3 * i };

	if (b) {
		MUST(dirty_remove(b, &err));
		return;
	}
	begin_generation(w, i);
	MUST(dirty_add(w->image, &o, &err));
}

static void
clear(struct world *w, unsigned i)
{
	struct dirty_bitmap *b = dirty_find(w->image, names[i]);

	if (!b)
		return;
	begin_generation(w, i);
	MUST(dirty_clear(b, &err));
}

static void
one_act(struct world *w)
{
	unsigned i = rng_below(&w->rng, BITMAPS);

	switch (rng_below(&w->rng, 12)) {
	case 0:
	case 1:
		node_unref(w->image);
		w->image = open_image("file", "image", false);
		break;
	case 2:
		MUST(node_set_read_only(w->image, true, &err));
		MUST(node_set_read_only(w->image, false, &err));
		break;
	case 3:
	case 4:
		add_or_remove(w, i);
		break;
	case 5:
	case 6:
		change(w);
		clear(w, i);
		break;
	case 7:
		assert_int_equal(node_flush(w->image), 0);
		break;
	default:
		change(w);
		break;
	}
}

/* ---- what a cut leaves ---- */

struct cut {
	size_t count;		/* so much of the log was begun */
	enum { ALL, NONE, SOME_WRITES, SOME_SECTORS } how;
	struct rng rng;
};

static void
apply(struct memdisk *to, const struct memdisk_entry *e, uint64_t at, uint64_t len)
{
	if (e->op == MEMDISK_WRITE)
		memcpy(to->content + e->off + at, e->data + at, len);
	else
		memset(to->content + e->off + at, 0, len);
}

static void
apply_torn(struct memdisk *to, const struct memdisk_entry *e, struct rng *rng)
{
	for (uint64_t at = 0; at < e->len;) {
		uint64_t len = min_u64(e->len - at, SECTOR - (e->off + at) % SECTOR);

		if (rng_below(rng, 2))
			apply(to, e, at, len);
		at += len;
	}
}

static struct memdisk *
left_by(const struct world *w, struct cut *cut)
{
	struct memdisk *to = memdisk_new(w->m->size);
	size_t safe = 0;

	memcpy(to->content, w->before, w->before_size);
	to->no_log = true;
	for (size_t i = 0; i < cut->count; i++)
		if (w->m->log[i].op == MEMDISK_FLUSH)
			safe = i;
	for (size_t i = 0; i < cut->count; i++) {
		const struct memdisk_entry *e = &w->m->log[i];

		if (e->op != MEMDISK_WRITE && e->op != MEMDISK_ZERO)
			continue;
		if (i < safe || cut->how == ALL ||
		    (cut->how == SOME_WRITES && rng_below(&cut->rng, 2)))
			apply(to, e, 0, e->len);
		else if (cut->how == SOME_SECTORS)
			apply_torn(to, e, &cut->rng);
	}
	return to;
}

/* ---- judging it ---- */

static unsigned consistent, inconsistent;

static void
judge_bitmap(const struct world *w, const struct cut *cut, unsigned i, const uint8_t *disk,
	     struct dirty_bitmap *b)
{
	const struct generation *g = NULL;
	uint64_t off, len;

	if (dirty_reason(b)) {
		inconsistent++;
		return;
	}
	consistent++;
	for (unsigned k = 0; k < w->generations[i]; k++)
		if (w->generation[i][k]->from <= cut->count)
			g = w->generation[i][k];
	assert_non_null(g);
	for (uint64_t at = 0; at < SIZE; at++)
		if (disk[at] != g->base[at] && !dirty_next_run(b, at, at + 1, &off, &len))
			fail_msg("cut %zu, %d: %s misses byte %llu", cut->count, (int)cut->how,
				 names[i], (unsigned long long)at);
}

static void
judge(const struct world *w, struct cut *cut)
{
	struct memdisk *m = left_by(w, cut);
	struct node *file = must_mem(m, "left"), *n = open_image("left", "judged", true);
	struct check_result c;
	uint8_t disk[SIZE];

	assert_int_equal(qcow2_check(n->state, 0, NULL, &c), 0);
	if (c.corruptions || c.errors)
		fail_msg("cut %zu, %d: corrupt", cut->count, (int)cut->how);
	assert_int_equal(node_pread(n, 0, disk, SIZE), 0);
	for (unsigned i = 0; i < BITMAPS; i++) {
		struct dirty_bitmap *b = dirty_find(n, names[i]);

		if (b)
			judge_bitmap(w, cut, i, disk, b);
	}
	node_unref(n);
	node_unref(file);
	memdisk_free(m);
}

static void
judge_all(struct world *w)
{
	for (size_t count = 0; count <= w->m->log_count; count++) {
		/* A flush alone leaves nothing else. */
		if (count && w->m->log[count - 1].op == MEMDISK_FLUSH)
			continue;
		for (unsigned k = 0; k < 2 + 2 * SAMPLES; k++) {
			struct cut cut = { .count = count, .rng = { count * 97 + k },
					   .how = k == 0	     ? ALL
						  : k == 1	     ? NONE
						  : k < 2 + SAMPLES ? SOME_WRITES
								     : SOME_SECTORS };

			judge(w, &cut);
		}
	}
}

static void
world_up(struct world *w, unsigned seed)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_REFERENCE,
				   .u.reference = (char *)"file" };
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = { .file = &ref, .size = SIZE, .has_cluster_size = true,
			     .cluster_size = 4096 },
	};

	w->rng = (struct rng){ seed };
	w->m = memdisk_new(0);
	w->file = must_mem(w->m, "file");
	MUST(driver_find("qcow2")->create(&o, &err));
	w->image = open_image("file", "image", false);
	memdisk_checkpoint(w->m);
	w->before_size = w->m->size;
	w->before = malloc(w->before_size);
	memcpy(w->before, w->m->content, w->before_size);
}

static void
cuts_co(void *arg)
{
	(void)arg;
	for (unsigned seed = 1; seed <= SEEDS; seed++) {
		struct world *w = calloc(1, sizeof(*w));

		world_up(w, seed);
		for (int k = 0; k < 40; k++)
			one_act(w);
		node_unref(w->image);
		judge_all(w);
		node_unref(w->file);
		memdisk_free(w->m);
		for (unsigned i = 0; i < BITMAPS; i++)
			while (w->generations[i])
				free(w->generation[i][--w->generations[i]]);
		free(w->before);
		free(w);
	}
	/* Both kinds were met, or nothing was shown. */
	assert_true(consistent > 100 && inconsistent > 100);
}

static void
a_bitmap_is_true_or_inconsistent_whatever_a_cut_leaves(void **state)
{
	(void)state;
	run(cuts_co, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(a_bitmap_is_true_or_inconsistent_whatever_a_cut_leaves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
