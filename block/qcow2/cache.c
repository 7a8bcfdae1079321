/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "block/qcow2/qcow2.h"

enum {
	BUCKET_BITS_MIN = 4,
	WRITE_MAX = 256 * 1024,	/* bytes of neighbouring slices in one write */
};

static size_t
bucket_of(const struct qcow2_cache *c, uint64_t off)
{
	return (size_t)((off >> c->slice_bits) * UINT64_C(0x9e3779b97f4a7c15) >>
			(64 - c->bucket_bits));
}

int
qcow2_cache_init(struct qcow2_cache *c, unsigned slice_bits, size_t max_slices)
{
	memset(c, 0, sizeof(*c));
	c->slice_bits = slice_bits;
	list_init(&c->all);
	list_init(&c->dirty);
	c->max = max_slices;
	c->bucket_bits = BUCKET_BITS_MIN;
	c->buckets = calloc((size_t)1 << c->bucket_bits, sizeof(struct qcow2_slice *));
	return c->buckets ? 0 : -ENOMEM;
}

static void
slice_free(struct qcow2_slice *s)
{
	if (s)
		free(s->data);
	free(s);
}

void
qcow2_cache_done(struct qcow2_cache *c)
{
	struct qcow2_slice *s, *tmp;

	if (!c->buckets)
		return;
	LIST_FOREACH_SAFE(s, tmp, &c->all, link)
		slice_free(s);
	free(c->buckets);
	memset(c, 0, sizeof(*c));
}

static struct qcow2_slice *
lookup(struct qcow2_cache *c, uint64_t off)
{
	struct qcow2_slice *s = c->buckets[bucket_of(c, off)];

	while (s && s->off != off)
		s = s->next;
	return s;
}

struct qcow2_slice *
qcow2_cache_find(struct qcow2_cache *c, uint64_t off)
{
	struct qcow2_slice *s = lookup(c, off);

	if (!s || s->state != QCOW2_SLICE_VALID)
		return NULL;
	if (!s->used)
		s->used = true;
	return s;
}

/* Twice the buckets, where there is memory for them. */
static void
grow_buckets(struct qcow2_cache *c)
{
	struct qcow2_slice **more, *s;

	more = calloc((size_t)2 << c->bucket_bits, sizeof(struct qcow2_slice *));
	if (!more)
		return;
	free(c->buckets);
	c->buckets = more;
	c->bucket_bits++;
	LIST_FOREACH(s, &c->all, link) {
		size_t b = bucket_of(c, s->off);

		s->next = more[b];
		more[b] = s;
	}
}

static void
unlink_slice(struct qcow2_cache *c, struct qcow2_slice *s)
{
	struct qcow2_slice **p = &c->buckets[bucket_of(c, s->off)];

	while (*p != s)
		p = &(*p)->next;
	*p = s->next;
	list_remove(&s->link);
	if (s->dirty) {
		list_remove(&s->dirty_link);
		c->n_dirty--;
	}
	c->n--;
}

static bool
is_evictable(const struct qcow2_slice *s)
{
	return s->state == QCOW2_SLICE_VALID && !s->dirty && !s->writing;
}

/* Take out one slice that was not used for a round of the clock. */
static struct qcow2_slice *
evict(struct qcow2_cache *c)
{
	for (size_t left = 2 * c->n; left; left--) {
		struct qcow2_slice *s = LIST_FIRST(&c->all, struct qcow2_slice, link);

		if (is_evictable(s) && !s->used) {
			unlink_slice(c, s);
			return s;
		}
		s->used = false;
		list_remove(&s->link);
		list_append(&c->all, &s->link);
	}
	return NULL;
}

static void
insert(struct qcow2_cache *c, struct qcow2_slice *s)
{
	size_t b;

	if (c->n > (size_t)1 << c->bucket_bits)
		grow_buckets(c);
	b = bucket_of(c, s->off);
	s->next = c->buckets[b];
	c->buckets[b] = s;
	list_append(&c->all, &s->link);
	c->n++;
}

static struct qcow2_slice *
slice_new(struct qcow2 *q, const struct qcow2_cache *c, uint64_t off)
{
	uint32_t align = qcow2_file(q)->limits.mem_align;
	struct qcow2_slice *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	list_init(&s->link);
	list_init(&s->dirty_link);
	s->off = off;
	s->used = true;
	s->data = iov_alloc(align > 64 ? align : 64, (size_t)1 << c->slice_bits);
	if (!s->data) {
		free(s);
		return NULL;
	}
	return s;
}

