/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/rescue.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "cli/report.h"
#include "rescue/key.h"
#include "rescue/keyring.h"
#include "rescue/list.h"
#include "rescue/output.h"
#include "rescue/phase.h"
#include "rescue/run.h"
#include "rescue/wordlist.h"

static const char help[] =
	"Usage: quoin rescue [OPTION]... SOURCE TARGET\n"
	"       quoin rescue --list [OPTION]... SOURCE\n"
	"\n"
	"Decrypt an image that is encrypted in the old way of qcow or qcow2 (AES-CBC) or\n"
	"with LUKS to a plain one.  The backing files of SOURCE are read too, and TARGET\n"
	"needs none of them.  SOURCE is never changed.  TARGET is a file, which appears\n"
	"when it is whole and on disk; a block device; an NBD URI; or - for standard\n"
	"output.\n"
	"\n"
	"The password is asked for on the terminal, unless a key option is given.  Keys\n"
	"are tried as they are and then without the newline at their end, or with one;\n"
	"several may be given, each layer takes the one that fits.  What a key decrypts\n"
	"is looked at before anything is written, and a wrong one is refused.\n"
	"\n"
	"      --list                   show the layers of SOURCE, and try the keys given;\n"
	"                               write nothing\n"
	"      --key-file FILE          the password is all of FILE\n"
	"      --key-fd N               the password is all that descriptor N gives\n"
	"      --key-credential NAME    the password is a credential of systemd's\n"
	"      --try-keys FILE          each line of FILE may be the password\n"
	"      --layer N                key options behind this are for layer N only; the\n"
	"                               topmost is 0; all ends it\n"
	"      --accept-unverified-key  decrypt even if nothing shows that the key is\n"
	"                               right: if it is wrong, TARGET will be noise\n"
	"      --mixed-encryption       find sectors that old programs stored as plain text\n"
	"                               or with another IV, and read them so\n"
	"      --header FILE            SOURCE, or the lowest of its backing files, is a LUKS\n"
	"                               volume whose header is in FILE\n"
	"      --snapshot NAME          the disk as an internal snapshot of SOURCE has it, by\n"
	"                               ID or name, or snapshot.id=ID,snapshot.name=NAME\n"
	"      --target-format FORMAT   raw (default) or qcow2\n"
	"      --compress KIND          compress it: zlib or zstd; qcow2 only\n"
	"      --keep-chain             make TARGET a folder with a plain copy of each layer\n"
	"      --resume                 keep what an interrupted run did, and go on with it\n"
	"      --verify                 read TARGET back and compare it with SOURCE\n"
	"      --salvage                go on at damaged places: TARGET has zeroes there\n"
	"      --map FILE               where --salvage says what was lost, as a mapfile of\n"
	"                               ddrescue; TARGET.map if TARGET is a file\n"
	"      --json                   print a report on standard output, as JSON\n"
	"      --no-digest              ... without the SHA-256 of the disk's content\n"
	"  -f, --force                  replace TARGET, or overwrite a device or an export\n"
	"  -q, --quiet                  print errors only\n"
	"  -h, --help                   display this help and exit\n"
	"\n"
	"SIGUSR1 prints how far it is.\n"
	"\n"
	"Exit status: 0, 1 on errors, 2 for bad usage, 3 if the key is wrong, 4 if it\n"
	"cannot be judged whether it is, 5 if TARGET is there but some data was lost.\n";

enum {
	OPT_LIST = 256,
	OPT_KEY_FILE,
	OPT_KEY_FD,
	OPT_KEY_CREDENTIAL,
	OPT_TRY_KEYS,
	OPT_LAYER,
	OPT_BARE_KEY,
	OPT_HEADER,
	OPT_SNAPSHOT,
	OPT_FORMAT,
	OPT_COMPRESS,
	OPT_ACCEPT,
	OPT_MIXED,
	OPT_VERIFY,
	OPT_SALVAGE,
	OPT_MAP,
	OPT_KEEP_CHAIN,
	OPT_RESUME,
	OPT_JSON,
	OPT_NO_DIGEST,
};

