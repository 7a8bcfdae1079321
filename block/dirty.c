/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps in memory: their marks, and what jobs and drivers do with them.
 *
 * A bitmap is fitted to its node's size whenever somebody takes it up, so a node
 * that grows by being written to has nothing to tell.  A node that shrinks has: its
 * bitmap has to know how far the node once reached, in order to mark what comes back
 * there. */
#include "block/dirty.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/dirty_int.h"
#include "block/node.h"

void (*dirty_store_failed)(const char *node, const char *name, int err);

/* ---- with the lock held ---- */

void
dirty_recount(struct node *n)
{
	struct dirty_bitmap *b;
	unsigned recording = 0;

	LIST_FOREACH(b, &n->bitmaps.bitmaps, link)
		recording += dirty_is_recording(b);
	atomic_store(&n->bitmaps.recording, recording);
}

static struct bitmap *
marks(struct dirty_bitmap *b)
{
	return b->successor ? b->successor : b->bits;
}

static void
lose(struct dirty_bitmap *b, const char *why)
{
	b->lost = why;
	b->stored = false;
	bitmap_clear(b->bits, 0, bitmap_size(b->bits));
	if (b->successor)
		bitmap_clear(b->successor, 0, bitmap_size(b->successor));
	dirty_recount(b->node);
}

void
dirty_fit(struct dirty_bitmap *b)
{
	uint64_t old = bitmap_size(b->bits), size = node_size(b->node);
	int err = 0;

	if (size == old || b->lost)
		return;
	b->reach = max_u64(b->reach, old);
	b->stored = false;
	err = bitmap_resize(&b->bits, size);
	if (!err && b->successor)
		err = bitmap_resize(&b->successor, size);
	if (err)
		lose(b, "out of memory when the node's size changed");
	else if (dirty_is_recording(b) && old < min_u64(size, b->reach))
		bitmap_set(marks(b), old, min_u64(size, b->reach) - old);
}

static void
mark(struct dirty_bitmap *b, uint64_t off, uint64_t len)
{
	struct bitmap *m;

	dirty_fit(b);
	m = marks(b);
	if (!dirty_is_recording(b) || off >= bitmap_size(m))
		return;
	bitmap_set(m, off, min_u64(len, bitmap_size(m) - off));
	b->stored = false;
}

/* ---- for the request path ---- */

void
dirty_mark(struct node *n, uint64_t off, uint64_t len)
{
	struct dirty_bitmap *b;

	pthread_mutex_lock(&n->bitmaps.lock);
	LIST_FOREACH(b, &n->bitmaps.bitmaps, link)
		if (dirty_is_recording(b))
			mark(b, off, len);
	pthread_mutex_unlock(&n->bitmaps.lock);
}

void
dirty_resized(struct node *n)
{
	struct dirty_bitmap *b;

	pthread_mutex_lock(&n->bitmaps.lock);
	LIST_FOREACH(b, &n->bitmaps.bitmaps, link)
		dirty_fit(b);
	pthread_mutex_unlock(&n->bitmaps.lock);
}

/* ---- life ---- */

void
dirty_set_init(struct dirty_set *s)
{
	pthread_mutex_init(&s->lock, NULL);
	list_init(&s->bitmaps);
}

static void
bitmap_done(struct dirty_bitmap *b)
{
	bitmap_free(b->bits);
	bitmap_free(b->successor);
	free(b->name);
	free(b);
}

void
dirty_set_done(struct dirty_set *s)
{
	struct dirty_bitmap *b, *tmp;

	LIST_FOREACH_SAFE(b, tmp, &s->bitmaps, link) {
		list_remove(&b->link);
		bitmap_done(b);
	}
	pthread_mutex_destroy(&s->lock);
}

struct dirty_bitmap *
dirty_make(struct node *n, const char *name, uint64_t granularity, uint64_t size)
{
	struct dirty_bitmap *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->node = n;
	b->name = strdup(name);
	b->reach = size;
	if (!b->name || bitmap_new(size, granularity, &b->bits) < 0) {
		bitmap_done(b);
		return NULL;
	}
	dirty_lock(b);
	list_push(&n->bitmaps.bitmaps, &b->link);
	dirty_unlock(b);
	return b;
}

