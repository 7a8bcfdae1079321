/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

/* ---- setups ---- */

static const struct setup setups[] = {
	{ 10, 16, 3, .backed = false },
	{ 10, 16, 3, .backed = true },
	{ 9, 64, 3, .most = 90, .fill = 48 },
	{ 12, 1, 3, .backed = true },
	{ 13, 16, 2, .backed = false },
	{ 14, 16, 3, .extended = true },
	{ 14, 8, 3, .extended = true, .backed = true },
	{ 10, 16, 3, .device = true },
	{ 12, 16, 3, .device = true, .backed = true },
	{ 10, 16, 3, .data_file = true },
	{ 12, 32, 3, .data_file = true, .backed = true },
	{ 10, 16, 3, .data_file = true, .data_raw = true },
	{ 10, 16, 3, .no_unref = true },
	{ 14, 16, 3, .extended = true, .data_file = true },
	{ 10, 16, 3, .lazy = true },
	{ 10, 16, 3, .lazy = true, .backed = true, .device = true },
	{ 10, 16, 3, .backed = true, .base_image = true },
	{ 11, 16, 3, .backed = true, .base_image = true, .mid = true },
	{ 9, 16, 3, .sectors = 70, .most = 140, .fill = 8 },	/* several L2 tables */
	{ 11, 16, 3, .preallocated = true },
	{ 9, 16, 3, .most = 60, .fill = 44, .device = true, .tight = true },
};

/* Its refcount table is about to grow.  Only for a few runs, for it is large. */
static const struct setup full_table = { 9, 64, 3, .most = 4000, .fill = 3962 };

/* The disk's size in clusters, unless the setup has one of its own. */
static void
set_up(struct workload *w, const struct setup *setup, uint64_t clusters, uint64_t most)
{
	unsigned bits = setup->cluster_bits - 9;

	w->setup = *setup;
	if (setup->most) {
		most = setup->most;
		clusters = setup->sectors ? setup->sectors : most;
	}
	w->setup.sectors = clusters << bits;
	w->setup.most = most << bits;
}

/* ---- short ones ---- */

/* In half clusters, or in sectors where a cluster is one. */
struct letter {
	enum step_kind kind;
	unsigned at, n;
};

enum { SHORT_CLUSTERS = 9, SHORT_MOST = 14 };

static const struct letter letters[] = {
	{ STEP_WRITE, 2, 2 },		/* a cluster */
	{ STEP_WRITE, 7, 4 },		/* across three */
	{ STEP_WRITE, 9, 1 },		/* a half */
	{ STEP_ZERO, 2, 4 },
	{ STEP_ZERO, 3, 1 },
	{ STEP_UNMAP, 0, 4 },
	{ STEP_DISCARD, 2, 8 },
	{ STEP_FLUSH, 0, 0 },
	{ STEP_CHECKPOINT, 0, 0 },
	{ STEP_RESIZE, 2 * SHORT_MOST, 0 },
	{ STEP_RESIZE, 9, 0 },
	{ STEP_REOPEN, 0, 0 },
	{ STEP_BITMAP_ADD, 0, 0 },
	{ STEP_BITMAP_REMOVE, 0, 0 },
	{ STEP_SNAPSHOT, 0, 0 },
	{ STEP_DROP, 0, 0 },
	{ STEP_COMPRESSED, 4, 4 },
	{ STEP_COMMIT, COMMIT_NEXT, 0 },
	{ STEP_COMMIT, COMMIT_MID, 0 },
};

uint64_t
workload_shorts(unsigned steps)
{
	uint64_t n = ARRAY_SIZE(setups);

	while (steps--)
		n *= ARRAY_SIZE(letters);
	return n;
}

static bool
can_commit(const struct setup *p, uint64_t kind)
{
	return kind == COMMIT_MID ? p->mid : p->backed;
}

static struct step
spell(const struct setup *p, const struct letter *l)
{
	uint64_t half = max_u64(UINT64_C(1) << (p->cluster_bits - 9), 2) / 2;
	struct step s = { l->kind, l->at * half, l->n * half };

	if (l->kind == STEP_COMMIT)
		return (struct step){ l->kind, l->at, 0 };
	if (l->kind == STEP_RESIZE && l->at == 2 * SHORT_MOST)
		return (struct step){ l->kind, p->most, 0 };
	/* Unaligned to sectors' halves too, where a cluster has many. */
	if (half > 2 && (l->n & 1)) {
		s.sector++;
		s.n--;
	}
	if (p->cluster_bits == 9)
		s.sector = min_u64(s.sector / 2, SHORT_MOST);
	return s;
}

bool
workload_short(struct workload *w, unsigned steps, uint64_t number)
{
	uint64_t left = number / ARRAY_SIZE(setups);

	if (steps > STEPS_MAX || number >= workload_shorts(steps))
		return false;
	*w = (struct workload){ .luck = number + 1, .workers = 1 };
	set_up(w, &setups[number % ARRAY_SIZE(setups)], SHORT_CLUSTERS, SHORT_MOST);
	for (unsigned i = 0; i < steps; i++) {
		struct step s = spell(&w->setup, &letters[left % ARRAY_SIZE(letters)]);

		if (s.kind == STEP_COMMIT && !can_commit(&w->setup, s.sector))
			return false;
		w->steps[0][w->n[0]++] = s;
		left /= ARRAY_SIZE(letters);
	}
	snprintf(w->name, sizeof(w->name), "short:%u:%llu", steps, (unsigned long long)number);
	return true;
}

/* ---- long ones ---- */

