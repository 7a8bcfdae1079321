/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/list.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "block/open.h"
#include "block/opener.h"
#include "rescue/image.h"
#include "rescue/keyring.h"
#include "rescue/progress.h"
#include "rescue/run.h"

enum { TIME_TEXT = 32 };

void
list_tame(char *text)
{
	char *to = text;

	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		/* The other control characters, U+0080 to U+009F, in UTF-8. */
		bool high = *c == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f;

		*to++ = *c < 0x20 || *c == 0x7f || high ? '?' : (char)*c;
		c += high;
	}
	*to = '\0';
}

void
list_text(const char *text, FILE *to)
{
	CLEANUP(cleanup_free) char *tame = strdup(text);

	if (!tame)
		return;
	list_tame(tame);
	fputs(tame, to);
}

/* ---- snapshots ---- */

struct printing {
	const struct image *im;
	FILE *to;
};

static bool
print_snapshot(void *user, const struct image_snapshot *s)
{
	const struct printing *p = user;
	bool shown = p->im->shown && p->im->shown->index == s->index;
	FILE *to = p->to;
	char when[TIME_TEXT] = "", size[PROGRESS_BYTES];
	time_t date = s->date_sec;
	struct tm tm;

	if (localtime_r(&date, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	progress_format_bytes(s->disk_size, size);
	fputs("        ", to);
	list_text(s->id, to);
	fputs("  ", to);
	list_text(s->name, to);
	fprintf(to, "  %s  %s%s\n", when, size, shown ? "  <- this one" : "");
	return true;
}

void
list_snapshots(const struct image *im, FILE *to)
{
	struct printing p = { im, to };

	(void)image_each_snapshot(im, print_snapshot, &p);
}

/* ---- layers ---- */

/* Where an image keeps its data elsewhere, and whether that is all there. */
static void
print_data(const struct image *im, FILE *to)
{
	char size[PROGRESS_BYTES];

	fputs("    data in ", to);
	list_text(im->data->filename, to);
	if (im->data->file_size < im->virtual_size) {
		progress_format_bytes(im->data->file_size, size);
		fprintf(to, ", which is shorter than the disk: %s", size);
	}
	fputc('\n', to);
}

static void
print_names(const struct image *im, FILE *to)
{
	if (im->data)
		print_data(im, to);
	if (im->header) {
		fputs("    its LUKS header in ", to);
		list_text(im->header->filename, to);
		fputc('\n', to);
	}
	if (im->snapshots) {
		fputs("    internal snapshots:\n", to);
		list_snapshots(im, to);
	}
	if (im->snapshots_lost)
		fprintf(to, "    %u internal snapshots, whose table is damaged\n",
			im->snapshots_lost);
	if (im->backing) {
		fputs("    over ", to);
		list_text(im->backing, to);
		fputs(" (format: ", to);
		list_text(im->backing_format ? im->backing_format
					     : "not recorded, found by itself", to);
		fputs(")\n", to);
	}
}

/* What is known of a layer's key. */
static void
print_key(const struct keyring *keys, unsigned layer, FILE *to)
{
	const struct keyring_finding *f = keyring_find(keys, layer);

	if (!f) {
		fputs("    key: none was tried\n", to);
		return;
	}
	fprintf(to, "    key: %s", keyring_state_name(f));
	if (*f->origin)
		fprintf(to, ", %s", f->origin);
	if (f->slot >= 0)
		fprintf(to, ": it opens key slot %d", f->slot);
	if (f->judged)
		fprintf(to, ": %s", f->report.evidence);
	fputc('\n', to);
}

static void
print_layer(const struct image *im, FILE *to)
{
	char size[PROGRESS_BYTES];

	progress_format_bytes(im->virtual_size, size);
	list_text(im->filename, to);
	fprintf(to, "\n    %s, %s, ", image_format_name(im->format), size);
	if (im->encryption == CIPHER_NONE)
		fputs("not encrypted", to);
	else
		fprintf(to, "encrypted: %s", cipher_kind_name(im->encryption));
	if (*im->cipher)
		fprintf(to, " (%s)", im->cipher);
	fputc('\n', to);
	print_names(im, to);
}

/* A key that does not fit is no use in another command, which asks for one without. */
static void
print_command(const struct image_chain *chain, const struct run_options *o, FILE *to)
{
	CLEANUP(cleanup_free) const char **words = calloc(2 * o->again_count + 1, sizeof(*words));
	CLEANUP(cleanup_free) char *command = NULL;
	bool keys = o->keys_again && keyring_fits(o->keys);
	size_t n = 0;

	if (!words)
		return;

	for (size_t i = 0; i < o->again_count; i++) {
		const struct run_again *a = &o->again[i];

		if (a->is_key && !keys)
			continue;
		words[n++] = a->option;
		if (a->value)
			words[n++] = a->value;
	}
	command = refuse_rescue_command(chain->layer[0]->filename, words);
	if (command)
		fprintf(to, "to decrypt it: %s\n", command);
}

void
list_print(const struct image_chain *chain, const struct run_options *o, FILE *to)
{
	bool encrypted = false;

	for (unsigned i = 0; i < chain->count; i++) {
		print_layer(chain->layer[i], to);
		if (chain->layer[i]->encryption == CIPHER_NONE)
			continue;
		encrypted = true;
		print_key(o->keys, i, to);
	}
	if (encrypted)
		print_command(chain, o, to);
	fflush(to);
}