void
dirty_drop(struct dirty_bitmap *b)
{
	dirty_lock(b);
	list_remove(&b->link);
	dirty_recount(b->node);
	dirty_unlock(b);
	bitmap_done(b);
}

/* ---- looking, from any thread ---- */

const char *
dirty_reason(const struct dirty_bitmap *b)
{
	const char *why;

	dirty_lock(b);
	why = b->lost;
	dirty_unlock(b);
	return why;
}

bool
dirty_next_run(struct dirty_bitmap *b, uint64_t off, uint64_t end, uint64_t *ret_off,
	       uint64_t *ret_len)
{
	bool found;

	dirty_lock(b);
	dirty_fit(b);
	found = bitmap_next(b->bits, off, min_u64(end, bitmap_size(b->bits)), ret_off, ret_len);
	dirty_unlock(b);
	return found;
}

/* ---- for jobs and exports ---- */

void
dirty_set_busy(struct dirty_bitmap *b, bool busy)
{
	assert(b->busy != busy);
	b->busy = busy;
}

int
dirty_freeze(struct dirty_bitmap *b, struct error **errp)
{
	struct bitmap *successor;

	if (dirty_check(b, DIRTY_TO_READ, errp) < 0)
		return -1;
	dirty_lock(b);
	dirty_fit(b);
	if (bitmap_new(bitmap_size(b->bits), bitmap_granularity(b->bits), &successor) == 0) {
		b->successor = successor;
		b->busy = true;
	}
	dirty_unlock(b);
	return b->successor ? 0 : error_set(errp, "Cannot allocate memory");
}

void
dirty_melt(struct dirty_bitmap *b, bool keep, const struct bitmap *left)
{
	dirty_lock(b);
	dirty_fit(b);
	if (keep)
		bitmap_merge(b->successor, b->bits);
	else if (left)
		bitmap_merge(b->successor, left);
	bitmap_free(b->bits);
	b->bits = b->successor;
	b->successor = NULL;
	b->stored = false;
	b->busy = false;
	dirty_unlock(b);
}

void
dirty_copy(struct dirty_bitmap *b, struct bitmap *bits)
{
	dirty_lock(b);
	dirty_fit(b);
	bitmap_merge(bits, b->bits);
	dirty_unlock(b);
}

/* ---- for drivers that store them ---- */

struct dirty_bitmap *
dirty_new_stored(struct node *n, const char *name, uint64_t granularity, bool enabled)
{
	struct dirty_bitmap *b = dirty_make(n, name, granularity, node_size(n));

	if (!b)
		return NULL;
	dirty_lock(b);
	b->reach = UINT64_MAX;	/* nobody knows how far */
	b->enabled = enabled;
	b->persistent = true;
	b->stored = true;
	dirty_recount(n);
	dirty_unlock(b);
	return b;
}

void
dirty_load(struct dirty_bitmap *b, uint64_t first, const void *bytes, size_t len)
{
	dirty_lock(b);
	bitmap_set_bytes(b->bits, first, bytes, len);
	dirty_unlock(b);
}

void
dirty_save(struct dirty_bitmap *b, uint64_t first, void *bytes, size_t len)
{
	dirty_lock(b);
	bitmap_get_bytes(b->bits, first, bytes, len);
	dirty_unlock(b);
}

bool
dirty_is_stored(const struct dirty_bitmap *b)
{
	bool stored;

	dirty_lock(b);
	stored = b->stored;
	dirty_unlock(b);
	return stored;
}

void
dirty_set_stored(struct dirty_bitmap *b)
{
	dirty_lock(b);
	b->stored = true;
	dirty_unlock(b);
}

struct dirty_bitmap *
dirty_new_lost(struct node *n, const char *name, uint64_t granularity, const char *why)
{
	/* It has nothing to say, and needs no memory for that. */
	struct dirty_bitmap *b = dirty_make(n, name, granularity, 0);

	if (!b)
		return NULL;
	dirty_lock(b);
	b->persistent = true;
	lose(b, why);
	dirty_unlock(b);
	return b;
}

void
dirty_set_read_only(struct dirty_bitmap *b, bool read_only)
{
	b->read_only = read_only;
}
