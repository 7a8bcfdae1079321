/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/setup.h - the kinds of images that are tried, made and opened by the
 * driver's own front door.
 *
 * Context    coroutine on loop 0.
 */
#ifndef TESTS_SIM_SETUP_H
#define TESTS_SIM_SETUP_H

#include <stdbool.h>
#include <stdint.h>

struct disk;
struct error;
struct node;
struct sim;

struct setup {
	unsigned cluster_bits, refcount_bits, version;
	bool backed, lazy, extended, device, no_unref;
	bool data_file, data_raw;
	uint64_t sectors;	/* of the guest's disk, at first */
	uint64_t most;		/* and at most */
	uint64_t fill;		/* sectors at its end that are written before it begins */
};

/* The disks of an image; NULL: it has none such. */
struct stack {
	struct disk *file, *data, *base;
};

/* And the nodes over them. */
struct opened {
	struct node *file, *data, *base, *image;
};

/* New disks in s, and an image on them.  Aborts where that fails. */
void setup_make(const struct setup *p, struct sim *s, struct stack *ret);

/* Names begin with prefix.  0 or -1. */
int setup_open(const struct setup *p, const struct stack *k, const char *prefix, bool read_only,
	       struct opened *ret, struct error **errp);
void setup_close(struct opened *o);

/* One line for people, in memory that the next call overwrites. */
const char *setup_text(const struct setup *p);

#endif