static const struct option long_options[] = {
	{ "list", no_argument, NULL, OPT_LIST },
	{ "key-file", required_argument, NULL, OPT_KEY_FILE },
	{ "key-fd", required_argument, NULL, OPT_KEY_FD },
	{ "key-credential", required_argument, NULL, OPT_KEY_CREDENTIAL },
	{ "try-keys", required_argument, NULL, OPT_TRY_KEYS },
	{ "layer", required_argument, NULL, OPT_LAYER },
	/* What people try that nobody should. */
	{ "key", optional_argument, NULL, OPT_BARE_KEY },
	{ "object", optional_argument, NULL, OPT_BARE_KEY },
	{ "passphrase", optional_argument, NULL, OPT_BARE_KEY },
	{ "password", optional_argument, NULL, OPT_BARE_KEY },
	{ "secret", optional_argument, NULL, OPT_BARE_KEY },
	{ "header", required_argument, NULL, OPT_HEADER },
	{ "snapshot", required_argument, NULL, OPT_SNAPSHOT },
	{ "target-format", required_argument, NULL, OPT_FORMAT },
	{ "compress", required_argument, NULL, OPT_COMPRESS },
	{ "accept-unverified-key", no_argument, NULL, OPT_ACCEPT },
	{ "mixed-encryption", no_argument, NULL, OPT_MIXED },
	{ "keep-chain", no_argument, NULL, OPT_KEEP_CHAIN },
	{ "resume", no_argument, NULL, OPT_RESUME },
	{ "verify", no_argument, NULL, OPT_VERIFY },
	{ "salvage", no_argument, NULL, OPT_SALVAGE },
	{ "map", required_argument, NULL, OPT_MAP },
	{ "json", no_argument, NULL, OPT_JSON },
	{ "no-digest", no_argument, NULL, OPT_NO_DIGEST },
	{ "force", no_argument, NULL, 'f' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

enum { PARSE_HELP = -1, PARSE_OK = 0 };

/* What --json asked for; NULL: nothing. */
static struct report *the_report;
static bool quiet;
static int keys_for = KEY_ANY_LAYER;	/* the layer that --layer named last */
static bool layer_waits;		/* and there was no key behind it yet */

/* Names in it may be those that an image has, which do nothing to a terminal. */
static void
print_line(const char *before, const char *line, const char *behind)
{
	fputs(before, stderr);
	list_text(line, stderr);
	fprintf(stderr, "%s\n", behind);
}

static void
say(const char *line)
{
	if (the_report)
		report_say(the_report, line);
	if (!quiet)
		print_line("", line, "");
}

static int
complain(const char *what, const char *arg)
{
	fprintf(stderr, "quoin rescue: %s%s; see quoin rescue --help\n", what, arg);
	return RUN_USAGE;
}

/* A number from 0 to INT_MAX and nothing else; -1: it is none. */
static int
parse_number(const char *arg)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(arg, &end, 10);
	return errno || end == arg || *end || n < 0 || n > INT_MAX ? -1 : (int)n;
}

static int
read_key(int opt, const char *arg, struct key **ret, struct error **errp)
{
	switch (opt) {
	case OPT_KEY_FD:
		return key_read_fd(parse_number(arg), ret, errp);
	case OPT_KEY_CREDENTIAL:
		return key_read_credential(arg, ret, errp);
	default:
		return key_read_file(arg, ret, errp);
	}
}

static int
add_key(struct keyring *ring, int opt, const char *arg)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct key *key = NULL;

	ring->ask = false;
	if (opt == OPT_KEY_FD && parse_number(arg) < 0)
		return complain("this is no file descriptor: ", arg);
	if (read_key(opt, arg, &key, &err) == 0) {
		key->layer = keys_for;
		layer_waits = false;
		if (keyring_add(ring, key, &err) == 0)
			return PARSE_OK;
	}
	fprintf(stderr, "quoin rescue: %s\n", error_text(err));
	return RUN_FAILED;
}

