/* SPDX-License-Identifier: Apache-2.0 */
/* Running a workload on an image. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/colock.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/invariants.h"
#include "block/root.h"
#include "block/snapshot.h"
#include "schema/types.h"
#include "tests/sim/workload.h"

struct player {
	const struct workload *w;
	struct world *world;
	struct opened open;
	struct root *root;
	struct co_group group;
};

struct worker {
	struct player *p;
	unsigned number;
};

static void
complain(struct world *w, const char *what, const char *why)
{
	if (w->wrong)
		return;
	snprintf(w->text, sizeof(w->text), "%s: %s", what, why ? why : "?");
	w->wrong = w->text;
}

/* ---- steps ---- */

static void
do_write(struct player *p, uint64_t sector, uint64_t n, unsigned flags)
{
	struct model *m = &p->world->model;
	uint8_t *buf = malloc(n * IMAGE_SECTOR);
	struct iov v = IOV_BUF(buf, n * IMAGE_SECTOR);
	size_t op;

	assert(buf);
	op = model_write(m, sector, n);
	model_fill(buf, op, sector, n);
	model_end(m, op, io_write(p->root, sector * IMAGE_SECTOR, &v, flags));
	free(buf);
}

/* As much of it as are whole clusters. */
static void
do_compressed(struct player *p, uint64_t sector, uint64_t n)
{
	uint64_t cluster = UINT64_C(1) << (p->w->setup.cluster_bits - 9);
	uint64_t start = round_up(sector, cluster), end = round_down(sector + n, cluster);

	if (start < end && !p->w->setup.data_file)
		do_write(p, start, end - start, IO_COMPRESSED);
}

static void
do_read(struct player *p, uint64_t sector, uint64_t n)
{
	uint8_t *buf = malloc(n * IMAGE_SECTOR);
	struct iov v = IOV_BUF(buf, n * IMAGE_SECTOR);
	long began = sim_tick(&p->world->sim);
	const char *wrong;

	assert(buf);
	if (io_read(p->root, sector * IMAGE_SECTOR, &v) == 0) {
		wrong = model_judge(&p->world->model, sim_tick(&p->world->sim), began, sector,
				    buf, n);
		if (wrong)
			complain(p->world, "a read while it ran", wrong);
	}
	free(buf);
}

static void
do_zero(struct player *p, uint64_t sector, uint64_t n, unsigned flags)
{
	size_t op = model_zero(&p->world->model, sector, n);

	model_end(&p->world->model, op,
		  io_zero(p->root, sector * IMAGE_SECTOR, n * IMAGE_SECTOR, flags));
}

static void
do_discard(struct player *p, uint64_t sector, uint64_t n)
{
	size_t op = model_discard(&p->world->model, sector, n);

	model_end(&p->world->model, op,
		  io_discard(p->root, sector * IMAGE_SECTOR, n * IMAGE_SECTOR));
}

static void
do_flush(struct player *p)
{
	long submitted = sim_tick(&p->world->sim);
	int r = io_flush(p->root);

	if (!r && p->world->lost)
		complain(p->world, "flush", "it failed before, and does not any more");
	if (r < 0)
		p->world->lost = true;
	else
		model_flushed(&p->world->model, submitted);
}

static void
do_resize(struct player *p, uint64_t sectors)
{
	long submitted = sim_tick(&p->world->sim);
	struct error *err = NULL;
	int r = node_resize(p->open.image, sectors * IMAGE_SECTOR, &err);

	error_free(err);
	model_resized(&p->world->model, submitted, sectors, r);
}

/* ---- opening and closing ---- */

static bool close_failed;

static void
note_failure(const char *name, int err)
{
	(void)name;
	(void)err;
	close_failed = true;
}

static bool
start(struct player *p)
{
	struct error *err = NULL;

	if (setup_open(&p->w->setup, &p->world->stack, "image", false, &p->open, &err) ||
	    root_new(p->open.image, "root", PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL,
		     NULL, &p->root, &err)) {
		if (!p->world->sim.fault.hit)
			complain(p->world, "open", err ? error_text(err) : NULL);
		error_free(err);
		setup_close(&p->open);
		return false;
	}
	return true;
}

/* An orderly end stores all that was written. */
static void
stop(struct player *p)
{
	long submitted = sim_tick(&p->world->sim);

	if (!p->root)
		return;
	root_free(p->root);
	p->root = NULL;
	close_failed = false;
	node_close_failed = note_failure;
	setup_close(&p->open);
	if (close_failed && !p->world->sim.fault.hit)
		complain(p->world, "close", "it failed");
	if (close_failed || p->world->lost)
		model_unsure(&p->world->model);
	else
		model_flushed(&p->world->model, submitted);
	p->world->lost = false;		/* a file that is opened again may be whole */
}

