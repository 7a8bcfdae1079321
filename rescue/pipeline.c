/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/pipeline.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "aio/loop.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/node.h"
#include "rescue/damage.h"
#include "rescue/digest.h"
#include "rescue/progress.h"
#include "rescue/sink.h"

enum {
	BUFFER_ALIGN = 4096,
	PER_LOOP_MAX = 4,
	ZERO_PIECE = 64 * 1024 * 1024,
};

enum kind {
	KIND_NONE,		/* left to the base */
	KIND_ZERO,
	KIND_DATA,
};

struct piece {
	uint64_t off, len;	/* len 0: there are no more */
	enum kind kind;
	uint64_t turn;
};

struct worker {
	struct pipeline *p;
	uint64_t *busy;
	uint8_t *buf, *other;	/* of a chunk; other: what the target has */
};

/* The first failure counts, and ends all. */
static void
fail(struct pipeline *p, int result, uint64_t at, enum pipeline_side side)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&p->result, &none, result)) {
		p->error_at = at;
		p->error_side = side;
	}
}

/* The source cannot be read at off, and this is why. */
static void
fail_damaged(struct pipeline *p, int result, uint64_t at)
{
	struct lost_range cause;
	int none = 0;

	damage_explain(p, at, result, &cause);
	if (atomic_compare_exchange_strong(&p->result, &none, result)) {
		p->error_at = at;
		p->error_side = PIPELINE_SOURCE;
		p->error_cause = cause;
	}
}

/* ---- what there is ---- */

static int
look(struct pipeline *p, uint64_t at, uint64_t *ret_end, enum kind *ret_kind)
{
	struct extent x;
	int r = node_status_above(p->source, p->base, at, node_size(p->source) - at, true, &x);

	if (r == 0 && !x.len)
		r = -EIO;
	if (r == 0)
		r = damage_check_extent(&x);
	if (r < 0)
		return r;
	*ret_end = min_u64(at + x.len, damage_end_of_file(&x, at, p->cluster));
	*ret_kind = x.flags & EXTENT_ZERO ? KIND_ZERO : KIND_DATA;
	if (p->base && !(x.flags & EXTENT_ALLOCATED))
		*ret_kind = KIND_NONE;
	return 0;
}

/* As look(), but a place without a sound mapping is lost, if that is allowed. */
static int
look_or_lose(struct pipeline *p, uint64_t at, uint64_t *ret_end, enum kind *ret_kind, bool note)
{
	int r = look(p, at, ret_end, ret_kind);
	uint64_t end = min_u64(round_down(at, p->step) + p->step, node_size(p->source));

	if (r >= 0 || !p->lost || !damage_is(r))
		return r;
	*ret_end = end;
	*ret_kind = KIND_ZERO;
	return note ? damage_note(p, at, end - at, r) : 0;
}

/* As look_or_lose(), but nothing that the target wants whole is of two kinds: what is in
 * part data is data.  at is at the start of such a grain. */
static int
look_at_grains(struct pipeline *p, uint64_t at, uint64_t *ret_end, enum kind *ret_kind, bool note)
{
	uint64_t size = node_size(p->source), grain = p->whole, end, next;
	enum kind kind, more;
	int r = look_or_lose(p, at, &end, &kind, note);

	while (r == 0 && end < size && !is_aligned(end, grain)) {
		if (kind != KIND_DATA && round_down(end, grain) > at) {
			end = round_down(end, grain);
			break;
		}
		r = look_or_lose(p, end, &next, &more, note);
		end = more == kind ? next : min_u64(next, round_up(end, grain));
		kind = more == kind ? kind : KIND_DATA;
	}
	if (r < 0)
		return r;
	*ret_end = end;
	*ret_kind = kind;
	return 0;
}

static int
look_ahead(struct pipeline *p, uint64_t at, uint64_t *ret_end, enum kind *ret_kind, bool note)
{
	return (p->whole ? look_at_grains : look_or_lose)(p, at, ret_end, ret_kind, note);
}

