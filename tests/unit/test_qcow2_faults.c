/* SPDX-License-Identifier: Apache-2.0 */
/* The n-th call to the file fails, for n from 1 until a run passes clean: what is
 * left must be an image without corruption, whose bytes are what was written to
 * them, or, where that failed, what was there before. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/qcow2/check.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/resize.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { OPS = 60 };

struct plan {
	struct qcow2_format f;
	bool backed, for_good;
	bool in_data;		/* it is the data file that fails */
	int error;
	unsigned seed;
};

struct world {
	const struct plan *p;
	struct node *file, *data, *backing, *image;
	uint64_t *may, *ever;	/* for each byte, the values that it may have: bits */
};

/* Values are the numbers of the writes; 0 is zero, 63 the backing file. */
static void
note(struct world *w, uint64_t off, uint64_t len, unsigned value, int result)
{
	for (uint64_t i = off; i < off + len; i++) {
		w->ever[i] |= UINT64_C(1) << value;
		w->may[i] = (result ? w->may[i] : 0) | UINT64_C(1) << value;
	}
}

static int
write_compressed(struct node *image, uint64_t off, void *buf, uint64_t len)
{
	struct iov v = IOV_BUF(buf, len);

	return node_write(image, off, &v, IO_COMPRESSED);
}

static void
one_op(struct world *w, struct rng *r, unsigned number)
{
	uint64_t size = w->p->f.size, cluster = UINT64_C(1) << w->p->f.cluster_bits;
	uint64_t off = rng_below(r, (unsigned)size), len = 1 + rng_below(r, (unsigned)(4 * cluster));
	unsigned what = rng_below(r, 12);
	uint8_t *buf;
	int result;

	len = min_u64(len, size - off);
	if (what < 5) {
		buf = malloc(len);
		memset(buf, (int)number, len);
		note(w, off, len, number, node_pwrite(w->image, off, buf, len));
		free(buf);
	} else if (what < 7) {
		note(w, off, len, 0, node_zero(w->image, off, len, what & 1 ? IO_MAY_UNMAP : 0));
	} else if (what >= 10) {
		/* Refused where there is something already. */
		off = round_down(off, cluster);
		len = min_u64(round_up(len, cluster), size - off);
		buf = malloc(len);
		memset(buf, (int)number, len);
		note(w, off, len, number, write_compressed(w->image, off, buf, len));
		free(buf);
	} else if (what < 8) {
		/* A hint: zeroes, or as before. */
		(void)node_discard(w->image, off, len);
		note(w, off, len, 0, -1);
	} else {
		buf = malloc(len);
		result = node_pread(w->image, off, buf, len);
		for (uint64_t i = 0; !result && i < len; i++)
			assert_true(w->may[off + i] >> buf[i] & 1);
		free(buf);
		if (what == 9)
			(void)node_flush(w->image);
	}
}

static void
prepare(struct world *w)
{
	uint64_t size = w->p->f.size;
	uint8_t *buf = malloc(size);

	w->may = malloc(size * 8);
	w->ever = malloc(size * 8);
	w->file = mem_new();
	memset(buf, 63, size);
	if (w->p->backed) {
		w->backing = mem_new();
		assert_int_equal(node_pwrite(w->backing, 0, buf, size), 0);
	}
	for (uint64_t i = 0; i < size; i++)
		w->may[i] = w->ever[i] = UINT64_C(1) << (w->p->backed ? 63 : 0);
	if (w->p->f.data_file) {
		w->data = mem_new();
		q2_use_data(w->data);
	}
	w->image = q2_make(w->file, &w->p->f, w->backing);
	if (w->p->f.data_raw) {
		assert_int_equal(qcow2_preallocate(w->image->state, 0, size, true), 0);
		assert_int_equal(qcow2_settle(w->image->state), 0);
	}
	free(buf);
}

static void
judge(struct world *w, bool lost)
{
	uint64_t size = w->p->f.size;
	uint8_t *buf = malloc(size);
	struct check_result c;

	atomic_store(&w->file->flush_error, 0);	/* as a file that is opened again */
	if (w->data)
		atomic_store(&w->data->flush_error, 0);
	w->image = q2_open(w->file, w->backing, false, NULL);
	assert_non_null(w->image);
	assert_int_equal(qcow2_check(w->image->state, 0, NULL, &c), 0);
	assert_int_equal(c.corruptions, 0);
	assert_int_equal(c.errors, 0);
	assert_int_equal(node_pread(w->image, 0, buf, size), 0);
	for (uint64_t i = 0; i < size; i++)
		if (!((lost ? w->ever : w->may)[i] >> buf[i] & 1))
			fail_msg("byte %llx is %d", (unsigned long long)i, buf[i]);
	if (w->p->f.data_raw) {
		uint8_t *raw = calloc(1, size);

		assert_int_equal(node_pread(w->data, 0, raw, size), 0);
		assert_memory_equal(raw, buf, size);
		free(raw);
	}
	assert_int_equal(qcow2_check(w->image->state, CHECK_FIX_LEAKS, NULL, &c), 0);
	assert_int_equal(qcow2_check(w->image->state, 0, NULL, &c), 0);
	assert_int_equal(c.leaks + c.corruptions, 0);
	assert_int_equal(q2_close(w->image), 0);
	free(buf);
}

