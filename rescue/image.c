/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/image.h"

#include <errno.h>
#include <fcntl.h>
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

enum {
	HEADER_MAX = 4096,		/* what of an image is looked at for its header */
	NAME_MAX_QCOW = 1023,		/* a backing file's name */
	EXTENSIONS_MAX = 64 * 1024,	/* header extensions lie in the first cluster */
	FORMAT_MAX = 31,

	EXT_BACKING_FORMAT = 0xe2792aca,
	EXT_DATA_FILE = 0x44415441,

	INCOMPAT_DIRTY = 1 << 0,
	INCOMPAT_CORRUPT = 1 << 1,
	INCOMPAT_DATA_FILE = 1 << 2,
	INCOMPAT_EXTENDED_L2 = 1 << 4,
};

/* A file being looked at: its first bytes, zero behind its end. */
struct look {
	int fd;
	uint8_t head[HEADER_MAX];
	struct image *im;
	struct error **errp;
};

static int
bad(struct look *l, const char *what)
{
	return error_set(l->errp, "%s: not a sound %s image: %s", l->im->filename,
			 image_format_name(l->im->format), what);
}

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

/* Read exactly len bytes into a new string, which ends at its first NUL. */
static int
read_string(struct look *l, uint64_t off, uint64_t len, char **ret)
{
	char *s;

	if (!range_within(off, len, l->im->file_size))
		return bad(l, "a name lies beyond the end of the file");
	s = malloc(len + 1);
	if (!s)
		return no_memory(l->errp);
	if (pread(l->fd, s, len, (off_t)off) != (ssize_t)len) {
		free(s);
		return bad(l, "a name cannot be read");
	}
	s[len] = '\0';
	free(*ret);
	*ret = s;
	return 0;
}

static int
read_backing_name(struct look *l)
{
	uint64_t off = get_be64(l->head + 8);
	uint32_t len = get_be32(l->head + 16);

	if (!off)
		return 0;
	if (len > NAME_MAX_QCOW)
		return bad(l, "the backing file's name is too long");
	return len ? read_string(l, off, len, &l->im->backing) : 0;
}

static int
set_encryption(struct look *l, uint32_t method, enum cipher_kind aes)
{
	switch (method) {
	case 0:
		l->im->encryption = CIPHER_NONE;
		return 0;
	case 1:
		l->im->encryption = aes;
		return 0;
	case 2:
		if (aes == CIPHER_QCOW2_AES) {
			l->im->encryption = CIPHER_QCOW2_LUKS;
			return 0;
		}
	}
	return bad(l, "the encryption method is unknown");
}

static int
look_at_qcow(struct look *l)
{
	unsigned bits = l->head[32];

	l->im->virtual_size = get_be64(l->head + 24);
	if (bits < 9 || bits > 16)
		return bad(l, "the cluster size must be between 512 and 64k");
	l->im->cluster_size = 1ULL << bits;
	if (set_encryption(l, get_be32(l->head + 36), CIPHER_QCOW_AES) < 0)
		return -1;
	return read_backing_name(l);
}

/* Extensions: type, length, that many bytes padded to 8; type 0 ends them. */
static int
look_at_extensions(struct look *l, uint64_t off)
{
	while (off <= EXTENSIONS_MAX) {
		uint8_t ext[8];
		uint32_t type, len;
		int r = 0;

		if (pread(l->fd, ext, sizeof(ext), (off_t)off) != sizeof(ext))
			return 0;
		type = get_be32(ext);
		len = get_be32(ext + 4);
		off += sizeof(ext);
		if (!type)
			return 0;
		if (len > EXTENSIONS_MAX)
			return bad(l, "a header extension is too long");
		if (type == EXT_BACKING_FORMAT && len > FORMAT_MAX)
			return bad(l, "the backing format's name is too long");
		if (type == EXT_BACKING_FORMAT)
			r = read_string(l, off, len, &l->im->backing_format);
		else if (type == EXT_DATA_FILE && len <= NAME_MAX_QCOW)
			r = read_string(l, off, len, &l->im->data_file);
		if (r < 0)
			return -1;
		off += round_up(len, 8);
	}
	return 0;
}

static int
look_at_qcow2(struct look *l)
{
	uint32_t bits = get_be32(l->head + 20), header = 72;

	l->im->virtual_size = get_be64(l->head + 24);
	if (bits < 9 || bits > 21)
		return bad(l, "the cluster size must be a power of two between 512 and 2048k");
	l->im->cluster_size = 1ULL << bits;
	l->im->snapshots = get_be32(l->head + 60);
	if (l->im->version >= 3) {
		uint64_t incompat = get_be64(l->head + 72);

		l->im->dirty = incompat & INCOMPAT_DIRTY;
		l->im->corrupt = incompat & INCOMPAT_CORRUPT;
		l->im->external_data = incompat & INCOMPAT_DATA_FILE;
		l->im->subclusters = incompat & INCOMPAT_EXTENDED_L2;
		header = get_be32(l->head + 100);
		if (header < 104 || header > l->im->cluster_size)
			return bad(l, "the header's length is wrong");
	}
	if (set_encryption(l, get_be32(l->head + 32), CIPHER_QCOW2_AES) < 0 ||
	    read_backing_name(l) < 0)
		return -1;
	return look_at_extensions(l, header);
}

static int
look_at_luks(struct look *l)
{
	const char *alg = (const char *)l->head + 8, *mode = (const char *)l->head + 40;
	const char *hash = (const char *)l->head + 72;
	uint64_t payload = (uint64_t)get_be32(l->head + 104) * 512;

	l->im->encryption = CIPHER_LUKS;
	if (l->im->version != 1)
		return 0;
	snprintf(l->im->cipher, sizeof(l->im->cipher), "%.20s-%.20s, %.20s", alg, mode, hash);
	for (char *c = l->im->cipher; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			*c = '?';
	l->im->virtual_size = payload < l->im->file_size ? l->im->file_size - payload : 0;
	return 0;
}

static int
look(struct look *l)
{
	struct image *im = l->im;

	if (!memcmp(l->head, "QFI\xfb", 4)) {
		im->version = get_be32(l->head + 4);
		im->format = im->version == 1 ? IMAGE_QCOW : IMAGE_QCOW2;
		if (im->version == 1)
			return look_at_qcow(l);
		if (im->version == 2 || im->version == 3)
			return look_at_qcow2(l);
		return bad(l, "its version is unknown");
	}
	if (!memcmp(l->head, "LUKS\xba\xbe", 6)) {
		im->format = IMAGE_LUKS;
		im->version = get_be16(l->head + 6);
		return look_at_luks(l);
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
	struct look l = { .im = im, .errp = errp };

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

void
image_free(struct image *im)
{
	if (!im)
		return;
	free(im->filename);
	free(im->backing);
	free(im->backing_format);
	free(im->data_file);
	image_free(im->data);
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
