/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/info.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/opener.h"
#include "cli/facts.h"
#include "cli/member.h"
#include "rescue/image.h"
#include "rescue/list.h"
#include "rescue/progress.h"

enum { EXIT_USAGE = 2 };

static const char help[] =
	"Usage: quoin info [--json] IMAGE\n"
	"\n"
	"Say what an image is: its format, sizes, encryption, internal snapshots, bitmaps,\n"
	"and the files that it names.  Only IMAGE itself is opened, and only read.\n"
	"\n"
	"      --json  the same as one JSON object\n"
	"  -h, --help  display this help and exit\n"
	"\n"
	"Exit status: 0, 1 if the image cannot be read or is not sound, 2 for bad usage.\n";

static void
print_bytes(const char *label, uint64_t bytes)
{
	char human[PROGRESS_BYTES];

	progress_format_bytes(bytes, human);
	printf("%s: %s (%" PRIu64 " bytes)\n", label, human, bytes);
}

static void
print_name(const char *label, const char *name)
{
	printf("%s: ", label);
	list_text(name, stdout);
	putchar('\n');
}

static const char *
advice(const struct image *im)
{
	if (im->format == IMAGE_LUKS && im->version != 1)
		return "quoin cannot decrypt this version; cryptsetup can";
	return NULL;
}

/* How it is encrypted: what the cipher is, where its IVs come from, what opens it. */
static void
print_encryption(const struct image *im)
{
	struct image_cipher c;
	unsigned used = 0;

	printf("encryption: %s%s%s%s\n",
	       im->encryption == CIPHER_NONE ? "none" : cipher_kind_name(im->encryption),
	       *im->cipher ? " (" : "", im->cipher, *im->cipher ? ")" : "");
	image_describe_cipher(im, &c);
	if (*c.alg)
		printf("cipher: %s, mode: %s, IV: %s%s%s%s%s\n", c.alg, c.mode,
		       *c.ivgen ? c.ivgen : "none", *c.ivgen_hash ? ":" : "", c.ivgen_hash,
		       *c.hash ? ", hash: " : "", c.hash);
	if (!im->luks)
		return;
	for (unsigned i = 0; i < IMAGE_LUKS_SLOTS; i++)
		used += im->luks->slot[i].active;
	printf("key slots: %u of %d are used\n", used, IMAGE_LUKS_SLOTS);
	if (im->format != IMAGE_LUKS)
		return;
	if (im->luks->payload)
		print_bytes("data starts at", im->luks->payload);
	else
		puts("note: it is a header by itself, the data is in another file");
}

static bool
print_bitmap(void *user, const struct image_bitmap *b)
{
	(void)user;
	fputs("        ", stdout);
	list_text(b->name, stdout);
	printf("  granularity %" PRIu64 "%s%s\n", b->granularity,
	       b->in_use ? ", out of date" : "", b->is_auto ? ", recording" : "");
	return true;
}

static void
print_bitmaps(const struct image *im)
{
	if (im->bitmaps)
		puts("bitmaps:");
	(void)image_each_bitmap(im, print_bitmap, NULL);
	if (im->bitmaps_lost)
		printf("note: it has %u bitmaps, whose directory is damaged\n", im->bitmaps_lost);
}

static void
print_snapshots(const struct image *im)
{
	if (im->snapshots)
		puts("internal snapshots:");
	list_snapshots(im, stdout);
	if (im->snapshots_lost)
		printf("note: it has %u internal snapshots, whose table is damaged\n",
		       im->snapshots_lost);
}

static void
print_qcow2(const struct image *im)
{
	printf("compat: %s\n", im->version < 3 ? "0.10" : "1.1");
	printf("compression: %s\n", im->zstd ? "zstd" : "zlib");
	printf("refcounts: %u bits%s\n", im->refcount_bits, im->lazy_refcounts ? ", lazy" : "");
	if (im->subclusters)
		puts("subclusters: yes");
}

static void
print_names(const struct image *im)
{
	if (im->backing)
		print_name("backing file", im->backing);
	if (im->backing)
		print_name("backing file format",
			   im->backing_format ? im->backing_format : "not recorded");
	if (im->data_file)
		print_name(im->data_raw ? "data file, raw" : "data file", im->data_file);
}

static int
print_text(const struct image *im, const char *command)
{
	print_name("image", im->filename);
	printf("format: %s", image_format_name(im->format));
	printf(im->version ? " (version %u)\n" : "\n", im->version);
	print_bytes("virtual size", im->virtual_size);
	print_bytes("disk size", im->disk_size);
	if (im->cluster_size)
		printf("cluster size: %" PRIu64 "\n", im->cluster_size);
	if (im->format == IMAGE_QCOW2)
		print_qcow2(im);
	print_encryption(im);
	print_names(im);
	print_snapshots(im);
	print_bitmaps(im);
	if (im->dirty)
		puts("note: it was not closed in order");
	if (im->corrupt)
		puts("note: it is marked corrupt");
	if (advice(im))
		printf("note: %s\n", advice(im));
	else if (command)
		printf("to decrypt it: %s\n", command);
	return ferror(stdout) || fflush(stdout) ? -1 : 0;
}

static int
print_json(const struct image *im, const char *command)
{
	struct member_out out = { .to = stdout };
	int r;

	member_begin(&out, NULL, "{}");
	r = facts_print(&out, im);
	if (command && !advice(im))
		member_text(&out, "rescue-command", command);
	member_end(&out, "{}");
	return r < 0 || ferror(stdout) || fflush(stdout) ? -1 : 0;
}

int
cli_info(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	CLEANUP(image_freep) struct image *im = NULL;
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(cleanup_free) char *command = NULL;
	bool json = false;
	int c;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'j':
			json = true;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_SUCCESS;
		default:
			return EXIT_USAGE;
		}
	}
	if (argc - optind != 1) {
		fprintf(stderr, "quoin info: one image is wanted; see quoin info --help\n");
		return EXIT_USAGE;
	}
	if (image_read(argv[optind], &im, &err) < 0) {
		fprintf(stderr, "quoin info: %s\n", error_text(err));
		return EXIT_FAILURE;
	}
	if (im->encryption != CIPHER_NONE)
		command = refuse_rescue_command(im->filename, NULL);
	return (json ? print_json : print_text)(im, command) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