static unsigned
below(uint64_t *luck, uint64_t n)
{
	*luck = sim_hash(*luck, "workload", 8);
	return (unsigned)(*luck % n);
}

static enum step_kind
draw_kind(uint64_t *luck, bool alone, bool commits)
{
	static const uint8_t kinds[] = {
		STEP_WRITE, STEP_WRITE, STEP_WRITE, STEP_WRITE, STEP_WRITE, STEP_WRITE,
		STEP_COMPRESSED, STEP_COMPRESSED, STEP_READ, STEP_READ, STEP_READ, STEP_READ,
		STEP_ZERO, STEP_UNMAP, STEP_UNMAP, STEP_DISCARD, STEP_DISCARD, STEP_FLUSH,
		STEP_FLUSH, STEP_CHECKPOINT,
	};
	/* Only where nobody else is there. */
	static const uint8_t more[] = {
		STEP_RESIZE, STEP_RESIZE, STEP_REOPEN, STEP_BITMAP_ADD, STEP_BITMAP_ADD,
		STEP_BITMAP_REMOVE, STEP_SNAPSHOT, STEP_SNAPSHOT, STEP_DROP,
	};
	unsigned i = below(luck, ARRAY_SIZE(kinds) + (alone ? ARRAY_SIZE(more) : 0));

	if (commits && !below(luck, 12))
		return STEP_COMMIT;
	return i < ARRAY_SIZE(kinds) ? kinds[i] : more[i - ARRAY_SIZE(kinds)];
}

/* In a data file, with discard-no-unref, or on a plain disk, which a commit may bring,
 * a discard and a write of the same are two writes of the same bytes. */
static bool
may_vanish(const struct setup *p)
{
	return !p->data_file && !p->no_unref && (!p->backed || p->base_image);
}

/* Sectors are dealt out in turns: of half a cluster, so that clusters are shared, or
 * of two, so that whole ones are zeroed and discarded. */
static void
draw_range(const struct workload *w, unsigned worker, uint64_t *luck, struct step *s)
{
	uint64_t cluster = UINT64_C(1) << (w->setup.cluster_bits - 9);
	uint64_t turn = w->luck & 2 ? 2 * cluster : max_u64(1, cluster / 2);
	uint64_t area = w->setup.most - (below(luck, 4) ? w->setup.fill : 0);
	uint64_t parts = max_u64(1, area / turn / w->workers), skip, most;

	skip = below(luck, turn);
	s->sector = (below(luck, parts) * w->workers + worker) * turn + skip;
	most = w->workers == 1 ? 4 * turn : turn - skip;
	s->n = below(luck, 3) ? 1 + below(luck, most) : most;
	/* Who reads may read anything, and clusters may vanish under whoever is there. */
	if (s->kind == STEP_READ ||
	    (s->kind >= STEP_UNMAP && s->kind <= STEP_DISCARD && may_vanish(&w->setup) &&
	     !below(luck, 3))) {
		s->sector = below(luck, area / cluster) * cluster;
		s->n = (1 + below(luck, 4)) * cluster;
	}
	if (s->kind == STEP_RESIZE)
		s->sector = 1 + below(luck, w->setup.most);
	if (s->kind == STEP_COMMIT)
		s->sector = below(luck, COMMITS);
}

void
workload_long(struct workload *w, uint64_t number)
{
	uint64_t luck = sim_hash(number, "long", 4);
	unsigned steps;

	*w = (struct workload){ .luck = luck, .workers = number % 3 ? WORKERS_MAX : 1 };
	set_up(w, number % 48 == 5 ? &full_table : &setups[(luck >> 20) % ARRAY_SIZE(setups)], 24,
	       30);
	steps = (w->workers == 1 ? 12 : 6) + below(&luck, 14);
	for (unsigned k = 0; k < w->workers; k++)
		for (unsigned i = 0; i < steps; i++) {
			struct step s = { .kind = draw_kind(&luck, w->workers == 1,
							    w->setup.backed) };

			draw_range(w, k, &luck, &s);
			w->steps[k][w->n[k]++] = s;
		}
	snprintf(w->name, sizeof(w->name), "long:%llu", (unsigned long long)number);
}

/* ---- names ---- */

bool
workload_named(struct workload *w, const char *name)
{
	unsigned long long number;
	unsigned steps;

	if (sscanf(name, "short:%u:%llu", &steps, &number) == 2)
		return workload_short(w, steps, number);
	if (sscanf(name, "long:%llu", &number) != 1)
		return false;
	workload_long(w, number);
	return true;
}

void
workload_print(const struct workload *w)
{
	static const char *const kinds[STEPS] = {
		"write", "write-compressed", "read", "zero", "unmap", "discard", "flush",
		"checkpoint", "resize", "reopen", "bitmap-add", "bitmap-remove", "snapshot",
		"drop-snapshot", "commit",
	};

	fprintf(stderr, "%s: %s, %llu sectors\n", w->name, setup_text(&w->setup),
		(unsigned long long)w->setup.sectors);
	for (unsigned k = 0; k < w->workers; k++) {
		fprintf(stderr, "  worker %u:", k);
		for (unsigned i = 0; i < w->n[k]; i++) {
			const struct step *s = &w->steps[k][i];

			fprintf(stderr, " %s", kinds[s->kind]);
			if (s->kind <= STEP_DISCARD || s->kind == STEP_RESIZE ||
			    s->kind == STEP_COMMIT)
				fprintf(stderr, " %llu+%llu", (unsigned long long)s->sector,
					(unsigned long long)s->n);
			fputc(i + 1 < w->n[k] ? ',' : '\n', stderr);
		}
	}
}
