/* SPDX-License-Identifier: Apache-2.0 */
/* A piece holds entries of one table, whatever else stands near it in the file, so
 * writing it back touches nothing else.  Pieces come, go and are written back
 * by one at a time; so what is read from the file while others look is never
 * older than what was written back. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/node.h"
#include "block/qcow/qcow.h"

int
qcow_cache_init(struct qcow_cache *c, uint64_t bytes)
{
	unsigned bits = QCOW_PIECE_BITS;

	while (bytes && bits > QCOW_PIECE_BITS_MIN && (uint64_t)QCOW_PIECE << bits > bytes)
		bits--;
	memset(c, 0, sizeof(*c));
	c->bits = bits;
	c->pieces = calloc((size_t)1 << bits, sizeof(*c->pieces));
	if (!c->pieces)
		return -ENOMEM;
	pthread_mutex_init(&c->lock, NULL);
	return 0;
}

static size_t
places(const struct qcow_cache *c)
{
	return (size_t)1 << c->bits;
}

void
qcow_cache_done(struct qcow_cache *c)
{
	if (!c->pieces)
		return;
	for (size_t i = 0; i < places(c); i++)
		free(c->pieces[i].data);
	free(c->pieces);
	pthread_mutex_destroy(&c->lock);
}

static struct node *
file_of(const struct qcow *q)
{
	return q->node->file->child;
}

/* ---- writing back ---- */

/* The dirty pieces as they are at one instant. */
struct batch {
	struct qcow_piece *from[1 << QCOW_PIECE_BITS];
	uint8_t *data[1 << QCOW_PIECE_BITS];
	int n;
};

static void
batch_free(struct batch **b)
{
	for (int i = 0; *b && i < (*b)->n; i++)
		free((*b)->data[i]);
	free(*b);
}

static int
take_batch(struct qcow_cache *c, struct batch *b)
{
	int r = 0;

	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < places(c) && !r; i++) {
		struct qcow_piece *p = &c->pieces[i];
		uint8_t *copy;

		if (!p->dirty)
			continue;
		copy = malloc(p->len);
		if (!copy) {
			r = -ENOMEM;
			break;
		}
		memcpy(copy, p->data, p->len);
		b->from[b->n] = p;
		b->data[b->n++] = copy;
	}
	for (int i = 0; i < b->n && !r; i++)
		b->from[i]->dirty = false;
	pthread_mutex_unlock(&c->lock);
	return r;
}

/* With c->loading held, so that the pieces stay where they are. */
static int
write_back(struct qcow *q)
{
	CLEANUP(batch_free) struct batch *b = calloc(1, sizeof(*b));
	int r = atomic_load(&q->failed), written = 0;

	if (!r && !b)
		r = -ENOMEM;
	if (!r)
		r = take_batch(&q->cache, b);
	if (r < 0 || !b->n)
		return r;
	/* What the entries lead to was written before they changed. */
	r = node_flush(file_of(q));
	if (r < 0)
		atomic_store(&q->failed, r);
	while (!r && written < b->n) {
		r = node_pwrite(file_of(q), b->from[written]->off, b->data[written],
				b->from[written]->len);
		written += !r;
	}
	pthread_mutex_lock(&q->cache.lock);
	for (int i = written; i < b->n; i++)
		b->from[i]->dirty = true;
	pthread_mutex_unlock(&q->cache.lock);
	return r;
}

int
qcow_cache_write_back(struct qcow *q)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->cache.loading;

	co_mutex_lock(held);
	return write_back(q);
}

/* ---- pieces ---- */

/* The piece that holds entry i of t, and the entry's place in it. */
static uint64_t
piece_of(const struct qcow_table *t, uint64_t i, uint32_t *ret_len, uint32_t *ret_at)
{
	uint64_t start = round_down(8 * i, QCOW_PIECE);

	*ret_len = (uint32_t)min_u64(QCOW_PIECE, 8 * t->entries - start);
	*ret_at = (uint32_t)(8 * i - start);
	return t->off + start;
}

