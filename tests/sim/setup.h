/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/setup.h - the kinds of images that are tried, made and opened by the
 * driver's own front door.
 *
 * An image may have layers below: a base, which is a plain disk or an image, and
 * another image between.  Each header names what is next; a commit changes that, and
 * which layer the guest uses.
 *
 * Context    coroutine on loop 0.
 */
#ifndef TESTS_SIM_SETUP_H
#define TESTS_SIM_SETUP_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/model.h"

struct disk;
struct error;
struct node;
struct sim;

enum layer { TOP, MID, BASE, LAYERS };

struct setup {
	unsigned cluster_bits, refcount_bits, version;
	bool backed, lazy, extended, device, no_unref;
	bool data_file, data_raw, preallocated;
	bool base_image;	/* the base is an image itself */
	bool mid;		/* there is one between; only with base_image */
	bool tight;		/* the device has room for the disk, and hardly more */
	uint64_t sectors;	/* of the guest's disk, at first */
	uint64_t most;		/* and at most */
	uint64_t fill;		/* sectors at its end that are written before it begins */
};

/* The disks; NULL: there is none such. */
struct stack {
	struct disk *layer[LAYERS], *data;
};

/* And the nodes over them.  image[] of a plain base is its file[]. */
struct opened {
	struct node *file[LAYERS], *data, *image[LAYERS];
};

/* New disks in s; of device's size where the image is on a device. */
void setup_disks(const struct setup *p, struct sim *s, uint64_t device_size,
		 struct stack *ret);
/* The same, with images on them.  Aborts where that fails. */
void setup_make(const struct setup *p, struct sim *s, struct stack *ret);

bool setup_is_image(const struct setup *p, enum layer l);	/* not a plain disk */
struct model_below setup_content(const struct setup *p);	/* of the layers below */
/* By its header, what is below layer l; LAYERS: nothing. */
enum layer setup_below(const struct setup *p, const struct stack *k, enum layer l);

/* Open layer l as the guest's, and all below it.  Names begin with prefix.  0 or -1. */
int setup_open(const struct setup *p, const struct stack *k, enum layer l, const char *prefix,
	       bool read_only, struct opened *ret, struct error **errp);
void setup_close(struct opened *o);

/* One line for people, in memory that the next call overwrites. */
const char *setup_text(const struct setup *p);

#endif
