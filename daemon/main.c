/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/main.c - quoind: the storage daemon's entry. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static void
print_help(void)
{
	puts("Usage: quoind [OPTION]...\n"
	     "Hold a graph of block nodes and serve it over QMP and NBD.\n"
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

	while ((c = getopt_long(argc, argv, "hV", options, NULL)) != -1) {
		switch (c) {
		case 'h':
			print_help();
			return EXIT_SUCCESS;
		case 'V':
			puts("quoind version " PACKAGE_VERSION);
			return EXIT_SUCCESS;
		default:
			return EXIT_FAILURE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "quoind: Unexpected argument '%s'\n",
			argv[optind]);
		return EXIT_FAILURE;
	}
	fprintf(stderr, "quoind: nothing to do; see quoind --help\n");
	return EXIT_FAILURE;
}