static int
set_words(struct keyring *ring, const char *path)
{
	CLEANUP(error_freep) struct error *err = NULL;

	if (ring->words)
		return complain("--try-keys was given twice", "");
	ring->ask = false;
	if (wordlist_read(path, &ring->words, &err) == 0)
		return PARSE_OK;
	fprintf(stderr, "quoin rescue: %s\n", error_text(err));
	return RUN_FAILED;
}

static int
set_layer(const char *arg)
{
	bool all = !strcmp(arg, "all");

	keys_for = all ? KEY_ANY_LAYER : parse_number(arg);
	if (!all && keys_for < 0)
		return complain("a layer is a number, 0 for the topmost, or all; not ", arg);
	layer_waits = !all;
	return PARSE_OK;
}

/* Not the place for a key; what stands behind it is not read, let alone printed. */
static int
refuse_bare_key(void)
{
	fputs("quoin rescue: a password is never taken from the command line, where every user of "
	      "this machine can\nsee it and the shell remembers it.  Let it be asked for, or use "
	      "--key-file, --key-fd or --key-credential.\n"
	      "If you just gave yours, it should count as known to others.\n", stderr);
	return RUN_USAGE;
}

static int
set_format(struct run_options *o, const char *arg)
{
	if (!strcmp(arg, "raw"))
		o->format = RUN_RAW;
	else if (!strcmp(arg, "qcow2"))
		o->format = RUN_QCOW2;
	else
		return complain("the target's format is raw or qcow2, not ", arg);
	return PARSE_OK;
}

static int
set_packing(struct run_options *o, const char *arg)
{
	if (!strcmp(arg, "zlib"))
		o->packing = OUTPUT_ZLIB;
#ifdef HAVE_ZSTD
	else if (!strcmp(arg, "zstd"))
		o->packing = OUTPUT_ZSTD;
#else
	else if (!strcmp(arg, "zstd"))
		return complain("this program was built without zstd", "");
#endif
	else
		return complain("what compresses is zlib or zstd, not ", arg);
	return PARSE_OK;
}

static int
take_option(struct run_options *o, bool *list, int opt)
{
	switch (opt) {
	case OPT_LIST:
		*list = true;
		return PARSE_OK;
	case OPT_KEY_FILE:
	case OPT_KEY_FD:
	case OPT_KEY_CREDENTIAL:
		return add_key(o->keys, opt, optarg);
	case OPT_TRY_KEYS:
		return set_words(o->keys, optarg);
	case OPT_LAYER:
		return set_layer(optarg);
	case OPT_BARE_KEY:
		return refuse_bare_key();
	case OPT_HEADER:
		o->header = optarg;
		return PARSE_OK;
	case OPT_SNAPSHOT:
		o->snapshot = optarg;
		return PARSE_OK;
	case OPT_FORMAT:
		return set_format(o, optarg);
	case OPT_COMPRESS:
		return set_packing(o, optarg);
	case OPT_ACCEPT:
		o->keys->accept_unverified = true;
		return PARSE_OK;
	case OPT_MIXED:
		o->mixed = true;
		return PARSE_OK;
	case OPT_KEEP_CHAIN:
		o->keep_chain = true;
		return PARSE_OK;
	case OPT_RESUME:
		o->resume = true;
		return PARSE_OK;
	case OPT_VERIFY:
		o->verify = true;
		return PARSE_OK;
	case OPT_SALVAGE:
		o->salvage = true;
		return PARSE_OK;
	case OPT_MAP:
		o->map = optarg;
		return PARSE_OK;
	case 'f':
		o->force = true;
		return PARSE_OK;
	case OPT_JSON:
		o->report = report_take;
		return PARSE_OK;
	case OPT_NO_DIGEST:
		o->digest = false;
		return PARSE_OK;
	case 'q':
		quiet = true;
		o->progress = NULL;
		return PARSE_OK;
	case 'h':
		return PARSE_HELP;
	default:
		return RUN_USAGE;
	}
}

