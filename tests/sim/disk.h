/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/disk.h - disks in memory, as nodes, that record what is done to them.
 *
 * As hostile as disks and file systems may be:
 *
 *   - Calls take their time, each another one; a write is visible to readers at
 *     some moment between its submission and its completion.
 *   - A flush covers what was completed before it was submitted, on this disk,
 *     and nothing else.
 *   - A discarded sector reads as zeroes, as before, or as garbage.
 *   - A write that fails may have been done in part.  A flush that fails has
 *     lost what it should have covered: no later flush covers that.
 *   - A device does not grow and is full of somebody's old bytes.
 *
 * Two writes of one sector under way at once have no defined outcome on a disk, and
 * the driver must not rely on one: that is an error here.
 *
 * Context    one thread; coroutines.
 */
#ifndef TESTS_SIM_DISK_H
#define TESTS_SIM_DISK_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/sim/image.h"

struct error;
struct node;

enum { SIM_DISKS = 4 };

enum sim_op {
	SIM_READ = 1 << 0,
	SIM_WRITE = 1 << 1,
	SIM_ZERO = 1 << 2,
	SIM_DISCARD = 1 << 3,
	SIM_TRUNCATE = 1 << 4,
	SIM_FLUSH = 1 << 5,
	SIM_ALLOC = 1 << 6,		/* no disk's: memory; alone in a mask */
};

/* The n-th call of these kinds from now fails. */
struct sim_fault {
	unsigned ops;			/* mask of enum sim_op */
	long nth;			/* counts down; 0: none */
	int error;			/* -errno */
	bool for_good;			/* and all behind it */
	bool hit;
};

/* One world: its clock, its luck, its disks. */
struct sim {
	long now;			/* a moment; grows with all that happens */
	uint64_t luck;
	bool recording;			/* else calls take no time and are safe at once */
	struct sim_fault fault;
	struct disk *disks[SIM_DISKS];
	unsigned n;
	bool flush_failed;
	char wrong[160];		/* what the driver did that it must not */
};

long sim_tick(struct sim *s);
unsigned sim_below(struct sim *s, unsigned n);	/* luck */
void sim_take_time(struct sim *s);		/* turns of the loop; recording */

struct disk_event {
	enum sim_op op;
	uint64_t off, len;		/* truncate: off is the new size */
	size_t at;			/* of its bytes; zero, truncate: none */
	long submitted, done, safe;	/* LONG_MAX: not yet */
	bool lost;			/* a flush failed: it never will be */
};

struct disk {
	struct sim *sim;
	struct image *now;		/* what a reader sees */
	struct image own;		/* now points here, or elsewhere */
	struct image start;		/* when recording began */
	bool device;
	struct disk_event *log;		/* in order of submission */
	size_t n, room;
	uint8_t *bytes;
	size_t n_bytes, bytes_room;
	bool flush_failed;
};

/* One more disk of s. */
struct disk *disk_new(struct sim *s, bool device, uint64_t size);
void disk_free(struct disk *d);		/* its node is closed */

/* A node over it; several, one after the other.  0 or -1. */
int disk_open(struct disk *d, const char *name, bool read_only, struct node **ret,
	      struct error **errp);

/* From here on things are recorded, on all disks; what is there now is safe. */
void sim_record(struct sim *s);
void sim_record_end(struct sim *s);

/* Do to m what event e did to d: all of it, or of each unit bytes those for which bit
 * i of parts is set, i modulo 64. */
void disk_apply(const struct disk *d, const struct disk_event *e, struct image *m,
		uint64_t unit, uint64_t parts);

#endif
