/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/model.h - what a guest disk may hold, sector by sector.
 *
 * Each write has a number, and fills each of its sectors with that and with the
 * sector's own: so no sector can hold another one's bytes unnoticed.  What was
 * flushed is exact; what was not is there or not, sector by sector; what failed, and
 * a discard, is a hint.
 */
#ifndef TESTS_SIM_MODEL_H
#define TESTS_SIM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sim;

struct model_op {
	uint64_t sector, n;
	uint32_t id;			/* 0: zeroes */
	bool weak;			/* it may not have happened, for good */
	bool uncovers;			/* may show what an untouched sector shows */
	bool reveals;			/* and whatever was there at any time */
	long submitted, done;
};

struct model_span {
	long submitted, done;
	uint64_t size;			/* in sectors; of a resize */
	bool weak;
};

/* An internal snapshot: from when to when it may be there. */
struct model_snapshot {
	char name[8];
	uint64_t size;			/* of the disk, in sectors */
	long submitted, taken;		/* LONG_MAX: it failed */
	long drop_submitted, dropped;	/* LONG_MAX: not yet */
};

/* A stored dirty bitmap: what was written behind `added` is marked in it. */
struct model_bitmap {
	long submitted, added, removed;
};

/* From then on the guest uses another layer. */
struct model_move {
	long at;
	unsigned layer;
};

/* What layers below show where the guest wrote nothing, in sectors; zeroes behind. */
struct model_below {
	uint64_t base_n;		/* from the start */
	uint64_t mid_from, mid_n;	/* over it */
};

struct model_touches {
	uint32_t *op;
	size_t n, room;
};

struct model {
	struct sim *sim;
	struct model_below below;
	uint64_t sectors;		/* the largest size */
	uint64_t size;			/* the present size */
	bool spilled;			/* a commit began: layers below may hold anything since */
	struct model_op *ops;
	size_t n_ops, ops_room;
	struct model_touches *touched;	/* of each sector, in order */
	struct model_span *flushes, *sizes;
	size_t n_flushes, flushes_room, n_sizes, sizes_room;
	struct model_snapshot *snapshots;
	size_t n_snapshots, snapshots_room;
	struct model_bitmap *bitmaps;
	size_t n_bitmaps, bitmaps_room;
	struct model_move *moves;
	size_t n_moves, moves_room;
};

void model_init(struct model *m, struct sim *sim, uint64_t sectors, uint64_t size,
		const struct model_below *below);
void model_done(struct model *m);

/* Bracket each call of the guest; result as the call gave it.  model_write() etc
 * return what model_end() is told. */
size_t model_write(struct model *m, uint64_t sector, uint64_t n);
size_t model_zero(struct model *m, uint64_t sector, uint64_t n);
size_t model_discard(struct model *m, uint64_t sector, uint64_t n);
void model_end(struct model *m, size_t op, int result);

/* A flush failed, and what was flushed there is not used any more: what was not flushed
 * may be gone. */
void model_unsure(struct model *m);

/* A flush that went well, and a change of size, which nothing runs beside. */
void model_flushed(struct model *m, long submitted);
void model_resized(struct model *m, long submitted, uint64_t size, int result);

/* The guest uses that layer now, which is so large.  Snapshots and the bitmap were of
 * the other. */
void model_moved(struct model *m, unsigned layer, uint64_t size);
unsigned model_layer(const struct model *m, long cut);	/* that it uses then; first 0 */

/* Snapshots, and the one bitmap, which nothing runs beside. */
void model_taken(struct model *m, const char *name, long submitted, int result);
void model_dropped(struct model *m, const char *name, long submitted, int result);
void model_bitmap_added(struct model *m, long submitted);
void model_bitmap_removed(struct model *m);

/* Which snapshot it is that an image has under this name after a cut; NULL: none
 * may be. */
const struct model_snapshot *model_snapshot_at(const struct model *m, long cut,
					       const char *name);
/* Must an image have one of this name?  What was said to be done is done. */
bool model_needs_snapshot(const struct model *m, long cut, const char *name);
bool model_has_snapshots(const struct model *m);	/* now, or possibly */
/* Must a bitmap that is there, and consistent, mark this sector, which now holds that? */
bool model_needs_mark(const struct model *m, long cut, uint64_t sector, const uint8_t *buf);

/* The bytes of write number op; of a sector of the base, or of the layer over it. */
void model_fill(uint8_t *buf, size_t op, uint64_t sector, uint64_t n);
void model_fill_below(uint8_t *buf, bool mid, uint64_t sector, uint64_t n);

/* All that was done before this moment was flushed by the moment cut. */
long model_covered(const struct model *m, long cut);
bool model_may_have_size(const struct model *m, long cut, uint64_t size);

/* What a guest looks at: the disk as a cut left it, with this size in sectors. */
struct model_view {
	long cut, covered;
	uint64_t size;
};

/* May it see these n sectors there?  NULL, or what is wrong, in memory that the next
 * call overwrites. */
const char *model_judge(const struct model *m, struct model_view v, uint64_t sector,
			const uint8_t *buf, uint64_t n);

#endif
