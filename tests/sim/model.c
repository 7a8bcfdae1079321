/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/model.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/disk.h"

/* The numbers of what layers below hold. */
#define OF_BASE UINT32_MAX
#define OF_MID (UINT32_MAX - 1)

void
model_init(struct model *m, struct sim *sim, uint64_t sectors, uint64_t size,
	   const struct model_below *below)
{
	*m = (struct model){ .sim = sim, .below = *below, .sectors = sectors };
	m->touched = sim_zalloc(sectors * sizeof(*m->touched));
	model_resized(m, 0, size, 0);
	m->sizes[0].done = 0;
}

void
model_done(struct model *m)
{
	for (uint64_t s = 0; s < m->sectors; s++)
		free(m->touched[s].op);
	free(m->touched);
	free(m->ops);
	free(m->flushes);
	free(m->sizes);
	free(m->snapshots);
	free(m->bitmaps);
	free(m->moves);
}

static size_t
begin(struct model *m, struct model_op op)
{
	size_t index = m->n_ops;

	op.submitted = sim_tick(m->sim);
	op.done = LONG_MAX;
	sim_reserve(&m->ops, &m->ops_room, index + 1, sizeof(*m->ops));
	m->ops[m->n_ops++] = op;
	for (uint64_t s = op.sector; s < op.sector + op.n; s++) {
		struct model_touches *t = &m->touched[s];

		sim_reserve(&t->op, &t->room, t->n + 1, sizeof(*t->op));
		t->op[t->n++] = (uint32_t)index;
	}
	return index;
}

size_t
model_write(struct model *m, uint64_t sector, uint64_t n)
{
	return begin(m, (struct model_op){ .sector = sector, .n = n,
					   .id = (uint32_t)m->n_ops + 1 });
}

size_t
model_zero(struct model *m, uint64_t sector, uint64_t n)
{
	return begin(m, (struct model_op){ .sector = sector, .n = n });
}

size_t
model_discard(struct model *m, uint64_t sector, uint64_t n)
{
	return begin(m, (struct model_op){ .sector = sector, .n = n, .weak = true });
}

void
model_end(struct model *m, size_t op, int result)
{
	m->ops[op].done = sim_tick(m->sim);
	m->ops[op].weak |= result < 0;
}

void
model_flushed(struct model *m, long submitted)
{
	sim_reserve(&m->flushes, &m->flushes_room, m->n_flushes + 1, sizeof(*m->flushes));
	m->flushes[m->n_flushes++] = (struct model_span){ submitted, sim_tick(m->sim), 0, false };
}

void
model_unsure(struct model *m)
{
	long covered = model_covered(m, LONG_MAX);

	for (size_t i = 0; i < m->n_ops; i++)
		m->ops[i].weak |= m->ops[i].done >= covered;
}

void
model_resized(struct model *m, long submitted, uint64_t size, int result)
{
	uint64_t old = m->size;
	struct model_op op = { .sector = old, .n = size - old };

	sim_reserve(&m->sizes, &m->sizes_room, m->n_sizes + 1, sizeof(*m->sizes));
	m->sizes[m->n_sizes++] = (struct model_span){ submitted, LONG_MAX, size, result < 0 };
	/* What it takes away may vanish at any moment of it. */
	if (size < old)
		op = (struct model_op){ .sector = size, .n = old - size, .weak = true,
					.uncovers = true, .reveals = m->spilled };
	if (m->n_sizes > 1) {
		size_t index = begin(m, op);

		m->ops[index].submitted = submitted;
		model_end(m, index, result);
	}
	m->sizes[m->n_sizes - 1].done = sim_tick(m->sim);
	if (!result)
		m->size = size;
}

/* Eight bytes that a sector is made of. */
static uint64_t
word_of(uint32_t id, uint64_t sector)
{
	return (uint64_t)id << 32 | (sector & 0xffffffff);
}

static void
fill(uint8_t *buf, uint32_t id, uint64_t sector, uint64_t n)
{
	for (uint64_t s = sector; s < sector + n; s++) {
		uint64_t word = word_of(id, s);

		for (size_t i = 0; i < IMAGE_SECTOR; i += 8, buf += 8)
			memcpy(buf, &word, 8);
	}
}

void
model_fill(uint8_t *buf, size_t op, uint64_t sector, uint64_t n)
{
	fill(buf, (uint32_t)op + 1, sector, n);
}

void
model_fill_below(uint8_t *buf, bool mid, uint64_t sector, uint64_t n)
{
	fill(buf, mid ? OF_MID : OF_BASE, sector, n);
}

