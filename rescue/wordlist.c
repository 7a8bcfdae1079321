/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/wordlist.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/key.h"

struct wordlist {
	struct key *all;	/* the file as one key: its bytes, in locked memory */
	char *path;
	size_t at;		/* where the next line starts */
	size_t line;		/* its number, from 1 */
	size_t count;
};

/* The next line that is not empty, without its end.  false: there is none. */
static bool
next_line(struct wordlist *w, const uint8_t **ret, size_t *ret_len)
{
	while (w->at < w->all->len) {
		const uint8_t *start = w->all->bytes + w->at;
		const uint8_t *end = memchr(start, '\n', w->all->len - w->at);
		size_t len = end ? (size_t)(end - start) : w->all->len - w->at;

		w->at += len + 1;
		w->line++;
		if (len && start[len - 1] == '\r')
			len--;
		if (!len)
			continue;
		*ret = start;
		*ret_len = len;
		return true;
	}
	return false;
}

void
wordlist_rewind(struct wordlist *w)
{
	w->at = w->line = 0;
}

int
wordlist_read(const char *path, struct wordlist **ret, struct error **errp)
{
	struct wordlist *w = calloc(1, sizeof(*w));
	const uint8_t *line;
	size_t len;

	if (w)
		w->path = strdup(path);
	if (!w || !w->path) {
		error_set(errp, "Cannot allocate memory");
		goto fail;
	}
	if (key_read_file(path, &w->all, errp) < 0)
		goto fail;
	while (next_line(w, &line, &len))
		w->count++;
	wordlist_rewind(w);
	if (!w->count) {
		error_set(errp, "There is no candidate for a key in %s", path);
		goto fail;
	}
	*ret = w;
	return 0;

fail:
	wordlist_free(w);
	return -1;
}

void
wordlist_free(struct wordlist *w)
{
	if (!w)
		return;
	key_free(w->all);
	free(w->path);
	free(w);
}

size_t
wordlist_count(const struct wordlist *w)
{
	return w->count;
}

int
wordlist_next(struct wordlist *w, struct key **ret, struct error **errp)
{
	char origin[KEY_ORIGIN];
	const uint8_t *line;
	size_t len;

	*ret = NULL;
	if (!next_line(w, &line, &len))
		return 0;
	snprintf(origin, sizeof(origin), "line %zu of %s", w->line, w->path);
	return key_new(line, len, origin, ret, errp);
}
