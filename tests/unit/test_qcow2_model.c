/* SPDX-License-Identifier: Apache-2.0 */
/* Random requests from several loops at once, against a model in memory, over all
 * cluster sizes and refcount widths; what is left is judged by qemu-img. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/qcow2/format.h"
#include "block/qcow2/invariants.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/resize.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { WORKERS = 6 };

/* cmocka's assertions work on the main thread only. */
#define CHECK(what)                                                                \
	do {                                                                       \
		if (!(what)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			abort();                                                   \
		}                                                                  \
	} while (0)

struct setup {
	struct qcow2_format f;
	uint64_t seed;
	bool backed;
	unsigned requests;	/* of each worker */
};

struct world {
	const struct setup *s;
	struct node *file, *data, *backing, *image;
	uint8_t *model;
	uint64_t size, unit;	/* worker w owns units u with u % WORKERS == w */
};

struct worker {
	struct world *w;
	unsigned number;
};

/* A stretch of bytes that this worker alone touches: units lie interleaved, so
 * that clusters are shared and bytes are not. */
static void
pick(struct worker *k, struct rng *r, uint64_t *off, uint64_t *len)
{
	struct world *w = k->w;
	uint64_t units = w->size / w->unit / WORKERS;
	uint64_t start = (rng_below(r, (unsigned)units) * WORKERS + k->number) * w->unit;

	*off = start + rng_below(r, (unsigned)w->unit);
	*len = 1 + rng_below(r, (unsigned)(start + w->unit - *off));
	if (!rng_below(r, 4)) {
		*off = start;
		*len = w->unit;
	}
}

/* A unit of whole clusters, that gets smaller or does not.  Where one has a place
 * already it is refused, whatever becomes of the others. */
static void
write_compressed(struct world *w, struct rng *r, uint64_t off, uint8_t *buf)
{
	struct iov v = IOV_BUF(buf, w->unit);
	int result;

	if (w->unit % (UINT64_C(1) << w->s->f.cluster_bits))
		return;
	memset(buf, 1 + (int)rng_below(r, 255), w->unit);
	if (!rng_below(r, 3))
		for (uint64_t i = 0; i < w->unit; i++)
			buf[i] = (uint8_t)rng_below(r, 256);
	result = node_write(w->image, off, &v, IO_COMPRESSED);
	CHECK(!result || result == -EIO || (result == -ENOTSUP && w->data));
	if (result)
		CHECK(!node_pread(w->image, off, buf, w->unit));
	memcpy(w->model + off, buf, w->unit);
}

static void
one_request(struct worker *k, struct rng *r, uint8_t *buf)
{
	struct world *w = k->w;
	unsigned what = rng_below(r, 16);
	uint64_t off, len;

	pick(k, r, &off, &len);
	if (what < 8) {
		memset(buf, 1 + (int)rng_below(r, 255), len);
		CHECK(!node_pwrite(w->image, off, buf, len));
		memcpy(w->model + off, buf, len);
	} else if (what < 10) {
		CHECK(!node_zero(w->image, off, len, what & 1 ? IO_MAY_UNMAP : 0));
		memset(w->model + off, 0, len);
	} else if (what < 11) {
		/* Whole clusters only; what a discard leaves is what is read. */
		if (w->unit % (UINT64_C(1) << w->s->f.cluster_bits))
			return;
		off -= off % w->unit;
		len = w->unit;
		CHECK(!node_discard(w->image, off, len));
		CHECK(!node_pread(w->image, off, buf, len));
		if (w->s->f.version >= 3 || !w->backing)
			CHECK(bytes_are_zero(buf, len));
		else
			CHECK(!memcmp(buf, w->model + off, len));
		memcpy(w->model + off, buf, len);
	} else if (what < 12) {
		write_compressed(w, r, off - off % w->unit, buf);
	} else if (what < 15) {
		CHECK(!node_pread(w->image, off, buf, len));
		CHECK(!memcmp(buf, w->model + off, len));
	} else if (!rng_below(r, 4)) {
		CHECK(!node_flush(w->image));
	}
}