/* A digest is made of all the disk, also of what was written before. */
static uint64_t
first(const struct pipeline *p)
{
	return p->digest ? 0 : p->start;
}

/* Must the sink or the digest be told of zeroes? */
static bool
zeroes_matter(const struct pipeline *p)
{
	return p->compare || p->digest || !p->starts_zeroed;
}

int
pipeline_measure(struct pipeline *p, struct pipeline_size *ret)
{
	uint64_t size = node_size(p->source), end;
	struct pipeline_size sum = { 0 };

	for (uint64_t at = first(p); at < size; at = end) {
		enum kind kind;
		int r = look_ahead(p, at, &end, &kind, false);

		if (r < 0) {
			fail_damaged(p, r, at);
			return r;
		}
		if (kind == KIND_DATA) {
			sum.data += end - at;
			sum.fresh += end - min_u64(end, max_u64(at, p->start));
		} else if (kind == KIND_ZERO) {
			sum.zeroes += end - at;
		}
	}
	*ret = sum;
	return 0;
}

uint64_t
pipeline_work(const struct pipeline *p, const struct pipeline_size *size)
{
	return size->data + (zeroes_matter(p) ? size->zeroes : 0);
}

/* ---- pieces ---- */

static bool
is_passed_over(const struct pipeline *p, enum kind kind)
{
	switch (kind) {
	case KIND_DATA:
		return false;
	case KIND_ZERO:
		return !zeroes_matter(p);
	default:
		return !p->compare && !p->digest;
	}
}

/* How long a piece of what is next can be. */
static uint64_t
longest(const struct pipeline *p, enum kind kind)
{
	switch (kind) {
	case KIND_DATA:
		return p->chunk - p->at % p->chunk;
	case KIND_ZERO:
		return ZERO_PIECE;
	default:
		return UINT64_MAX;	/* no more than a look at the target */
	}
}

static int
next_piece(struct worker *w, struct piece *ret)
{
	struct pipeline *p = w->p;
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->lock;
	uint64_t size = node_size(p->source);

	co_mutex_lock(held);
	*w->busy = UINT64_MAX;
	ret->len = 0;
	while (p->at < size) {
		enum kind kind = (enum kind)p->kind;

		if (p->at == p->extent_end) {
			int r = look_ahead(p, p->at, &p->extent_end, &kind, true);

			if (r < 0) {
				fail_damaged(p, r, p->at);
				return r;
			}
			p->kind = kind;
		}
		if (is_passed_over(p, kind)) {
			p->at = p->extent_end;
			continue;
		}
		ret->off = p->at;
		ret->len = min_u64(p->extent_end - p->at, longest(p, kind));
		ret->kind = kind;
		ret->turn = p->next_turn++;
		*w->busy = ret->off;
		p->at += ret->len;
		return 0;
	}
	return 0;
}

uint64_t
pipeline_done(struct pipeline *p)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->lock;
	uint64_t done;

	co_mutex_lock(held);
	done = p->at;
	for (unsigned i = 0; i < PIPELINE_WORKERS; i++)
		done = min_u64(done, p->busy[i]);
	return done;
}

/* ---- turns: what has to be done in order ---- */

static bool
has_turns(const struct pipeline *p)
{
	return p->digest || (p->sink->in_order && !p->compare);
}

/* false: it has failed meanwhile. */
static bool
wait_for_turn(struct pipeline *p, const struct piece *piece)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->turn_lock;

	co_mutex_lock(held);
	while (p->turn != piece->turn && !atomic_load(&p->result))
		co_queue_wait(&p->turn_queue, held);
	return !atomic_load(&p->result);
}

static void
end_turn(struct pipeline *p)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->turn_lock;

	co_mutex_lock(held);
	p->turn++;
	co_queue_wake_all(&p->turn_queue);
}

/* Whoever ends lets those who wait for him look again.  The one whose turn it is
 * waits for nobody, so all of them end. */
static void
leave_turns(struct pipeline *p)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->turn_lock;

	co_mutex_lock(held);
	co_queue_wake_all(&p->turn_queue);
}

