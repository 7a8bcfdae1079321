/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/wordlist.h - candidates for a key, one a line of a file.
 *
 * A candidate is its line without LF or CR LF; empty lines are none.  The whole list is
 * in memory for keys (rescue/secret.h).
 *
 * Context    any thread.
 * Ownership  callers own the lists and the keys that they get.
 * Errors     -1 with *errp.
 */
#ifndef RESCUE_WORDLIST_H
#define RESCUE_WORDLIST_H

#include <stddef.h>

struct error;
struct key;
struct wordlist;

/* A file without a candidate, or of more than KEY_MAX bytes, is an error. */
int wordlist_read(const char *path, struct wordlist **ret, struct error **errp);
void wordlist_free(struct wordlist *w);		/* takes NULL */

size_t wordlist_count(const struct wordlist *w);

/* Begin with the first one again. */
void wordlist_rewind(struct wordlist *w);

/* The next candidate; its origin names the file and the line.  0 at the end, where *ret
 * is NULL. */
int wordlist_next(struct wordlist *w, struct key **ret, struct error **errp);

#endif