/* What the command of a list repeats. */
static const struct {
	int opt;
	struct run_again again;
} repeated[] = {
	{ OPT_KEY_FILE, { .option = "--key-file", .is_key = true } },
	{ OPT_KEY_CREDENTIAL, { .option = "--key-credential", .is_key = true } },
	{ OPT_TRY_KEYS, { .option = "--try-keys", .is_key = true } },
	{ OPT_LAYER, { .option = "--layer", .is_key = true } },
	{ OPT_ACCEPT, { .option = "--accept-unverified-key", .is_key = true } },
	{ OPT_MIXED, { .option = "--mixed-encryption" } },
	{ OPT_HEADER, { .option = "--header" } },
	{ OPT_SNAPSHOT, { .option = "--snapshot" } },
};

/* There is room for as many as there are words. */
static void
note_again(struct run_options *o, struct run_again *to, int opt, const char *arg)
{
	/* It has been read to its end: no other command gets a key from it. */
	if (opt == OPT_KEY_FD)
		o->keys_again = false;
	for (size_t i = 0; i < ARRAY_SIZE(repeated); i++) {
		if (repeated[i].opt != opt)
			continue;
		to[o->again_count] = repeated[i].again;
		to[o->again_count++].value = arg;
	}
}

/* Options that want or exclude each other. */
static int
check_options(struct run_options *o)
{
	enum output_kind kind = o->target ? output_kind_of(o->target) : OUTPUT_FILE;

	if (o->target && !*o->target)
		return complain("the target has no name", "");
	if (o->target && kind == OUTPUT_FILE && !strncmp(o->target, "nbd:", 4))
		return complain("an NBD export is nbd://HOST:PORT/NAME, or "
				"nbd+unix:///NAME?socket=PATH, and a file ./", o->target);
	if (o->report && kind == OUTPUT_STREAM)
		return complain("the report of --json and the disk cannot both go to standard "
				"output", "");
	if (layer_waits)
		return complain("--layer wants a key option behind it", "");
	if (o->keys->words && o->keys->accept_unverified)
		return complain("--accept-unverified-key wants one key, not the many of --try-keys", "");
	if (o->packing != OUTPUT_STORED && o->format != RUN_QCOW2 && !o->keep_chain)
		return complain("only what becomes qcow2 is compressed, see --target-format", "");
	if (o->map && !o->salvage)
		return complain("--map wants --salvage", "");
	if (o->map && o->target && !strcmp(o->map, o->target))
		return complain("the map cannot be the target: ", o->map);
	if (o->verify && kind == OUTPUT_STREAM)
		return complain("what goes to standard output cannot be read back to verify it", "");
	if (o->keep_chain && o->map)
		return complain("the maps of a kept chain are in its folder, --map is not for it", "");
	if (o->keep_chain && kind != OUTPUT_FILE)
		return complain("a chain that is kept goes to a folder, not to ", o->target);
	if (o->resume && kind != OUTPUT_FILE)
		return complain("only what goes to a file can be resumed, not ", o->target);
	if (o->salvage && !o->map && kind != OUTPUT_FILE)
		return complain("--salvage wants --map FILE unless the target is a file", "");
	return PARSE_OK;
}

/* "TARGET.map", which must live as long as o; NULL on no memory. */
static char *
default_map(struct run_options *o)
{
	char *map;

	if (asprintf(&map, "%s.map", o->target) < 0)
		return NULL;
	o->map = map;
	return map;
}

/* People like to end the name of a folder so. */
static void
strip_slashes(char *path)
{
	for (size_t len = strlen(path); len > 1 && path[len - 1] == '/'; len--)
		path[len - 1] = '\0';
}

/* PARSE_OK, PARSE_HELP, or the exit status of an error that was printed. */
static int
parse(int argc, char **argv, struct run_options *o, struct run_again *again)
{
	bool list = false;
	int c, r;

	while ((c = getopt_long(argc, argv, "fqh", long_options, NULL)) != -1) {
		r = take_option(o, &list, c);
		if (r != PARSE_OK)
			return r;
		note_again(o, again, c, optarg);
	}
	if (list && argc - optind != 1)
		return complain("--list wants a source and nothing else", "");
	if (!list && argc - optind != 2)
		return complain("a source and a target are wanted", "");
	o->source = argv[optind];
	o->target = list ? NULL : argv[optind + 1];
	if (o->keep_chain && o->target)
		strip_slashes(argv[optind + 1]);
	o->keys->say = o->say;
	return check_options(o);
}

