/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/device.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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

enum { PATH = 96 };

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

/* The disk that dev is a partition of; dev itself if it is none. */
static dev_t
whole_disk(dev_t dev)
{
	char path[PATH];
	unsigned ma, mi;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition", major(dev), minor(dev));
	if (access(path, F_OK) < 0)
		return dev;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../dev", major(dev), minor(dev));
	f = fopen(path, "re");
	if (!f)
		return dev;
	if (fscanf(f, "%u:%u", &ma, &mi) == 2)
		dev = makedev(ma, mi);
	fclose(f);
	return dev;
}

static bool
is_same_disk(dev_t a, dev_t b)
{
	/* Two partitions of one disk do not overlap. */
	return a == b || whole_disk(a) == b || a == whole_disk(b);
}

/* Is path a loop device over this file? */
static bool
loops_over(const char *path, dev_t dev, ino_t ino)
{
	CLEANUP(cleanup_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct loop_info64 info;

	return fd >= 0 && ioctl(fd, LOOP_GET_STATUS64, &info) == 0 && info.lo_device == dev &&
	       info.lo_inode == ino;
}

int
device_check_source(const char *path, const struct image_chain *chain, struct error **errp)
{
	const struct image *im;
	struct stat st;

	if (stat(path, &st) < 0) {
		error_set_errno(errp, errno, "Could not look at '%s'", path);
		return -1;
	}
	for (unsigned i = 0; (im = image_chain_file(chain, i)); i++) {
		struct stat source;

		if (stat(im->filename, &source) < 0)
			continue;
		if (im->is_device ? is_same_disk(st.st_rdev, source.st_rdev)
				  : loops_over(path, source.st_dev, source.st_ino))
			return error_set(errp, "'%s' is the same device as '%s', which is to be "
					 "read; it is never overwritten", path, im->filename);
	}
	return 0;
}