static void
do_bitmap(struct player *p, bool add)
{
	struct dirty_options o = { .name = "b0", .granularity = 512, .persistent = true };
	struct dirty_bitmap *b = dirty_find(p->open.image, "b0");
	long submitted = sim_tick(&p->world->sim);
	struct error *err = NULL;

	if (add && !b) {
		if (!dirty_add(p->open.image, &o, &err))
			model_bitmap_added(&p->world->model, submitted);
	} else if (!add && b) {
		if (!dirty_remove(b, &err))
			model_bitmap_removed(&p->world->model);
	}
	error_free(err);
}

static void
do_snapshot(struct player *p, const char *name, bool take)
{
	struct model *m = &p->world->model;
	long submitted = sim_tick(&p->world->sim);
	struct SnapshotInfo *info = NULL;
	struct error *err = NULL;
	bool there = model_snapshot_at(m, submitted, name);
	int r;

	if (take && there)
		return;
	if (take) {
		r = node_snapshot_take(p->open.image, name, &err);
		model_taken(m, name, submitted, r);
	} else {
		r = node_snapshot_drop(p->open.image, NULL, name, &info, &err);
		model_dropped(m, name, submitted, r);
		SnapshotInfo_free(info);
	}
	error_free(err);
}

static void
do_step(struct player *p, const struct step *s)
{
	uint64_t size = p->world->model.size, n;

	if (s->kind <= STEP_DISCARD) {
		if (s->sector >= size)
			return;
		n = min_u64(s->n, size - s->sector);
		if (s->kind == STEP_WRITE)
			do_write(p, s->sector, n, 0);
		else if (s->kind == STEP_COMPRESSED)
			do_compressed(p, s->sector, n);
		else if (s->kind == STEP_READ)
			do_read(p, s->sector, n);
		else if (s->kind == STEP_DISCARD)
			do_discard(p, s->sector, n);
		else
			do_zero(p, s->sector, n, s->kind == STEP_UNMAP ? IO_MAY_UNMAP : 0);
	} else if (s->kind == STEP_FLUSH) {
		do_flush(p);
	} else if (s->kind == STEP_CHECKPOINT) {
		(void)qcow2_checkpoint(p->open.image->state);
	} else if (s->kind == STEP_RESIZE) {
		do_resize(p, s->sector);
	} else if (s->kind == STEP_REOPEN) {
		stop(p);
		/* What a cache shows after a failed flush may not be on the disk: who opens
		 * the file again then must not rely on it, and cannot know. */
		if (!p->world->sim.flush_failed)
			(void)start(p);
	} else if (s->kind == STEP_SNAPSHOT || s->kind == STEP_DROP) {
		do_snapshot(p, s->sector & 1 ? "b" : "a", s->kind == STEP_SNAPSHOT);
	} else {
		do_bitmap(p, s->kind == STEP_BITMAP_ADD);
	}
}

static void
work(void *arg)
{
	struct worker *k = arg;
	const struct workload *w = k->p->w;

	for (unsigned i = 0; i < w->n[k->number] && k->p->root; i++) {
		do_step(k->p, &w->steps[k->number][i]);
		if (k->p->root)
			qcow2_invariants(k->p->open.image->state);
	}
}

/* Some clusters are there, and flushed, before it begins. */
static void
prefill(struct player *p)
{
	uint64_t cluster = UINT64_C(1) << (p->w->setup.cluster_bits - 9);
	uint64_t fill = p->w->setup.fill;

	if (!start(p))
		return;
	do_write(p, cluster, cluster, 0);
	do_write(p, 4 * cluster, 2 * cluster, 0);
	do_write(p, 7 * cluster, 1, 0);
	if (fill)
		do_write(p, p->w->setup.sectors - fill, fill, 0);
	stop(p);
}

void
workload_run(const struct workload *w, const struct sim_fault *fault, struct world *ret)
{
	struct worker workers[WORKERS_MAX];
	struct player p = { .w = w, .world = ret };

	memset(ret, 0, sizeof(*ret));
	ret->sim.luck = w->luck;
	model_init(&ret->model, &ret->sim, w->setup.most, w->setup.sectors, w->setup.backed);
	setup_make(&w->setup, &ret->sim, &ret->stack);
	prefill(&p);
	sim_record(&ret->sim);
	if (start(&p)) {
		if (fault)
			ret->sim.fault = *fault;
		co_group_init(&p.group);
		for (unsigned i = 0; i < w->workers; i++) {
			workers[i] = (struct worker){ &p, i };
			(void)co_group_start(&p.group, work, &workers[i]);
		}
		co_group_wait(&p.group);
		if (p.root)
			do_read(&p, 0, ret->model.size);
		stop(&p);
	}
	ret->sim.recording = false;
	ret->sim.fault.nth = 0;
	if (ret->sim.wrong)
		complain(ret, "the driver", ret->sim.wrong);
}

void
world_done(struct world *w)
{
	for (unsigned i = 0; i < w->sim.n; i++)
		disk_free(w->sim.disks[i]);
	model_done(&w->model);
}
