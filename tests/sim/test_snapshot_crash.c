/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts while internal snapshots are taken and dropped.  After each write of
 * the record, with all, none and random parts of what no flush had covered, the
 * image is opened as one that is to be written: the guest's data is what it was,
 * each snapshot that is there shows what it should, and nothing is corrupt. */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/qcow2/check.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "block/snapshot.h"
#include "tests/sim/powercut.h"
#include "tests/support/memdisk.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { PHASES = 6, SAMPLES = 4 };

/* Between two phases the disk does not change; in each one a snapshot comes or goes. */
struct world {
	struct qcow2_format f;
	struct memdisk *disk;
	struct node *file, *image;
	uint8_t *content;
	uint8_t *shown[2];		/* by snapshots "a" and "b" */
	struct {
		size_t first, last;	/* entries of the log: before, behind */
		bool before[2], behind[2];
		uint8_t *content, *shown[2];
	} phase[PHASES];
};

static void
open_file(struct memdisk *m, struct node **ret)
{
	struct error *err = NULL;

	assert_int_equal(memdisk_open(m, NULL, false, ret, &err), 0);
}

static void
scribble(struct world *w, struct rng *r)
{
	uint64_t cluster = UINT64_C(1) << w->f.cluster_bits;

	for (unsigned i = 0; i < 6; i++) {
		uint64_t off = rng_below(r, (unsigned)(w->f.size - cluster));
		uint64_t len = 1 + rng_below(r, (unsigned)cluster);

		memset(w->content + off, 1 + (int)rng_below(r, 255), len);
		assert_int_equal(node_pwrite(w->image, off, w->content + off, len), 0);
	}
	assert_int_equal(node_flush(w->image), 0);
}

/* Take "a", take "b", drop "a", take "a", drop both. */
static void
one_phase(struct world *w, unsigned i)
{
	static const struct { char name[2]; bool take; } plan[PHASES] = {
		{ "a", true }, { "b", true }, { "a", false }, { "a", true }, { "a", false },
		{ "b", false },
	};
	unsigned which = plan[i].name[0] == 'b';

	w->phase[i].first = w->disk->log_count;
	for (unsigned k = 0; k < 2; k++)
		w->phase[i].before[k] = w->phase[i].behind[k] = i && w->phase[i - 1].behind[k];
	w->phase[i].behind[which] = plan[i].take;
	if (plan[i].take) {
		memcpy(w->shown[which], w->content, w->f.size);
		assert_int_equal(qcow2_snapshot_ops.take(w->image, plan[i].name), 0);
	} else {
		assert_int_equal(qcow2_snapshot_ops.drop(w->image, NULL, plan[i].name, NULL), 0);
	}
	w->phase[i].last = w->disk->log_count;
	w->phase[i].content = malloc(w->f.size);
	memcpy(w->phase[i].content, w->content, w->f.size);
	for (unsigned k = 0; k < 2; k++) {
		w->phase[i].shown[k] = malloc(w->f.size);
		memcpy(w->phase[i].shown[k], w->shown[k], w->f.size);
	}
}

static void
record_all(struct world *w, struct rng *r)
{
	w->disk = memdisk_new(0);
	open_file(w->disk, &w->file);
	w->content = calloc(1, w->f.size);
	for (unsigned k = 0; k < 2; k++)
		w->shown[k] = calloc(1, w->f.size);
	w->image = q2_make(w->file, &w->f, NULL);
	scribble(w, r);
	memdisk_checkpoint(w->disk);
	for (unsigned i = 0; i < PHASES; i++) {
		one_phase(w, i);
		if (i < PHASES - 1)
			scribble(w, r);
	}
	assert_int_equal(q2_close(w->image), 0);
	node_unref(w->file);
}

/* ---- judging ---- */

