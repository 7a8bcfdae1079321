/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static struct {
	char *path;	/* absolute: --daemonize changes the folder */
	int fd;		/* holds the lock */
} pidfile = { .fd = -1 };

/* Open and lock; the file may have been removed by its last owner in between.
 * Returns the fd, -1 with *errp, or -EAGAIN to try again. */
static int
open_locked(const char *path, struct error **errp)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct stat by_fd, by_name;
	int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0644);

	if (fd < 0) {
		error_set_errno(errp, errno, "cannot create PID file: Could not create '%s'", path);
		return -1;
	}
	if (fcntl(fd, F_OFD_SETLK, &lock)) {
		error_set(errp, "cannot create PID file: Cannot lock pid file '%s':"
			  " another process has it", path);
		close(fd);
		return -1;
	}
	if (!fstat(fd, &by_fd) && !stat(path, &by_name) && by_fd.st_ino == by_name.st_ino &&
	    by_fd.st_dev == by_name.st_dev)
		return fd;
	close(fd);
	return -EAGAIN;
}

static char *
absolute(const char *path)
{
	char cwd[PATH_MAX], *abs;

	if (path[0] == '/')
		return strdup(path);
	if (!getcwd(cwd, sizeof(cwd)) || asprintf(&abs, "%s/%s", cwd, path) < 0)
		return NULL;
	return abs;
}

int
pidfile_write(const char *path, struct error **errp)
{
	int fd;

	while ((fd = open_locked(path, errp)) == -EAGAIN)
		continue;
	if (fd < 0)
		return -1;
	pidfile.path = absolute(path);
	if (!pidfile.path || ftruncate(fd, 0) || dprintf(fd, "%ld\n", (long)getpid()) < 0) {
		error_set_errno(errp, errno, "cannot create PID file: Failed to write pid file");
		unlink(path);
		close(fd);
		free(pidfile.path);
		pidfile.path = NULL;
		return -1;
	}
	pidfile.fd = fd;
	return 0;
}

void
pidfile_remove(void)
{
	if (pidfile.fd < 0)
		return;
	unlink(pidfile.path);
	close(pidfile.fd);
	free(pidfile.path);
	pidfile.path = NULL;
	pidfile.fd = -1;
}