static void
worker(void *arg)
{
	struct worker *k = arg;
	struct rng r = { k->w->s->seed * 1000 + k->number };
	uint8_t *buf = malloc(k->w->unit);

	for (unsigned i = 0; i < k->w->s->requests; i++) {
		one_request(k, &r, buf);
		if (i % 32 == 0)
			qcow2_invariants(k->w->image->state);
	}
	free(buf);
}

static void
compare_all(struct world *w)
{
	uint8_t *buf = malloc(w->size);

	CHECK(!node_pread(w->image, 0, buf, w->size));
	CHECK(!memcmp(buf, w->model, w->size));
	free(buf);
}

static void
make_backing(struct world *w, struct rng *r)
{
	w->backing = mem_new();
	/* Shorter than its overlay, and not a whole number of clusters. */
	for (uint64_t off = 0; off < w->size / 2 + 777; off += 4096) {
		memset(w->model + off, 1 + (int)rng_below(r, 255), 4096);
		assert_int_equal(node_pwrite(w->backing, off, w->model + off, 4096), 0);
	}
}

/* 0: fine; 2: there is no qemu-img. */
static int
shell(const char *command)
{
	int status = system(command);

	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
judge(struct world *w)
{
	char command[512], path[] = "/tmp/quoin-test-XXXXXX", raw[64];
	int fd = mkstemp(path);
	FILE *f;

	assert_true(fd >= 0);
	close(fd);
	snprintf(raw, sizeof(raw), "%s.raw", path);
	mem_save(w->file, path);
	f = fopen(raw, "w");
	assert_int_equal(fwrite(w->model, 1, w->size, f), w->size);
	fclose(f);
	snprintf(command, sizeof(command), "timeout 60 qemu-img check -q -f qcow2 %s%s", path,
		 w->backing ? "" : " && timeout 60 qemu-img compare -q -f qcow2 -F raw ");
	if (!w->backing)
		snprintf(command + strlen(command), sizeof(command) - strlen(command), "%s %s",
			 path, raw);
	if (!shell("command -v qemu-img >/dev/null"))
		assert_int_equal(shell(command), 0);
	unlink(path);
	unlink(raw);
}

/* A raw data file is the disk; and qemu-img finds the tables sound. */
static void
judge_data(struct world *w)
{
	char command[512], path[] = "/tmp/quoin-test-XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	close(fd);
	if (w->s->f.data_raw) {
		uint8_t *raw = calloc(1, w->size);

		assert_int_equal(node_pread(w->data, 0, raw, w->size), 0);
		assert_memory_equal(raw, w->model, w->size);
		free(raw);
	}
	mem_save(w->file, path);
	snprintf(command, sizeof(command), "timeout 60 qemu-img check -q --image-opts driver=qcow2,"
		 "file.driver=file,file.filename=%s,data-file.driver=null-co", path);
	if (!shell("command -v qemu-img >/dev/null"))
		assert_int_equal(shell(command), 0);
	unlink(path);
}

static void
run_world(void *arg)
{
	const struct setup *s = arg;
	uint64_t cluster = UINT64_C(1) << s->f.cluster_bits;
	struct world w = { .s = s, .size = s->f.size };
	struct worker workers[WORKERS];
	struct rng r = { s->seed };
	struct co_group group;

	w.unit = s->seed % 3 == 0 ? max_u64(512, cluster / (s->f.extended_l2 ? 80 : 4))
				  : s->seed % 3 == 1 ? cluster : min_u64(3 * cluster, 1 << 20);
	w.model = calloc(1, w.size);
	w.file = mem_new();
	mem_faults(w.file)->yields = true;
	if (s->backed)
		make_backing(&w, &r);
	if (s->f.data_file) {
		w.data = mem_new();
		mem_faults(w.data)->yields = true;
		q2_use_data(w.data);
	}
	w.image = q2_make(w.file, &s->f, w.backing);
	if (s->f.data_raw)
		assert_int_equal(qcow2_preallocate(w.image->state, 0, w.size, true), 0);
	co_group_init(&group);
	for (unsigned i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){ &w, i };
		assert_int_equal(co_group_spawn(&group, loop_io(i % TEST_IO_LOOPS), worker,
						&workers[i]), 0);
	}
	co_group_wait(&group);
	compare_all(&w);
	assert_int_equal(q2_close(w.image), 0);
	w.image = q2_open(w.file, w.backing, true, NULL);
	assert_non_null(w.image);
	compare_all(&w);
	assert_int_equal(q2_close(w.image), 0);
	if (w.data)
		judge_data(&w);
	else
		judge(&w);
	mem_free(w.file);
	if (w.data)
		mem_free(w.data);
	if (w.backing)
		mem_free(w.backing);
	free(w.model);
}

