/* SPDX-License-Identifier: Apache-2.0 */
/* cli/main.c - quoin: the operator's one-shot verbs. */
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/check.h"
#include "cli/info.h"
#include "cli/qmp.h"
#include "cli/rescue.h"

enum { EXIT_USAGE = 2, NAME = 32 };

/* Each verb gets argv from its own name on, and returns the exit status. */
static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
} verbs[] = {
	{ "rescue", cli_rescue, "decrypt an image to a plain one" },
	{ "qmp", cli_qmp, "send one command to a daemon" },
	{ "check", cli_check, "check an image's metadata, and repair it" },
	{ "info", cli_info, "say what an image is, and how it is encrypted" },
};

static void
print_help(void)
{
	puts("Usage: quoin [OPTION]... VERB [ARGUMENT]...\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		printf("  %-14s %s\n", verbs[i].name, verbs[i].summary);
	puts("\n"
	     "  -h, --help     display this help and exit\n"
	     "  -V, --version  output version information and exit\n"
	     "\n"
	     "'quoin VERB --help' tells more.");
}

static int
run_verb(int argc, char **argv)
{
	static char name[NAME];

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(verbs[i].name, argv[0])) {
			/* Who speaks, when getopt complains. */
			snprintf(name, sizeof(name), "quoin %s", verbs[i].name);
			argv[0] = name;
			return verbs[i].run(argc, argv);
		}
	fprintf(stderr, "quoin: unknown verb '%s'; see quoin --help\n", argv[0]);
	return EXIT_USAGE;
}

/* A standard descriptor that is closed would become that of the next file to be opened, and
 * what is said would be written into an image.  Held open the wrong way round, so that who
 * uses it is told as if it was closed. */
static int
hold_standard_files(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 &&
		    open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
			return -1;
	return 0;
}

/* What was to be read and could not be printed is no success. */
static int
end_output(int status)
{
	bool lost = fflush(stdout) != 0 || ferror(stdout);

	if (!lost || status != EXIT_SUCCESS)
		return status;
	fprintf(stderr, "quoin: standard output could not be written\n");
	return EXIT_FAILURE;
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	if (hold_standard_files() < 0)
		return EXIT_FAILURE;
	/* The leading '+' leaves everything behind the verb to the verb. */
	while ((c = getopt_long(argc, argv, "+hV", options, NULL)) != -1) {
		switch (c) {
		case 'h':
			print_help();
			return end_output(EXIT_SUCCESS);
		case 'V':
			puts("quoin version " PACKAGE_VERSION);
			return end_output(EXIT_SUCCESS);
		default:
			return EXIT_USAGE;
		}
	}
	if (optind == argc) {
		fprintf(stderr, "quoin: no verb given; see quoin --help\n");
		return EXIT_USAGE;
	}
	argc -= optind;
	argv += optind;
	optind = 0;	/* a fresh start for the verb's own getopt */
	return end_output(run_verb(argc, argv));
}
