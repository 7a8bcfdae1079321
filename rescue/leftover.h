/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/leftover.h - what runs left behind that were killed while they gave names.
 *
 * Files and folders that will get a name can have a hidden one before, ".NAME.PID-N"
 * (rescue/target.h, rescue/folder.h), and SIGKILL or a power cut leaves them there.  They
 * may hold a decrypted disk, so people should hear of them.  They are not removed: their
 * process may be one of another machine, or of another container.
 *
 * Context    any thread; blocks.
 */
#ifndef RESCUE_LEFTOVER_H
#define RESCUE_LEFTOVER_H

/* Find what is called as if it was to become path, is this user's, and belongs to no process
 * that can be seen.  What cannot be looked at is passed over. */
void leftover_find(const char *path, void (*found)(const char *leftover, void *user), void *user);

#endif
