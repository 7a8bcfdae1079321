/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots: a random life of writes, snapshots taken and dropped, against
 * a model of each, over all shapes of images; and each step failing. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/qcow2/check.h"
#include "block/qcow2/format.h"
#include "block/qcow2/invariants.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "block/snapshot.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { KEPT = 4 };

/* ---- a world: an image, and what it and its snapshots show ---- */

struct setup {
	struct qcow2_format f;
	bool backed;
	unsigned seed, steps;
};

struct world {
	const struct setup *s;
	struct node *file, *backing, *image;
	uint64_t size;
	uint8_t *now;
	struct {
		char name[16];		/* "": none */
		uint8_t *model;
	} kept[KEPT];
	unsigned taken;
};

static int
take(struct world *w, const char *name)
{
	return qcow2_snapshot_ops.take(w->image, name);
}

static int
drop(struct world *w, const char *name, struct error **errp)
{
	return qcow2_snapshot_ops.drop(w->image, NULL, name, errp);
}

static void
change(struct world *w, struct rng *r)
{
	uint64_t off = rng_below(r, (unsigned)w->size), max = UINT64_C(3) << w->s->f.cluster_bits;
	uint64_t len = min_u64(1 + rng_below(r, (unsigned)max), w->size - off);
	unsigned what = rng_below(r, 8);
	uint8_t *buf = malloc(len);

	if (what < 6) {
		memset(buf, 1 + (int)rng_below(r, 255), len);
		assert_int_equal(node_pwrite(w->image, off, buf, len), 0);
	} else if (what < 7) {
		assert_int_equal(node_zero(w->image, off, len, IO_MAY_UNMAP), 0);
	} else {
		(void)node_discard(w->image, off, len);
	}
	assert_int_equal(node_pread(w->image, off, w->now + off, len), 0);
	if (what < 6)
		assert_memory_equal(w->now + off, buf, len);
	free(buf);
}

/* Drop the snapshot in a place, or take one there. */
static void
snapshot(struct world *w, unsigned i)
{
	if (w->kept[i].name[0]) {
		assert_int_equal(drop(w, w->kept[i].name, NULL), 0);
		w->kept[i].name[0] = '\0';
		return;
	}
	snprintf(w->kept[i].name, sizeof(w->kept[i].name), "s%u", ++w->taken);
	assert_int_equal(take(w, w->kept[i].name), 0);
	memcpy(w->kept[i].model, w->now, w->size);
}

