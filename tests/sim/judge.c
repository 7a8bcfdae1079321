/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/judge.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/check.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/qcow2/header.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "block/qcow2/walk.h"
#include "tests/sim/model.h"

enum { REPAIR_EVERY = 8, CUT_REPAIR_EVERY = 64, WRITE_EVERY = 16 };

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

	if (!setup_open(j->setup, &j->stack, "judged", read_only, ret, &err))
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

	if (j->setup->version == 2)
		return j->model->n_snapshots;
	image_read(j->stack.file->now, QCOW2_OFF_INCOMPAT, incompat, sizeof(incompat));
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
check(struct judge *j, struct node *n, unsigned fix, struct check_result *ret)
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

/* What a snapshot shows: reading goes through its L1 table for as long as it takes. */
static int
read_snapshot(struct node *n, const struct qcow2_snapshot *s, uint8_t *buf, uint64_t len)
{
	struct qcow2 *q = n->state;
	uint64_t *l1, *own = q->l1, own_size = q->l1_size, size = node_size(n);
	int r = qcow2_walk_read_l1(q, s->l1_off, s->l1_size, &l1);

	if (r < 0)
		return r;
	q->l1 = l1;
	q->l1_size = s->l1_size;
	atomic_store(&n->size, len);
	r = node_pread(n, 0, buf, len);
	atomic_store(&n->size, size);
	q->l1 = own;
	q->l1_size = own_size;
	free(l1);
	return r;
}

