/* SPDX-License-Identifier: Apache-2.0 */
/* blockdev-create of a plain file. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/file.h"
#include "block/io.h"
#include "schema/types.h"

enum { PIECE = 1 << 20, EXTENT_HINT_DEFAULT = 1 << 20 };

static int
write_zeroes(int fd, uint64_t from, uint64_t to)
{
	CLEANUP(cleanup_free) void *buf = calloc(1, PIECE);

	if (!buf)
		return -ENOMEM;
	while (from < to) {
		ssize_t n = pwrite(fd, buf, min_u64(to - from, PIECE), (off_t)from);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		from += (uint64_t)n;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

int
file_preallocate(int fd, uint64_t from, uint64_t to, int prealloc)
{
	if (from >= to)
		return 0;
	if (prealloc == PREALLOC_FALLOC)
		return -posix_fallocate(fd, (off_t)from, (off_t)(to - from));
	if (prealloc == PREALLOC_FULL)
		return write_zeroes(fd, from, to);
	return 0;
}

struct create {
	const struct BlockdevCreateOptionsFile *o;
	struct error **errp;
};

/* Take the locks of a writer, so that no image in use is emptied. */
static int
guard(int fd, const char *path, struct error **errp)
{
	struct lock_set held = { 0 };
	struct lock_set want = { PERM_WRITE | PERM_RESIZE, PERM_RESIZE };

	if (lock_probe(fd) < 0)
		return 0;
	if (lock_take(fd, &held, want, errp) < 0)
		return -1;
	return lock_check(fd, want, path, errp);
}

/* Wishes: few file systems know them, and the file is as good without. */
static void
set_attributes(int fd, const struct BlockdevCreateOptionsFile *o)
{
	uint64_t hint = o->has_extent_size_hint ? o->extent_size_hint : EXTENT_HINT_DEFAULT;
	struct fsxattr extended;
	int attr;

	if (o->has_nocow && o->nocow && ioctl(fd, FS_IOC_GETFLAGS, &attr) == 0) {
		attr |= FS_NOCOW_FL;
		(void)ioctl(fd, FS_IOC_SETFLAGS, &attr);
	}
	/* Guests write here and there: without it the file falls to pieces. */
	if (hint && ioctl(fd, FS_IOC_FSGETXATTR, &extended) == 0) {
		extended.fsx_xflags |= FS_XFLAG_EXTSIZE;
		extended.fsx_extsize = (uint32_t)hint;
		(void)ioctl(fd, FS_IOC_FSSETXATTR, &extended);
	}
}

static int
fill(int fd, const struct BlockdevCreateOptionsFile *o, struct error **errp)
{
	int prealloc = PREALLOC_OFF, err;

	if (o->has_preallocation && o->preallocation == PREALLOC_MODE_FALLOC)
		prealloc = PREALLOC_FALLOC;
	if (o->has_preallocation && o->preallocation == PREALLOC_MODE_FULL)
		prealloc = PREALLOC_FULL;
	if (guard(fd, o->filename, errp) < 0)
		return -1;
	if (ftruncate(fd, 0) < 0)
		return error_set_errno(errp, errno, "Could not clear file"), -1;
	set_attributes(fd, o);
	if (ftruncate(fd, (off_t)o->size) < 0)
		return error_set_errno(errp, errno, "Could not resize file"), -1;
	err = file_preallocate(fd, 0, o->size, prealloc);
	if (err)
		return error_set_errno(errp, err, "Could not preallocate data for the "
				       "new file"), -1;
	return 0;
}

static int
create_work(void *arg)
{
	struct create *c = arg;
	bool fresh = true;
	int fd, r;

	fd = open(c->o->filename, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NONBLOCK, 0644);
	if (fd < 0 && errno == EEXIST) {
		fresh = false;
		fd = open(c->o->filename, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644);
	}
	if (fd < 0)
		return error_set_errno(c->errp, errno, "Could not create '%s'",
				       c->o->filename), -1;
	r = fill(fd, c->o, c->errp);
	if (r < 0 && fresh)
		unlink(c->o->filename);
	close(fd);
	return r;
}

int
file_create(const struct BlockdevCreateOptions *opts, struct error **errp)
{
	struct create c = { &opts->u.file, errp };

	if (c.o->has_extent_size_hint && c.o->extent_size_hint > UINT32_MAX)
		return error_set(errp, "Extent size hint is too large");
	if (c.o->has_preallocation && c.o->preallocation == PREALLOC_MODE_METADATA)
		return error_set(errp, "Unsupported preallocation mode: metadata");
	return work_run(create_work, &c);
}
