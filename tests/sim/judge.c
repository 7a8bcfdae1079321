/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/judge.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/check.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/qcow2/header.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "tests/sim/model.h"
#include "tests/sim/qemu.h"
#include "tests/support/snapview.h"

enum { REPAIR_EVERY = 8, CUT_REPAIR_EVERY = 64, WRITE_EVERY = 16, COMPARE_EVERY = 3 };

static bool
wrong(struct judge *j, const char *what, const char *why)
{
	snprintf(j->text, sizeof(j->text), "%s%s%s", what, why ? ": " : "", why ? why : "");
	return false;
}

static bool
open_it(struct judge *j, bool read_only, struct opened *ret)
{
	struct error *err = NULL;

	if (!setup_open(j->setup, &j->stack, j->layer, "judged", read_only, ret, &err))
		return true;
	wrong(j, read_only ? "does not open" : "does not open for writing",
	      err ? error_text(err) : NULL);
	error_free(err);
	return false;
}

/* Counts and flags may disagree, and repair puts that right.  An image of version 2
 * has no mark for it. */
static bool
is_marked_dirty(const struct judge *j)
{
	uint8_t incompat[8];

	if (!setup_is_image(j->setup, j->layer))
		return false;
	if (j->layer == TOP && j->setup->version == 2)
		return j->model->n_snapshots;
	image_read(j->stack.layer[j->layer]->now, QCOW2_OFF_INCOMPAT, incompat, sizeof(incompat));
	return get_be64(incompat) & QCOW2_INCOMPAT_DIRTY;
}

/* ---- the check, and the guest's view ---- */

static void
first_line(void *arg, const char *text)
{
	char *line = arg;

	if (!*line)
		snprintf(line, 200, "%s", text);
}

static bool
check_layer(struct judge *j, struct node *n, unsigned fix, struct check_result *ret)
{
	char line[200] = "";
	const struct check_report report = { first_line, line };
	int r = node_check(n, fix, &report, ret);

	if (r < 0 || ret->errors)
		return wrong(j, "cannot be checked", line);
	if (ret->corruptions)
		return wrong(j, "is corrupt", line);
	if (fix && ret->leaks)
		return wrong(j, "leaks after repair", line);
	return true;
}

/* The guest's layer; those below are never repaired here, and must not need it. */
static bool
check(struct judge *j, const struct opened *o, unsigned fix, struct check_result *ret)
{
	struct check_result below;

	*ret = (struct check_result){ 0 };
	for (enum layer l = j->layer + 1; l < LAYERS; l++)
		if (o->image[l] && setup_is_image(j->setup, l) &&
		    !check_layer(j, o->image[l], 0, &below))
			return false;
	return !setup_is_image(j->setup, j->layer) ||
	       check_layer(j, o->image[j->layer], fix, ret);
}

static bool
look_at_snapshot(struct judge *j, struct node *n, const struct qcow2_snapshot *s)
{
	const struct model_snapshot *m = model_snapshot_at(j->model, j->cut, s->name);
	const char *why = NULL;
	struct model_view view;
	uint8_t *buf;

	if (!m || s->disk_size != m->size * IMAGE_SECTOR)
		return wrong(j, "has a snapshot that it must not have", s->name);
	view = (struct model_view){ m->submitted, m->submitted, m->size };
	buf = sim_alloc(s->disk_size);
	if (snapview_read(n, s, buf, s->disk_size) < 0)
		why = "cannot be read";
	else
		why = model_judge(j->model, view, 0, buf, m->size);
	free(buf);
	return why ? wrong(j, "a snapshot", why) : true;
}

static bool
look_at_snapshots(struct judge *j, struct node *n)
{
	static const char *const names[] = { "a", "b" };
	const struct qcow2 *q = n->state;
	bool there[2] = { false };

	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		there[*q->snapshots[i].name - 'a'] = true;
		if (!look_at_snapshot(j, n, &q->snapshots[i]))
			return false;
	}
	for (unsigned i = 0; i < 2; i++)
		if (!there[i] && model_needs_snapshot(j->model, j->cut, names[i]))
			return wrong(j, "lost a snapshot", names[i]);
	return true;
}