/* The first of the two places for what is at off. */
static struct qcow_piece *
places_of(struct qcow_cache *c, uint64_t off)
{
	size_t i = (off >> 3) * UINT64_C(0x9e3779b97f4a7c15) >> (64 - c->bits);

	return &c->pieces[i & ~(size_t)1];
}

/* With the lock held: the piece, or NULL. */
static struct qcow_piece *
find(struct qcow_cache *c, uint64_t off, uint32_t len)
{
	struct qcow_piece *p = places_of(c, off);

	for (int i = 0; i < 2; i++)
		if (p[i].data && p[i].off == off && p[i].len == len)
			return &p[i];
	return NULL;
}

/* With the lock held: put new where the older of the two was, which must be clean. */
static bool
replace(struct qcow_piece *p, struct qcow_piece new)
{
	if (p[1].dirty)
		return false;
	free(p[1].data);
	p[1] = p[0];
	p[0] = new;
	return true;
}

static int
load(struct qcow *q, uint64_t off, uint32_t len)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &q->cache.loading;
	struct qcow_cache *c = &q->cache;
	bool there, done;
	uint8_t *data;
	int r;

	co_mutex_lock(held);
	pthread_mutex_lock(&c->lock);
	there = find(c, off, len);
	pthread_mutex_unlock(&c->lock);
	if (there)
		return 0;
	data = malloc(len);
	r = data ? node_pread(file_of(q), off, data, len) : -ENOMEM;
	while (!r) {
		pthread_mutex_lock(&c->lock);
		done = replace(places_of(c, off), (struct qcow_piece){ .off = off, .len = len,
								       .data = data });
		pthread_mutex_unlock(&c->lock);
		if (done)
			return 0;
		r = write_back(q);
	}
	free(data);
	return r;
}

/* The piece of t that holds entry i, loaded if need be, and the entry's place in
 * it.  0: with the lock held. */
static int
lock_piece(struct qcow *q, const struct qcow_table *t, uint64_t i, struct qcow_piece **ret,
	   uint32_t *ret_at)
{
	uint32_t len;
	uint64_t off = piece_of(t, i, &len, ret_at);

	/* Zeroes from behind the end of a file that was cut off are no table. */
	if (!range_within(off + *ret_at, 8, node_size(file_of(q))))
		return -EIO;
	for (;;) {
		int r;

		pthread_mutex_lock(&q->cache.lock);
		*ret = find(&q->cache, off, len);
		if (*ret)
			return 0;
		pthread_mutex_unlock(&q->cache.lock);
		r = load(q, off, len);
		if (r < 0)
			return r;
	}
}

/* ---- entries ---- */

int
qcow_cache_get(struct qcow *q, const struct qcow_table *t, uint64_t i, uint64_t *ret)
{
	struct qcow_piece *p;
	uint32_t at;
	int r = lock_piece(q, t, i, &p, &at);

	if (r < 0)
		return r;
	*ret = get_be64(p->data + at);
	pthread_mutex_unlock(&q->cache.lock);
	return 0;
}

int
qcow_cache_set(struct qcow *q, const struct qcow_table *t, uint64_t i, uint64_t entry)
{
	struct qcow_piece *p;
	uint32_t at;
	int r = lock_piece(q, t, i, &p, &at);

	if (r < 0)
		return r;
	put_be64(p->data + at, entry);
	p->dirty = true;
	pthread_mutex_unlock(&q->cache.lock);
	return 0;
}

int
qcow_cache_write(struct qcow *q, const struct qcow_table *t, uint64_t i, uint64_t entry)
{
	struct qcow_piece *p;
	uint8_t raw[8];
	uint32_t at;
	int r;

	put_be64(raw, entry);
	r = node_pwrite(file_of(q), t->off + 8 * i, raw, sizeof(raw));
	if (!r)
		r = lock_piece(q, t, i, &p, &at);
	if (r < 0)
		return r;
	put_be64(p->data + at, entry);
	pthread_mutex_unlock(&q->cache.lock);
	return 0;
}
