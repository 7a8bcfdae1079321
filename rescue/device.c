/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/image.h"

enum { PATH = 96, DEPTH = 8 };

bool
device_is(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

int
device_claim(const char *path, uint64_t size, int *ret_fd, struct error **errp)
{
	CLEANUP(cleanup_close) int fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC);
	uint64_t has;

	if (fd < 0 && errno == EBUSY)
		return error_set(errp, "'%s' is in use, by a mounted file system or something else "
				 "that claimed it", path);
	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &has) < 0) {
		error_set_errno(errp, errno, "Could not open '%s'", path);
		return -1;
	}
	if (has < size)
		return error_set(errp, "'%s' is too small: it has %" PRIu64 " bytes, and the disk "
				 "has %" PRIu64, path, has, size);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* The device that a file of sysfs names; none if there is no such file. */
static dev_t
read_dev(const char *path, dev_t none)
{
	FILE *f = fopen(path, "re");
	unsigned ma, mi;

	if (!f)
		return none;
	if (fscanf(f, "%u:%u", &ma, &mi) == 2)
		none = makedev(ma, mi);
	fclose(f);
	return none;
}

/* The disk that dev is a partition of; dev itself if it is none. */
static dev_t
whole_disk(dev_t dev)
{
	char path[PATH];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition", major(dev), minor(dev));
	if (access(path, F_OK) < 0)
		return dev;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../dev", major(dev), minor(dev));
	return read_dev(path, dev);
}

/* Is dev made of other, as the volumes of LVM, dm-crypt and RAID are of disks?  Few are
 * made of what is made of something itself. */
static bool
is_made_of(dev_t dev, dev_t other, unsigned depth)
{
	char path[PATH];
	struct dirent *e;
	bool found = false;
	DIR *slaves;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves", major(dev), minor(dev));
	slaves = depth ? opendir(path) : NULL;
	while (slaves && !found && (e = readdir(slaves))) {
		char name[PATH + NAME_MAX + 8];
		dev_t below;

		if (*e->d_name == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s/dev", path, e->d_name);
		below = read_dev(name, dev);
		found = below != dev && (below == other || whole_disk(below) == other ||
					 below == whole_disk(other) ||
					 is_made_of(below, other, depth - 1));
	}
	if (slaves)
		closedir(slaves);
	return found;
}

static bool
is_same_disk(dev_t a, dev_t b)
{
	/* Two partitions of one disk do not overlap. */
	return a == b || whole_disk(a) == b || a == whole_disk(b) || is_made_of(a, b, DEPTH) ||
	       is_made_of(b, a, DEPTH);
}

/* Is path a loop device over this file? */
static bool
loops_over(const char *path, const struct stat *file)
{
	CLEANUP(cleanup_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct loop_info64 info;

	return fd >= 0 && ioctl(fd, LOOP_GET_STATUS64, &info) == 0 &&
	       info.lo_device == file->st_dev && info.lo_inode == file->st_ino;
}

static bool
changes(const char *path, const struct stat *st, const struct image *im)
{
	struct stat source;

	if (im->dev == st->st_dev && im->ino == st->st_ino)
		return true;
	if (stat(im->filename, &source) < 0)
		return false;
	if (S_ISBLK(st->st_mode))
		return im->is_device ? is_same_disk(st->st_rdev, source.st_rdev)
				     : loops_over(path, &source);
	return im->is_device && loops_over(im->filename, st);
}

const struct image *
device_find_source(const struct image_chain *chain, const char *path)
{
	const struct image *im;
	struct stat st;

	if (stat(path, &st) < 0)
		return NULL;
	for (unsigned i = 0; (im = image_chain_file(chain, i)); i++)
		if (changes(path, &st, im))
			return im;
	return NULL;
}

static int
check_stream(const struct image_chain *chain, int fd, const char *name, struct error **errp)
{
	CLEANUP(cleanup_close) int nowhere = -1;
	const struct image *same;
	char path[PATH];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	same = device_find_source(chain, path);
	if (!same && fstat(fd, &st) == 0)
		same = image_chain_find(chain, st.st_dev, st.st_ino);
	if (!same)
		return 0;
	/* Not even the error goes there. */
	nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (nowhere < 0 || dup2(nowhere, fd) < 0)
		close(fd);
	return error_set(errp, "%s is the same file as '%s', which is to be read", name,
			 same->filename);
}

int
device_check_streams(const struct image_chain *chain, struct error **errp)
{
	if (check_stream(chain, STDERR_FILENO, "Standard error", errp) < 0)
		return -1;
	return check_stream(chain, STDOUT_FILENO, "Standard output", errp);
}

int
device_check_source(const struct image_chain *chain, const char *path, struct error **errp)
{
	const struct image *same = device_find_source(chain, path);

	if (!same)
		return 0;
	return error_set(errp, "'%s' is the same %s as '%s', which is to be read; it is never "
			 "overwritten", path, device_is(path) ? "device" : "file", same->filename);
}
