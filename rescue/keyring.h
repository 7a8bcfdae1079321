/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/keyring.h - finding each encrypted layer its key.
 *
 * All keys that were given are tried on every layer, but for those that are for
 * another one: each as it is, then its variants (rescue/key.h); and then the
 * candidates of a list, of which one that nothing speaks for is never taken.  Without any, the
 * terminal is asked, layer by layer; what fitted one layer is tried on the next
 * before it is asked for again.
 *
 * Context    coroutine on loop 0; a prompt blocks it.
 */
#ifndef RESCUE_KEYRING_H
#define RESCUE_KEYRING_H

#include <stdbool.h>

#include "rescue/judge.h"
#include "rescue/key.h"

struct error;
struct layer;
struct wordlist;

enum {
	KEYRING_MAX = 256,
	KEYRING_BYTES = 2 * KEY_MAX,	/* of all keys */
	KEYRING_TRIES = 3,
};

enum keyring_result {
	KEYRING_OK,		/* the layer decrypts from now on */
	KEYRING_FAILED = -1,	/* with *errp, like the next two */
	KEYRING_WRONG = -2,	/* all keys are implausible */
	KEYRING_UNKNOWN = -3,	/* some key may be right, but nothing tells */
};

/* What came out for one layer, for reports. */
struct keyring_finding {
	enum keyring_result result;
	unsigned layer;			/* its place in the chain */
	bool needless;			/* it stores nothing encrypted */
	bool unverified;		/* accepted though nothing speaks for it */
	size_t tried;			/* keys, without their variants */
	char origin[KEY_ORIGIN];	/* of the best key; "": none was tried */
	enum key_form form;
	int slot;			/* of LUKS; -1: none */
	bool judged;			/* report is there, of the best key */
	struct judge_report report;
};

struct keyring {
	struct key *key[KEYRING_MAX];	/* owned */
	unsigned count;
	size_t bytes;
	struct wordlist *words;		/* owned; candidates, tried behind all keys; or NULL */
	bool ask;			/* no key was given: prompt */
	bool accept_unverified;		/* take a key that no evidence speaks for */
	void (*say)(const char *line);	/* what was found; a line without its end */
	struct keyring_finding *finding;	/* owned; one for each call of keyring_unlock() */
	unsigned n_findings;
};

/* To whoever listens; a line without its end. */
void keyring_say(const struct keyring *ring, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* -1 with *errp if there are too many; key is taken over either way. */
int keyring_add(struct keyring *ring, struct key *key, struct error **errp);
/* All layers were tried: forget the keys, not the findings. */
void keyring_forget(struct keyring *ring);
void keyring_done(struct keyring *ring);

enum keyring_result keyring_unlock(struct keyring *ring, struct layer *l, struct error **errp);

/* What was found for a layer of the chain; NULL: nothing was tried. */
const struct keyring_finding *keyring_find(const struct keyring *ring, unsigned layer);

/* Was there a key for each layer that was tried, and at least one? */
bool keyring_fits(const struct keyring *ring);

/* "fits", "wrong", ... for people and programs. */
const char *keyring_state_name(const struct keyring_finding *f);

#endif
