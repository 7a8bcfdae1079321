/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/image.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "tests/support/failheap.h"

void *
sim_alloc(size_t len)
{
	return failheap_own(NULL, len);
}

void *
sim_zalloc(size_t len)
{
	return memset(sim_alloc(len), 0, len);
}

void
sim_reserve(void *p, size_t *room, size_t need, size_t size)
{
	void *more;

	if (need <= *room)
		return;
	need += need / 2 + 64;
	memcpy(&more, p, sizeof(more));
	more = failheap_own(more, need * size);
	memcpy(p, &more, sizeof(more));
	*room = need;
}

static uint64_t
mix(uint64_t h)
{
	h ^= h >> 32;
	h *= UINT64_C(0xd6e8feb86659fd93);
	h ^= h >> 32;
	h *= UINT64_C(0xd6e8feb86659fd93);
	return h ^ h >> 32;
}

uint64_t
sim_hash(uint64_t seed, const void *p, size_t len)
{
	const uint8_t *b = p;
	uint64_t h = mix(seed + 1), word;

	for (; len >= 8; b += 8, len -= 8) {
		memcpy(&word, b, 8);
		h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
		h ^= h >> 29;
	}
	for (; len; b++, len--)
		h = (h ^ *b) * UINT64_C(0x9e3779b97f4a7c15);
	return mix(h);
}

static bool
is_zero(const uint8_t *p, size_t len)
{
	return !*p && !memcmp(p, p + 1, len - 1);
}

/* What [off, off + len) adds to the hash; whole sectors. */
static uint64_t
hash_of(const struct image *m, uint64_t off, uint64_t len)
{
	uint64_t end = round_up(off + len, IMAGE_SECTOR), h = 0;

	for (off = round_down(off, IMAGE_SECTOR); off < end; off += IMAGE_SECTOR)
		if (!is_zero(m->data + off, IMAGE_SECTOR))
			h ^= sim_hash(off, m->data + off, IMAGE_SECTOR);
	return h;
}

uint64_t
image_key(const struct image *m)
{
	return mix(m->hash ^ mix(m->size));
}

void
image_done(struct image *m)
{
	free(m->data);
	free(m->undo);
	free(m->old);
	memset(m, 0, sizeof(*m));
}

void
image_copy(struct image *m, const struct image *from)
{
	m->room = m->size = 0;
	image_resize(m, from->size);
	if (from->size)
		memcpy(m->data, from->data, from->size);
	m->hash = from->hash;
}

static void
make_room(struct image *m, uint64_t size)
{
	size_t old = m->room;

	sim_reserve(&m->data, &m->room, round_up(size, IMAGE_SECTOR), 1);
	m->room = round_down(m->room, IMAGE_SECTOR);
	if (m->room > old)
		memset(m->data + old, 0, m->room - old);
}

static void
keep(struct image *m, uint64_t off, uint64_t len)
{
	if (!m->keeping)
		return;
	sim_reserve(&m->undo, &m->undo_room, m->n_undo + 1, sizeof(*m->undo));
	sim_reserve(&m->old, &m->old_room, m->n_old + len, 1);
	if (len)
		memcpy(m->old + m->n_old, m->data + off, len);
	m->undo[m->n_undo++] = (struct image_undo){ off, len, m->size, m->n_old };
	m->n_old += len;
}

void
image_write(struct image *m, uint64_t off, const void *from, uint64_t len)
{
	if (!len)
		return;
	make_room(m, off + len);
	keep(m, off, len);
	m->hash ^= hash_of(m, off, len);
	if (from)
		memcpy(m->data + off, from, len);
	else
		memset(m->data + off, 0, len);
	m->hash ^= hash_of(m, off, len);
	m->size = max_u64(m->size, off + len);
}

void
image_read(const struct image *m, uint64_t off, void *to, uint64_t len)
{
	uint64_t have = off < m->size ? min_u64(len, m->size - off) : 0;

	if (have)
		memcpy(to, m->data + off, have);
	memset((uint8_t *)to + have, 0, len - have);
}

void
image_resize(struct image *m, uint64_t size)
{
	uint64_t cut = size < m->size ? m->size - size : 0;

	make_room(m, size);
	keep(m, size, cut);
	if (cut) {
		m->hash ^= hash_of(m, size, cut);
		memset(m->data + size, 0, cut);
		m->hash ^= hash_of(m, size, cut);
	}
	m->size = size;
}

void
image_undo(struct image *m, size_t n_undo)
{
	while (m->n_undo > n_undo) {
		const struct image_undo *u = &m->undo[--m->n_undo];

		if (u->len) {
			m->hash ^= hash_of(m, u->off, u->len);
			memcpy(m->data + u->off, m->old + u->at, u->len);
			m->hash ^= hash_of(m, u->off, u->len);
		}
		m->size = u->size;
		m->n_old = u->at;
	}
}
