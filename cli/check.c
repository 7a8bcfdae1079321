/* SPDX-License-Identifier: Apache-2.0 */
/* What is printed, where, and the exit status are those of qemu-img check, so that
 * scripts that read them can take either. */
#include "cli/check.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/loop.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/check.h"
#include "block/node.h"
#include "block/open.h"
#include "block/root.h"
#include "schema/types.h"

enum { EXIT_SOUND, EXIT_NOT_CHECKED, EXIT_CORRUPT, EXIT_LEAKS, EXIT_NO_CHECK = 63 };

static const char help[] =
	"Usage: quoin check [OPTION]... IMAGE\n"
	"\n"
	"Check whether the metadata of a qcow2 image is sound.  Only IMAGE itself is\n"
	"opened, with the locks of a reader, or of a writer for a repair.\n"
	"\n"
	"  -f, --format=FORMAT     the image's format; else its first bytes say it\n"
	"  -r, --repair=leaks|all  give leaked clusters back; all: and repair the rest\n"
	"  -U, --force-share       check also while somebody writes to it\n"
	"      --output=human|json\n"
	"  -q, --quiet             no report, only the exit status\n"
	"  -h, --help              display this help and exit\n"
	"\n"
	"Exit status: 0, 1 if it could not be checked, 2 if it is corrupt, 3 if it has\n"
	"leaks only, 63 if its format has no check.\n";

struct run {
	const char *filename, *format;
	unsigned fix;
	bool json, quiet, force_share;

	struct node *node;
	struct root *root;
	struct check_result result;
	int status;
};

/* ---- what is printed ---- */

static void
print_line(void *arg, const char *text)
{
	(void)arg;
	fprintf(stderr, "%s\n", text);
}

static void
print_problems(const struct check_result *c)
{
	if (!c->corruptions && !c->leaks && !c->errors)
		puts("No errors were found on the image.");
	if (c->corruptions)
		printf("\n%" PRIu64 " errors were found on the image.\n"
		       "Data may be corrupted, or further writes to the image may corrupt it.\n",
		       c->corruptions);
	if (c->leaks)
		printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
		       "This means waste of disk space, but no harm to data.\n", c->leaks);
	if (c->errors)
		printf("\n%" PRIu64 " internal errors have occurred during the check.\n", c->errors);
}

static double
percent(uint64_t part, uint64_t whole)
{
	return (double)part * 100 / (double)whole;
}

static void
print_human(const struct check_result *c)
{
	print_problems(c);
	if (c->total_clusters && c->allocated_clusters)
		printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% "
		       "compressed clusters\n", c->allocated_clusters, c->total_clusters,
		       percent(c->allocated_clusters, c->total_clusters),
		       percent(c->fragmented_clusters, c->allocated_clusters),
		       percent(c->compressed_clusters, c->allocated_clusters));
	if (c->image_end)
		printf("Image end offset: %" PRIu64 "\n", c->image_end);
}

static void
json_string(const char *name, const char *value)
{
	printf("    \"%s\": \"", name);
	for (const unsigned char *c = (const unsigned char *)value; *c; c++) {
		if (*c == '"' || *c == '\\')
			printf("\\%c", *c);
		else if (*c < 0x20 || *c == 0x7f)
			printf("\\u%04X", *c);
		else
			putchar(*c);
	}
	putchar('"');
}

/* Members that are zero are left out, but for one. */
static void
json_number(const char *name, uint64_t value, bool always)
{
	if (value || always)
		printf("    \"%s\": %" PRIu64 ",\n", name, value);
}

/* The members in qemu-img's order. */
static void
print_json(const struct run *r)
{
	const struct check_result *c = &r->result;

	puts("{");
	json_number("image-end-offset", c->image_end, false);
	json_number("compressed-clusters", c->compressed_clusters, false);
	json_number("total-clusters", c->total_clusters, false);
	json_number("corruptions", c->corruptions, false);
	json_number("corruptions-fixed", c->corruptions_fixed, false);
	json_number("check-errors", c->errors, true);
	json_number("leaks", c->leaks, false);
	json_number("leaks-fixed", c->leaks_fixed, false);
	json_number("allocated-clusters", c->allocated_clusters, false);
	json_string("filename", r->filename);
	puts(",");
	json_string("format", r->format);
	if (c->fragmented_clusters)
		printf(",\n    \"fragmented-clusters\": %" PRIu64, c->fragmented_clusters);
	puts("\n}");
}

