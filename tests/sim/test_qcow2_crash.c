/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts.  The real driver works on a disk in memory that records each write
 * and flush; from the record every kind of disk that a cut could leave is made:
 * at each moment what a flush had covered is there, and of the rest any part, torn
 * at sectors.  Each such disk is opened, checked and compared with a model: no
 * corruption; what the client flushed is exact, what it did not is old or new,
 * sector by sector, and never something else; repair makes it clean. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/qcow2/check.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/format.h"
#include "block/qcow2/invariants.h"
#include "block/qcow2/qcow2.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { SECTOR = 512, WORKERS = 3, VALUES = 61, BACKED = 62, ENUMERATE = 6, SAMPLES = 24 };

/* ---- the recording disk ---- */

struct record {
	uint64_t off;
	size_t len, at;			/* at: of its bytes in disk->bytes */
	long submitted, done, safe;	/* moments; LONG_MAX: not yet */
};

struct disk {
	uint8_t *now;			/* what a reader sees */
	size_t size, room;
	uint8_t *base;			/* what is safe from the start */
	size_t base_size;
	struct record *log;
	size_t n, log_room;
	uint8_t *bytes;
	size_t n_bytes, bytes_room;
	bool recording;
};

static long moment;			/* of the whole world: one loop, one order */
static struct rng latency;

/* Some calls take longer than others. */
static void
take_time(void)
{
	unsigned turns = 1 + (rng_below(&latency, 3) ? rng_below(&latency, 3)
						     : rng_below(&latency, 12));

	while (turns--)
		co_yield();
}

static void
reserve(uint8_t **p, size_t *room, size_t need)
{
	if (need > *room) {
		*room = need + need / 2 + 65536;
		*p = realloc(*p, *room);
		assert_non_null(*p);
	}
}

static void
extend(struct disk *d, uint64_t size)
{
	if (size > d->size) {
		reserve(&d->now, &d->room, size);
		memset(d->now + d->size, 0, size - d->size);
		d->size = size;
	}
}

static int
disk_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct disk *d = n->state;
	size_t i = d->n;

	(void)flags;
	extend(d, off + src->len);
	iov_read(src, 0, d->now + off, src->len);
	if (!d->recording)
		return 0;
	if (d->n == d->log_room) {
		d->log_room = 2 * d->log_room + 256;
		d->log = realloc(d->log, d->log_room * sizeof(*d->log));
		assert_non_null(d->log);
	}
	reserve(&d->bytes, &d->bytes_room, d->n_bytes + src->len);
	iov_read(src, 0, d->bytes + d->n_bytes, src->len);
	d->log[d->n++] = (struct record){ off, src->len, d->n_bytes, ++moment, LONG_MAX, LONG_MAX };
	d->n_bytes += src->len;
	take_time();
	d->log[i].done = ++moment;
	return 0;
}

static int
disk_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct disk *d = n->state;

	iov_write(dst, 0, d->now + off, dst->len);
	if (d->recording)
		take_time();
	return 0;
}

static int
disk_flush(struct node *n)
{
	struct disk *d = n->state;
	long began = ++moment;

	if (d->recording)
		take_time();
	++moment;
	for (size_t i = 0; i < d->n; i++)
		if (d->log[i].done < began && d->log[i].safe == LONG_MAX)
			d->log[i].safe = moment;
	return 0;
}

static int
disk_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	      struct error **errp)
{
	struct disk *d = n->state;

	(void)exact;
	(void)prealloc;
	(void)errp;
	assert_false(d->recording);
	extend(d, size);
	d->size = size;
	return 0;
}

static const struct driver disk_driver = {
	.name = "file",
	.caps = DRIVER_PROTOCOL | DRIVER_GROWS,
	.state_size = sizeof(struct disk),
	.read = disk_read,
	.write = disk_write,
	.flush = disk_flush,
	.truncate = disk_truncate,
};