static void
say_end(const struct run_options *o, int status)
{
	bool stream = output_kind_of(o->target) == OUTPUT_STREAM;

	/* Where a stream ends is not known here. */
	if (status == RUN_OK && stream)
		fputs("all of the disk was written to standard output\n", stderr);
	else if (status == RUN_OK)
		fprintf(stderr, "%s is whole and on disk\n", o->target);
	if (status == RUN_INCOMPLETE && stream)
		fputs("standard output got the disk; some of its data is missing\n", stderr);
	else if (status == RUN_INCOMPLETE)
		fprintf(stderr, "%s is on disk; some of its data is missing\n", o->target);
}

/* A report is begun when it is known that one is wanted. */
static int
begin_report(struct run_options *o)
{
	o->digest = o->digest && o->report;
	if (!o->report)
		return 0;
	the_report = report_new();
	o->report_user = the_report;
	o->no_list = true;
	return the_report ? 0 : -1;
}

static bool
is_same_file(const char *a, const char *b)
{
	struct stat x, y;

	return a && b && stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

/* Who has lost the key has lost the disk. */
static bool
spares_keys(const struct run_options *o)
{
	for (size_t i = 0; i < o->again_count; i++) {
		const struct run_again *a = &o->again[i];

		if (strcmp(a->option, "--key-file") && strcmp(a->option, "--try-keys"))
			continue;
		if (!is_same_file(a->value, o->target) && !is_same_file(a->value, o->map))
			continue;
		fprintf(stderr, "quoin rescue: '%s' is a file of keys, which is never overwritten\n",
			a->value);
		return false;
	}
	return true;
}

static int
run(struct run_options *o)
{
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(cleanup_free) char *map = NULL;
	int status;

	if (o->salvage && o->target && !o->map && !o->keep_chain)
		map = default_map(o);
	if (!spares_keys(o))
		return RUN_FAILED;
	status = run_rescue(o, &err);
	if (err)
		print_line("quoin rescue: ", error_text(err), error_hint(err));
	if (!quiet && o->target)
		say_end(o, status);
	if (the_report && report_print(the_report, status) < 0) {
		fprintf(stderr, "quoin rescue: the report could not be written\n");
		status = status == RUN_OK ? RUN_FAILED : status;
	}
	return status;
}

/* Keys and plain data have no business in a core dump.  The limit does not hold for those
 * that the kernel hands to a program; nor may others who run as this user look in. */
static void
forbid_dumps(void)
{
	static const struct rlimit no_core = { 0, 0 };

	(void)setrlimit(RLIMIT_CORE, &no_core);
	(void)prctl(PR_SET_DUMPABLE, 0);
}

int
cli_rescue(int argc, char **argv)
{
	struct keyring keys = { .ask = true };
	CLEANUP(cleanup_free) struct run_again *again = calloc((size_t)argc, sizeof(*again));
	struct run_options o = { .keys = &keys, .say = say, .progress = stderr,
				 .digest = true, .again = again, .keys_again = true };
	int status;

	if (!again) {
		fputs("quoin rescue: Cannot allocate memory\n", stderr);
		return RUN_FAILED;
	}

	/* Line by line, and not by the byte. */
	(void)setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
	forbid_dumps();
	phase_watch();
	status = parse(argc, argv, &o, again);
	if (status == PARSE_OK)
		status = begin_report(&o) < 0 ? RUN_FAILED : run(&o);
	report_free(the_report);
	keyring_done(&keys);
	if (status == PARSE_HELP) {
		fputs(help, stdout);
		return EXIT_SUCCESS;
	}
	if (status > RUN_INTERRUPTED) {
		signal(status - RUN_INTERRUPTED, SIG_DFL);
		raise(status - RUN_INTERRUPTED);
	}
	return status;
}