static void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void
complain(const char *fmt, ...)
{
	va_list ap;

	fputs("quoin check: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

/* ---- the check ---- */

static int
check_once(struct run *r, unsigned fix)
{
	static const struct check_report report = { .line = print_line };

	return node_check(r->node, fix, &report, &r->result);
}

/* What was repaired is judged by a check that repairs nothing. */
static int
check_again(struct run *r)
{
	uint64_t leaks = r->result.leaks_fixed, corruptions = r->result.corruptions_fixed;
	int err;

	if (!r->json && !r->quiet)
		printf("The following inconsistencies were found and repaired:\n"
		       "\n"
		       "    %" PRIu64 " leaked clusters\n"
		       "    %" PRIu64 " corruptions\n"
		       "\n"
		       "Double checking the fixed image now...\n", leaks, corruptions);
	err = check_once(r, 0);
	r->result.leaks_fixed = leaks;
	r->result.corruptions_fixed = corruptions;
	return err;
}

static int
status_of(const struct run *r, int err)
{
	if (err < 0)
		complain("Check failed: %s", strerror(-err));
	else if (r->result.errors)
		complain("Check failed");
	if (err < 0 || r->result.errors)
		return EXIT_NOT_CHECKED;
	if (r->result.corruptions)
		return EXIT_CORRUPT;
	return r->result.leaks ? EXIT_LEAKS : EXIT_SOUND;
}

static int
check(struct run *r)
{
	int err = check_once(r, r->fix);

	if (err == -ENOTSUP) {
		complain("This image format does not support checks");
		return EXIT_NO_CHECK;
	}
	if (r->result.corruptions_fixed || r->result.leaks_fixed)
		err = check_again(r);
	if (!err && !r->quiet && r->json)
		print_json(r);
	else if (!err && !r->quiet)
		print_human(&r->result);
	return status_of(r, err);
}

/* ---- opening ---- */

static void
set_file(struct BlockdevOptions *o, const char *filename)
{
	struct stat st;

	o->driver = BLOCKDEV_DRIVER_FILE;
	if (stat(filename, &st) == 0 && S_ISBLK(st.st_mode))
		o->driver = BLOCKDEV_DRIVER_HOST_DEVICE;
	if (o->driver == BLOCKDEV_DRIVER_FILE)
		o->u.file.filename = (char *)filename;
	else
		o->u.host_device.filename = (char *)filename;
}

static int
open_image(struct run *r, struct error **errp)
{
	static const struct open_policy policy = { .check = true };
	struct BlockdevRef file = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevOptions o = {
		.node_name = (char *)"image",
		.driver = strcmp(r->format, "qcow") ? BLOCKDEV_DRIVER_QCOW2 : BLOCKDEV_DRIVER_QCOW,
		.has_read_only = true,
		.read_only = !r->fix,
		.has_force_share = r->force_share,
		.force_share = r->force_share,
		.has_discard = true,
		.discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
	};
	perm_set perm = PERM_CONSISTENT_READ, shared = PERM_ALL;

	set_file(&file.u.definition, r->filename);
	if (o.driver == BLOCKDEV_DRIVER_QCOW)
		o.u.qcow.file = &file;
	else
		o.u.qcow2.file = &file;
	if (r->fix) {
		perm |= PERM_WRITE | PERM_RESIZE;
		shared = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;
	}
	if (node_open(&o, &policy, &r->node, errp) < 0)
		return -1;
	return root_new(r->node, "root", perm, shared, NULL, NULL, &r->root, errp);
}

static int close_error;

static void
on_close_failed(const char *name, int err)
{
	(void)name;
	close_error = err;
}

static void
main_co(void *arg)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct run *r = arg;

	if (open_image(r, &err) < 0)
		complain("Could not open '%s': %s%s", r->filename, error_text(err),
			 error_hint(err));
	else
		r->status = check(r);
	root_free(r->root);
	node_unref(r->node);
	if (close_error) {
		complain("Could not store all of it: %s", strerror(-close_error));
		r->status = EXIT_NOT_CHECKED;
	}
}

static int
run(struct run *r)
{
	CLEANUP(error_freep) struct error *err = NULL;

	r->status = EXIT_NOT_CHECKED;
	node_close_failed = on_close_failed;
	signal(SIGXFSZ, SIG_IGN);	/* an error like others */
	if (loops_start(1, 0, &err) < 0) {
		complain("%s%s", error_text(err), error_hint(err));
		return EXIT_NOT_CHECKED;
	}
	if (loop_run_co(main_co, r) < 0)
		complain("Cannot allocate memory");
	loops_stop();
	if (fflush(stdout) || ferror(stdout)) {
		complain("Could not write the report");
		return EXIT_NOT_CHECKED;
	}
	return r->status;
}

/* ---- the format ---- */

/* By the first bytes; "raw" for what is none of ours.  NULL: *errp. */
static const char *
probe(const char *filename, struct error **errp)
{
	CLEANUP(cleanup_close) int fd = open(filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	uint8_t head[8] = { 0 };
	ssize_t n = fd < 0 ? -1 : pread(fd, head, sizeof(head), 0);

	if (n < 0) {
		error_set_errno(errp, errno, "Could not open '%s'", filename);
		return NULL;
	}
	if (n < (ssize_t)sizeof(head) || get_be32(head) != UINT32_C(0x514649fb))
		return "raw";
	return get_be32(head + 4) == 1 ? "qcow" : "qcow2";
}

static bool
is_driver(const char *name)
{
	for (int d = 0; d < BLOCKDEV_DRIVER__MAX; d++)
		if (!strcmp(BlockdevDriver_str((enum BlockdevDriver)d), name))
			return true;
	return false;
}

/* 0: go on; else the exit status. */
static int
choose_format(struct run *r)
{
	CLEANUP(error_freep) struct error *err = NULL;

	if (!r->format)
		r->format = probe(r->filename, &err);
	else if (!is_driver(r->format))
		error_set(&err, "Unknown driver '%s'", r->format);
	if (err) {
		complain("Could not open '%s': %s%s", r->filename, error_text(err),
			 error_hint(err));
		return EXIT_NOT_CHECKED;
	}
	if (!strcmp(r->format, "qcow") || !strcmp(r->format, "qcow2"))
		return 0;
	complain("This image format does not support checks");
	return EXIT_NO_CHECK;
}

/* ---- options ---- */

static int
bad_usage(void)
{
	fputs("quoin check: see quoin check --help\n", stderr);
	return -1;
}

static int
set_repair(struct run *r, const char *what)
{
	r->fix = 0;
	if (!strcmp(what, "leaks"))
		r->fix = CHECK_FIX_LEAKS;
	else if (!strcmp(what, "all"))
		r->fix = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS;
	if (r->fix)
		return 0;
	complain("--repair (-r) expects 'leaks' or 'all' not '%s'", what);
	return bad_usage();
}

static int
set_output(struct run *r, const char *what)
{
	r->json = !strcmp(what, "json");
	if (r->json || !strcmp(what, "human"))
		return 0;
	complain("--output expects 'human' or 'json' not '%s'", what);
	return bad_usage();
}

static int
set_option(struct run *r, int c)
{
	switch (c) {
	case 'f':
		r->format = optarg;
		return 0;
	case 'r':
		return set_repair(r, optarg);
	case 'U':
		r->force_share = true;
		return 0;
	case 'o':
		return set_output(r, optarg);
	case 'q':
		r->quiet = true;
		return 0;
	default:
		return -1;
	}
}

int
cli_check(int argc, char **argv)
{
	static const struct option options[] = {
		{ "format", required_argument, NULL, 'f' },
		{ "repair", required_argument, NULL, 'r' },
		{ "force-share", no_argument, NULL, 'U' },
		{ "output", required_argument, NULL, 'o' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct run r = { 0 };
	int c, status;

	while ((c = getopt_long(argc, argv, "f:r:Uqh", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return EXIT_SOUND;
		}
		if (set_option(&r, c) < 0)
			return EXIT_NOT_CHECKED;
	}
	if (argc - optind != 1) {
		complain("Expecting one image file name");
		bad_usage();
		return EXIT_NOT_CHECKED;
	}
	r.filename = argv[optind];
	status = choose_format(&r);
	return status ? status : run(&r);
}
