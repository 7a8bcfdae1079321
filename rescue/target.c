/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"

enum { PROC_PATH = 40, TRIES = 100, BLOCK = 4096 };

struct target {
	char *path;		/* as the user named it, for messages */
	const char *name;	/* its last part, within path */
	int dir, fd;
	bool force;
	char *hidden;		/* its name in dir until it is published; NULL: none */
	bool partial;		/* hidden outlives the run */
	char proc[PROC_PATH];	/* /proc/self/fd/N */
};

static int
fail(struct target *t, struct error **errp, const char *what)
{
	error_set_errno(errp, errno, "Could not %s '%s'", what, t->path);
	return -1;
}

static int
open_folder(struct target *t, struct error **errp)
{
	char *slash = strrchr(t->path, '/');
	CLEANUP(cleanup_free) char *folder = NULL;

	t->name = slash ? slash + 1 : t->path;
	folder = slash ? strndup(t->path, (size_t)(slash + 1 - t->path)) : strdup(".");
	if (!folder)
		return error_set(errp, "Cannot allocate memory");
	t->dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->dir < 0) {
		error_set_errno(errp, errno, "Could not open the folder of '%s'", t->path);
		return -1;
	}
	return 0;
}

/* A folder that is open; what it holds is known. */
static int
use_folder(struct target *t, int folder, struct error **errp)
{
	char *slash = strrchr(t->path, '/');

	t->name = slash ? slash + 1 : t->path;
	t->dir = fcntl(folder, F_DUPFD_CLOEXEC, 0);
	return t->dir < 0 ? fail(t, errp, "use the folder of") : 0;
}

/* Better now than when all has been copied. */
static int
check_folder(struct target *t, struct error **errp)
{
	return faccessat(t->dir, ".", W_OK | X_OK, AT_EACCESS) < 0 ? fail(t, errp, "create") : 0;
}

/* In a folder as /tmp is, a file is replaced by its owner only. */
static bool
is_protected(const struct target *t)
{
	struct stat folder, file;
	uid_t me = geteuid();

	return me && fstat(t->dir, &folder) == 0 && folder.st_mode & S_ISVTX &&
	       folder.st_uid != me && fstatat(t->dir, t->name, &file, AT_SYMLINK_NOFOLLOW) == 0 &&
	       file.st_uid != me;
}

static int
check_existing(struct target *t, struct error **errp)
{
	struct stat st;

	if (!*t->name)
		return error_set(errp, "Could not create '%s': that is a folder", t->path);
	if (check_folder(t, errp) < 0)
		return -1;
	if (fstatat(t->dir, t->name, &st, 0) < 0 &&
	    fstatat(t->dir, t->name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno == ENOENT)
			return 0;
		return fail(t, errp, "look at");
	}
	if (S_ISDIR(st.st_mode))
		return error_set(errp, "Could not create '%s': that is a folder", t->path);
	if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode))
		return error_set(errp, "Could not create '%s': something that is not a regular "
				 "file is there, and is not replaced", t->path);
	if (!t->force)
		return error_set(errp, "'%s' exists already; --force replaces it", t->path);
	if (is_protected(t))
		return error_set(errp, "Could not replace '%s': it is somebody else's, in a folder "
				 "where only they may do that", t->path);
	return 0;
}

/* Do op with a hidden name that is not taken; the name goes into t->hidden. */
static int
with_hidden_name(struct target *t, int (*op)(struct target *t, const char *name))
{
	static unsigned counter;

	for (unsigned i = 0; i < TRIES; i++) {
		char *name;

		if (asprintf(&name, ".%.*s.%d-%u", TARGET_HIDDEN_NAME, t->name, (int)getpid(),
			     counter++) < 0) {
			errno = ENOMEM;
			return -1;
		}
		if (op(t, name) == 0) {
			t->hidden = name;
			return 0;
		}
		free(name);
		if (errno != EEXIST)
			return -1;
	}
	return -1;
}