/* A bitmap that calls itself consistent marks all that was written since. */
static bool
is_marked_well(struct judge *j, struct node *n, const uint8_t *buf, uint64_t size)
{
	struct dirty_bitmap *b = dirty_find(n, "b0");
	uint64_t off, len;

	if (!b || dirty_reason(b))
		return true;
	for (uint64_t at = 0; at < size; at += IMAGE_SECTOR)
		if (model_needs_mark(j->model, j->cut, at / IMAGE_SECTOR, buf + at) &&
		    (!dirty_next_run(b, at, at + IMAGE_SECTOR, &off, &len) || off != at))
			return false;
	return true;
}

static bool
look(struct judge *j, const struct opened *o)
{
	struct node *n = o->image[j->layer];
	uint64_t size = node_size(n);
	struct model_view view = { j->cut, j->covered, size / IMAGE_SECTOR };
	uint8_t *buf;
	const char *why;
	int r;

	if (size % IMAGE_SECTOR || !model_may_have_size(j->model, j->cut, view.size))
		return wrong(j, "has a size that it must not have", NULL);
	buf = sim_alloc(size);
	r = node_pread(n, 0, buf, size);
	why = r < 0 ? "cannot be read" : model_judge(j->model, view, 0, buf, view.size);
	if (!why && !is_marked_well(j, n, buf, size))
		why = "a bitmap misses what was written";
	free(buf);
	if (why)
		return wrong(j, why, NULL);
	return !setup_is_image(j->setup, j->layer) || look_at_snapshots(j, n);
}

/* ---- qemu-img ---- */

static bool
is_due(const struct judge *j)
{
	return j->qemu && qemu_is_due(j->qemu);
}

/* Does it see what we see? */
static bool
compare(struct judge *j)
{
	const char *why = NULL;
	struct opened o;
	uint64_t size;
	uint8_t *view;

	if (!open_it(j, true, &o))
		return false;
	size = node_size(o.image[j->layer]);
	view = sim_alloc(size);
	if (!node_pread(o.image[j->layer], 0, view, size))
		why = qemu_compare(j->qemu, j->setup, &j->stack, j->layer, view, size);
	setup_close(&o);
	free(view);
	return why ? wrong(j, why, NULL) : true;
}

static bool
check_by_qemu(struct judge *j)
{
	const char *why = qemu_check(j->qemu, j->setup, &j->stack, j->layer);

	return why ? wrong(j, why, NULL) : true;
}

/* What is marked dirty is not checked before it is repaired. */
static bool
ask_qemu(struct judge *j, bool dirty)
{
	if (dirty || (j->qemu->checked + j->qemu->compared) % COMPARE_EVERY == 0)
		return compare(j);
	return check_by_qemu(j);
}

/* ---- repair ---- */

static bool
repair(struct judge *j, bool dirty)
{
	struct check_result c;
	struct opened o;
	bool ok;

	if (!open_it(j, false, &o))
		return false;
	ok = check(j, &o, CHECK_FIX_LEAKS | (dirty ? CHECK_FIX_ERRORS : 0), &c) && look(j, &o);
	setup_close(&o);
	if (!ok || !open_it(j, true, &o))
		return false;
	ok = check(j, &o, 0, &c) && look(j, &o);
	if (ok && c.leaks)
		ok = wrong(j, "leaks again after repair", NULL);
	setup_close(&o);
	return ok && (!dirty || !is_due(j) || check_by_qemu(j));
}

/* Work on copies, which stay as they are for who comes next. */
static void
use_copies(struct judge *j)
{
	for (unsigned i = 0; i < j->sim.n; i++) {
		struct disk *d = j->sim.disks[i];

		image_copy(&d->own, d->now);
		d->now = &d->own;
		d->n = d->n_bytes = 0;
	}
}

