/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ownfile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int
ownfile_note(struct ownfile *f, const char *path)
{
	char *absolute = realpath(path, NULL);
	struct stat st;

	if (!absolute)
		return -errno;
	if (lstat(absolute, &st)) {
		int err = -errno;

		free(absolute);
		return err;
	}
	*f = (struct ownfile){ .path = absolute, .dev = st.st_dev, .ino = st.st_ino };
	return 0;
}

void
ownfile_remove(struct ownfile *f)
{
	struct stat st;

	if (!f->path)
		return;
	if (!lstat(f->path, &st) && st.st_dev == f->dev && st.st_ino == f->ino)
		unlink(f->path);
	free(f->path);
	*f = (struct ownfile){ 0 };
}
