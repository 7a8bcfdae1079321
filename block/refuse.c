/* SPDX-License-Identifier: Apache-2.0 */
/* The refusal: which layers are encrypted and how to get at the data, in one
 * sentence that ends with a command to paste. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "block/opener.h"

enum { NAMES_MAX = 1000 };

const char *
cipher_kind_name(enum cipher_kind kind)
{
	switch (kind) {
	case CIPHER_NONE:
		break;
	case CIPHER_QCOW_AES:
		return "qcow AES-CBC";
	case CIPHER_QCOW2_AES:
		return "qcow2 AES-CBC";
	case CIPHER_QCOW2_LUKS:
		return "qcow2 LUKS";
	case CIPHER_LUKS:
		return "LUKS";
	}
	return "none";
}

static void
refusal_free(struct refusal *f)
{
	free(f->filename);
	free(f->header);
	free(f->overlay);
	free(f);
}

/* A driver may meet its backing file's header before its own. */
static void
insert_by_depth(struct list *refusals, struct refusal *f)
{
	struct list *at = refusals->prev;

	while (at != refusals && LIST_ENTRY(at, struct refusal, link)->depth > f->depth)
		at = at->prev;
	list_insert(at, &f->link);
}

int
refuse_record(struct opener *op, const struct crypt_layer *layer)
{
	struct refusal *f = calloc(1, sizeof(*f));

	op->refused = true;
	if (!f)
		return -1;
	f->kind = layer->kind;
	f->depth = op->depth;
	f->filename = strdup(layer->filename);
	f->header = layer->header ? strdup(layer->header) : NULL;
	f->overlay = op->overlay ? strdup(op->overlay) : NULL;
	if (!f->filename || (layer->header && !f->header) || (op->overlay && !f->overlay)) {
		refusal_free(f);
		return -1;
	}
	insert_by_depth(&op->refusals, f);
	return 0;
}

void
refuse_forget(struct opener *op)
{
	struct refusal *f, *tmp;

	LIST_FOREACH_SAFE(f, tmp, &op->refusals, link) {
		list_remove(&f->link);
		refusal_free(f);
	}
}

/* ---- the command ---- */

/* As a shell reads it: plain where it can be, else in single quotes. */
static void
put_quoted(FILE *out, const char *s)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "0123456789_./+:@%=,-";

	if (*s && strspn(s, plain) == strlen(s)) {
		fputs(s, out);
		return;
	}
	fputc('\'', out);
	for (; *s; s++)
		if (*s == '\'')
			fputs("'\\''", out);
		else
			fputc(*s, out);
	fputc('\'', out);
}

/* By another folder it is the same file, with the same files beside it: it may be a link,
 * whose own folder is the one where names begin. */
static char *
absolute(const char *filename)
{
	const char *slash = strrchr(filename, '/'), *name = slash ? slash + 1 : filename;
	size_t len = slash ? (size_t)(slash + 1 - filename) : 0;
	CLEANUP(cleanup_free) char *given = slash ? strndup(filename, len) : strdup(".");
	CLEANUP(cleanup_free) char *folder = given ? realpath(given, NULL) : NULL;
	char *path;

	if (!folder)
		return strdup(filename);
	return asprintf(&path, "%s/%s", strcmp(folder, "/") ? folder : "", name) < 0 ? NULL : path;
}

/* Can a disk be put into the folder of path?  The one of devices is in memory. */
static bool
takes_files(const char *path)
{
	CLEANUP(cleanup_free) char *folder = strndup(path, (size_t)(strrchr(path, '/') + 1 - path));

	return folder && strncmp(folder, "/dev/", 5) && access(folder, W_OK) == 0;
}

/* The source's name with its image suffix replaced, so that the plain image
 * lands beside it and never on it. */
static char *
target_name(const char *source)
{
	static const char *const suffixes[] = { ".qcow2", ".qcow", ".luks", ".img" };
	char *target = NULL;
	size_t len;

	if (strchr(source, '/') && !takes_files(source))
		source = strrchr(source, '/') + 1;
	len = strlen(source);
	for (size_t i = 0; i < ARRAY_SIZE(suffixes); i++) {
		size_t n = strlen(suffixes[i]);

		if (len > n && !strcmp(source + len - n, suffixes[i]) &&
		    source[len - n - 1] != '/')
			len -= n;
	}
	for (unsigned i = 1; i <= NAMES_MAX; i++) {
		free(target);
		if ((i == 1 ? asprintf(&target, "%.*s.raw", (int)len, source)
			    : asprintf(&target, "%.*s-%u.raw", (int)len, source, i)) < 0)
			return NULL;
		if (access(target, F_OK) < 0)
			break;
	}
	return target;
}

char *
refuse_rescue_command(const char *filename, const char *const *options)
{
	CLEANUP(cleanup_free) char *path = absolute(filename);
	CLEANUP(cleanup_free) char *target = NULL;
	char *text = NULL;
	size_t size;
	FILE *out;

	target = path ? target_name(path) : NULL;
	out = target ? open_memstream(&text, &size) : NULL;
	if (!out)
		return NULL;
	fputs("quoin rescue ", out);
	for (; options && *options; options++) {
		put_quoted(out, *options);
		fputc(' ', out);
	}
	put_quoted(out, path);
	fputc(' ', out);
	put_quoted(out, target);
	if (fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

/* ---- the sentence ---- */

static void
put_layers(FILE *out, const struct list *refusals)
{
	const struct refusal *f;
	bool first = true;

	LIST_FOREACH(f, refusals, link) {
		if (!first)
			fputs(f->link.next == refusals ? " and " : ", ", out);
		first = false;
		fprintf(out, "'%s'", f->filename);
		if (f->overlay)
			fprintf(out, " (backing file of '%s')", f->overlay);
		fprintf(out, " is encrypted (%s)", cipher_kind_name(f->kind));
	}
}

/* Only the lowest layer can be a volume whose header is apart. */
static const char *
header_of(const struct list *refusals)
{
	return LIST_ENTRY(refusals->prev, struct refusal, link)->header;
}

int
refuse_answer(struct opener *op, struct error **errp)
{
	const struct refusal *top = LIST_FIRST(&op->refusals, struct refusal, link);
	CLEANUP(cleanup_free) char *command = NULL;
	CLEANUP(cleanup_free) char *layers = NULL;
	CLEANUP(cleanup_free) char *header = NULL;
	FILE *out = NULL;
	size_t size;

	if (top) {
		const char *options[] = { "--header", NULL, NULL };

		if (header_of(&op->refusals))
			options[1] = header = absolute(header_of(&op->refusals));
		command = refuse_rescue_command(top->filename, header ? options : NULL);
		out = open_memstream(&layers, &size);
	}
	if (out) {
		put_layers(out, &op->refusals);
		if (fclose(out) != 0)
			out = NULL;
	}
	if (!out || !command)
		return error_set(errp, "Node '%s' cannot be opened: an image of its chain "
				 "is encrypted; Quoin serves no encrypted images; decrypt "
				 "it first with: quoin rescue", op->top_name);
	return error_set(errp, "Node '%s' cannot be opened: %s; Quoin serves no encrypted "
			 "images; decrypt %s first with: %s", op->top_name, layers,
			 op->refusals.next == op->refusals.prev ? "it" : "them", command);
}
