/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/keyring_search.h - trying the keys of a ring on one layer; for keyring*.c.
 *
 * Context    coroutine on loop 0; a prompt blocks it.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_KEYRING_SEARCH_H
#define RESCUE_KEYRING_SEARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rescue/judge.h"
#include "rescue/key.h"
#include "rescue/keyring.h"
#include "rescue/luks.h"

struct cipher;
struct error;
struct layer;

enum {
	KEYRING_QCOW_KEY = 16,
	KEYRING_TRIED_MAX = (KEYRING_MAX + KEYRING_TRIES) * (1 + KEY_VARIANTS),
};

/* One layer's search. */
struct keyring_search {
	struct keyring *ring;
	struct layer *layer;
	struct judge_sample *samples;
	size_t n;
	struct judge_disk disk;
	bool is_luks;
	struct luks luks;
	uint8_t *tried;			/* KEYRING_TRIED_MAX keys of KEYRING_QCOW_KEY bytes, locked */
	unsigned n_tried;
	bool glance;			/* judge only what a first look speaks for */
	struct keyring_finding best;	/* of all that were tried so far */
	struct cipher *best_cipher;	/* owned */
};

/* Try what was given, then the list, then what is asked for, until one fits. */
int keyring_search_run(struct keyring_search *s, struct error **errp);

/* Is there one that fits, of which best and best_cipher tell? */
bool keyring_search_found(const struct keyring_search *s);

#endif