static struct node *
disk_new(void)
{
	struct node *n = graph_node_new(&disk_driver, NULL, NULL);

	n->limits = (struct limits){ .align = 1, .mem_align = 1, .zero_align = 1,
				     .discard_align = 1, .max_transfer = UINT64_C(1) << 62,
				     .max_zero = UINT64_C(1) << 62,
				     .max_discard = UINT64_C(1) << 62 };
	return n;
}

static void
disk_free(struct node *n)
{
	struct disk *d = n->state;

	free(d->now);
	free(d->base);
	free(d->log);
	free(d->bytes);
	graph_node_free(n);
}

/* ---- the client ---- */

struct op {
	uint64_t sector, n;
	unsigned value;
	bool hint;			/* a discard: may leave what was there */
	long submitted, done;
};

struct flush {
	long submitted, done;
};

struct setup {
	struct qcow2_format f;
	bool backed;
	unsigned seed;
	unsigned ops;			/* of each worker */
};

struct world {
	const struct setup *s;
	struct node *file, *backing, *image;
	struct op ops[VALUES];
	unsigned n_ops;
	struct flush flushes[VALUES];
	unsigned n_flushes;
	uint64_t sectors;
};

struct worker {
	struct world *w;
	unsigned number;
};

static void
one_op(struct worker *k, struct rng *r)
{
	struct world *w = k->w;
	uint64_t cluster = UINT64_C(1) << (w->s->f.cluster_bits - 9);
	unsigned what = rng_below(r, 12);
	/* Sectors are dealt out in turns: of half a cluster, so that clusters are
	 * shared, or of two, so that whole ones are zeroed and discarded. */
	uint64_t turn = w->s->seed & 2 ? 2 * cluster : max_u64(1, cluster / 2);
	uint64_t part = w->sectors / turn / WORKERS;
	uint64_t first = (rng_below(r, (unsigned)part) * WORKERS + k->number) * turn;
	uint64_t skip = rng_below(r, (unsigned)turn), n = 1 + rng_below(r, (unsigned)(turn - skip));
	struct op *op = &w->ops[w->n_ops];
	uint8_t *buf;

	if (what >= 10 || w->n_ops == VALUES - 1) {
		struct flush *f = &w->flushes[w->n_flushes];

		if (what == 11) {
			(void)qcow2_checkpoint(w->image->state);
		} else if (w->n_flushes < VALUES - 1) {
			w->n_flushes++;
			*f = (struct flush){ ++moment, LONG_MAX };
			assert_int_equal(node_flush(w->image), 0);
			f->done = ++moment;
		}
		return;
	}
	w->n_ops++;
	*op = (struct op){ first + skip, n, w->n_ops, what == 9, ++moment, LONG_MAX };
	if (what < 6) {
		buf = malloc(n * SECTOR);
		memset(buf, (int)op->value, n * SECTOR);
		assert_int_equal(node_pwrite(w->image, op->sector * SECTOR, buf, n * SECTOR), 0);
		free(buf);
	} else {
		op->value = 0;
		if (what == 9)
			(void)node_discard(w->image, op->sector * SECTOR, n * SECTOR);
		else
			assert_int_equal(node_zero(w->image, op->sector * SECTOR, n * SECTOR,
						   what & 1 ? IO_MAY_UNMAP : 0), 0);
	}
	op->done = ++moment;
}

static void
worker(void *arg)
{
	struct worker *k = arg;
	struct rng r = { k->w->s->seed * 100 + k->number };

	for (unsigned i = 0; i < k->w->s->ops; i++) {
		one_op(k, &r);
		qcow2_invariants(k->w->image->state);
	}
}

