/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/leftover.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "rescue/target.h"

/* Whose hidden name for this one is it?  0: nobody's, it is none. */
static pid_t
maker(const char *entry, const char *name)
{
	size_t len = strnlen(name, TARGET_HIDDEN_NAME);
	int pid, end = 0;

	if (entry[0] != '.' || strncmp(entry + 1, name, len) || entry[1 + len] != '.')
		return 0;
	entry += 1 + len + 1;
	if (sscanf(entry, "%d-%*u%n", &pid, &end) != 1 || !end || entry[end] || pid <= 0)
		return 0;
	return pid;
}

static bool
is_left(int folder, const char *entry, const char *name)
{
	pid_t pid = maker(entry, name);
	struct stat st;

	return pid && kill(pid, 0) < 0 && errno == ESRCH &&
	       fstatat(folder, entry, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_uid == geteuid() &&
	       (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
}

void
leftover_find(const char *path, void (*found)(const char *leftover, void *user), void *user)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	CLEANUP(cleanup_free) char *folder = strndup(path, (size_t)(name - path));
	DIR *d = folder ? opendir(*folder ? folder : ".") : NULL;
	struct dirent *e;

	while (d && (e = readdir(d))) {
		CLEANUP(cleanup_free) char *whole = NULL;

		if (is_left(dirfd(d), e->d_name, name) &&
		    asprintf(&whole, "%s%s", folder, e->d_name) >= 0)
			found(whole, user);
	}
	if (d)
		closedir(d);
}
