/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/states.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* A write of which it is open whether it got to the disk. */
struct pending {
	unsigned disk;
	size_t event;
	bool safe;		/* it is there, but came behind one that may not be */
	uint64_t unit, parts;	/* what of it is there now */
};

/* Keys of states, open addressing. */
struct seen {
	uint64_t *keys;
	size_t n, bits;
};

struct walk {
	struct states *s;
	size_t stable[SIM_DISKS];	/* events that are in work for good */
	struct pending *p;
	size_t n, room;
	size_t *open, n_open, open_room;	/* those of p that are not safe */
	size_t fresh;			/* of open: what was submitted just now */
	long cut;
	uint64_t rule, luck;
	struct seen seen;
};

#define NONE SIZE_MAX

static uint64_t
draw(struct walk *w)
{
	w->luck = sim_hash(w->luck, "next", 4);
	return w->luck;
}

/* ---- what was seen ---- */

static bool
enter(struct seen *t, uint64_t key)
{
	size_t i;

	if (!t->keys || t->n * 2 > (size_t)1 << t->bits) {
		struct seen more = { .bits = t->bits ? t->bits + 1 : 12 };

		more.keys = calloc((size_t)1 << more.bits, sizeof(uint64_t));
		assert(more.keys);
		for (i = 0; t->keys && i < (size_t)1 << t->bits; i++)
			if (t->keys[i])
				enter(&more, t->keys[i]);
		free(t->keys);
		*t = more;
	}
	key |= !key;
	for (i = key >> (64 - t->bits); t->keys[i]; i = (i + 1) & (((size_t)1 << t->bits) - 1))
		if (t->keys[i] == key)
			return false;
	t->keys[i] = key;
	t->n++;
	return true;
}

static bool
is_new(struct walk *w)
{
	uint64_t key = w->rule;

	for (unsigned i = 0; i < w->s->sim->n; i++)
		key = sim_hash(key ^ image_key(&w->s->work[i]), "disk", 4);
	return enter(&w->seen, key);
}

/* ---- one state ---- */

static void
describe(struct walk *w)
{
	struct states *s = w->s;
	int at = snprintf(s->text, sizeof(s->text), "cut at %ld;", w->cut);

	for (size_t i = 0; i < w->n_open && at < (int)sizeof(s->text) - 60; i++) {
		const struct pending *p = &w->p[w->open[i]];
		const struct disk_event *e = &s->sim->disks[p->disk]->log[p->event];

		if (p->parts)
			at += snprintf(s->text + at, sizeof(s->text) - (size_t)at,
				       " %u:%d@%#llx+%#llx%s", p->disk, e->op,
				       (unsigned long long)e->off, (unsigned long long)e->len,
				       p->parts == UINT64_MAX ? "" : "(torn)");
	}
}

/* Put what the pendings say on work, and judge it.  lengths: change files' sizes. */
static bool
try_state(struct walk *w, void (*lengths)(struct walk *w))
{
	struct states *s = w->s;
	size_t marks[SIM_DISKS];
	bool ok = true;

	for (unsigned i = 0; i < s->sim->n; i++) {
		marks[i] = s->work[i].n_undo;
		s->work[i].keeping = true;
	}
	for (size_t i = 0; i < w->n; i++) {
		const struct pending *p = &w->p[i];
		const struct disk *d = s->sim->disks[p->disk];

		if (p->parts)
			disk_apply(d, &d->log[p->event], &s->work[p->disk], p->unit, p->parts);
	}
	if (lengths)
		lengths(w);
	if (is_new(w)) {
		s->judged++;
		ok = s->judge(s, w->cut, s->arg);
		if (!ok)
			describe(w);
	} else {
		s->skipped++;
	}
	for (unsigned i = 0; i < s->sim->n; i++) {
		image_undo(&s->work[i], marks[i]);
		s->work[i].keeping = false;
	}
	return ok;
}