/* What each sector may hold after a cut at this moment: bits of values. */
static void
model(const struct world *w, long cut, uint64_t *may)
{
	long covered = 0;	/* what was done before this moment was flushed */

	for (unsigned i = 0; i < w->n_flushes; i++)
		if (w->flushes[i].done <= cut && w->flushes[i].submitted > covered)
			covered = w->flushes[i].submitted;
	for (uint64_t s = 0; s < w->sectors; s++)
		may[s] = UINT64_C(1) << (w->s->backed ? BACKED : 0);
	for (unsigned i = 0; i < w->n_ops; i++) {
		const struct op *op = &w->ops[i];

		if (op->submitted > cut)
			continue;
		for (uint64_t s = op->sector; s < op->sector + op->n; s++) {
			if (op->done < covered && !op->hint)
				may[s] = 0;
			may[s] |= UINT64_C(1) << op->value;
		}
	}
}

/* ---- judging ---- */

static long judged;

static void
explain(const struct world *w, long cut, const char *what)
{
	fprintf(stderr, "seed %u, cluster bits %u, cut at %ld: %s\n", w->s->seed,
		w->s->f.cluster_bits, cut, what);
	abort();
}

static void
judge(const struct world *w, long cut, const uint64_t *may, struct node *file)
{
	uint64_t size = w->sectors * SECTOR;
	uint8_t *buf = malloc(size);
	struct check_result c;
	struct node *n = q2_open(file, w->backing, false, NULL);

	judged++;
	if (!n)
		explain(w, cut, "does not open");
	if (qcow2_check(n->state, 0, NULL, &c) || c.corruptions || c.errors)
		explain(w, cut, "is corrupt");
	if (node_pread(n, 0, buf, size))
		explain(w, cut, "cannot be read");
	for (uint64_t s = 0; s < w->sectors; s++) {
		const uint8_t *p = buf + s * SECTOR;

		if (memcmp(p, p + 1, SECTOR - 1) || !(may[s] >> *p & 1)) {
			fprintf(stderr, "sector %llu holds %u\n", (unsigned long long)s, *p);
			explain(w, cut, "holds what it must not");
		}
	}
	if (c.leaks && (qcow2_check(n->state, CHECK_FIX_LEAKS, NULL, &c) ||
			qcow2_check(n->state, 0, NULL, &c) || c.leaks || c.corruptions))
		explain(w, cut, "cannot be repaired");
	if (q2_close(n))
		explain(w, cut, "cannot be closed");
	free(buf);
}

static void
apply(struct disk *to, const struct disk *d, const struct record *r, struct rng *torn)
{
	extend(to, r->off + r->len);
	for (size_t i = 0; i < r->len;) {
		size_t n = min_u64(SECTOR - (r->off + i) % SECTOR, r->len - i);

		if (!torn || rng_below(torn, 2))
			memcpy(to->now + r->off + i, d->bytes + r->at + i, n);
		i += n;
	}
}

/* The disk after a cut, with the pending writes that bits and the rest's coin say. */
static void
try_state(const struct world *w, long cut, const uint64_t *may, uint64_t bits, bool tear,
	  struct rng *rng)
{
	const struct disk *d = w->file->state;
	struct node *file = disk_new();
	struct disk *to = file->state;
	unsigned pending = 0;

	extend(to, d->base_size);
	memcpy(to->now, d->base, d->base_size);
	for (size_t i = 0; i < d->n && d->log[i].submitted <= cut; i++) {
		const struct record *r = &d->log[i];

		if (r->safe <= cut)
			apply(to, d, r, NULL);
		else if (bits >> (pending++ & 63) & 1)
			apply(to, d, r, tear ? rng : NULL);
	}
	atomic_store(&file->size, to->size);
	judge(w, cut, may, file);
	disk_free(file);
}