/* ---- reading ---- */

static int
read_piece(struct worker *w, const struct piece *piece)
{
	struct iov v = IOV_BUF(w->buf, piece->len);
	struct pipeline *p = w->p;
	int r = node_read(p->source, piece->off, &v);

	if (r < 0 && p->lost && damage_is(r))
		r = damage_read(p, piece->off, w->buf, piece->len);
	else if (r < 0 && damage_is(r))
		fail_damaged(p, r, damage_find(p, piece->off, w->buf, piece->len));
	/* What was lost when it was copied is zero in the copy, whatever it is now. */
	if (r == 0 && p->lost && p->compare)
		lost_mask(p->lost, piece->off, w->buf, piece->len);
	return r;
}

/* ---- copying ---- */

static int
write_run(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len, bool zero)
{
	struct iov v = IOV_BUF(buf, len);

	if (!len)
		return 0;
	if (!zero)
		return p->sink->ops->write(p->sink, off, &v);
	return p->starts_zeroed ? 0 : p->sink->ops->zero(p->sink, off, len);
}

/* Write a piece in runs of grains that are all zero or not. */
static int
write_data(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len)
{
	size_t run = 0, at = 0;
	bool zero = false;
	int r;

	while (at < len) {
		size_t n = min_u64(p->sink->grain - (off + at) % p->sink->grain, len - at);
		bool is_zero = bytes_are_zero(buf + at, n);

		if (is_zero != zero) {
			r = write_run(p, off + run, buf + run, at - run, zero);
			if (r < 0)
				return r;
			run = at;
			zero = is_zero;
		}
		at += n;
	}
	return write_run(p, off + run, buf + run, len - run, zero);
}

static int
write_piece(struct worker *w, const struct piece *piece)
{
	struct pipeline *p = w->p;

	uint64_t skip = p->start > piece->off ? p->start - piece->off : 0;

	if (skip >= piece->len || piece->kind == KIND_NONE)
		return 0;
	if (piece->kind == KIND_DATA)
		return write_data(p, piece->off + skip, w->buf + skip, piece->len - skip);
	return write_run(p, piece->off + skip, NULL, piece->len - skip, true);
}

/* ---- comparing ---- */

static int
compare_data(struct worker *w, uint64_t off, size_t len, uint64_t *ret_at)
{
	struct iov v = IOV_BUF(w->other, len);
	int r = w->p->sink->ops->read(w->p->sink, off, &v);

	*ret_at = off;
	if (r < 0)
		return r;
	for (size_t i = 0; i < len; i++) {
		if (w->buf[i] != w->other[i]) {
			*ret_at = off + i;
			return -EILSEQ;
		}
	}
	return 0;
}

/* The target must show zeroes in the piece, or leave it to its base too. */
static int
compare_empty(struct worker *w, const struct piece *piece, uint64_t *ret_at)
{
	struct sink *s = w->p->sink;
	uint64_t end = piece->off + piece->len;
	int r = 0;

	for (uint64_t at = piece->off, len; at < end && r == 0; at += len) {
		struct extent x = { .flags = EXTENT_DATA | EXTENT_ALLOCATED };

		len = end - at;
		*ret_at = at;
		if (s->ops->status) {
			r = s->ops->status(s, at, len, &x);
			if (r == 0 && !x.len)
				r = -EIO;
			if (r < 0)
				return r;
			len = x.len;
		}
		if (w->p->base && (piece->kind == KIND_NONE) != !(x.flags & EXTENT_ALLOCATED))
			return -EILSEQ;
		if (piece->kind == KIND_NONE || x.flags & EXTENT_ZERO)
			continue;
		len = min_u64(len, w->p->chunk);
		memset(w->buf, 0, len);
		r = compare_data(w, at, len, ret_at);
	}
	return r;
}

