/* SPDX-License-Identifier: Apache-2.0 */
/* The dirty bitmaps that qcow2 images store: their directory. */
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/image.h"
#include "rescue/image_int.h"

enum {
	EXTENSION = 24,
	ENTRY_HEAD = 24,		/* bytes of an entry before what varies */
	BITMAPS_MAX = 65535,
	NAME_MAX_LEN = 1023,
	FLAG_IN_USE = 1 << 0,
	FLAG_AUTO = 1 << 1,
	GRANULARITY_BITS_MIN = 9,
	GRANULARITY_BITS_MAX = 31,
};

/* Read the entry at *off, and move *off behind it. */
static int
read_entry(struct image_look *l, uint64_t *off, struct image_bitmap *b)
{
	uint8_t head[ENTRY_HEAD];
	uint16_t name_len;
	uint32_t flags, extra;

	if (image_read_at(l, *off, head, sizeof(head)) < 0)
		return -1;
	flags = get_be32(head + 12);
	name_len = get_be16(head + 18);
	extra = get_be32(head + 20);
	if (name_len > NAME_MAX_LEN || head[17] < GRANULARITY_BITS_MIN ||
	    head[17] > GRANULARITY_BITS_MAX)
		return image_bad(l, "its bitmap directory is damaged");
	b->in_use = flags & FLAG_IN_USE;
	b->is_auto = flags & FLAG_AUTO;
	b->granularity = UINT64_C(1) << head[17];
	if (image_read_string(l, *off + ENTRY_HEAD + extra, name_len, &b->name) < 0)
		return -1;
	*off = round_up(*off + ENTRY_HEAD + extra + name_len, 8);
	return 0;
}

static int
each(struct image_look *l, uint64_t off, uint32_t n, image_bitmap_fn fn, void *user)
{
	if (n > BITMAPS_MAX || !range_within(off, n * (uint64_t)ENTRY_HEAD, l->im->file_size))
		return image_bad(l, "its bitmap directory is too large");
	for (uint32_t i = 0; i < n; i++) {
		struct image_bitmap b = { .name = NULL };
		int r = read_entry(l, &off, &b);
		bool on = r == 0 && (!fn || fn(user, &b));

		free(b.name);
		if (!on)
			return r;
	}
	return 0;
}

void
image_bitmaps_look(struct image_look *l, uint64_t off, uint32_t len)
{
	struct image_look quiet = { .fd = l->fd, .im = l->im };
	uint8_t ext[EXTENSION];
	uint32_t n;

	if (len < EXTENSION || image_read_at(&quiet, off, ext, sizeof(ext)) < 0)
		return;
	n = get_be32(ext);
	l->im->bitmaps_off = get_be64(ext + 16);
	/* If it is damaged, the disk can be sound all the same. */
	if (each(&quiet, l->im->bitmaps_off, n, NULL, NULL) == 0)
		l->im->bitmaps = n;
	else
		l->im->bitmaps_lost = n;
}

int
image_each_bitmap(const struct image *im, image_bitmap_fn fn, void *user)
{
	CLEANUP(cleanup_close) int fd = -1;
	struct image_look l;
	struct image copy;

	if (!im->bitmaps)
		return 0;
	if (image_look_again(im, &copy, &l) < 0)
		return -1;
	fd = l.fd;
	return each(&l, im->bitmaps_off, im->bitmaps, fn, user);
}
