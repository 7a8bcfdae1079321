/* SPDX-License-Identifier: Apache-2.0 */
/* cli/info.h - quoin info: what an image is, without opening what it names. */
#ifndef CLI_INFO_H
#define CLI_INFO_H

/* argv[0] is the verb; the exit status. */
int cli_info(int argc, char **argv);

#endif