int
qcow2_cache_load(struct qcow2 *q, struct qcow2_cache *c, uint64_t off)
{
	struct qcow2_slice *mine = slice_new(q, c, off), *there, *old = NULL;
	struct co_waiter w;
	bool keep;
	int r;

	if (!mine)
		return -ENOMEM;
	/* Zeroes from behind the end of a file that was cut off are no table. */
	if (c == &q->l2_cache && off >= node_size(qcow2_file(q))) {
		slice_free(mine);
		return -EIO;
	}
	qcow2_lock(q);
	there = lookup(c, off);
	if (there) {
		bool wait = there->state == QCOW2_SLICE_LOADING;

		if (wait)
			co_queue_join(&c->loaded, &w);
		qcow2_unlock(q);
		slice_free(mine);
		if (wait)
			co_queue_sleep(&c->loaded, &w);
		return 0;
	}
	if (c->n >= c->max)
		old = evict(c);
	insert(c, mine);
	qcow2_unlock(q);
	slice_free(old);

	r = node_pread(qcow2_file(q), off, mine->data, UINT64_C(1) << c->slice_bits);

	qcow2_lock(q);
	keep = !r && !mine->dropped;
	if (keep)
		mine->state = QCOW2_SLICE_VALID;
	else
		unlink_slice(c, mine);
	co_queue_wake_all(&c->loaded);
	qcow2_unlock(q);
	if (!keep)
		slice_free(mine);
	return r;
}

void
qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *s)
{
	if (s->dirty)
		return;
	s->dirty = true;
	list_append(&c->dirty, &s->dirty_link);
	c->n_dirty++;
}

void
qcow2_cache_drop(struct qcow2_cache *c, uint64_t off, uint64_t len)
{
	for (uint64_t end = off + len; off < end; off += UINT64_C(1) << c->slice_bits) {
		struct qcow2_slice *s = lookup(c, off);

		if (s && s->state == QCOW2_SLICE_VALID && !s->writing) {
			unlink_slice(c, s);
			slice_free(s);
		} else if (s && s->state == QCOW2_SLICE_LOADING) {
			s->dropped = true;
		}
	}
}

void
qcow2_cache_clean(struct qcow2_cache *c)
{
	struct qcow2_slice *s, *tmp;

	LIST_FOREACH_SAFE(s, tmp, &c->all, link) {
		if (is_evictable(s) && !s->used) {
			unlink_slice(c, s);
			slice_free(s);
		} else {
			s->used = false;
		}
	}
}

/* ---- batches ---- */

int
qcow2_batch_reserve(struct qcow2 *q, struct qcow2_batch *b, size_t n)
{
	uint32_t align = qcow2_file(q)->limits.mem_align;

	qcow2_batch_done(b);
	if (!n)
		return 0;
	b->slices = malloc(n * sizeof(struct qcow2_slice *));
	b->data = iov_alloc(align > 64 ? align : 64, n << q->slice_bits);
	if (!b->slices || !b->data) {
		qcow2_batch_done(b);
		return -ENOMEM;
	}
	b->room = n;
	return 0;
}

void
qcow2_batch_done(struct qcow2_batch *b)
{
	free(b->slices);
	free(b->data);
	memset(b, 0, sizeof(*b));
}

static int
compare_slices(const void *a, const void *b)
{
	uint64_t x = (*(struct qcow2_slice *const *)a)->off;
	uint64_t y = (*(struct qcow2_slice *const *)b)->off;

	return x < y ? -1 : x > y;
}

bool
qcow2_batch_collect(struct qcow2 *q, struct qcow2_cache *c, struct qcow2_batch *b)
{
	size_t size = (size_t)1 << q->slice_bits;
	struct qcow2_slice *s, *tmp;

	if (c->n_dirty > b->room)
		return false;
	b->cache = c;
	b->n = 0;
	LIST_FOREACH_SAFE(s, tmp, &c->dirty, dirty_link) {
		b->slices[b->n++] = s;
		list_remove(&s->dirty_link);
		s->dirty = false;
		s->writing = true;
	}
	c->n_dirty = 0;
	if (b->n)
		qsort(b->slices, b->n, sizeof(struct qcow2_slice *), compare_slices);
	for (size_t i = 0; i < b->n; i++)
		memcpy(b->data + i * size, b->slices[i]->data, size);
	return true;
}

int
qcow2_batch_write(struct qcow2 *q, struct qcow2_batch *b)
{
	size_t size = (size_t)1 << q->slice_bits;

	for (size_t i = 0, n; i < b->n; i += n) {
		uint64_t off = b->slices[i]->off;
		int r;

		for (n = 1; i + n < b->n && (n + 1) * size <= WRITE_MAX; n++)
			if (b->slices[i + n]->off != off + n * size)
				break;
		r = node_pwrite(qcow2_file(q), off, b->data + i * size, n * size);
		if (r < 0)
			return r;
	}
	return 0;
}

void
qcow2_batch_settle(struct qcow2 *q, struct qcow2_batch *b, bool written)
{
	for (size_t i = 0; i < b->n; i++) {
		b->slices[i]->writing = false;
		if (!written)
			qcow2_cache_dirty(b->cache, b->slices[i]);
	}
	b->n = 0;
}
