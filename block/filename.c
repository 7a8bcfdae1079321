/* SPDX-License-Identifier: Apache-2.0 */
#include "block/filename.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/driver.h"
#include "block/node.h"
#include "schema/types.h"

static void
put_string(FILE *out, const char *s)
{
	fputc('"', out);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
	fputc('"', out);
}

static bool
is_part(const struct node *n)
{
	return n->options && n->options->driver == BLOCKDEV_DRIVER_RAW &&
	       (n->options->u.raw.has_offset || n->options->u.raw.has_size);
}

/* A null-co that differs from one without options. */
static bool
is_special_null(const struct node *n)
{
	const struct BlockdevOptions *o = n->options;

	return o && o->driver == BLOCKDEV_DRIVER_NULL_CO &&
	       (o->u.null_co.has_size || o->u.null_co.has_read_zeroes);
}

static void
put_null(FILE *out, const struct BlockdevOptionsNull *o)
{
	if (o->has_size)
		fprintf(out, "\"size\": %" PRId64 ", ", o->size);
	if (o->has_read_zeroes)
		fprintf(out, "\"read-zeroes\": %s, ", o->read_zeroes ? "true" : "false");
}

static void
put_part(FILE *out, const struct BlockdevOptionsRaw *o)
{
	if (o->has_offset)
		fprintf(out, "\"offset\": %" PRId64 ", ", o->offset);
	if (o->has_size)
		fprintf(out, "\"size\": %" PRId64 ", ", o->size);
}

char *
filename_of_named_backing(const struct node *n, const char *backing)
{
	const char *image = n->file ? node_filename(n->file->child) : "";
	const char *slash = strrchr(image, '/');
	char *full;

	if (!backing || !*backing || *backing == '/' || !slash)
		return strdup(backing ? backing : "");
	if (asprintf(&full, "%.*s%s", (int)(slash - image + 1), image, backing) < 0)
		return NULL;
	return full;
}

/* Is what the header says about the backing file not what is there? */
static bool
backing_overridden(const struct node *n, const struct ImageInfo *info)
{
	const struct node *under = node_backing(n);
	const char *named = info && info->full_backing_filename
				    ? info->full_backing_filename : "";

	if (!(n->driver->caps & DRIVER_BACKING))
		return false;
	return strcmp(named, under ? node_filename(under) : "") != 0;
}

/* The same for a node that is only a part of what is named. */
static bool
is_overridden(struct node *n)
{
	struct ImageInfo *info;
	bool overridden = false;

	if (!(n->driver->caps & DRIVER_BACKING) || !n->driver->info)
		return false;
	info = calloc(1, sizeof(*info));
	if (info && n->driver->info(n, info, NULL) == 0) {
		if (info->backing_filename)
			info->full_backing_filename =
				filename_of_named_backing(n, info->backing_filename);
		overridden = backing_overridden(n, info);
	}
	ImageInfo_free(info);
	return overridden;
}

/* The options that would open n again, as JSON. */
static void
put_options(FILE *out, const struct node *n, bool with_backing)
{
	const struct edge *e;

	fputc('{', out);
	if (is_part(n))
		put_part(out, &n->options->u.raw);
	if (is_special_null(n))
		put_null(out, &n->options->u.null_co);
	if (with_backing && !n->backing)
		fputs("\"backing\": null, ", out);
	LIST_FOREACH(e, &n->edges, in_parent) {
		if (!e->child || (e->role & ROLE_COW && !with_backing))
			continue;
		put_string(out, e->use.name);
		fputs(": ", out);
		put_options(out, e->child, is_overridden(e->child));
		fputs(", ", out);
	}
	fputs("\"driver\": ", out);
	put_string(out, n->driver->name);
	if (node_is_protocol(n) && strcmp(n->driver->name, "null-co") != 0) {
		fputs(", \"filename\": ", out);
		put_string(out, node_filename(n));
	}
	fputc('}', out);
}

static char *
name_of(struct node *n, bool overridden)
{
	char *text = NULL;
	size_t size;
	FILE *out;

	if (node_is_protocol(n) && !is_special_null(n))
		return strdup(node_filename(n));
	if (n->file && n->file->child && node_is_protocol(n->file->child) &&
	    !is_special_null(n->file->child) &&
	    !node_is_filter(n) && !is_part(n) && !overridden)
		return strdup(node_filename(n));
	out = open_memstream(&text, &size);
	if (!out)
		return NULL;
	fputs("json:", out);
	put_options(out, n, overridden);
	if (fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

char *
filename_of(struct node *n, const struct ImageInfo *info)
{
	bool overridden = backing_overridden(n, info);

	if (!(n->driver->caps & DRIVER_CHILDS_NAME && n->file))
		return name_of(n, overridden);
	while (n->driver->caps & DRIVER_CHILDS_NAME && n->file)
		n = n->file->child;
	return name_of(n, is_overridden(n));
}
