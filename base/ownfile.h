/* SPDX-License-Identifier: Apache-2.0 */
/* base/ownfile.h - a file that this process made and is to remove: a socket.
 *
 * Remembered by its absolute path, for the process may change its folder, and by
 * its identity, for somebody else may have put another file there since.
 *
 * Context    any thread; one at a time for a struct.
 */
#ifndef BASE_OWNFILE_H
#define BASE_OWNFILE_H

#include <sys/types.h>

struct ownfile {	/* zero bytes: none */
	char *path;
	dev_t dev;
	ino_t ino;
};

/* Remember the file that is now at path.  -errno: nothing is remembered. */
int ownfile_note(struct ownfile *f, const char *path);

/* Remove it if it is still the same, and forget it.  No-op for none. */
void ownfile_remove(struct ownfile *f);

#endif
