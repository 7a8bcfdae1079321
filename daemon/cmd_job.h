/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_job.h - what jobs need of the daemon. */
#ifndef DAEMON_CMD_JOB_H
#define DAEMON_CMD_JOB_H

/* Events of jobs.  Before the first job. */
void cmd_job_init(void);

/* Cancel all jobs and wait for their end, for some seconds.  Coroutine. */
void cmd_job_done(void);

#endif
