/* SPDX-License-Identifier: Apache-2.0 */
/* cli/qmp.h - quoin qmp: one command to a daemon, for people and scripts. */
#ifndef CLI_QMP_H
#define CLI_QMP_H

/* argv[0] is the verb; the exit status. */
int cli_qmp(int argc, char **argv);

#endif
