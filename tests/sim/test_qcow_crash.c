/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts and failing disks while a qcow image is written to.
 *
 * Each sector of the disk holds one byte value.  A sector may show what it held at
 * the last flush that the guest got an answer to, or what was written since; never
 * anything else. */
#include "tests/sim/powercut.h"
#include "tests/unit/qcow_test.h"

enum { SECTORS = 600, SIZE = SECTORS * QCOW_SECTOR, OPS = 60, BASE_BYTE = 63 };

/* What the guest did. */
struct op {
	bool flush;
	unsigned sector, n;
	int value;
	size_t begin, end;	/* of the disk's log */
	int result;
};

struct world {
	struct memdisk *disk, *base;
	struct node *file, *base_node, *image;
	bool backed;
	unsigned bits;
	struct op ops[OPS];
	unsigned n;
};

static void
world_make(struct world *w, bool backed, unsigned bits)
{
	memset(w, 0, sizeof(*w));
	w->backed = backed;
	w->bits = bits;
	w->disk = memdisk_new(0);
	w->file = must_mem(w->disk, "file");
	w->base = qcow_test_base(SIZE, BASE_BYTE);
	w->base_node = must_mem(w->base, "base");
	qcow_test_create(SIZE, backed ? "base" : NULL);
	if (bits)
		qcow_test_set_cluster_bits(w->disk, bits);
	memdisk_checkpoint(w->disk);
	MUST(qcow_test_open(backed, false, &w->image, &err));
}

static void
world_drop(struct world *w)
{
	node_unref(w->base_node);
	node_unref(w->file);
	memdisk_free(w->disk);
	memdisk_free(w->base);
}

static void
do_ops(struct world *w, unsigned seed)
{
	struct rng r = { seed };
	uint8_t *buf = malloc(SIZE);

	for (w->n = 0; w->n < OPS; w->n++) {
		struct op *o = &w->ops[w->n];

		o->begin = w->disk->log_count;
		o->flush = rng_below(&r, 6) == 0;
		o->n = 1 + rng_below(&r, rng_below(&r, 3) ? 5 : 60);
		o->sector = rng_below(&r, SECTORS - o->n + 1);
		o->value = 1 + (int)rng_below(&r, 62);
		memset(buf, o->value, o->n * QCOW_SECTOR);
		o->result = o->flush ? node_flush(w->image)
				     : node_pwrite(w->image, (uint64_t)o->sector * QCOW_SECTOR, buf,
						   (uint64_t)o->n * QCOW_SECTOR);
		o->end = w->disk->log_count;
	}
	free(buf);
}

/* May sector s hold v, when the power was cut behind entry `cut` of the log? */
static bool
may_hold(const struct world *w, size_t cut, unsigned s, int v)
{
	for (unsigned i = w->n; i-- > 0;) {
		const struct op *o = &w->ops[i];

		if (o->begin > cut)
			continue;
		if (!o->flush && s >= o->sector && s < o->sector + o->n) {
			if (v == o->value)
				return true;
			/* Answered, and a flush behind it was: nothing older. */
			for (unsigned k = i + 1; k < w->n && !o->result; k++)
				if (w->ops[k].flush && !w->ops[k].result && w->ops[k].end <= cut)
					return false;
		}
	}
	return v == (w->backed ? BASE_BYTE : 0);
}

static void
judge(struct world *w, size_t cut, const char *what)
{
	uint8_t *buf = malloc(SIZE), one[QCOW_SECTOR];
	struct node *n = NULL;

	MUST(qcow_test_open(w->backed, false, &n, &err));
	/* What comes now must not disturb what was there. */
	memset(one, 62, sizeof(one));
	for (unsigned s = 0; s < SECTORS; s += 97)
		assert_int_equal(node_pwrite(n, (uint64_t)s * QCOW_SECTOR, one, sizeof(one)), 0);
	assert_int_equal(node_pread(n, 0, buf, SIZE), 0);
	for (unsigned s = 0; s < SECTORS; s++) {
		const uint8_t *p = buf + s * QCOW_SECTOR;

		if (memcmp(p, p + 1, QCOW_SECTOR - 1) ||
		    (s % 97 == 0 ? *p != 62 : !may_hold(w, cut, s, *p)))
			fail_msg("%s, bits %u, cut at %zu: sector %u holds %d", what, w->bits, cut,
				 s, *p);
	}
	node_unref(n);
	free(buf);
}

/* ---- power cuts ---- */

/* The disk as it is then becomes "file". */
static void
cut_power(struct world *w, size_t count, struct cut *cut)
{
	struct memdisk *whole = w->disk, *left;
	uint64_t size;
	uint8_t *image = memdisk_image(whole, count, cut_keeps, cut, &size);

	left = memdisk_new(size);
	left->no_log = true;
	memcpy(left->content, image, size);
	free(image);
	w->file = must_mem(left, "file");
	judge(w, count, "power cut");
	node_unref(w->file);
	memdisk_free(left);
}

static const struct {
	bool backed;
	unsigned bits;
} kinds[] = { { false, 0 }, { true, 0 }, { true, 13 } };

static void
power_cuts_co(void *arg)
{
	unsigned states = 0;

	(void)arg;
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct world w;

		world_make(&w, kinds[k].backed, kinds[k].bits);
		do_ops(&w, k + 5);
		node_unref(w.image);
		node_unref(w.file);
		for (size_t count = 0; count <= w.disk->log_count; count++)
			for (unsigned how = 0; how <= KEEP_SOME; how++, states++) {
				struct cut cut = { how, { count * 7 + how } };

				cut_power(&w, count, &cut);
			}
		w.file = must_mem(w.disk, "file");
		world_drop(&w);
	}
	print_message("%u states judged\n", states);
	assert_true(states > 500);
}

/* ---- failing disks ---- */

/* One run in which the nth write or flush of the disk fails; false: none did. */
static bool
run_failing(unsigned k, unsigned nth, int error, bool sticky)
{
	struct world w;
	bool failed;

	world_make(&w, kinds[k].backed, kinds[k].bits);
	memdisk_fail_any(w.disk, nth, error, sticky);
	do_ops(&w, k + 5);
	node_unref(w.image);
	failed = !w.disk->any_fault.count;
	memdisk_fail_any(w.disk, 0, 0, false);
	atomic_store(&w.file->flush_error, 0);	/* as a file that is opened again */
	judge(&w, SIZE_MAX, "fault");
	world_drop(&w);
	return failed;
}

static void
faults_co(void *arg)
{
	static const int errors[] = { -EIO, -ENOSPC };
	unsigned injected = 0;

	(void)arg;
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++)
		for (unsigned e = 0; e < ARRAY_SIZE(errors); e++)
			for (int sticky = 0; sticky < 2; sticky++)
				for (unsigned nth = 1; run_failing(k, nth, errors[e], sticky); nth++)
					injected++;
	print_message("%u faults injected\n", injected);
	assert_true(injected > 200);
}

static void
power_cuts(void **state)
{
	(void)state;
	run(power_cuts_co, NULL);
}

static void
faults(void **state)
{
	(void)state;
	run(faults_co, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(power_cuts),
		CO_TEST(faults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
