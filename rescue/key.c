/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/key.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/secret.h"

enum { READ_FIRST = 4000, LINE_END_MAX = 2 };

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory for a key");
}

int
key_new(const void *bytes, size_t len, const char *origin, struct key **ret, struct error **errp)
{
	struct key *k = secret_alloc(sizeof(*k) + len);

	if (!k)
		return no_memory(errp);
	k->len = len;
	k->form = KEY_EXACT;
	k->layer = KEY_ANY_LAYER;
	memcpy(k->bytes, bytes, len);
	snprintf(k->origin, sizeof(k->origin), "%s", origin);
	*ret = k;
	return 0;
}

void
key_free(struct key *k)
{
	secret_free(k);
}

void
key_freep(struct key **k)
{
	key_free(*k);
	*k = NULL;
}

/* Make room for more.  Little is taken at first: locked memory is scarce. */
static int
grow(uint8_t **buf, size_t *size)
{
	size_t more = *size ? *size * 4 : READ_FIRST;
	uint8_t *to = secret_alloc(more);

	if (!to)
		return -ENOMEM;
	if (*size)
		memcpy(to, *buf, *size);
	secret_free(*buf);
	*buf = to;
	*size = more;
	return 0;
}

/* Everything up to fd's end, to be freed by secret_free(): the count, or -errno;
 * -EFBIG if it is more than KEY_MAX. */
static ssize_t
read_all(int fd, uint8_t **ret)
{
	CLEANUP(secret_freep) uint8_t *buf = NULL;
	size_t len = 0, size = 0;
	ssize_t n;

	do {
		if (len == size && grow(&buf, &size) < 0)
			return -ENOMEM;
		n = read(fd, buf + len, size - len);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			len += (size_t)n;
		if (len > KEY_MAX)
			return -EFBIG;
	} while (n);
	*ret = STEAL(buf);
	return (ssize_t)len;
}

static int
read_key(int fd, const char *origin, struct key **ret, struct error **errp)
{
	CLEANUP(secret_freep) uint8_t *buf = NULL;
	ssize_t len = read_all(fd, &buf);

	if (len == -EFBIG)
		return error_set(errp, "Cannot use %s: longer than %d bytes, which no key is", origin,
				 KEY_MAX);
	if (len < 0) {
		error_set_errno(errp, (int)len, "Cannot read %s", origin);
		return -1;
	}
	if (!len)
		return error_set(errp, "Cannot use %s: it is empty; a lone newline stands for the "
				 "empty password", origin);
	return key_new(buf, (size_t)len, origin, ret, errp);
}

int
key_read_file(const char *path, struct key **ret, struct error **errp)
{
	CLEANUP(cleanup_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	char origin[KEY_ORIGIN];

	if (fd < 0) {
		error_set_errno(errp, errno, "Cannot open the key file %s", path);
		return -1;
	}
	snprintf(origin, sizeof(origin), "the key file %s", path);
	return read_key(fd, origin, ret, errp);
}

int
key_read_fd(int fd, struct key **ret, struct error **errp)
{
	char origin[KEY_ORIGIN];

	snprintf(origin, sizeof(origin), "the key from file descriptor %d", fd);
	return read_key(fd, origin, ret, errp);
}

int
key_read_credential(const char *name, struct key **ret, struct error **errp)
{
	const char *folder = getenv("CREDENTIALS_DIRECTORY");
	CLEANUP(cleanup_close) int dir = -1;
	CLEANUP(cleanup_close) int fd = -1;
	char origin[KEY_ORIGIN];

	if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return error_set(errp, "'%s' is not the name of a credential", name);
	if (!folder)
		return error_set(errp, "There is no credential %s: $CREDENTIALS_DIRECTORY is not set, "
				 "as it is in services of systemd with LoadCredential=", name);
	dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	fd = dir < 0 ? -1 : openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0) {
		error_set_errno(errp, errno, "Cannot open the credential %s", name);
		return -1;
	}
	snprintf(origin, sizeof(origin), "the credential %s", name);
	return read_key(fd, origin, ret, errp);
}

/* ---- variants ---- */

static const struct {
	const char *bytes;
	size_t len;
	enum key_form form;
	const char *cut, *add;		/* for people */
} line_ends[] = {
	{ "\r\n", 2, KEY_WITH_CRLF, "CR LF", "CR LF" },
	{ "\n", 1, KEY_WITH_LF, "newline", "a newline" },
	{ "", 0, KEY_WITHOUT_LINE_END, NULL, NULL },
};

/* Which of line_ends k ends in; the last one fits all. */
static size_t
find_line_end(const struct key *k)
{
	size_t i = 0;

	while (k->len < line_ends[i].len ||
	       memcmp(k->bytes + k->len - line_ends[i].len, line_ends[i].bytes, line_ends[i].len))
		i++;
	return i;
}

int
key_variant(const struct key *k, unsigned i, struct key **ret, struct error **errp)
{
	/* The order of what to try: none, LF, CR LF, but for what is there. */
	size_t has = find_line_end(k), end = ARRAY_SIZE(line_ends) - 1 - i;
	size_t bare = k->len - line_ends[has].len;
	struct key *v = secret_alloc(sizeof(*v) + k->len + LINE_END_MAX);

	if (!v)
		return no_memory(errp);
	if (end <= has)
		end--;
	memcpy(v->bytes, k->bytes, bare);
	memcpy(v->bytes + bare, line_ends[end].bytes, line_ends[end].len);
	v->len = bare + line_ends[end].len;
	v->form = line_ends[end].form;
	v->layer = k->layer;
	if (!line_ends[end].len)
		snprintf(v->origin, sizeof(v->origin), "%.200s (without the %s at its end)",
			 k->origin, line_ends[has].cut);
	else
		snprintf(v->origin, sizeof(v->origin), "%.200s (with %s %s)", k->origin,
			 line_ends[end].add, line_ends[has].len ? "at its end instead" : "added");
	*ret = v;
	return 0;
}

const char *
key_form_name(enum key_form form)
{
	static const char *const names[] = {
		[KEY_EXACT] = "exact",
		[KEY_WITHOUT_LINE_END] = "without-line-end",
		[KEY_WITH_LF] = "with-lf",
		[KEY_WITH_CRLF] = "with-crlf",
	};

	return names[form];
}
