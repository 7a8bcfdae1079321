/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_block.h - what nodes need of the daemon. */
#ifndef DAEMON_CMD_BLOCK_H
#define DAEMON_CMD_BLOCK_H

struct open_policy;

/* The rules for opening images from now on; borrowed.  NULL: the default ones. */
void cmd_block_set_policy(const struct open_policy *policy);

/* Was there a node that, when it was closed, could not store everything?  Each
 * was said in the log.  For the exit status. */
int cmd_block_close_failures(void);

/* Close all nodes.  Coroutine; jobs and exports have gone. */
void cmd_block_done(void);

#endif
