/* SPDX-License-Identifier: Apache-2.0 */
/* The internal snapshots of qcow2 images: their table, and the one that is meant. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/image.h"
#include "rescue/image_int.h"

enum {
	ENTRY_HEAD = 40,		/* bytes of an entry before what varies */
	EXTRA_MAX = 1024,
	EXTRA_KNOWN = 24,		/* VM state's size, disk's size, icount */
	SNAPSHOTS_MAX = 65536,
	TABLE_MAX = 64 * 1024 * 1024,
};

/* ---- the table ---- */

static void
decode(struct image_snapshot *s, const uint8_t *head, const uint8_t *extra, uint32_t extra_len,
       uint64_t disk_size)
{
	s->date_sec = get_be32(head + 16);
	s->date_nsec = get_be32(head + 20);
	s->vm_clock_nsec = get_be64(head + 24);
	s->vm_state_size = extra_len >= 8 ? get_be64(extra) : get_be32(head + 32);
	s->disk_size = extra_len >= 16 ? get_be64(extra + 8) : disk_size;
	s->icount = extra_len >= 24 ? get_be64(extra + 16) : UINT64_MAX;
}

/* Read the entry at *off, and move *off behind it. */
static int
read_entry(struct image_look *l, uint64_t *off, struct image_snapshot *s)
{
	uint8_t head[ENTRY_HEAD], extra[EXTRA_KNOWN] = { 0 };
	uint32_t extra_len, known;
	uint16_t id_len, name_len;
	uint64_t id_at;

	if (image_read_at(l, *off, head, sizeof(head)) < 0)
		return -1;
	id_len = get_be16(head + 12);
	name_len = get_be16(head + 14);
	extra_len = get_be32(head + 36);
	if (extra_len > EXTRA_MAX)
		return image_bad(l, "an entry of its snapshot table is too long");
	known = extra_len < EXTRA_KNOWN ? extra_len : EXTRA_KNOWN;
	id_at = *off + ENTRY_HEAD + extra_len;
	if (image_read_at(l, *off + ENTRY_HEAD, extra, known) < 0 ||
	    image_read_string(l, id_at, id_len, &s->id) < 0 ||
	    image_read_string(l, id_at + id_len, name_len, &s->name) < 0)
		return -1;
	decode(s, head, extra, extra_len, l->im->virtual_size);
	*off = round_up(id_at + id_len + name_len, 8);
	return 0;
}

static void
clear(struct image_snapshot *s)
{
	free(s->id);
	free(s->name);
}

static int
each(struct image_look *l, uint64_t off, uint32_t n, image_snapshot_fn fn, void *user)
{
	uint64_t at = off;

	if (n > SNAPSHOTS_MAX || !range_within(off, n * (uint64_t)ENTRY_HEAD, l->im->file_size))
		return image_bad(l, "its snapshot table is too large");
	for (uint32_t i = 0; i < n; i++) {
		struct image_snapshot s = { .index = i };
		bool on;
		int r;

		if (at - off > TABLE_MAX)
			return image_bad(l, "its snapshot table is too large");
		r = read_entry(l, &at, &s);
		on = r == 0 && (!fn || fn(user, &s));
		clear(&s);
		if (!on)
			return r;
	}
	return 0;
}

void
image_snapshots_look(struct image_look *l, uint64_t off, uint32_t n)
{
	struct image_look quiet = { .fd = l->fd, .im = l->im };

	l->im->snapshots_off = off;
	/* If it is damaged, the disk can be sound all the same. */
	if (!n || each(&quiet, off, n, NULL, NULL) == 0)
		l->im->snapshots = n;
	else
		l->im->snapshots_lost = n;
}

int
image_each_snapshot(const struct image *im, image_snapshot_fn fn, void *user)
{
	CLEANUP(cleanup_close) int fd = -1;
	struct image_look l;
	struct image copy;

	if (!im->snapshots)
		return 0;
	if (image_look_again(im, &copy, &l) < 0)
		return -1;
	fd = l.fd;
	return each(&l, im->snapshots_off, im->snapshots, fn, user);
}

/* ---- the one that is meant ---- */

struct search {
	const char *id, *name;		/* NULL: whatever it is */
	struct image_snapshot *found;
	bool failed;
};

/* Keep a copy of the first that fits. */
static bool
compare(void *user, const struct image_snapshot *s)
{
	struct search *q = user;

	if ((q->id && strcmp(s->id, q->id)) || (q->name && strcmp(s->name, q->name)))
		return true;
	q->found = calloc(1, sizeof(*q->found));
	if (q->found) {
		*q->found = *s;
		q->found->id = strdup(s->id);
		q->found->name = strdup(s->name);
	}
	q->failed = !q->found || !q->found->id || !q->found->name;
	return false;
}

static int
find(struct image *im, const char *id, const char *name, struct error **errp)
{
	struct search q = { .id = id, .name = name };

	if (image_each_snapshot(im, compare, &q) < 0)
		return error_set(errp, "The internal snapshots of %s cannot be read any more",
				 im->filename);
	im->shown = q.found;
	return q.failed ? error_set(errp, "Cannot allocate memory") : 0;
}

/* Take the value in front of a comma, or of the end; two commas are one of the value.
 * *text goes on behind it. */
static char *
take_value(char **text)
{
	char *from = *text, *value = from, *to = from;

	while (*from && (*from != ',' || from[1] == ',')) {
		from += *from == ',';
		*to++ = *from++;
	}
	*text = *from ? from + 1 : from;
	*to = '\0';
	return value;
}

/* "snapshot.id=ID,snapshot.name=NAME", both or one of them. */
static int
parse_pairs(char *text, const char **ret_id, const char **ret_name, struct error **errp)
{
	static const char id[] = "snapshot.id=", name[] = "snapshot.name=";

	while (*text) {
		const char **ret = !strncmp(text, id, strlen(id)) ? ret_id
				   : !strncmp(text, name, strlen(name)) ? ret_name : NULL;

		if (!ret)
			return error_set(errp, "A snapshot is named by snapshot.id= and "
					 "snapshot.name=, not by '%s'", text);
		text = strchr(text, '=') + 1;
		*ret = take_value(&text);
	}
	return 0;
}

int
image_choose_snapshot(struct image *im, const char *want, struct error **errp)
{
	CLEANUP(cleanup_free) char *copy = strdup(want);
	const char *id = NULL, *name = NULL;
	int r;

	if (!copy)
		return error_set(errp, "Cannot allocate memory");
	if (im->format != IMAGE_QCOW2)
		return error_set(errp, "%s is a %s image; only qcow2 has internal snapshots",
				 im->filename, image_format_name(im->format));
	if (!strncmp(want, "snapshot.", 9)) {
		if (parse_pairs(copy, &id, &name, errp) < 0)
			return -1;
		r = find(im, id, name, errp);
	} else {
		r = find(im, want, NULL, errp);
		if (r == 0 && !im->shown)
			r = find(im, NULL, want, errp);
	}
	if (r < 0)
		return -1;
	if (!im->shown && im->snapshots_lost)
		return error_set(errp, "The table of internal snapshots of %s is damaged",
				 im->filename);
	if (!im->shown)
		return error_set(errp, "%s has no internal snapshot '%s'; --list shows those that "
				 "it has", im->filename, want);
	im->virtual_size = im->shown->disk_size;
	return 0;
}

void
image_snapshot_free(struct image_snapshot *s)
{
	if (s)
		clear(s);
	free(s);
}