/* Repair, with a power cut at every moment of it. */
static bool
cut_repairs(struct judge *j, bool dirty)
{
	static const struct states_plan plan = { .enumerate = 5, .samples = 12, .tears = 2 };
	struct judge inner = { .setup = j->setup, .model = j->model, .counts = j->counts,
			       .nested = true, .cut = j->cut, .covered = j->covered,
			       .layer = j->layer };
	struct states s = { .plan = &plan, .sim = &j->sim, .judge = judge_state, .arg = &inner };
	bool ok;

	use_copies(j);
	sim_record(&j->sim);
	ok = repair(j, dirty);
	sim_record_end(&j->sim);
	if (!ok)
		return false;
	judge_start(&inner);
	ok = states_run(&s);
	if (!ok)
		snprintf(j->text, sizeof(j->text), "a cut during repair: %.280s", inner.text);
	j->counts->repair_states += s.judged;
	states_done(&s);
	judge_done(&inner);
	return ok;
}

/* ---- going on ---- */

static bool
write_on(struct judge *j)
{
	uint64_t size, off;
	uint8_t buf[3 * IMAGE_SECTOR], back[sizeof(buf)];
	struct check_result c;
	struct opened o;
	struct node *n;
	bool ok = true;

	if (!open_it(j, false, &o))
		return false;
	n = o.image[j->layer];
	size = node_size(n);
	for (off = 0; ok && off + sizeof(buf) <= size; off += 5 * IMAGE_SECTOR) {
		memset(buf, (int)(off >> 9) | 1, sizeof(buf));
		ok = !node_pwrite(n, off, buf, sizeof(buf));
	}
	for (off = 0; ok && off + sizeof(buf) <= size; off += 5 * IMAGE_SECTOR) {
		memset(buf, (int)(off >> 9) | 1, sizeof(buf));
		ok = !node_pread(n, off, back, sizeof(back)) &&
		     !memcmp(buf, back, sizeof(buf));
	}
	setup_close(&o);
	if (!ok)
		return wrong(j, "does not keep what is written to it", NULL);
	if (!open_it(j, true, &o))
		return false;
	ok = check(j, &o, 0, &c);
	setup_close(&o);
	return ok || wrong(j, "is corrupt once it was written to", NULL);
}

/* ---- a state ---- */

static void
use_work(struct judge *j, struct states *s)
{
	for (unsigned i = 0; i < j->sim.n; i++)
		j->sim.disks[i]->now = &s->work[i];
}

/* A number that is the state's own. */
static uint64_t
lot_of(const struct judge *j)
{
	uint64_t lot = 0;

	for (unsigned i = 0; i < j->sim.n; i++)
		lot = sim_hash(lot ^ image_key(j->sim.disks[i]->now), "lot", 3);
	return lot;
}

static bool
judge_closely(struct judge *j, struct states *s, bool dirty, bool leaks)
{
	uint64_t n = lot_of(j);

	if (!setup_is_image(j->setup, j->layer))
		return true;
	if (is_due(j) && !ask_qemu(j, dirty))
		return false;
	if (!j->nested && n % CUT_REPAIR_EVERY == 0 && !cut_repairs(j, dirty))
		return false;
	use_work(j, s);
	if (dirty || (leaks && n % 4 == 0) || n % REPAIR_EVERY == 0) {
		j->counts->repaired++;
		if (!repair(j, dirty))
			return false;
	}
	if (n % WRITE_EVERY == 1 && !j->setup->tight) {
		j->counts->written++;
		return write_on(j);
	}
	return true;
}

bool
judge_state(struct states *s, long cut, void *arg)
{
	struct judge *j = arg;
	struct check_result c;
	struct opened o;
	bool dirty, ok;

	j->counts->judged++;
	use_work(j, s);
	if (!j->nested) {
		j->cut = cut;
		j->covered = model_covered(j->model, cut);
		j->layer = (enum layer)model_layer(j->model, cut);
	}
	dirty = is_marked_dirty(j);
	if (!open_it(j, true, &o))
		return false;
	ok = check(j, &o, 0, &c) || dirty;
	ok = ok && look(j, &o);
	setup_close(&o);
	return ok && judge_closely(j, s, dirty, c.leaks);
}

void
judge_start(struct judge *j)
{
	setup_disks(j->setup, &j->sim, 0, &j->stack);
}

void
judge_done(struct judge *j)
{
	for (unsigned i = 0; i < j->sim.n; i++)
		disk_free(j->sim.disks[i]);
}
