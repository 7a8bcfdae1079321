/* SPDX-License-Identifier: Apache-2.0 */
/* cli/main.c - quoin: the operator's one-shot verbs. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/check.h"
#include "cli/info.h"
#include "cli/qmp.h"
#include "cli/rescue.h"

enum { EXIT_USAGE = 2 };

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
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(verbs[i].name, argv[0]))
			return verbs[i].run(argc, argv);
	fprintf(stderr, "quoin: unknown verb '%s'; see quoin --help\n", argv[0]);
	return EXIT_USAGE;
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

	/* The leading '+' leaves everything behind the verb to the verb. */
	while ((c = getopt_long(argc, argv, "+hV", options, NULL)) != -1) {
		switch (c) {
		case 'h':
			print_help();
			return EXIT_SUCCESS;
		case 'V':
			puts("quoin version " PACKAGE_VERSION);
			return EXIT_SUCCESS;
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
	return run_verb(argc, argv);
}