static void
set_all(struct walk *w, bool there)
{
	for (size_t i = 0; i < w->n_open; i++)
		w->p[w->open[i]].parts = there ? UINT64_MAX : 0;
}

static void
set(struct walk *w, size_t i, bool there)
{
	w->p[w->open[i]].parts = there ? UINT64_MAX : 0;
}

/* ---- which states ---- */

static bool
try_subsets(struct walk *w)
{
	uint64_t must = w->fresh == NONE ? 0 : UINT64_C(1) << w->fresh;

	for (uint64_t bits = 0; bits < UINT64_C(1) << w->n_open; bits++) {
		if ((bits & must) != must)
			continue;
		for (size_t i = 0; i < w->n_open; i++)
			set(w, i, bits >> i & 1);
		if (!try_state(w, NULL))
			return false;
	}
	return true;
}

/* Each alone and each left out, with what is fresh. */
static bool
try_singles(struct walk *w)
{
	for (size_t i = 0; i < w->n_open; i++) {
		set_all(w, false);
		set(w, i, true);
		if (w->fresh != NONE)
			set(w, w->fresh, true);
		if (!try_state(w, NULL))
			return false;
		set_all(w, true);
		if (i != w->fresh)
			set(w, i, false);
		if (!try_state(w, NULL))
			return false;
	}
	return true;
}

static bool
try_samples(struct walk *w)
{
	for (unsigned k = 0; k < w->s->plan->samples; k++) {
		unsigned odds = 1 + (unsigned)(draw(w) % 7);

		if (k % 4) {
			for (size_t i = 0; i < w->n_open; i++)
				set(w, i, draw(w) % 8 < odds);
		} else {	/* a pair */
			set_all(w, false);
			set(w, draw(w) % w->n_open, true);
			set(w, draw(w) % w->n_open, true);
		}
		if (w->fresh != NONE)
			set(w, w->fresh, true);
		if (!try_state(w, NULL))
			return false;
	}
	return true;
}

static bool
try_torn(struct walk *w)
{
	for (unsigned k = 0; k < w->s->plan->tears; k++) {
		unsigned odds = (unsigned)(draw(w) % 9);
		size_t torn = w->fresh == NONE ? draw(w) % w->n_open : w->fresh;

		for (size_t i = 0; i < w->n_open; i++) {
			struct pending *p = &w->p[w->open[i]];

			p->unit = draw(w) & 1 ? IMAGE_SECTOR : 4096;
			set(w, i, draw(w) % 8 < odds);
			if (i == torn || !(draw(w) & 3))
				p->parts = draw(w) & draw(w) ? draw(w) : ~(UINT64_C(1) << draw(w) % 8);
		}
		if (!try_state(w, NULL))
			return false;
	}
	return true;
}

/* How far a file reaches for certain, or would with all that is pending. */
static uint64_t
end_of(const struct walk *w, unsigned disk, bool safe)
{
	const struct image *m = &w->s->work[disk];
	uint64_t end = safe && m->n_undo ? m->undo[0].size : m->size;

	for (size_t i = 0; i < w->n; i++) {
		const struct pending *p = &w->p[i];
		const struct disk_event *e = &w->s->sim->disks[p->disk]->log[p->event];

		if (p->disk == disk && e->op != SIM_TRUNCATE && (p->safe || !safe))
			end = max_u64(end, e->off + e->len);
	}
	return end;
}

/* A file system may forget that a file grew, or remember nothing else. */
static void
lose_length(struct walk *w)
{
	for (unsigned i = 0; i < w->s->sim->n; i++) {
		struct image *m = &w->s->work[i];
		uint64_t was = end_of(w, i, true);

		if (!w->s->sim->disks[i]->device && m->size > was)
			image_resize(m, was + draw(w) % ((m->size - was) / IMAGE_SECTOR + 1) *
						      IMAGE_SECTOR);
	}
}

static void
lose_bytes(struct walk *w)
{
	for (unsigned i = 0; i < w->s->sim->n; i++) {
		uint64_t end = end_of(w, i, false);

		if (end > w->s->work[i].size)
			image_resize(&w->s->work[i], end);
	}
}

