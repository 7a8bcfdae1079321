/* SPDX-License-Identifier: Apache-2.0 */
/* job/commit.h - move data of some layers of a backing chain down into a lower one.
 *
 * Context    loop 0, coroutine.
 * Errors     0 or -1 with *errp, QEMU's texts.  On failure nothing has changed.
 */
#ifndef JOB_COMMIT_H
#define JOB_COMMIT_H

struct block_commit_args;
struct error;

int commit_start(const struct block_commit_args *args, struct error **errp);

#endif
