/* SPDX-License-Identifier: Apache-2.0 */
/* cli/rescue.h - quoin rescue: decrypt an image to a plain one. */
#ifndef CLI_RESCUE_H
#define CLI_RESCUE_H

/* argv[0] is the verb; the exit status.  Ends by the signal that stopped it. */
int cli_rescue(int argc, char **argv);

#endif