long
model_covered(const struct model *m, long cut)
{
	long covered = 0;

	for (size_t i = 0; i < m->n_flushes; i++)
		if (m->flushes[i].done <= cut && m->flushes[i].submitted > covered)
			covered = m->flushes[i].submitted;
	return covered;
}

bool
model_may_have_size(const struct model *m, long cut, uint64_t size)
{
	long covered = model_covered(m, cut);

	for (size_t i = m->n_sizes; i-- > 0;) {
		const struct model_span *s = &m->sizes[i];

		if (s->submitted > cut)
			continue;
		if (s->size == size)
			return true;
		if (s->done <= covered && !s->weak)
			return false;
	}
	return false;
}

/* What an untouched sector of the base shows, or of the layer over it. */
static uint32_t
below(const struct model *m, bool mid, uint64_t sector)
{
	if (mid && sector >= m->below.mid_from && sector < m->below.mid_from + m->below.mid_n)
		return OF_MID;
	return sector < m->below.base_n ? OF_BASE : 0;
}

/* May what uncovers a sector, its n-th touch, show that? */
static bool
may_show(const struct model *m, uint64_t sector, size_t n, uint32_t id)
{
	const struct model_touches *t = &m->touched[sector];
	const struct model_op *op = &m->ops[t->op[n]];

	if (!op->uncovers)
		return false;
	while (op->reveals && n-- > 0)
		if (m->ops[t->op[n]].id == id)
			return true;
	return id == below(m, true, sector) || id == below(m, false, sector);
}

static long
earlier(long a, long b)
{
	return a < b ? a : b;
}

/* When did the disk grow over the sector at the latest, if the i-th size is its own? */
static long
grown_over(const struct model *m, size_t i, uint64_t sector)
{
	for (; i > 0; i--)
		if (m->sizes[i - 1].size <= sector && !m->sizes[i - 1].weak)
			return m->sizes[i].submitted;
	return 0;
}

/* Of a disk that has this size: what was there before this moment cannot show in the
 * sector, nor can what lies below. */
static long
appeared(const struct model *m, struct model_view v, uint64_t sector)
{
	long first = LONG_MAX;

	for (size_t i = m->n_sizes; m->n_sizes > 1 && i-- > 0;) {
		const struct model_span *s = &m->sizes[i];

		if (s->submitted > v.cut)
			continue;
		if (s->size == v.size)
			first = earlier(first, grown_over(m, i, sector));
		if (s->done <= v.covered && !s->weak)
			break;
	}
	return first == LONG_MAX ? 0 : first;
}

/* What is certain to be there hides all that had ended when it began. */
static bool
may_hold(const struct model *m, struct model_view v, uint64_t sector, uint32_t id)
{
	const struct model_touches *t = &m->touched[sector];
	long hidden = appeared(m, v, sector);

	for (size_t i = 0; i < t->n; i++) {
		const struct model_op *op = &m->ops[t->op[i]];

		if (op->submitted <= v.cut && op->done < v.covered && !op->weak &&
		    op->submitted > hidden)
			hidden = op->submitted;
	}
	for (size_t i = t->n; i-- > 0;) {
		const struct model_op *op = &m->ops[t->op[i]];

		if (op->submitted <= v.cut && op->done >= hidden &&
		    (op->id == id || may_show(m, sector, i, id)))
			return true;
	}
	return !hidden && id == below(m, true, sector);
}

const char *
model_judge(const struct model *m, struct model_view v, uint64_t sector, const uint8_t *buf,
	    uint64_t n)
{
	static char text[160];

	for (uint64_t s = sector; s < sector + n; s++, buf += IMAGE_SECTOR) {
		uint64_t word;
		uint32_t id;

		memcpy(&word, buf, 8);
		id = (uint32_t)(word >> 32);
		if (!memcmp(buf, buf + 8, IMAGE_SECTOR - 8) &&
		    (!word || word == word_of(id, s)) && may_hold(m, v, s, id))
			continue;
		snprintf(text, sizeof(text), "sector %llu holds %#llx, which it must not",
			 (unsigned long long)s, (unsigned long long)word);
		return text;
	}
	return NULL;
}

/* ---- layers ---- */