static bool
look_at_snapshot(struct judge *j, struct node *n, const struct qcow2_snapshot *s)
{
	const struct model_snapshot *m = model_snapshot_at(j->model, j->cut, s->name);
	const char *why = NULL;
	uint8_t *buf;

	if (!m || s->disk_size != m->size * IMAGE_SECTOR)
		return wrong(j, "has a snapshot that it must not have", s->name);
	buf = malloc(s->disk_size + 1);
	assert(buf);
	if (read_snapshot(n, s, buf, s->disk_size) < 0)
		why = "cannot be read";
	else
		why = model_judge(j->model, m->submitted, m->submitted, 0, buf, m->size);
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
look(struct judge *j, struct node *n)
{
	uint64_t size = node_size(n);
	uint8_t *buf;
	const char *why;
	int r;

	if (size % IMAGE_SECTOR || !model_may_have_size(j->model, j->cut, size / IMAGE_SECTOR))
		return wrong(j, "has a size that it must not have", NULL);
	buf = malloc(size ? size : 1);
	assert(buf);
	r = node_pread(n, 0, buf, size);
	why = r < 0 ? "cannot be read"
		    : model_judge(j->model, j->cut, j->covered, 0, buf, size / IMAGE_SECTOR);
	if (!why && !is_marked_well(j, n, buf, size))
		why = "a bitmap misses what was written";
	free(buf);
	return why ? wrong(j, why, NULL) : look_at_snapshots(j, n);
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
	ok = check(j, o.image, CHECK_FIX_LEAKS | (dirty ? CHECK_FIX_ERRORS : 0), &c) &&
	     look(j, o.image);
	setup_close(&o);
	if (!ok || !open_it(j, true, &o))
		return false;
	ok = check(j, o.image, 0, &c) && look(j, o.image);
	if (ok && c.leaks)
		ok = wrong(j, "leaks again after repair", NULL);
	setup_close(&o);
	return ok;
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
			       .nested = true, .cut = j->cut, .covered = j->covered };
	struct states s = { .plan = &plan, .sim = &j->sim, .judge = judge_state, .arg = &inner };
	bool ok;

	use_copies(j);
	sim_record(&j->sim);
	ok = repair(j, dirty);
	j->sim.recording = false;
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

/* ---- the others' opinion, and going on ---- */

static bool
write_on(struct judge *j)
{
	uint64_t size, off;
	uint8_t buf[3 * IMAGE_SECTOR], back[sizeof(buf)];
	struct check_result c;
	struct opened o;
	bool ok = true;

	if (!open_it(j, false, &o))
		return false;
	size = node_size(o.image);
	for (off = 0; ok && off + sizeof(buf) <= size; off += 5 * IMAGE_SECTOR) {
		memset(buf, (int)(off >> 9) | 1, sizeof(buf));
		ok = !node_pwrite(o.image, off, buf, sizeof(buf));
	}
	for (off = 0; ok && off + sizeof(buf) <= size; off += 5 * IMAGE_SECTOR) {
		memset(buf, (int)(off >> 9) | 1, sizeof(buf));
		ok = !node_pread(o.image, off, back, sizeof(back)) &&
		     !memcmp(buf, back, sizeof(buf));
	}
	setup_close(&o);
	if (!ok)
		return wrong(j, "does not keep what is written to it", NULL);
	if (!open_it(j, true, &o))
		return false;
	ok = check(j, o.image, 0, &c);
	setup_close(&o);
	return ok || wrong(j, "is corrupt once it was written to", NULL);
}

static void
save(const struct image *m, const char *path)
{
	FILE *f = fopen(path, "w");

	assert(f && fwrite(m->data, 1, m->size, f) == m->size);
	fclose(f);
}

static bool
ask_qemu(struct judge *j)
{
	char file[64], data[64], command[500];
	int status;

	snprintf(file, sizeof(file), "/tmp/quoin-sim-%d.qcow2", (int)getpid());
	snprintf(data, sizeof(data), "/tmp/quoin-sim-%d.raw", (int)getpid());
	save(j->stack.file->now, file);
	if (j->stack.data)
		save(j->stack.data->now, data);
	snprintf(command, sizeof(command),
		 "'%s' check -q --image-opts driver=qcow2,file.driver=file,file.filename=%s%s%s "
		 ">/dev/null 2>&1", j->qemu_img, file,
		 j->stack.data ? ",data-file.driver=file,data-file.filename=" : "",
		 j->stack.data ? data : "");
	status = system(command);
	j->counts->by_qemu++;
	status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	if (status != 0 && status != 3)		/* 3: leaks */
		return wrong(j, "qemu-img check does not like it", file);
	unlink(file);
	unlink(data);
	return true;
}

/* ---- a state ---- */

static void
use_work(struct judge *j, struct states *s)
{
	for (unsigned i = 0; i < j->sim.n; i++)
		j->sim.disks[i]->now = &s->work[i];
}

static bool
judge_closely(struct judge *j, struct states *s, bool dirty, bool leaks)
{
	uint64_t n = j->counts->judged;

	if (j->qemu_img && !dirty && n % j->qemu_every == 0 && !ask_qemu(j))
		return false;
	if (!j->nested && n % CUT_REPAIR_EVERY == 0 && !cut_repairs(j, dirty))
		return false;
	use_work(j, s);
	if (dirty || (leaks && n % 4 == 0) || n % REPAIR_EVERY == 0) {
		j->counts->repaired++;
		if (!repair(j, dirty))
			return false;
	}
	if (n % WRITE_EVERY == 1) {
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
	}
	dirty = is_marked_dirty(j);
	if (!open_it(j, true, &o))
		return false;
	ok = check(j, o.image, 0, &c) || dirty;
	ok = ok && look(j, o.image);
	setup_close(&o);
	return ok && judge_closely(j, s, dirty, c.leaks);
}

void
judge_start(struct judge *j)
{
	j->stack.file = disk_new(&j->sim, j->setup->device, 0);
	if (j->setup->data_file)
		j->stack.data = disk_new(&j->sim, j->setup->device, 0);
	if (j->setup->backed)
		j->stack.base = disk_new(&j->sim, false, 0);
}

void
judge_done(struct judge *j)
{
	for (unsigned i = 0; i < j->sim.n; i++)
		disk_free(j->sim.disks[i]);
}
