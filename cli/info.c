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
#include "rescue/image.h"
#include "rescue/progress.h"

enum { EXIT_USAGE = 2 };

static const char help[] =
	"Usage: quoin info [--json] IMAGE\n"
	"\n"
	"Say what an image is: its format, sizes, encryption, and the backing file that\n"
	"it names.  Only IMAGE itself is opened, and only read.\n"
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

static const char *
advice(const struct image *im)
{
	if (im->format == IMAGE_LUKS && im->version != 1)
		return "quoin cannot decrypt this version; cryptsetup can";
	return NULL;
}

static int
print_text(const struct image *im, const char *command)
{
	printf("image: %s\n", im->filename);
	printf("format: %s", image_format_name(im->format));
	printf(im->version ? " (version %u)\n" : "\n", im->version);
	print_bytes("virtual size", im->virtual_size);
	print_bytes("disk size", im->disk_size);
	if (im->cluster_size)
		printf("cluster size: %" PRIu64 "\n", im->cluster_size);
	printf("encryption: %s%s%s%s\n",
	       im->encryption == CIPHER_NONE ? "none" : cipher_kind_name(im->encryption),
	       *im->cipher ? " (" : "", im->cipher, *im->cipher ? ")" : "");
	if (im->backing)
		printf("backing file: %s (format: %s)\n", im->backing,
		       im->backing_format ? im->backing_format : "not recorded");
	if (im->data_file)
		printf("data file: %s\n", im->data_file);
	if (im->snapshots)
		printf("internal snapshots: %u\n", im->snapshots);
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

/* ---- JSON; the member names are those of qemu-img info where it has them ---- */

static void
json_string(const char *name, const char *value, bool first)
{
	printf("%s\n    \"%s\": \"", first ? "" : ",", name);
	for (const unsigned char *c = (const unsigned char *)value; *c; c++) {
		if (*c == '"' || *c == '\\')
			printf("\\%c", *c);
		else if (*c < 0x20 || *c == 0x7f)
			printf("\\u%04x", *c);
		else
			putchar(*c);
	}
	putchar('"');
}

static void
json_number(const char *name, uint64_t value)
{
	printf(",\n    \"%s\": %" PRIu64, name, value);
}

static void
json_bool(const char *name, bool value)
{
	printf(",\n    \"%s\": %s", name, value ? "true" : "false");
}

static int
print_json(const struct image *im, const char *command)
{
	putchar('{');
	json_string("filename", im->filename, true);
	json_string("format", image_format_name(im->format), false);
	if (im->version)
		json_number("version", im->version);
	json_number("virtual-size", im->virtual_size);
	json_number("actual-size", im->disk_size);
	if (im->cluster_size)
		json_number("cluster-size", im->cluster_size);
	json_bool("encrypted", im->encryption != CIPHER_NONE);
	if (im->encryption != CIPHER_NONE)
		json_string("encryption", cipher_kind_name(im->encryption), false);
	if (*im->cipher)
		json_string("cipher", im->cipher, false);
	if (im->backing)
		json_string("backing-filename", im->backing, false);
	if (im->backing_format)
		json_string("backing-filename-format", im->backing_format, false);
	if (im->data_file)
		json_string("data-file", im->data_file, false);
	if (im->format == IMAGE_QCOW2)
		json_number("snapshot-count", im->snapshots);
	json_bool("dirty-flag", im->dirty);
	json_bool("corrupt", im->corrupt);
	if (command && !advice(im))
		json_string("rescue-command", command, false);
	puts("\n}");
	return ferror(stdout) || fflush(stdout) ? -1 : 0;
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
		command = refuse_rescue_command(im->filename);
	return (json ? print_json : print_text)(im, command) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