void
model_moved(struct model *m, unsigned layer, uint64_t size)
{
	long now = sim_tick(m->sim);

	sim_reserve(&m->moves, &m->moves_room, m->n_moves + 1, sizeof(*m->moves));
	m->moves[m->n_moves++] = (struct model_move){ now, layer };
	for (size_t i = 0; i < m->n_snapshots; i++)
		if (m->snapshots[i].dropped == LONG_MAX)
			m->snapshots[i].drop_submitted = m->snapshots[i].dropped = now;
	for (size_t i = 0; i < m->n_bitmaps; i++)
		if (m->bitmaps[i].removed == LONG_MAX)
			m->bitmaps[i].removed = now;
	if (size == m->size)
		return;
	/* What is behind the smaller end is the other layer's own. */
	model_resized(m, now, size, 0);
	m->ops[m->n_ops - 1].uncovers = m->ops[m->n_ops - 1].reveals = true;
}

unsigned
model_layer(const struct model *m, long cut)
{
	unsigned layer = 0;

	for (size_t i = 0; i < m->n_moves && m->moves[i].at <= cut; i++)
		layer = m->moves[i].layer;
	return layer;
}

/* ---- snapshots ---- */

void
model_taken(struct model *m, const char *name, long submitted, int result)
{
	struct model_snapshot s = { .size = m->size, .submitted = submitted,
				    .drop_submitted = LONG_MAX, .dropped = LONG_MAX };

	snprintf(s.name, sizeof(s.name), "%s", name);
	s.taken = sim_tick(m->sim);
	if (result < 0)
		s.taken = LONG_MAX;
	sim_reserve(&m->snapshots, &m->snapshots_room, m->n_snapshots + 1, sizeof(s));
	m->snapshots[m->n_snapshots++] = s;
}

void
model_dropped(struct model *m, const char *name, long submitted, int result)
{
	long now = sim_tick(m->sim);

	for (size_t i = 0; i < m->n_snapshots; i++) {
		struct model_snapshot *s = &m->snapshots[i];

		if (strcmp(s->name, name) || s->dropped != LONG_MAX)
			continue;
		if (submitted < s->drop_submitted)
			s->drop_submitted = submitted;
		if (!result)
			s->dropped = now;
	}
}

const struct model_snapshot *
model_snapshot_at(const struct model *m, long cut, const char *name)
{
	const struct model_snapshot *found = NULL;

	for (size_t i = 0; i < m->n_snapshots; i++) {
		const struct model_snapshot *s = &m->snapshots[i];

		if (!strcmp(s->name, name) && s->submitted <= cut && s->dropped > cut)
			found = s;
	}
	return found;
}

bool
model_needs_snapshot(const struct model *m, long cut, const char *name)
{
	for (size_t i = 0; i < m->n_snapshots; i++) {
		const struct model_snapshot *s = &m->snapshots[i];

		if (!strcmp(s->name, name) && s->taken <= cut && s->drop_submitted > cut)
			return true;
	}
	return false;
}

bool
model_has_snapshots(const struct model *m)
{
	for (size_t i = 0; i < m->n_snapshots; i++)
		if (m->snapshots[i].dropped == LONG_MAX)
			return true;
	return false;
}

/* ---- bitmaps ---- */

void
model_bitmap_added(struct model *m, long submitted)
{
	struct model_bitmap b = { submitted, sim_tick(m->sim), LONG_MAX };

	sim_reserve(&m->bitmaps, &m->bitmaps_room, m->n_bitmaps + 1, sizeof(b));
	m->bitmaps[m->n_bitmaps++] = b;
}

void
model_bitmap_removed(struct model *m)
{
	if (m->n_bitmaps)
		m->bitmaps[m->n_bitmaps - 1].removed = sim_tick(m->sim);
}

/* The disk's size at a moment when nothing changed it. */
static uint64_t
size_at(const struct model *m, long when)
{
	uint64_t size = 0;

	for (size_t i = 0; i < m->n_sizes; i++)
		if (m->sizes[i].done <= when && !m->sizes[i].weak)
			size = m->sizes[i].size;
	return size;
}

/* What the sector cannot have held when the bitmap was made came later: also zeroes,
 * and what shows where something went away. */
bool
model_needs_mark(const struct model *m, long cut, uint64_t sector, const uint8_t *buf)
{
	const struct model_bitmap *b = NULL;
	struct model_view then;
	uint64_t word;
	uint32_t id;

	for (size_t i = 0; i < m->n_bitmaps; i++)
		if (m->bitmaps[i].submitted <= cut && m->bitmaps[i].removed > cut)
			b = &m->bitmaps[i];
	memcpy(&word, buf, 8);
	id = (uint32_t)(word >> 32);
	if (!b || sector >= m->size)
		return false;
	then = (struct model_view){ .cut = b->added, .covered = b->added,
				    .size = size_at(m, b->added) };
	return sector < then.size ? !may_hold(m, then, sector, id) : id != 0;
}
