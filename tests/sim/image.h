/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/image.h - the bytes of a disk, which can be put back to what they were.
 *
 * While keeping, each change notes what it replaced, so that thousands of states of
 * one disk are tried without copying it.  A hash of all content is kept up as well.
 *
 * Errors     none: a test without memory ends.
 */
#ifndef TESTS_SIM_IMAGE_H
#define TESTS_SIM_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { IMAGE_SECTOR = 512 };

struct image_undo {
	uint64_t off, len, size;	/* size: before the change */
	size_t at;			/* of the old bytes in old */
};

struct image {
	uint8_t *data;			/* zeroes from size to room */
	uint64_t size, room;
	uint64_t hash;			/* of data; zeroes don't count */
	bool keeping;
	struct image_undo *undo;
	size_t n_undo, undo_room;
	uint8_t *old;
	size_t n_old, old_room;
};

void image_done(struct image *m);
void image_copy(struct image *m, const struct image *from);	/* m is zeroed */

/* Beyond the end, writing makes it larger.  from NULL: zeroes. */
void image_write(struct image *m, uint64_t off, const void *from, uint64_t len);
/* Zeroes behind the end. */
void image_read(const struct image *m, uint64_t off, void *to, uint64_t len);
void image_resize(struct image *m, uint64_t size);

/* Go back to the moment when n_undo was this. */
void image_undo(struct image *m, size_t n_undo);

/* Content and size as one number. */
uint64_t image_key(const struct image *m);

/* Of anything; a good mixer, not a strong one. */
uint64_t sim_hash(uint64_t seed, const void *p, size_t len);

/* Memory for the tests themselves, free()'d; the heap's faults (disk.h) strike others. */
void *sim_alloc(size_t len);
void *sim_zalloc(size_t len);
/* Make room for need elements of size bytes at *p. */
void sim_reserve(void *p, size_t *room, size_t need, size_t size);

#endif
