/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/image_int.h"

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

int
image_bad(struct image_look *l, const char *what)
{
	return error_set(l->errp, "%s: not a sound %s image: %s", l->im->filename,
			 image_format_name(l->im->format), what);
}

int
image_read_at(struct image_look *l, uint64_t off, void *buf, size_t len)
{
	if (!range_within(off, len, l->im->file_size))
		return image_bad(l, "what it refers to lies beyond the end of the file");
	if (pread(l->fd, buf, len, (off_t)off) == (ssize_t)len)
		return 0;
	return error_set(l->errp, "Could not read '%s' at byte %" PRIu64, l->im->filename, off);
}

int
image_read_string(struct image_look *l, uint64_t off, size_t len, char **ret)
{
	char *s = malloc(len + 1);

	if (!s)
		return no_memory(l->errp);
	if (image_read_at(l, off, s, len) < 0) {
		free(s);
		return -1;
	}
	s[len] = '\0';
	free(*ret);
	*ret = s;
	return 0;
}

static int
look(struct image_look *l)
{
	struct image *im = l->im;

	if (!memcmp(l->head, "QFI\xfb", 4)) {
		im->version = get_be32(l->head + 4);
		im->format = im->version == 1 ? IMAGE_QCOW : IMAGE_QCOW2;
		if (im->version == 1)
			return image_qcow_look(l);
		if (im->version == 2 || im->version == 3)
			return image_qcow2_look(l);
		return image_bad(l, "its version is unknown");
	}
	if (!memcmp(l->head, "LUKS\xba\xbe", 6)) {
		im->format = IMAGE_LUKS;
		im->version = get_be16(l->head + 6);
		im->encryption = CIPHER_LUKS;
		if (im->file_size < IMAGE_LUKS_HEADER)
			return image_bad(l, "it is too short");
		/* All that version 2 says is in another form. */
		if (im->version != 1)
			return 0;
		if (image_luks_look(l, 0, IMAGE_LUKS_HEADER) < 0)
			return -1;
		image_luks_measure(im);
		return 0;
	}
	im->format = IMAGE_RAW;
	im->virtual_size = im->file_size;
	return 0;
}

static int
open_image(const char *filename, struct image *im, int *ret_fd, struct error **errp)
{
	/* O_NONBLOCK: a fifo must not hold us up. */
	CLEANUP(cleanup_close) int fd = open(filename, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0) {
		error_set_errno(errp, errno, "Could not open '%s'", filename);
		return -1;
	}
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(errp, "Could not open '%s': neither a file nor a block device",
				 filename);
	im->file_size = (uint64_t)st.st_size;
	im->disk_size = (uint64_t)st.st_blocks * 512;
	im->dev = st.st_dev;
	im->ino = st.st_ino;
	im->mtime = st.st_mtim;
	im->is_device = S_ISBLK(st.st_mode);
	if (im->is_device && ioctl(fd, BLKGETSIZE64, &im->file_size) < 0) {
		error_set_errno(errp, errno, "Could not learn the size of '%s'", filename);
		return -1;
	}
	if (im->is_device)
		im->disk_size = im->file_size;
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int
read_image(const char *filename, bool raw, struct image **ret, struct error **errp)
{
	CLEANUP(image_freep) struct image *im = calloc(1, sizeof(*im));
	CLEANUP(cleanup_close) int fd = -1;
	struct image_look l = { .im = im, .errp = errp };

	if (!im)
		return no_memory(errp);
	im->filename = strdup(filename);
	if (!im->filename)
		return no_memory(errp);
	if (open_image(filename, im, &fd, errp) < 0)
		return -1;
	l.fd = fd;
	if (!raw && pread(fd, l.head, sizeof(l.head), 0) < 0) {
		error_set_errno(errp, errno, "Could not read '%s'", filename);
		return -1;
	}
	if (look(&l) < 0)
		return -1;
	*ret = STEAL(im);
	return 0;
}

int
image_read(const char *filename, struct image **ret, struct error **errp)
{
	return read_image(filename, false, ret, errp);
}

int
image_read_raw(const char *filename, struct image **ret, struct error **errp)
{
	return read_image(filename, true, ret, errp);
}

int
image_look_again(const struct image *im, struct image *copy, struct image_look *l)
{
	CLEANUP(cleanup_close) int fd = open(im->filename,
					     O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_dev != im->dev || st.st_ino != im->ino)
		return -1;
	*copy = *im;
	*l = (struct image_look){ .fd = fd, .im = copy };
	fd = -1;
	return 0;
}

void
image_free(struct image *im)
{
	if (!im)
		return;
	free(im->filename);
	free(im->backing);
	free(im->backing_format);
	free(im->data_file);
	free(im->luks);
	image_free(im->data);
	image_free(im->header);
	image_snapshot_free(im->shown);
	free(im);
}

void
image_freep(struct image **im)
{
	image_free(*im);
	*im = NULL;
}

const char *
image_format_name(enum image_format f)
{
	static const char *const names[] = {
		[IMAGE_RAW] = "raw",
		[IMAGE_QCOW] = "qcow",
		[IMAGE_QCOW2] = "qcow2",
		[IMAGE_LUKS] = "luks",
	};

	return names[f];
}

char *
image_path_beside(const struct image *im, const char *name)
{
	const char *slash = strrchr(im->filename, '/');
	char *path;

	if (name[0] == '/' || !slash)
		return strdup(name);
	if (asprintf(&path, "%.*s%s", (int)(slash + 1 - im->filename), im->filename, name) < 0)
		return NULL;
	return path;
}
