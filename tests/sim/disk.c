/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/disk.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "tests/sim/work.h"

long
sim_tick(struct sim *s)
{
	return ++s->now;
}

unsigned
sim_below(struct sim *s, unsigned n)
{
	s->luck = s->luck * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (unsigned)((s->luck >> 33) % n);
}

/* Some calls take much longer than others. */
void
sim_take_time(struct sim *s)
{
	unsigned turns;

	if (!s->recording)
		return;
	turns = sim_below(s, 3) ? sim_below(s, 3) : sim_below(s, 12);
	if (!sim_below(s, 24))
		turns = 80;
	while (turns--)
		co_yield();
}

/* ---- the record ---- */

static bool
overlap(const struct disk_event *a, uint64_t off, uint64_t len)
{
	return a->op != SIM_TRUNCATE && off < a->off + a->len && a->off < off + len;
}

/* Nothing else of the same bytes may be under way. */
static void
watch(struct disk *d, uint64_t off, uint64_t len)
{
	for (size_t i = d->n; i-- > 0;)
		if (d->log[i].done == LONG_MAX && overlap(&d->log[i], off, len))
			snprintf(d->sim->wrong, sizeof(d->sim->wrong),
				 "two writes of the same bytes are under way at once: "
				 "%#llx+%#llx and %#llx+%#llx", (unsigned long long)off,
				 (unsigned long long)len, (unsigned long long)d->log[i].off,
				 (unsigned long long)d->log[i].len);
}

/* Returns the event's index; bytes NULL: zeroes. */
static size_t
record(struct disk *d, enum sim_op op, uint64_t off, const void *bytes, uint64_t len)
{
	size_t at = d->n_bytes;

	if (!d->sim->recording)
		return 0;
	if (op != SIM_TRUNCATE)
		watch(d, off, len);
	sim_reserve(&d->log, &d->room, d->n + 1, sizeof(*d->log));
	if (bytes) {
		sim_reserve(&d->bytes, &d->bytes_room, at + len, 1);
		memcpy(d->bytes + at, bytes, len);
		d->n_bytes += len;
	}
	d->log[d->n] = (struct disk_event){ .op = op, .off = off, .len = len, .at = at,
					    .submitted = sim_tick(d->sim), .done = LONG_MAX,
					    .safe = LONG_MAX };
	return d->n++;
}

static void
complete(struct disk *d, size_t i)
{
	if (d->sim->recording && i < d->n)
		d->log[i].done = sim_tick(d->sim);
}

void
disk_apply(const struct disk *d, const struct disk_event *e, struct image *m, uint64_t unit,
	   uint64_t parts)
{
	const uint8_t *bytes = e->op == SIM_ZERO ? NULL : d->bytes + e->at;

	if (e->op == SIM_TRUNCATE) {
		if (parts)
			image_resize(m, e->off);
		return;
	}
	if (parts == UINT64_MAX) {
		image_write(m, e->off, bytes, e->len);
		return;
	}
	for (uint64_t i = 0, k = 0; i < e->len; k++) {
		uint64_t n = min_u64(unit - (e->off + i) % unit, e->len - i);

		if (parts >> (k & 63) & 1)
			image_write(m, e->off + i, bytes ? bytes + i : NULL, n);
		i += n;
	}
}

/* ---- faults ---- */

static int
fault(struct disk *d, enum sim_op op)
{
	struct sim_fault *f = &d->sim->fault;

	if (!f->nth || !(f->ops & op))
		return 0;
	if (f->nth > 1) {
		f->nth--;
		return 0;
	}
	if (!f->for_good)
		f->nth = 0;
	f->hit = true;
	return f->error;
}

/* A write that fails leaves some sectors new and some old. */
static void
spoil(struct disk *d, uint64_t off, uint8_t *bytes, uint64_t len)
{
	for (uint64_t i = 0; i < len;) {
		uint64_t n = min_u64(IMAGE_SECTOR - (off + i) % IMAGE_SECTOR, len - i);

		if (sim_below(d->sim, 2))
			image_read(d->now, off + i, bytes + i, n);
		i += n;
	}
}

/* ---- the driver ---- */

static struct disk *
disk_of(struct node *n)
{
	return *(struct disk **)n->state;
}

static int
disk_driver_open(struct node *n, struct opener *op, struct error **errp)
{
	struct disk *d = n->open_arg;

	(void)op;
	*(struct disk **)n->state = d;
	atomic_store(&n->size, d->now->size);
	n->discard_unmap = true;
	n->filename = strdup("/sim/disk");
	return n->filename ? 0 : error_set(errp, "Cannot allocate memory");
}

static int
disk_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct disk *d = disk_of(n);
	int r = fault(d, SIM_READ);
	uint8_t *buf;

	sim_take_time(d->sim);
	if (r < 0)
		return r;
	buf = sim_alloc(dst->len);
	image_read(d->now, off, buf, dst->len);
	iov_write(dst, 0, buf, dst->len);
	free(buf);
	return 0;
}

