/* SPDX-License-Identifier: Apache-2.0 */
/* cli/main.c - quoin: the operator's one-shot verbs. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static void
print_help(void)
{
	puts("Usage: quoin [OPTION]... VERB [ARGUMENT]...\n"
	     "\n"
	     "  -h, --help     display this help and exit\n"
	     "  -V, --version  output version information and exit");
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
			return EXIT_FAILURE;
		}
	}
	if (optind < argc)
		fprintf(stderr, "quoin: unknown verb '%s'\n", argv[optind]);
	else
		fprintf(stderr, "quoin: no verb given; see quoin --help\n");
	return EXIT_FAILURE;
}
