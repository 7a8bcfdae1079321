/* SPDX-License-Identifier: Apache-2.0 */
/* job/backup.h - copy a disk as it is now, while it goes on being written.
 *
 * Context    loop 0, coroutine.
 * Errors     0 or -1 with *errp, QEMU's texts.  On failure nothing has changed.
 */
#ifndef JOB_BACKUP_H
#define JOB_BACKUP_H

struct BlockdevBackup;
struct error;

int backup_start(const struct BlockdevBackup *args, struct error **errp);

#endif