static void
try_format(struct qcow2_format f, bool backed, uint64_t seed)
{
	unsigned cluster_bits = f.cluster_bits;
	uint64_t cluster = UINT64_C(1) << cluster_bits;
	struct setup s = {
		.f = f, .seed = seed, .backed = backed,
		.requests = cluster_bits > 16 ? 60 : 200,
	};

#ifdef HAVE_ZSTD
	if (f.version >= 3 && seed & 1)
		s.f.compression = QCOW2_COMPRESSION_ZSTD;
#endif
	/* Some units for each worker, and an end within a cluster. */
	s.f.size = max_u64(cluster * WORKERS * (cluster_bits > 18 ? 1 + f.extended_l2 : 5), 1 << 20);
	s.f.size = round_down(s.f.size, 512) + 512 * (seed % 5);
	run(run_world, &s);
}

static void
try_setup(unsigned cluster_bits, unsigned order, unsigned version, bool backed, uint64_t seed)
{
	struct qcow2_format f = { .version = version, .cluster_bits = cluster_bits,
				  .refcount_order = order };

	try_format(f, backed, seed);
}

static void
every_cluster_size_holds_what_was_written(void **state)
{
	(void)state;
	for (unsigned bits = 9; bits <= 21; bits++)
		try_setup(bits, 4, 3, bits & 1, bits);
}

static void
every_refcount_width_holds_what_was_written(void **state)
{
	(void)state;
	for (unsigned order = 0; order <= 6; order++)
		try_setup(9 + order % 4, order, 3, order & 1, 100 + order);
}

static void
version_2_holds_what_was_written(void **state)
{
	(void)state;
	for (unsigned seed = 200; seed < 206; seed++)
		try_setup(9 + seed % 8, 4, 2, seed & 1, seed);
}

static void
subclusters_hold_what_was_written(void **state)
{
	(void)state;
	for (unsigned bits = 14; bits <= 21; bits++) {
		struct qcow2_format f = { .version = 3, .cluster_bits = bits,
					  .refcount_order = 4, .extended_l2 = true };

		try_format(f, bits & 1, 300 + bits);
		try_format(f, !(bits & 1), 310 + bits);
	}
}

static void
data_files_hold_what_was_written(void **state)
{
	(void)state;
	for (unsigned seed = 400; seed < 412; seed++) {
		struct qcow2_format f = { .version = 3, .cluster_bits = 9 + seed * 5 % 9,
					  .refcount_order = 4, .data_file = "data",
					  .data_raw = seed % 3 == 0, .extended_l2 = seed % 4 == 1 };

		if (f.extended_l2)
			f.cluster_bits = 14 + seed % 3;
		try_format(f, !f.data_raw && seed & 2, seed);
	}
}

static void
many_seeds_hold_what_was_written(void **state)
{
	const char *more = getenv("QUOIN_MODEL_SEEDS");
	uint64_t n = more ? strtoull(more, NULL, 10) : 12;

	(void)state;
	for (uint64_t seed = 1000; seed < 1000 + n; seed++) {
		struct qcow2_format f = { .version = 3, .cluster_bits = 9 + seed * 7 % 8,
					  .refcount_order = seed * 5 % 7,
					  .extended_l2 = seed % 4 == 3 };

		if (f.extended_l2)
			f.cluster_bits = 14 + seed % 3;
		try_format(f, seed % 5 < 2, seed);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(every_cluster_size_holds_what_was_written),
		CO_TEST(every_refcount_width_holds_what_was_written),
		CO_TEST(version_2_holds_what_was_written),
		CO_TEST(subclusters_hold_what_was_written),
		CO_TEST(data_files_hold_what_was_written),
		CO_TEST(many_seeds_hold_what_was_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
