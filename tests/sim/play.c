/* SPDX-License-Identifier: Apache-2.0 */
/* Running a workload on an image. */
#include <limits.h>
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
#include "tests/sim/commit.h"
#include "tests/sim/workload.h"
#include "tests/support/failheap.h"

struct player {
	const struct workload *w;
	struct world *world;
	struct opened open;
	enum layer layer;	/* the guest's */
	struct root *root;
	unsigned commits;	/* that are under way */
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

/* May something fail?  Where space runs out, by itself. */
static bool
has_struck(const struct player *p)
{
	return p->world->sim.fault.hit || failheap_failed() || p->w->setup.tight;
}

/* ---- layers ---- */

static struct node *
guest_node(const struct player *p)
{
	return p->open.image[p->layer];
}

static bool
is_image(const struct player *p)
{
	return setup_is_image(&p->w->setup, p->layer);
}

/* Has what the guest is told to be safe failed to become so?  While a commit runs, a
 * flush may also fail because of the layer below. */
static bool
flush_failed(const struct player *p)
{
	const struct stack *k = &p->world->stack;

	return k->layer[p->layer]->flush_failed ||
	       (p->layer == TOP && k->data && k->data->flush_failed);
}

/* A commit has let the guest use another layer.  Nothing ends unless this was called:
 * so what the guest was told behind it is looked for in that one. */
static void
note_move(struct player *p)
{
	struct node *n = root_node(p->root);
	struct model *m = &p->world->model;

	for (enum layer l = p->layer + 1; l < LAYERS; l++) {
		if (p->open.image[l] != n)
			continue;
		p->layer = l;
		if (p->world->lost)
			model_unsure(m);
		p->world->lost = flush_failed(p);
		model_moved(m, l, node_size(n) / IMAGE_SECTOR);
	}
}

static void
end(struct player *p, size_t op, int result)
{
	note_move(p);
	model_end(&p->world->model, op, result);
}

/* ---- steps ---- */

static void
do_write(struct player *p, uint64_t sector, uint64_t n, unsigned flags)
{
	struct model *m = &p->world->model;
	uint8_t *buf = sim_alloc(n * IMAGE_SECTOR);
	struct iov v = IOV_BUF(buf, n * IMAGE_SECTOR);
	size_t op = model_write(m, sector, n);

	model_fill(buf, op, sector, n);
	end(p, op, io_write(p->root, sector * IMAGE_SECTOR, &v, flags));
	free(buf);
}

/* As much of it as are whole clusters. */
static void
do_compressed(struct player *p, uint64_t sector, uint64_t n)
{
	uint64_t cluster = UINT64_C(1) << (p->w->setup.cluster_bits - 9);
	uint64_t from = round_up(sector, cluster), to = round_down(sector + n, cluster);

	if (from < to && is_image(p) && !p->w->setup.data_file)
		do_write(p, from, to - from, IO_COMPRESSED);
}

static void
do_read(struct player *p, uint64_t sector, uint64_t n)
{
	uint8_t *buf = sim_alloc(n * IMAGE_SECTOR);
	struct iov v = IOV_BUF(buf, n * IMAGE_SECTOR);
	struct model *m = &p->world->model;
	struct model_view view = { .covered = sim_tick(&p->world->sim), .size = m->size };
	const char *wrong;

	if (io_read(p->root, sector * IMAGE_SECTOR, &v) == 0) {
		view.cut = sim_tick(&p->world->sim);
		wrong = model_judge(m, view, sector, buf, n);
		if (wrong)
			complain(p->world, "a read while it ran", wrong);
	}
	free(buf);
}

static void
do_zero(struct player *p, uint64_t sector, uint64_t n, unsigned flags)
{
	size_t op = model_zero(&p->world->model, sector, n);

	end(p, op, io_zero(p->root, sector * IMAGE_SECTOR, n * IMAGE_SECTOR, flags));
}

/* A plain disk may show anything behind it, and the guest may use one by then. */
static void
do_discard(struct player *p, uint64_t sector, uint64_t n)
{
	size_t op;

	if (!is_image(p) || (p->commits && !p->w->setup.base_image))
		return;
	op = model_discard(&p->world->model, sector, n);
	end(p, op, io_discard(p->root, sector * IMAGE_SECTOR, n * IMAGE_SECTOR));
}

static void
do_flush(struct player *p)
{
	long submitted = sim_tick(&p->world->sim);
	int r = io_flush(p->root);

	note_move(p);
	if (!r && p->world->lost)
		complain(p->world, "flush", "it failed before, and does not any more");
	if (r < 0)
		p->world->lost = flush_failed(p);
	else
		model_flushed(&p->world->model, submitted);
}

static void
do_resize(struct player *p, uint64_t sectors)
{
	long submitted = sim_tick(&p->world->sim);
	struct error *err = NULL;
	int r;

	/* Of a plain disk's new length any part may be lost. */
	if (!is_image(p))
		return;
	r = node_resize(guest_node(p), sectors * IMAGE_SECTOR, &err);
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

/* A change of size that failed may have been done all the same. */
static void
adopt_size(struct player *p)
{
	struct model *m = &p->world->model;
	uint64_t size = node_size(guest_node(p)) / IMAGE_SECTOR;

	if (size == m->size)
		return;
	if (!model_may_have_size(m, LONG_MAX, size))
		complain(p->world, "open", "the size is another one");
	model_resized(m, sim_tick(&p->world->sim), size, 0);
}

static bool
start(struct player *p)
{
	struct error *err = NULL;

	if (setup_open(&p->w->setup, &p->world->stack, p->layer, "image", false, &p->open, &err) ||
	    root_new(guest_node(p), "root", PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL,
		     NULL, &p->root, &err)) {
		if (!has_struck(p))
			complain(p->world, "open", err ? error_text(err) : NULL);
		error_free(err);
		setup_close(&p->open);
		return false;
	}
	adopt_size(p);
	return true;
}

/* An orderly end stores all that was written. */
static void
stop(struct player *p)
{
	long submitted = sim_tick(&p->world->sim);

	if (!p->root)
		return;
	if (!is_image(p))
		do_flush(p);	/* closing a plain disk is no promise */
	root_free(p->root);
	p->root = NULL;
	close_failed = false;
	node_close_failed = note_failure;
	setup_close(&p->open);
	if (close_failed && !has_struck(p))
		complain(p->world, "close", "it failed");
	if (close_failed || p->world->lost)
		model_unsure(&p->world->model);
	else if (is_image(p))
		model_flushed(&p->world->model, submitted);
	p->world->lost = false;		/* a file that is opened again may be whole */
}

static void
do_bitmap(struct player *p, bool add)
{
	struct dirty_options o = { .name = "b0", .granularity = 512, .persistent = true };
	struct dirty_bitmap *b = dirty_find(guest_node(p), "b0");
	long submitted = sim_tick(&p->world->sim);
	struct error *err = NULL;

	if (add && !b) {
		if (!dirty_add(guest_node(p), &o, &err))
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
		r = node_snapshot_take(guest_node(p), name, &err);
		model_taken(m, name, submitted, r);
	} else {
		r = node_snapshot_drop(guest_node(p), NULL, name, &info, &err);
		model_dropped(m, name, submitted, r);
		SnapshotInfo_free(info);
	}
	error_free(err);
}

/* After a failed flush a commit might copy what a cache shows and the disk has not.  And
 * what snapshots leave to a layer below changes with that. */
static void
do_commit(struct player *p, enum commit_kind kind)
{
	enum layer top = p->layer, base;

	if (kind == COMMIT_MID)
		top = setup_below(&p->w->setup, &p->world->stack, top);
	base = top < LAYERS ? setup_below(&p->w->setup, &p->world->stack, top) : LAYERS;
	if (kind == COMMIT_BASE && base < BASE)
		base = BASE;
	if (base == LAYERS || p->world->sim.flush_failed ||
	    model_has_snapshots(&p->world->model))
		return;
	p->world->model.spilled = true;
	p->commits++;
	commit_run(&p->world->sim, guest_node(p), p->open.image[top], p->open.image[base]);
	p->commits--;
	note_move(p);
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
		if (is_image(p))
			(void)qcow2_checkpoint(guest_node(p)->state);
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
	} else if (s->kind == STEP_COMMIT) {
		do_commit(p, (enum commit_kind)s->sector);
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
		if (k->p->root && is_image(k->p))
			qcow2_invariants(guest_node(k->p)->state);
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

static void
arm(struct sim *s, const struct sim_fault *fault)
{
	if (!fault)
		return;
	s->fault = *fault;
	if (!(fault->ops & SIM_ALLOC))
		return;
	s->fault.nth = 0;
	if (fault->for_good)
		failheap_arm_for_good((unsigned)fault->nth);
	else
		failheap_arm((unsigned)fault->nth);
}

static void
disarm(struct sim *s)
{
	s->fault.nth = 0;
	s->fault.hit |= failheap_disarm();
}

void
workload_run(const struct workload *w, const struct sim_fault *fault, struct world *ret)
{
	struct worker workers[WORKERS_MAX];
	struct player p = { .w = w, .world = ret };
	struct model_below below = setup_content(&w->setup);

	memset(ret, 0, sizeof(*ret));
	ret->sim.luck = w->luck;
	failheap_arm(0);
	model_init(&ret->model, &ret->sim, w->setup.most, w->setup.sectors, &below);
	setup_make(&w->setup, &ret->sim, &ret->stack);
	prefill(&p);
	sim_record(&ret->sim);
	if (start(&p)) {
		arm(&ret->sim, fault);
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
	sim_record_end(&ret->sim);
	disarm(&ret->sim);
	if (*ret->sim.wrong)
		complain(ret, "the driver", ret->sim.wrong);
}

void
world_done(struct world *w)
{
	for (unsigned i = 0; i < w->sim.n; i++)
		disk_free(w->sim.disks[i]);
	model_done(&w->model);
}
