/* SPDX-License-Identifier: Apache-2.0 */
/* cli/check.h - quoin check: is an image's metadata sound; repair it. */
#ifndef CLI_CHECK_H
#define CLI_CHECK_H

/* argv[0] is the verb; the exit status. */
int cli_check(int argc, char **argv);

#endif