static int
create_named(struct target *t, const char *name)
{
	t->fd = openat(t->dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	return t->fd < 0 ? -1 : 0;
}

static int
link_named(struct target *t, const char *name)
{
	return linkat(AT_FDCWD, t->proc, t->dir, name, AT_SYMLINK_FOLLOW);
}

static void
set_proc_path(struct target *t)
{
	snprintf(t->proc, sizeof(t->proc), "/proc/self/fd/%d", t->fd);
}

/* A file without a name, if there can be one and it can get one later. */
static bool
create_nameless(struct target *t)
{
	t->fd = openat(t->dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (t->fd < 0)
		return false;
	set_proc_path(t);
	if (access(t->proc, F_OK) == 0)
		return true;
	close(t->fd);
	t->fd = -1;
	return false;
}

static int
create(struct target *t, struct error **errp)
{
	if (!create_nameless(t)) {
		if (with_hidden_name(t, create_named) < 0)
			return fail(t, errp, "create");
		set_proc_path(t);
	}
	if (fchmod(t->fd, 0600) < 0)
		return fail(t, errp, "set the permissions of");
	return 0;
}

/* A target that has no folder and no file yet. */
static struct target *
alloc(const char *path, bool force, struct error **errp)
{
	struct target *t = calloc(1, sizeof(*t));

	if (t)
		t->path = strdup(path);
	if (!t || !t->path) {
		free(t);
		error_set(errp, "Cannot allocate memory");
		return NULL;
	}
	t->dir = t->fd = -1;
	t->force = force;
	return t;
}

/* The place is looked at, and there is no file yet. */
static int
prepare(int folder, const char *path, bool force, struct target **ret, struct error **errp)
{
	CLEANUP(target_freep) struct target *t = alloc(path, force, errp);

	if (!t)
		return -1;
	if (folder < 0 ? open_folder(t, errp) < 0 : use_folder(t, folder, errp) < 0)
		return -1;
	*ret = STEAL(t);
	return 0;
}

int
target_check_folder(const char *path, struct error **errp)
{
	CLEANUP(target_freep) struct target *t = NULL;

	return prepare(-1, path, false, &t, errp) < 0 ? -1 : check_folder(t, errp);
}

int
target_check_place(const char *path, bool force, struct error **errp)
{
	CLEANUP(target_freep) struct target *t = NULL;

	return prepare(-1, path, force, &t, errp) < 0 ? -1 : check_existing(t, errp);
}

bool
target_is_same_place(const char *a, const char *b)
{
	CLEANUP(target_freep) struct target *ta = NULL;
	CLEANUP(target_freep) struct target *tb = NULL;
	struct stat sa, sb;

	if (prepare(-1, a, false, &ta, NULL) < 0 || prepare(-1, b, false, &tb, NULL) < 0)
		return false;
	return !strcmp(ta->name, tb->name) && fstat(ta->dir, &sa) == 0 &&
	       fstat(tb->dir, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

int
target_new(const char *path, bool force, struct target **ret, struct error **errp)
{
	CLEANUP(target_freep) struct target *t = NULL;

	if (prepare(-1, path, force, &t, errp) < 0 || check_existing(t, errp) < 0 ||
	    create(t, errp) < 0)
		return -1;
	*ret = STEAL(t);
	return 0;
}

int
target_new_in(int folder, const char *path, bool force, struct target **ret,
	      struct error **errp)
{
	CLEANUP(target_freep) struct target *t = NULL;

	if (prepare(folder, path, force, &t, errp) < 0 || create(t, errp) < 0)
		return -1;
	*ret = STEAL(t);
	return 0;
}

/* ---- partial ones ---- */

char *
target_hidden_path(const char *path, const char *ending)
{
	const char *slash = strrchr(path, '/');
	int folder = slash ? (int)(slash + 1 - path) : 0;
	char *hidden;

	if (asprintf(&hidden, "%.*s.%s.%s", folder, path, path + folder, ending) < 0)
		return NULL;
	return hidden;
}

/* What is there must be a file that only we could have made. */
static int
check_partial(struct target *t, struct error **errp)
{
	struct stat st;

	if (flock(t->fd, LOCK_EX | LOCK_NB) < 0)
		return error_set(errp, "'%s' is being rescued by another process", t->path);
	if (fstat(t->fd, &st) < 0)
		return fail(t, errp, "look at the partial");
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_nlink != 1)
		return error_set(errp, "Could not go on with '%s': its partial file is not one of "
				 "ours", t->path);
	return fchmod(t->fd, 0600) < 0 ? fail(t, errp, "set the permissions of") : 0;
}

int
target_partial(int folder, const char *path, bool force, struct target **ret, bool *ret_fresh,
	       struct error **errp)
{
	CLEANUP(target_freep) struct target *t = NULL;
	bool fresh = false;

	if (prepare(folder, path, force, &t, errp) < 0)
		return -1;
	if (folder < 0 && check_existing(t, errp) < 0)
		return -1;
	t->partial = true;
	t->hidden = folder < 0 ? target_hidden_path(t->name, "rescue") : strdup(t->name);
	if (!t->hidden)
		return error_set(errp, "Cannot allocate memory");
	t->fd = openat(t->dir, t->hidden, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (t->fd < 0 && errno == ENOENT) {
		fresh = true;
		t->fd = openat(t->dir, t->hidden, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	}
	if (t->fd < 0)
		return fail(t, errp, "open the partial");
	set_proc_path(t);
	if (check_partial(t, errp) < 0)
		return -1;
	*ret_fresh = fresh;
	*ret = STEAL(t);
	return 0;
}

/* ---- */

void
target_free(struct target *t)
{
	if (!t)
		return;
	if (t->hidden && !t->partial)
		unlinkat(t->dir, t->hidden, 0);
	cleanup_close(&t->fd);
	cleanup_close(&t->dir);
	free(t->hidden);
	free(t->path);
	free(t);
}

void
target_freep(struct target **t)
{
	target_free(*t);
	*t = NULL;
}

int
target_fd(const struct target *t)
{
	return t->fd;
}

const char *
target_open_path(const struct target *t)
{
	return t->proc;
}

int
target_check_space(const struct target *t, uint64_t bytes, struct error **errp)
{
	struct statvfs vfs;
	uint64_t blocks;

	/* A file system that does not tell has no say. */
	if (fstatvfs(t->dir, &vfs) < 0 || !vfs.f_frsize || !vfs.f_blocks)
		return 0;
	blocks = geteuid() == 0 ? vfs.f_bfree : vfs.f_bavail;
	if (bytes / vfs.f_frsize < blocks)
		return 0;
	return error_set(errp, "There is not enough room for '%s': it will take about %llu bytes, "
			 "and %llu are free", t->path, (unsigned long long)bytes,
			 (unsigned long long)blocks * vfs.f_frsize);
}

int
target_sync(struct target *t, struct error **errp)
{
	return fsync(t->fd) < 0 ? fail(t, errp, "write to disk") : 0;
}

/* Replace whatever is there, at once. */
static int
publish_over(struct target *t)
{
	if (!t->hidden && with_hidden_name(t, link_named) < 0)
		return -1;
	return renameat(t->dir, t->hidden, t->dir, t->name);
}

static int
publish_new(struct target *t)
{
	if (!t->hidden)
		return linkat(AT_FDCWD, t->proc, t->dir, t->name, AT_SYMLINK_FOLLOW);
	if (!strcmp(t->hidden, t->name))
		return 0;
	if (renameat2(t->dir, t->hidden, t->dir, t->name, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -1;
	/* A file system without that flag: the hidden name goes in target_free(). */
	return linkat(t->dir, t->hidden, t->dir, t->name, 0);
}

static int
name_it(struct target *t, struct error **errp)
{
	if ((t->force ? publish_over : publish_new)(t) == 0)
		return 0;
	if (errno == EEXIST)
		return error_set(errp, "'%s' has come to exist meanwhile; it was left alone",
				 t->path);
	return fail(t, errp, "name the finished file");
}

/* Is a file with the same content there already? */
static bool
is_there(const struct target *t)
{
	CLEANUP(cleanup_close) int fd = openat(t->dir, t->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW |
					       O_NONBLOCK);
	uint8_t mine[BLOCK], theirs[BLOCK];
	ssize_t n;
	off_t at = 0;

	if (fd < 0)
		return false;
	do {
		n = pread(t->fd, mine, sizeof(mine), at);
		if (n < 0 || pread(fd, theirs, sizeof(theirs), at) != n ||
		    memcmp(mine, theirs, (size_t)n))
			return false;
		at += n;
	} while (n);
	return fsync(fd) == 0;
}

int
target_publish_or_find(struct target *t, struct error **errp)
{
	if (t->force || !is_there(t))
		return target_publish(t, errp);
	return fsync(t->dir) < 0 ? fail(t, errp, "write to disk the name of") : 0;
}

int
target_publish(struct target *t, struct error **errp)
{
	if (name_it(t, errp) < 0)
		return -1;
	if (t->hidden && strcmp(t->hidden, t->name))
		(void)unlinkat(t->dir, t->hidden, 0);	/* gone already if it was renamed */
	free(t->hidden);
	t->hidden = NULL;
	return fsync(t->dir) < 0 ? fail(t, errp, "write to disk the name of") : 0;
}