static void
compare(struct world *w, unsigned p, struct node *n)
{
	const struct qcow2 *q = n->state;
	uint8_t *buf = malloc(w->f.size);
	bool there[2] = { false, false };

	assert_int_equal(node_pread(n, 0, buf, w->f.size), 0);
	assert_memory_equal(buf, w->phase[p].content, w->f.size);
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		unsigned k = q->snapshots[i].name[0] == 'b';

		there[k] = true;
		assert_int_equal(q2_read_snapshot(n, q->snapshots[i].name, buf, w->f.size), 0);
		assert_memory_equal(buf, w->phase[p].shown[k], w->f.size);
	}
	/* One of the two states, not a mixture. */
	assert_true(!memcmp(there, w->phase[p].before, sizeof(there)) ||
		    !memcmp(there, w->phase[p].behind, sizeof(there)));
	free(buf);
}

/* Returns whether the image had to be repaired. */
static bool
judge(struct world *w, unsigned p, size_t count, unsigned how)
{
	struct cut cut = { .how = how, .rng = { count * 7 + how } };
	struct check_result c;
	struct memdisk *m;
	struct node *file, *n;
	struct qcow2 *q;
	uint64_t size;
	uint8_t *image = memdisk_image(w->disk, count, cut_keeps, &cut, &size);
	bool marked;

	m = memdisk_new(size);
	m->no_log = true;
	memcpy(m->content, image, size);
	free(image);
	open_file(m, &file);
	n = q2_open(file, NULL, false, NULL);
	assert_non_null(n);
	q = n->state;
	marked = q->header.incompat & QCOW2_INCOMPAT_DIRTY;
	/* Also as it is the data must be right, for who only reads. */
	compare(w, p, n);
	if (marked)
		assert_int_equal(qcow2_repair_dirty(q, NULL), 0);
	assert_int_equal(qcow2_check(q, 0, NULL, &c), 0);
	if (w->f.version < 3 && c.corruptions) {
		assert_int_equal(qcow2_check(q, CHECK_FIX_ERRORS | CHECK_FIX_LEAKS, NULL, &c), 0);
		marked = true;
	}
	assert_int_equal(c.corruptions + c.errors, 0);
	assert_int_equal(qcow2_check(q, CHECK_FIX_LEAKS, NULL, &c), 0);
	assert_int_equal(qcow2_check(q, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors + c.leaks, 0);
	compare(w, p, n);
	assert_int_equal(q2_close(n), 0);
	node_unref(file);
	memdisk_free(m);
	return marked;
}

static void
crash(void *arg)
{
	struct world w = { .f = *(struct qcow2_format *)arg };
	struct rng r = { w.f.cluster_bits };
	unsigned states = 0, repaired = 0;

	record_all(&w, &r);
	for (unsigned p = 0; p < PHASES; p++)
		for (size_t i = w.phase[p].first; i <= w.phase[p].last; i++)
			for (unsigned how = 0; how < 2 + SAMPLES; how++, states++)
				repaired += judge(&w, p, i, how);
	assert_in_range(repaired, 1, states - 1);
	print_message("%u states judged, %u of them repaired\n", states, repaired);
	for (unsigned p = 0; p < PHASES; p++) {
		free(w.phase[p].content);
		free(w.phase[p].shown[0]);
		free(w.phase[p].shown[1]);
	}
	free(w.content);
	free(w.shown[0]);
	free(w.shown[1]);
	memdisk_free(w.disk);
}

static void
no_power_cut_mixes_snapshots(void **state)
{
	static const struct qcow2_format formats[] = {
		{ .version = 3, .cluster_bits = 9, .refcount_order = 4 },
		{ .version = 3, .cluster_bits = 12, .refcount_order = 6 },
		{ .version = 3, .cluster_bits = 14, .refcount_order = 2, .extended_l2 = true },
		{ .version = 2, .cluster_bits = 10, .refcount_order = 4 },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(formats); i++) {
		struct qcow2_format f = formats[i];

		f.size = max_u64(UINT64_C(6) << f.cluster_bits, 40 << 10);
		run(crash, &f);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(no_power_cut_mixes_snapshots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