/* One run with the n-th call failing; false: it did not come to that. */
static bool
run_once(const struct plan *p, long n)
{
	struct world w = { .p = p };
	struct mem_faults *faults;
	struct rng r = { p->seed };
	bool failed, lost;

	prepare(&w);
	faults = mem_faults(p->in_data ? w.data : w.file);
	faults->error = p->error;
	faults->for_good = p->for_good;
	faults->fail_at = n;
	for (unsigned i = 1; i <= OPS; i++)
		one_op(&w, &r, i);
	/* What was not stored is known by then, and said. */
	lost = q2_close(w.image) < 0;
	failed = p->for_good ? faults->fail_at == 1 : !faults->fail_at;
	faults->fail_at = 0;
	judge(&w, lost);
	mem_free(w.file);
	if (w.data)
		mem_free(w.data);
	if (w.backing)
		mem_free(w.backing);
	free(w.may);
	free(w.ever);
	return failed;
}

static void
run_plan(void *arg)
{
	long n = 1;

	while (run_once(arg, n))
		n++;
	/* It came to something; each of two files is called less. */
	assert_true(n > (((const struct plan *)arg)->f.data_file ? 1 : OPS / 2));
}

static void
try_plan(unsigned cluster_bits, unsigned order, uint64_t clusters, bool backed, bool for_good,
	 int error, unsigned seed)
{
	struct plan p = {
		.f = { .size = clusters << cluster_bits, .version = 3,
		       .cluster_bits = cluster_bits, .refcount_order = order },
		.backed = backed, .for_good = for_good, .error = error, .seed = seed,
	};

	run(run_plan, &p);
}

static void
try_subclusters(unsigned cluster_bits, uint64_t clusters, bool backed, bool for_good, int error,
		unsigned seed)
{
	struct plan p = {
		.f = { .size = clusters << cluster_bits, .version = 3, .extended_l2 = true,
		       .cluster_bits = cluster_bits, .refcount_order = 4 },
		.backed = backed, .for_good = for_good, .error = error, .seed = seed,
	};

	run(run_plan, &p);
}

static void
a_call_that_fails_once_corrupts_nothing(void **state)
{
	(void)state;
	try_plan(9, 6, 200, false, false, -EIO, 1);
	try_plan(9, 4, 200, true, false, -ENOSPC, 2);
	try_plan(12, 4, 40, true, false, -EIO, 3);
	try_plan(14, 0, 12, false, false, -ENOSPC, 4);
}

static void
calls_that_fail_for_good_corrupt_nothing(void **state)
{
	(void)state;
	try_plan(9, 6, 200, true, true, -EIO, 5);
	try_plan(9, 3, 200, false, true, -ENOSPC, 6);
	try_plan(12, 4, 40, true, true, -EIO, 7);
}

static void
failing_calls_corrupt_no_subclusters(void **state)
{
	(void)state;
	try_subclusters(14, 12, true, false, -EIO, 8);
	try_subclusters(14, 12, false, false, -ENOSPC, 9);
	try_subclusters(14, 12, true, true, -EIO, 10);
}

static void
try_data_file(struct qcow2_format f, bool in_data, bool for_good, int error, unsigned seed)
{
	struct plan p = { .f = f, .in_data = in_data, .for_good = for_good, .error = error,
			  .seed = seed };

	p.f.version = 3;
	p.f.refcount_order = 4;
	p.f.data_file = "data";
	run(run_plan, &p);
}

static void
failing_calls_corrupt_no_data_file(void **state)
{
	struct qcow2_format plain = { .size = 100 << 9, .cluster_bits = 9 };
	struct qcow2_format raw = { .size = 40 << 12, .cluster_bits = 12, .data_raw = true };
	struct qcow2_format subclusters = { .size = 12 << 14, .cluster_bits = 14,
					    .extended_l2 = true };

	(void)state;
	try_data_file(plain, false, false, -EIO, 11);
	try_data_file(plain, true, false, -ENOSPC, 12);
	try_data_file(plain, true, true, -EIO, 13);
	try_data_file(raw, false, true, -EIO, 14);
	try_data_file(raw, true, false, -EIO, 15);
	try_data_file(raw, true, true, -ENOSPC, 16);
	try_data_file(subclusters, true, false, -EIO, 17);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(a_call_that_fails_once_corrupts_nothing),
		CO_TEST(calls_that_fail_for_good_corrupt_nothing),
		CO_TEST(failing_calls_corrupt_no_subclusters),
		CO_TEST(failing_calls_corrupt_no_data_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
