/* SPDX-License-Identifier: Apache-2.0 */
/* block/lock.h - permissions as locks on an image file, in QEMU's way.
 *
 * Who holds permission number i holds a shared lock on byte 100 + i; who does not
 * let others have it holds one on byte 200 + i.  So that two never meet, each
 * first takes its own locks and then looks whether anybody holds the bytes that
 * contradict them (qemu, block/file-posix.c, RAW_LOCK_PERM_BASE).  The locks
 * belong to the open file description, so they end with it.
 *
 * Context    any thread; may block where a file system asks a server.
 * Errors     0 or -1 with *errp.
 */
#ifndef BLOCK_LOCK_H
#define BLOCK_LOCK_H

#include "block/perm.h"

struct error;

/* What a description holds. */
struct lock_set {
	perm_set perm, unshared;
};

/* Take what want lacks in *held, on fd; *held is updated as far as it went. */
int lock_take(int fd, struct lock_set *held, struct lock_set want, struct error **errp);
/* Is anybody else's lock in the way of want?  filename is for the hint. */
int lock_check(int fd, struct lock_set want, const char *filename, struct error **errp);
/* Let go of what *held has beyond want.  Cannot fail. */
void lock_drop(int fd, struct lock_set *held, struct lock_set want);

/* Does the file behind fd know such locks? */
int lock_probe(int fd);	/* 0 or -errno */

#endif