static int
compare_piece(struct worker *w, const struct piece *piece)
{
	uint64_t at;
	int r = piece->kind == KIND_DATA ? compare_data(w, piece->off, piece->len, &at)
					 : compare_empty(w, piece, &at);

	if (r < 0)
		fail(w->p, r, at, r == -EILSEQ ? PIPELINE_DIFFERENT : PIPELINE_TARGET);
	return r;
}

/* ---- working ---- */

static void
update_digest(struct worker *w, const struct piece *piece)
{
	if (w->p->digest && piece->kind == KIND_DATA)
		digest_update(w->p->digest, w->buf, piece->len);
	else if (w->p->digest)
		digest_zeroes(w->p->digest, piece->len);
}

static int
put_piece(struct worker *w, const struct piece *piece)
{
	int r = w->p->compare ? compare_piece(w, piece) : write_piece(w, piece);

	if (r < 0)
		fail(w->p, r, piece->off, PIPELINE_TARGET);
	return r;
}

static int
do_piece(struct worker *w, const struct piece *piece)
{
	struct pipeline *p = w->p;
	bool turns = has_turns(p);
	int r = piece->kind == KIND_DATA ? read_piece(w, piece) : 0;

	if (r < 0) {
		fail(p, r, piece->off, PIPELINE_SOURCE);
		return r;
	}
	if (turns && !wait_for_turn(p, piece))
		return -ECANCELED;
	update_digest(w, piece);
	if (turns && p->sink->in_order)
		r = put_piece(w, piece);
	if (turns)
		end_turn(p);
	if (!turns || !p->sink->in_order)
		r = put_piece(w, piece);
	if (r == 0 && piece->kind != KIND_NONE)
		progress_add(p->progress, piece->len);
	return r;
}

static void
worker(void *arg)
{
	struct pipeline *p = arg;
	CLEANUP(cleanup_free) uint8_t *buf = iov_alloc(BUFFER_ALIGN, p->chunk);
	CLEANUP(cleanup_free) uint8_t *other = p->compare ? iov_alloc(BUFFER_ALIGN, p->chunk)
							  : NULL;
	struct worker w = { p, &p->busy[atomic_fetch_add(&p->joined, 1)], buf, other };
	struct piece piece;

	if (!buf || (p->compare && !other))
		fail(p, -ENOMEM, 0, PIPELINE_SOURCE);
	while (!atomic_load(&p->result)) {
		if (next_piece(&w, &piece) < 0 || !piece.len || do_piece(&w, &piece) < 0)
			break;
	}
	leave_turns(p);
}

/* How many on each loop: memory is bounded, and so is busy[].  Each has its buffers, and
 * a cluster while it is unpacked, packed and not. */
static unsigned
workers_per_loop(const struct pipeline *p)
{
	uint64_t each = (p->compare ? 2 : 1) * p->chunk + 2 * p->cluster;

	return (unsigned)min_u64(PER_LOOP_MAX,
				 max_u64(1, PIPELINE_MEMORY / each / loop_io_count()));
}

int
pipeline_run(struct pipeline *p)
{
	unsigned loops = loop_io_count(), n, started = 0;
	struct co_group group;
	int r = 0;

	/* The buffers go back to the system in the end, whatever is allocated meanwhile. */
	mallopt(M_MMAP_THRESHOLD, PIPELINE_CHUNK);
	/* Whoever unpacks a cluster wants all of it. */
	p->chunk = max_u64(PIPELINE_CHUNK, p->cluster);
	n = workers_per_loop(p) * loops;
	p->at = p->extent_end = first(p);
	memset(p->busy, 0xff, sizeof(p->busy));
	co_group_init(&group);
	for (unsigned i = 0; i < n && i < PIPELINE_WORKERS; i++) {
		r = co_group_spawn(&group, loop_io(i % loops), worker, p);
		if (r < 0)
			break;
		started++;
	}
	if (!started)
		fail(p, r, 0, PIPELINE_SOURCE);
	co_group_wait(&group);
	return atomic_load(&p->result);
}

void
pipeline_stop(struct pipeline *p)
{
	fail(p, -ECANCELED, 0, PIPELINE_SOURCE);
}