static bool
try_lengths(struct walk *w)
{
	for (unsigned k = 0; k < 2; k++) {
		for (size_t i = 0; i < w->n_open; i++)
			set(w, i, k == 0 || draw(w) & 1);
		if (!try_state(w, lose_length))
			return false;
		for (size_t i = 0; i < w->n_open; i++)
			set(w, i, k && draw(w) & 1);
		if (!try_state(w, lose_bytes))
			return false;
	}
	return true;
}

static bool
try_cut(struct walk *w)
{
	if (w->n_open <= w->s->plan->enumerate) {
		if (!try_subsets(w))
			return false;
	} else {
		set_all(w, true);
		if (!try_state(w, NULL))
			return false;
		set_all(w, false);
		if (!try_state(w, NULL) || !try_singles(w) || !try_samples(w))
			return false;
	}
	return !w->n_open || (try_torn(w) && try_lengths(w));
}

/* ---- cuts ---- */

/* What is pending at w->cut, where event (disk NULL: none) is the freshest. */
static void
collect(struct walk *w, const struct disk_event *fresh)
{
	struct states *s = w->s;

	w->n = w->n_open = 0;
	w->fresh = NONE;
	for (unsigned k = 0; k < s->sim->n; k++) {
		struct disk *d = s->sim->disks[k];
		size_t i;

		for (; w->stable[k] < d->n && d->log[w->stable[k]].safe <= w->cut; w->stable[k]++)
			disk_apply(d, &d->log[w->stable[k]], &s->work[k], IMAGE_SECTOR, UINT64_MAX);
		for (i = w->stable[k]; i < d->n && d->log[i].submitted <= w->cut; i++) {
			bool safe = d->log[i].safe <= w->cut;

			sim_reserve(&w->p, &w->room, w->n + 1, sizeof(*w->p));
			sim_reserve(&w->open, &w->open_room, w->n_open + 1, sizeof(*w->open));
			if (&d->log[i] == fresh)
				w->fresh = w->n_open;
			if (!safe)
				w->open[w->n_open++] = w->n;
			w->p[w->n++] = (struct pending){ k, i, safe, IMAGE_SECTOR, UINT64_MAX };
		}
	}
}

/* The next event to be submitted, of all disks. */
static const struct disk_event *
next_event(const struct sim *s, size_t *at)
{
	const struct disk_event *best = NULL;
	unsigned which = 0;

	for (unsigned k = 0; k < s->n; k++) {
		const struct disk *d = s->disks[k];

		if (at[k] < d->n && (!best || d->log[at[k]].submitted < best->submitted)) {
			best = &d->log[at[k]];
			which = k;
		}
	}
	if (best)
		at[which]++;
	return best;
}

static bool
walk_cuts(struct walk *w)
{
	struct states *s = w->s;
	size_t at[SIM_DISKS] = { 0 };
	const struct disk_event *e = next_event(s->sim, at);
	unsigned promise = 0;

	while (e || promise < s->n_promises) {
		bool event = e && (promise == s->n_promises ||
				   e->submitted < s->promises[promise]);

		w->cut = event ? e->submitted : s->promises[promise];
		collect(w, event ? e : NULL);
		if (!event)
			w->rule = ++promise;
		if (w->cut >= s->from && !try_cut(w))
			return false;
		if (event)
			e = next_event(s->sim, at);
	}
	return true;
}

bool
states_run(struct states *s)
{
	struct walk w = { .s = s, .luck = s->plan->seed };
	bool ok;

	for (unsigned i = 0; i < s->sim->n; i++)
		image_copy(&s->work[i], &s->sim->disks[i]->start);
	ok = walk_cuts(&w);
	free(w.p);
	free(w.open);
	free(w.seen.keys);
	return ok;
}

void
states_done(struct states *s)
{
	for (unsigned i = 0; i < SIM_DISKS; i++)
		image_done(&s->work[i]);
}