static void
try_cut(const struct world *w, long cut, uint64_t *may, struct rng *rng)
{
	const struct disk *d = w->file->state;
	unsigned pending = 0;

	for (size_t i = 0; i < d->n && d->log[i].submitted <= cut; i++)
		pending += d->log[i].safe > cut;
	model(w, cut, may);
	if (pending <= ENUMERATE) {
		for (uint64_t bits = 0; bits < UINT64_C(1) << pending; bits++)
			try_state(w, cut, may, bits, false, rng);
		try_state(w, cut, may, UINT64_MAX, true, rng);
		return;
	}
	try_state(w, cut, may, 0, false, rng);
	try_state(w, cut, may, UINT64_MAX, false, rng);
	for (unsigned i = 0; i < SAMPLES / 3; i++) {
		unsigned one = rng_below(rng, pending < 64 ? pending : 64);
		uint64_t any = rng_next(rng) ^ rng_next(rng) << 31 ^ rng_next(rng) << 60;

		try_state(w, cut, may, UINT64_C(1) << one, false, rng);
		try_state(w, cut, may, ~(UINT64_C(1) << one), false, rng);
		try_state(w, cut, may, any, i & 1, rng);
	}
}

/* ---- a world ---- */

static void
run_world(void *arg)
{
	const struct setup *s = arg;
	struct world w = { .s = s, .sectors = s->f.size / SECTOR };
	struct worker workers[WORKERS];
	struct rng rng = { s->seed };
	struct co_group group;
	uint64_t *may = malloc(w.sectors * 8);
	uint8_t *buf = malloc(s->f.size);
	struct disk *d;

	moment = 0;
	latency = rng;
	memset(buf, BACKED, s->f.size);
	w.file = disk_new();
	d = w.file->state;
	if (s->backed) {
		w.backing = mem_new();
		assert_int_equal(node_pwrite(w.backing, 0, buf, s->f.size), 0);
	}
	w.image = q2_make(w.file, &s->f, w.backing);
	d->base = malloc(d->size);
	memcpy(d->base, d->now, d->size);
	d->base_size = d->size;
	d->recording = true;
	co_group_init(&group);
	for (unsigned i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){ &w, i };
		assert_int_equal(co_group_start(&group, worker, &workers[i]), 0);
	}
	co_group_wait(&group);
	assert_int_equal(q2_close(w.image), 0);
	d->recording = false;
	for (long cut = 0; cut <= moment; cut++)
		try_cut(&w, cut, may, &rng);
	disk_free(w.file);
	if (w.backing)
		mem_free(w.backing);
	free(may);
	free(buf);
}

static void
try_format(struct qcow2_format f, bool backed, unsigned seed)
{
	struct setup s = { .f = f, .backed = backed, .seed = seed, .ops = 18 };

	run(run_world, &s);
}

static void
try_setup(unsigned bits, unsigned order, unsigned version, bool backed, unsigned seed)
{
	struct qcow2_format f = {
		.size = (UINT64_C(1) << bits) * (bits == 9 ? 60 : 24), .version = version,
		.cluster_bits = bits, .refcount_order = order,
	};

	try_format(f, backed, seed);
}

static unsigned
seeds(unsigned few)
{
	const char *more = getenv("QUOIN_CRASH_SEEDS");

	return more ? (unsigned)strtoul(more, NULL, 10) : few;
}

static void
small_clusters_survive_power_cuts(void **state)
{
	(void)state;
	for (unsigned seed = 1; seed <= seeds(4); seed++)
		try_setup(9, seed % 7, 3, seed & 1, seed);
	print_message("%ld disks judged\n", judged);
}

static void
larger_clusters_survive_power_cuts(void **state)
{
	(void)state;
	for (unsigned seed = 1; seed <= seeds(4); seed++)
		try_setup(10 + seed % 3, 4, seed % 4 ? 3 : 2, seed & 1, 1000 + seed);
	print_message("%ld disks judged\n", judged);
}

static void
subclusters_survive_power_cuts(void **state)
{
	struct qcow2_format f = { .size = 9 << 14, .version = 3, .cluster_bits = 14,
				  .refcount_order = 4, .extended_l2 = true };

	(void)state;
	for (unsigned seed = 1; seed <= seeds(4); seed++)
		try_format(f, seed & 1, 2000 + seed);
	print_message("%ld disks judged\n", judged);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(small_clusters_survive_power_cuts),
		CO_TEST(larger_clusters_survive_power_cuts),
		CO_TEST(subclusters_survive_power_cuts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