/* bytes is allocated, NULL for zeroes, and freed here. */
static int
change(struct node *n, enum sim_op op, uint64_t off, uint8_t *bytes, uint64_t len)
{
	struct disk *d = disk_of(n);
	int r = fault(d, op);
	bool early = sim_below(d->sim, 2);
	size_t event;

	if (r < 0 && !bytes)
		bytes = sim_zalloc(len);
	if (r < 0)
		spoil(d, off, bytes, len);
	event = record(d, r < 0 ? SIM_WRITE : op, off, bytes, len);
	if (early)
		image_write(d->now, off, bytes, len);
	sim_take_time(d->sim);
	if (!early)
		image_write(d->now, off, bytes, len);
	complete(d, event);
	node_grew(n, d->now->size);	/* by what was done of it */
	free(bytes);
	return r;
}

static int
disk_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	uint8_t *bytes = sim_alloc(src->len);

	(void)flags;
	iov_read(src, 0, bytes, src->len);
	return change(n, SIM_WRITE, off, bytes, src->len);
}

static int
disk_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	(void)flags;
	return change(n, SIM_ZERO, off, NULL, len);
}

static int
disk_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct disk *d = disk_of(n);
	uint8_t *bytes;

	len = off < d->now->size ? min_u64(len, d->now->size - off) : 0;
	bytes = sim_alloc(len);
	image_read(d->now, off, bytes, len);
	for (uint64_t i = 0; i < len;) {
		uint64_t m = min_u64(IMAGE_SECTOR - (off + i) % IMAGE_SECTOR, len - i);
		unsigned what = sim_below(d->sim, 3);

		if (what)
			memset(bytes + i, what == 1 ? 0 : 0xdb, m);
		i += m;
	}
	return change(n, SIM_DISCARD, off, bytes, len);
}

static int
disk_flush(struct node *n)
{
	struct disk *d = disk_of(n);
	int r = fault(d, SIM_FLUSH);
	long began = sim_tick(d->sim);

	sim_take_time(d->sim);
	sim_tick(d->sim);
	d->flush_failed |= r < 0;
	d->sim->flush_failed |= r < 0;
	for (size_t i = 0; i < d->n; i++) {
		struct disk_event *e = &d->log[i];

		if (e->done >= began || e->safe != LONG_MAX || e->lost)
			continue;
		if (r < 0)
			e->lost = true;
		else
			e->safe = d->sim->now;
	}
	return r;
}

static int
disk_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	      struct error **errp)
{
	struct disk *d = disk_of(n);
	int r = fault(d, SIM_TRUNCATE);
	size_t event;

	(void)prealloc;
	if (!r && d->device) {
		if (size <= d->now->size && !exact)
			return 0;
		r = -ENOTSUP;
	}
	if (r < 0)
		return error_set_errno(errp, r, "Failed to resize file"), -1;
	event = record(d, SIM_TRUNCATE, size, NULL, 0);
	image_resize(d->now, size);
	sim_take_time(d->sim);
	complete(d, event);
	return 0;
}

static const struct driver file_driver = {
	.name = "sim-file",
	.caps = DRIVER_PROTOCOL | DRIVER_GROWS | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST,
	.state_size = sizeof(struct disk *),
	.open = disk_driver_open,
	.read = disk_read,
	.write = disk_write,
	.zero = disk_zero,
	.discard = disk_discard,
	.flush = disk_flush,
	.truncate = disk_truncate,
};

static const struct driver device_driver = {
	.name = "sim-device",
	.caps = DRIVER_PROTOCOL | DRIVER_ZERO_UNMAP,
	.state_size = sizeof(struct disk *),
	.open = disk_driver_open,
	.read = disk_read,
	.write = disk_write,
	.zero = disk_zero,
	.discard = disk_discard,
	.flush = disk_flush,
	.truncate = disk_truncate,
};

/* ---- life ---- */

struct disk *
disk_new(struct sim *s, bool device, uint64_t size)
{
	struct disk *d = sim_zalloc(sizeof(*d));

	assert(s->n < SIM_DISKS);
	d->sim = s;
	d->device = device;
	d->now = &d->own;
	image_resize(d->now, size);
	if (device) {
		uint8_t *old = sim_alloc(size);

		memset(old, 0xe5, size);
		image_write(d->now, 0, old, size);
		free(old);
	}
	s->disks[s->n++] = d;
	return d;
}

void
disk_free(struct disk *d)
{
	image_done(&d->own);
	image_done(&d->start);
	free(d->log);
	free(d->bytes);
	free(d);
}

int
disk_open(struct disk *d, const char *name, bool read_only, struct node **ret,
	  struct error **errp)
{
	return node_open_driver(d->device ? &device_driver : &file_driver, name, d, read_only, ret,
				errp);
}

void
sim_record(struct sim *s)
{
	for (unsigned i = 0; i < s->n; i++)
		image_copy(&s->disks[i]->start, s->disks[i]->now);
	s->recording = true;
	sim_work_by(s);
}

void
sim_record_end(struct sim *s)
{
	s->recording = false;
	sim_work_by(NULL);
}
