/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/target.h"

enum { TRIES = 100, ENDING = 32 };

struct folder {
	char *path;		/* as the user named it */
	char *hidden;		/* where it is until it is published; NULL: nowhere */
	bool partial;
	int fd;
};

static int
fail(const struct folder *f, const char *what, struct error **errp)
{
	error_set_errno(errp, errno, "Could not %s '%s'", what, f->path);
	return -1;
}

int
folder_check_place(const char *path, struct error **errp)
{
	struct stat st;

	if (!*path || path[strlen(path) - 1] == '/')
		return error_set(errp, "'%s' does not end in a name", path);
	if (lstat(path, &st) == 0)
		return error_set(errp, "'%s' exists already; a chain that is kept goes to a new "
				 "folder", path);
	if (errno == ENOENT)
		return target_check_folder(path, errp);
	error_set_errno(errp, errno, "Could not look at '%s'", path);
	return -1;
}

/* 0; -1 with errno, EEXIST for a name that is taken. */
static int
make_hidden(struct folder *f, const char *ending)
{
	free(f->hidden);
	f->hidden = target_hidden_path(f->path, ending);
	if (!f->hidden) {
		errno = ENOMEM;
		return -1;
	}
	if (mkdir(f->hidden, 0700) == 0)
		return 0;
	if (f->partial && errno == EEXIST)
		return 0;
	return -1;
}

static int
make(struct folder *f)
{
	static unsigned counter;
	char ending[ENDING];
	int r = -1;

	if (f->partial)
		return make_hidden(f, "rescue");
	for (unsigned i = 0; i < TRIES && r < 0; i++) {
		snprintf(ending, sizeof(ending), "%d-%u", (int)getpid(), counter++);
		r = make_hidden(f, ending);
		if (r < 0 && errno != EEXIST)
			break;
	}
	return r;
}

/* It must be a folder that only we could have made, and nobody else uses. */
static int
claim(struct folder *f, struct error **errp)
{
	struct stat st;

	f->fd = open(f->hidden, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (f->fd < 0 || fstat(f->fd, &st) < 0)
		return fail(f, "open the folder for", errp);
	if (st.st_uid != geteuid() || fchmod(f->fd, 0700) < 0)
		return error_set(errp, "Could not go on with '%s': its partial folder is not one "
				 "of ours", f->path);
	if (flock(f->fd, LOCK_EX | LOCK_NB) < 0)
		return error_set(errp, "'%s' is being rescued by another process", f->path);
	return 0;
}

int
folder_new(const char *path, bool partial, struct folder **ret, struct error **errp)
{
	struct folder *f = calloc(1, sizeof(*f));

	if (f)
		f->path = strdup(path);
	if (!f || !f->path) {
		free(f);
		return error_set(errp, "Cannot allocate memory");
	}
	f->fd = -1;
	f->partial = partial;
	if (make(f) < 0) {
		fail(f, "make the folder", errp);
		free(f->hidden);
		f->hidden = NULL;
		folder_free(f);
		return -1;
	}
	if (claim(f, errp) < 0) {
		folder_free(f);
		return -1;
	}
	*ret = f;
	return 0;
}

int
folder_fd(const struct folder *f)
{
	return f->fd;
}

/* The folder that path is in; -1 with errno. */
static int
open_parent(const struct folder *f)
{
	const char *slash = strrchr(f->path, '/');
	CLEANUP(cleanup_free) char *parent = slash ? strndup(f->path, (size_t)(slash + 1 - f->path))
						   : strdup(".");

	return parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
}

int
folder_sync(struct folder *f, struct error **errp)
{
	return fsync(f->fd) < 0 ? fail(f, "write to disk", errp) : 0;
}

int
folder_publish(struct folder *f, struct error **errp)
{
	CLEANUP(cleanup_close) int parent = open_parent(f);
	int r;

	if (parent < 0)
		return fail(f, "open the folder of", errp);
	if (folder_sync(f, errp) < 0)
		return -1;
	r = renameat2(AT_FDCWD, f->hidden, AT_FDCWD, f->path, RENAME_NOREPLACE);
	/* Without that flag only an empty folder could be replaced: no loss. */
	if (r < 0 && (errno == EINVAL || errno == ENOSYS))
		r = rename(f->hidden, f->path);
	if (r < 0 && (errno == EEXIST || errno == ENOTEMPTY))
		return error_set(errp, "'%s' has come to exist meanwhile; it was left alone",
				 f->path);
	if (r < 0)
		return fail(f, "name the finished folder", errp);
	free(f->hidden);
	f->hidden = NULL;
	return fsync(parent) < 0 ? fail(f, "write to disk the name of", errp) : 0;
}

/* Its names one by one; NULL: there is none, or no memory.  To be closed by closedir(). */
static DIR *
list(const struct folder *f)
{
	int fd = f->fd < 0 ? -1 : openat(f->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	if (!d)
		cleanup_close(&fd);
	return d;
}

static const char *
next_name(DIR *d)
{
	struct dirent *e;

	do
		e = readdir(d);
	while (e && (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")));
	return e ? e->d_name : NULL;
}

int
folder_check_content(struct folder *f, bool (*is_known)(const char *name, void *user),
		     void *user, struct error **errp)
{
	DIR *d = list(f);
	const char *name;
	int r = 0;

	if (!d)
		return fail(f, "read the folder for", errp);
	while (r == 0 && (name = next_name(d)))
		if (!is_known(name, user))
			r = error_set(errp, "'%s/%s' is nothing that this run would make, and "
				      "would become a part of '%s'; move it away", f->hidden, name,
				      f->path);
	closedir(d);
	return r;
}

/* It holds nothing but files of ours. */
static void
remove_all(struct folder *f)
{
	DIR *d = list(f);
	const char *name;

	while (d && (name = next_name(d)))
		(void)unlinkat(f->fd, name, 0);
	if (d)
		closedir(d);
	(void)rmdir(f->hidden);
}

void
folder_free(struct folder *f)
{
	if (!f)
		return;
	if (f->hidden && !f->partial)
		remove_all(f);
	cleanup_close(&f->fd);
	free(f->hidden);
	free(f->path);
	free(f);
}