static void
check_clean(struct world *w)
{
	struct check_result c;

	assert_int_equal(qcow2_check(w->image->state, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors + c.leaks, 0);
}

static void
compare(struct world *w)
{
	uint8_t *buf = malloc(w->size);

	assert_int_equal(node_pread(w->image, 0, buf, w->size), 0);
	assert_memory_equal(buf, w->now, w->size);
	for (unsigned i = 0; i < KEPT; i++) {
		if (!w->kept[i].name[0])
			continue;
		assert_int_equal(q2_read_snapshot(w->image, w->kept[i].name, buf, w->size), 0);
		assert_memory_equal(buf, w->kept[i].model, w->size);
	}
	free(buf);
}

static void
reopen(struct world *w)
{
	assert_int_equal(q2_close(w->image), 0);
	w->image = q2_open(w->file, w->backing, false, NULL);
	assert_non_null(w->image);
	assert_false(((struct qcow2 *)w->image->state)->header.incompat & QCOW2_INCOMPAT_DIRTY);
}

static void
begin(struct world *w, const struct setup *s)
{
	*w = (struct world){ .s = s, .size = s->f.size };
	w->file = mem_new();
	w->now = calloc(1, w->size);
	for (unsigned i = 0; i < KEPT; i++)
		w->kept[i].model = malloc(w->size);
	if (s->backed) {
		w->backing = mem_new();
		memset(w->now, 0xbb, w->size);
		assert_int_equal(node_pwrite(w->backing, 0, w->now, w->size), 0);
	}
	w->image = q2_make(w->file, &s->f, w->backing);
}

static void
end(struct world *w)
{
	mem_free(w->file);
	if (w->backing)
		mem_free(w->backing);
	free(w->now);
	for (unsigned i = 0; i < KEPT; i++)
		free(w->kept[i].model);
}

/* ---- judged by strangers ---- */

static int
shell(const char *command)
{
	int status = system(command);

	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
compare_raw(const char *command, const char *raw, const uint8_t *model, uint64_t size)
{
	uint8_t *buf = malloc(size);
	FILE *f;

	assert_int_equal(shell(command), 0);
	f = fopen(raw, "r");
	assert_non_null(f);
	assert_int_equal(fread(buf, 1, size, f), size);
	fclose(f);
	assert_memory_equal(buf, model, size);
	free(buf);
}

/* What qemu-img sees in the image and in each snapshot. */
static void
ask_qemu_img(struct world *w)
{
	char path[] = "/tmp/quoin-test-XXXXXX", raw[64], command[512];
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	close(fd);
	if (shell("command -v qemu-img >/dev/null")) {
		unlink(path);
		return;
	}
	snprintf(raw, sizeof(raw), "%s.raw", path);
	mem_save(w->file, path);
	snprintf(command, sizeof(command), "timeout 60 qemu-img check -q -f qcow2 %s", path);
	assert_int_equal(shell(command), 0);
	for (unsigned i = 0; i < KEPT && !w->backing; i++) {
		if (!w->kept[i].name[0])
			continue;
		snprintf(command, sizeof(command), "timeout 60 qemu-img convert -q -f qcow2 -l "
			 "snapshot.name=%s -O raw %s %s", w->kept[i].name, path, raw);
		compare_raw(command, raw, w->kept[i].model, w->size);
	}
	unlink(path);
	unlink(raw);
}

/* ---- a life ---- */

static void
live(void *arg)
{
	const struct setup *s = arg;
	struct rng r = { s->seed };
	struct world w;

	begin(&w, s);
	for (unsigned i = 0; i < s->steps; i++) {
		for (unsigned k = rng_below(&r, 6); k; k--)
			change(&w, &r);
		snapshot(&w, rng_below(&r, KEPT));
		qcow2_invariants(w.image->state);
		if (rng_below(&r, 4))
			continue;
		check_clean(&w);
		compare(&w);
		reopen(&w);
	}
	compare(&w);
	assert_int_equal(q2_close(w.image), 0);
	ask_qemu_img(&w);
	end(&w);
}

static void
try_life(struct qcow2_format f, bool backed, unsigned seed)
{
	struct setup s = { .f = f, .backed = backed, .seed = seed,
			   .steps = f.cluster_bits > 16 ? 10 : 25 };

	s.f.size = max_u64(UINT64_C(12) << f.cluster_bits, 100 << 10);
	if (f.cluster_bits == 9)
		s.f.size += 512 * (seed % 5);
	run(live, &s);
}

static void
snapshots_show_what_the_disk_was(void **state)
{
	(void)state;
	for (unsigned bits = 9; bits <= 20; bits++)
		try_life((struct qcow2_format){ .version = 3, .cluster_bits = bits,
						.refcount_order = 4 }, bits & 1, bits);
}

static void
snapshots_work_with_every_refcount_width_that_can_count_them(void **state)
{
	(void)state;
	for (unsigned order = 3; order <= 6; order++)
		try_life((struct qcow2_format){ .version = 3, .cluster_bits = 9 + order,
						.refcount_order = order }, false, 50 + order);
}

static void
snapshots_work_in_version_2(void **state)
{
	(void)state;
	for (unsigned seed = 0; seed < 4; seed++)
		try_life((struct qcow2_format){ .version = 2, .cluster_bits = 9 + 2 * seed,
						.refcount_order = 4 }, seed & 1, 60 + seed);
}

static void
snapshots_work_with_subclusters(void **state)
{
	(void)state;
	for (unsigned seed = 0; seed < 4; seed++)
		try_life((struct qcow2_format){ .version = 3, .cluster_bits = 14 + seed,
						.refcount_order = 4, .extended_l2 = true },
			 seed & 1, 70 + seed);
}

/* ---- what is refused ---- */

static void
refuse(void *arg)
{
	struct setup s = { .f = { .size = 64 << 10, .version = 3, .cluster_bits = 12,
				  .refcount_order = *(unsigned *)arg } };
	unsigned most = (1u << (1u << s.f.refcount_order)) - 1;
	struct world w;

	begin(&w, &s);
	memset(w.now, 7, w.size);
	assert_int_equal(node_pwrite(w.image, 0, w.now, w.size), 0);
	for (unsigned i = 1; i < most; i++) {
		snprintf(w.kept[0].name, sizeof(w.kept[0].name), "n%u", i);
		assert_int_equal(take(&w, w.kept[0].name), 0);
	}
	if (most > 1)
		memcpy(w.kept[0].model, w.now, w.size);
	assert_int_equal(take(&w, "more"), -EINVAL);
	check_clean(&w);
	compare(&w);
	reopen(&w);
	/* And all is as usual: the same clusters are written in place. */
	memset(w.now, 8, w.size);
	assert_int_equal(node_pwrite(w.image, 0, w.now, w.size), 0);
	compare(&w);
	assert_int_equal(q2_close(w.image), 0);
	end(&w);
}

static void
a_count_that_would_be_too_large_is_refused_and_changes_nothing(void **state)
{
	(void)state;
	for (unsigned order = 0; order <= 2; order++)
		run(refuse, &order);
}

/* ---- what fails ---- */

struct plan {
	struct setup s;
	bool for_good, drops;
	int error;
};

/* The image after a failure and a restart: with or without the snapshot. */
static void
judge(struct world *w, bool failed)
{
	struct check_result c;
	struct qcow2 *q;

	atomic_store(&w->file->flush_error, 0);	/* as a file that is opened again */
	w->image = q2_open(w->file, w->backing, false, NULL);
	assert_non_null(w->image);
	q = w->image->state;
	if (q->header.incompat & QCOW2_INCOMPAT_DIRTY)
		assert_int_equal(qcow2_repair_dirty(q, NULL), 0);
	assert_int_equal(qcow2_check(q, CHECK_FIX_LEAKS, NULL, &c), 0);
	if (w->s->f.version < 3)	/* no mark: flags may be wrong */
		assert_int_equal(qcow2_check(q, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, NULL, &c), 0);
	assert_int_equal(c.corruptions + c.errors, 0);
	if (!failed)
		assert_int_equal(c.leaks_fixed, 0);
	check_clean(w);
	for (unsigned i = 0; i < KEPT; i++) {
		bool there = false;

		for (uint32_t k = 0; k < q->nb_snapshots; k++)
			there |= !strcmp(q->snapshots[k].name, w->kept[i].name);
		if (!there)
			w->kept[i].name[0] = '\0';
	}
	compare(w);
	assert_int_equal(q2_close(w->image), 0);
}

static void
try_now(struct world *w, bool drops)
{
	struct error *err = NULL;

	if (drops) {
		(void)drop(w, w->kept[0].name, &err);
		error_free(err);
	} else {
		strcpy(w->kept[1].name, "new");
		memcpy(w->kept[1].model, w->now, w->size);
		(void)take(w, "new");
	}
}

static bool
run_once(const struct plan *p, long n)
{
	struct mem_faults *faults;
	struct rng r = { p->s.seed };
	struct world w;
	bool failed;

	begin(&w, &p->s);
	for (unsigned i = 0; i < 10; i++)
		change(&w, &r);
	snapshot(&w, 0);
	for (unsigned i = 0; i < 5; i++)
		change(&w, &r);
	reopen(&w);
	faults = mem_faults(w.file);
	faults->error = p->error;
	faults->for_good = p->for_good;
	faults->fail_at = n;
	try_now(&w, p->drops);
	failed = p->for_good ? faults->fail_at == 1 : !faults->fail_at;
	faults->fail_at = 0;
	(void)q2_close(w.image);
	judge(&w, failed);
	end(&w);
	return failed;
}

static void
run_plan(void *arg)
{
	long n = 1;

	while (run_once(arg, n))
		n++;
	assert_true(n > 8);	/* it came to something */
}

static void
a_failure_at_any_step_leaves_the_old_state_or_the_new(void **state)
{
	static const struct qcow2_format formats[] = {
		{ .version = 3, .cluster_bits = 9, .refcount_order = 4 },
		{ .version = 3, .cluster_bits = 14, .refcount_order = 3, .extended_l2 = true },
		{ .version = 2, .cluster_bits = 12, .refcount_order = 4 },
	};

	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		struct plan p = { .s = { .f = formats[i / 4], .seed = i, .backed = i & 1 },
				  .for_good = i & 1, .drops = i & 2,
				  .error = i & 1 ? -ENOSPC : -EIO };

		p.s.f.size = max_u64(UINT64_C(12) << p.s.f.cluster_bits, 80 << 10);
		run(run_plan, &p);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(snapshots_show_what_the_disk_was),
		CO_TEST(snapshots_work_with_every_refcount_width_that_can_count_them),
		CO_TEST(snapshots_work_in_version_2),
		CO_TEST(snapshots_work_with_subclusters),
		CO_TEST(a_count_that_would_be_too_large_is_refused_and_changes_nothing),
		CO_TEST(a_failure_at_any_step_leaves_the_old_state_or_the_new),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
