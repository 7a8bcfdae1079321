/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/key.h - passwords: where they come from, and their variants.
 *
 * A key is the bytes that a person or a file gave, whatever a format makes of
 * them.  It is never taken from the command line or the environment, where
 * others can see it.
 *
 * Units      bytes.
 * Context    any thread; key_prompt() blocks, and changes signal actions while
 *            it does.
 * Ownership  callers own the keys they get: key_free(), which wipes them.
 * Errors     -1 with *errp.
 */
#ifndef RESCUE_KEY_H
#define RESCUE_KEY_H

#include <stddef.h>
#include <stdint.h>

struct error;

enum { KEY_MAX = 1024 * 1024 };

struct key {
	size_t len;
	char origin[256];	/* "the key file k", for people */
	uint8_t bytes[];	/* in locked memory, like all of this */
};

/* All of a file, or all that fd gives until its end.  fd is not closed.  Files
 * that are empty or longer than KEY_MAX are errors. */
int key_read_file(const char *path, struct key **ret, struct error **errp);
int key_read_fd(int fd, struct key **ret, struct error **errp);

/* Ask on the controlling terminal, without echo.  The terminal is as it was
 * afterwards, also when a signal ends the program; an interrupted prompt
 * ends by that signal. */
int key_prompt(const char *question, struct key **ret, struct error **errp);

/* The same key without the newline that it ends in, or with one if it ends in
 * none: files and prompts get this wrong. */
int key_variant(const struct key *k, struct key **ret, struct error **errp);

void key_free(struct key *k);	/* takes NULL */
void key_freep(struct key **k);

#endif
