/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/list.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "block/open.h"
#include "block/opener.h"
#include "rescue/image.h"
#include "rescue/keyring.h"
#include "rescue/progress.h"

/* Where an image keeps its data elsewhere, and whether that is all there. */
static void
print_data(const struct image *im, FILE *to)
{
	char size[PROGRESS_BYTES];

	fprintf(to, "\n    data in %s", im->data->filename);
	if (im->data->file_size >= im->virtual_size)
		return;
	progress_format_bytes(im->data->file_size, size);
	fprintf(to, ", which is shorter than the disk: %s", size);
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
	fprintf(to, "%s\n    %s, %s, ", im->filename, image_format_name(im->format), size);
	if (im->encryption == CIPHER_NONE)
		fputs("not encrypted", to);
	else
		fprintf(to, "encrypted: %s", cipher_kind_name(im->encryption));
	if (*im->cipher)
		fprintf(to, " (%s)", im->cipher);
	if (im->data)
		print_data(im, to);
	if (im->snapshots)
		fprintf(to, ", %u internal snapshots", im->snapshots);
	if (im->backing)
		fprintf(to, "\n    over %s (format: %s)", im->backing,
			im->backing_format ? im->backing_format : "not recorded, found by itself");
	fputc('\n', to);
}

void
list_print(const struct image_chain *chain, const struct keyring *keys, FILE *to)
{
	CLEANUP(cleanup_free) char *command = NULL;
	bool encrypted = false;

	if (!chain->count)
		return;
	command = refuse_rescue_command(chain->layer[0]->filename);
	for (unsigned i = 0; i < chain->count; i++) {
		print_layer(chain->layer[i], to);
		if (chain->layer[i]->encryption == CIPHER_NONE)
			continue;
		encrypted = true;
		print_key(keys, i, to);
	}
	if (encrypted && command)
		fprintf(to, "to decrypt it: %s\n", command);
	fflush(to);
}
