/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/lost.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

void
lost_init(struct lost *l)
{
	memset(l, 0, sizeof(*l));
	pthread_mutex_init(&l->lock, NULL);
}

void
lost_done(struct lost *l)
{
	free(l->range);
	pthread_mutex_destroy(&l->lock);
	memset(l, 0, sizeof(*l));
}

static uint64_t
end_of(const struct lost_range *r)
{
	return r->off + r->len;
}

/* With the lock: the first range that ends behind off. */
static size_t
find(const struct lost *l, uint64_t off)
{
	size_t low = 0, high = l->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (end_of(&l->range[mid]) > off)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

static bool
can_join(const struct lost_range *a, const struct lost_range *b)
{
	return end_of(a) == b->off && a->why == b->why && a->layer == b->layer &&
	       (uint64_t)a->len + b->len <= LOST_LEN_MAX;
}

/* With the lock: make room for one more. */
static int
reserve(struct lost *l)
{
	size_t room = l->room ? l->room * 2 : 64;
	struct lost_range *more;

	if (l->n == LOST_MAX)
		return -E2BIG;
	if (l->n == l->room) {
		more = realloc(l->range, room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		l->range = more;
		l->room = room;
	}
	if (!l->total || atomic_fetch_add(l->total, 1) < LOST_MAX)
		return 0;
	atomic_fetch_sub(l->total, 1);
	return -E2BIG;
}

/* With the lock: r, which meets nothing that is there, at place i. */
static int
insert(struct lost *l, size_t i, const struct lost_range *r)
{
	struct lost_range *before = i ? &l->range[i - 1] : NULL;
	struct lost_range *after = i < l->n ? &l->range[i] : NULL;
	int err;

	if (before && can_join(before, r)) {
		before->len += r->len;
		return 0;
	}
	if (after && can_join(r, after)) {
		after->off = r->off;
		after->len += r->len;
		return 0;
	}
	err = reserve(l);
	if (err < 0)
		return err;
	memmove(&l->range[i + 1], &l->range[i], (l->n - i) * sizeof(*l->range));
	l->range[i] = *r;
	l->n++;
	return 0;
}

int
lost_add(struct lost *l, uint64_t off, uint64_t len, const struct lost_range *cause)
{
	uint64_t end = off + len;
	int err = 0;

	pthread_mutex_lock(&l->lock);
	while (off < end && !err) {
		size_t i = find(l, off);
		struct lost_range part = *cause;

		if (i < l->n && l->range[i].off <= off) {
			off = end_of(&l->range[i]);
			continue;
		}
		part.off = off;
		part.len = min_u64((i < l->n ? min_u64(end, l->range[i].off) : end) - off,
				   LOST_LEN_MAX);
		off = end_of(&part);
		err = insert(l, i, &part);
	}
	pthread_mutex_unlock(&l->lock);
	return err;
}

bool
lost_covers(struct lost *l, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;

	pthread_mutex_lock(&l->lock);
	for (size_t i = find(l, off); off < end && i < l->n && l->range[i].off <= off; i++)
		off = end_of(&l->range[i]);
	pthread_mutex_unlock(&l->lock);
	return off >= end;
}

void
lost_mask(struct lost *l, uint64_t off, void *buf, size_t len)
{
	pthread_mutex_lock(&l->lock);
	for (size_t i = find(l, off); i < l->n && l->range[i].off < off + len; i++) {
		uint64_t from = max_u64(off, l->range[i].off);
		uint64_t to = min_u64(off + len, end_of(&l->range[i]));

		memset((char *)buf + (from - off), 0, to - from);
	}
	pthread_mutex_unlock(&l->lock);
}

uint64_t
lost_bytes(struct lost *l)
{
	uint64_t sum = 0;

	pthread_mutex_lock(&l->lock);
	for (size_t i = 0; i < l->n; i++)
		sum += l->range[i].len;
	pthread_mutex_unlock(&l->lock);
	return sum;
}

const char *
lost_why_text(enum lost_why why)
{
	switch (why) {
	case LOST_MAPPING:
		return "the tables that say where it is are damaged or cannot be read";
	case LOST_PACKED:
		return "the compressed data there cannot be read or does not unpack";
	case LOST_BEYOND_END:
		return "the image file ends before it";
	default:
		return "the image file cannot be read there";
	}
}

static void
print_block(FILE *to, uint64_t off, uint64_t end, char status)
{
	if (end > off)
		fprintf(to, "0x%08" PRIX64 "  0x%08" PRIX64 "  %c\n", off, end - off, status);
}

/* What a name is made of is not ours: no line of it may look like one of the map. */
static void
print_name(FILE *to, const char *name)
{
	for (; *name; name++)
		fputc((unsigned char)*name < ' ' ? '?' : *name, to);
}

void
lost_print_map(struct lost *l, uint64_t size,
	       const char *(*blamed)(void *user, const struct lost_range *r), void *user, FILE *to)
{
	uint64_t at = 0;

	pthread_mutex_lock(&l->lock);
	fputs("# Mapfile. Created by quoin rescue version " PACKAGE_VERSION "\n", to);
	fprintf(to, "# %zu ranges were lost; zeroes stand in their place.\n", l->n);
	for (size_t i = 0; i < l->n; i++) {
		const struct lost_range *r = &l->range[i];

		fprintf(to, "# 0x%08" PRIX64 "  0x%08" PRIX64 "  ", r->off, (uint64_t)r->len);
		print_name(to, blamed(user, r));
		fprintf(to, ": %s\n", lost_why_text(r->why));
	}
	fputs("# current_pos  current_status  current_pass\n", to);
	fprintf(to, "0x%08" PRIX64 "     +               1\n", size);
	fputs("#      pos        size  status\n", to);
	for (size_t i = 0; i < l->n; i++) {
		print_block(to, at, l->range[i].off, '+');
		print_block(to, l->range[i].off, end_of(&l->range[i]), '-');
		at = end_of(&l->range[i]);
	}
	print_block(to, at, size, '+');
	pthread_mutex_unlock(&l->lock);
}
