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
		put_options(out, e->child, false);
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

/* Is its file's name too little to tell what n shows? */
static bool
needs_options(const struct node *n)
{
	return is_special_null(n) || is_part(n);
}

/* What n's file is called, however many such nodes lie between. */
static char *
filename_of_child(const struct node *n)
{
	struct node *child = n->file->child;

	while (child->driver->caps & DRIVER_CHILDS_NAME)
		child = child->file->child;
	return needs_options(child) ? filename_of(child, NULL) : strdup(node_filename(n));
}

char *
filename_of(struct node *n, const struct ImageInfo *info)
{
	bool overridden = backing_overridden(n, info);
	char *text = NULL;
	size_t size;
	FILE *out;

	if (n->driver->caps & DRIVER_CHILDS_NAME && n->file)
		return filename_of_child(n);
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
