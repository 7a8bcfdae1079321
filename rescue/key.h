/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/key.h - passwords: where they come from, and their variants.
 *
 * A key is the bytes that a person or a file gave, whatever a format makes of
 * them.  It is never taken from the command line or the environment, where
 * others can see it.
 *
 * Units      bytes.
 * Context    any thread; reading blocks.
 * Ownership  callers own the keys they get: key_free(), which wipes them.
 * Errors     -1 with *errp.
 */
#ifndef RESCUE_KEY_H
#define RESCUE_KEY_H

#include <stddef.h>
#include <stdint.h>

struct error;

enum {
	KEY_MAX = 8 * 1024 * 1024,	/* as much as cryptsetup reads of a key file */
	KEY_ORIGIN = 256,
	KEY_VARIANTS = 2,
	KEY_ANY_LAYER = -1,
};

/* How a key differs from what was given. */
enum key_form { KEY_EXACT, KEY_WITHOUT_LINE_END, KEY_WITH_LF, KEY_WITH_CRLF };

struct key {
	size_t len;
	enum key_form form;
	int layer;		/* the one of the chain that it is for, or KEY_ANY_LAYER */
	char origin[KEY_ORIGIN];	/* "the key file k", for people; never the key */
	uint8_t bytes[];	/* in locked memory, like all of this */
};

/* A key of these bytes, for any layer. */
int key_new(const void *bytes, size_t len, const char *origin, struct key **ret,
	    struct error **errp);

/* All of a file, or all that fd gives until its end.  fd is not closed.  Files
 * that are empty or longer than KEY_MAX are errors. */
int key_read_file(const char *path, struct key **ret, struct error **errp);
int key_read_fd(int fd, struct key **ret, struct error **errp);

/* The same of a credential that systemd handed to the service. */
int key_read_credential(const char *name, struct key **ret, struct error **errp);

/* The same key with another end of the line: files and prompts get this wrong.  Of
 * none, LF and CR LF, the two that k does not end in; i < KEY_VARIANTS says which. */
int key_variant(const struct key *k, unsigned i, struct key **ret, struct error **errp);

/* "exact", "without-line-end", ... for programs. */
const char *key_form_name(enum key_form form);

void key_free(struct key *k);	/* takes NULL */
void key_freep(struct key **k);

#endif
