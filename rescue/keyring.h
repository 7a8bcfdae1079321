/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/keyring.h - finding each encrypted layer its key.
 *
 * All keys that were given are tried on every layer: each as it is, then its
 * variant (rescue/key.h).  Without any, the terminal is asked, layer by layer;
 * what fitted one layer is tried on the next before it is asked for again.
 *
 * Context    coroutine on loop 0; a prompt blocks it.
 */
#ifndef RESCUE_KEYRING_H
#define RESCUE_KEYRING_H

#include <stdbool.h>

struct error;
struct key;
struct layer;

enum { KEYRING_MAX = 64, KEYRING_TRIES = 3 };

struct keyring {
	struct key *key[KEYRING_MAX];	/* owned */
	unsigned count;
	bool ask;			/* no key was given: prompt */
	bool accept_unverified;		/* take a key that no evidence speaks for */
	void (*say)(const char *line);	/* what was found; a line without its end */
};

enum keyring_result {
	KEYRING_OK,		/* the layer decrypts from now on */
	KEYRING_FAILED = -1,	/* with *errp, like the next two */
	KEYRING_WRONG = -2,	/* all keys are implausible */
	KEYRING_UNKNOWN = -3,	/* some key may be right, but nothing tells */
};

/* -1 with *errp if there are too many; key is taken over either way. */
int keyring_add(struct keyring *ring, struct key *key, struct error **errp);
void keyring_done(struct keyring *ring);

enum keyring_result keyring_unlock(struct keyring *ring, struct layer *l, struct error **errp);

#endif
