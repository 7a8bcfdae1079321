/* SPDX-License-Identifier: Apache-2.0 */
/* The drivers file and host_device: a node over what the kernel stores.
 *
 * The I/O path has no mutable state: the kernel orders what overlaps, and the
 * descriptor's number stays the same as long as the node lives. */
#include "block/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "block/node.h"
#include "schema/types.h"

/* ---- opening ---- */

static int
check_options(const struct node *n, const struct BlockdevOptionsFile *o,
	      struct error **errp)
{
	if (o->pr_manager)
		return error_set(errp, "Parameter 'pr-manager' is not supported: Quoin "
				 "passes no persistent reservations on");
	if (!strncmp(o->filename, "/dev/fdset/", strlen("/dev/fdset/")))
		return error_set(errp, "Could not open '%s': file descriptor sets are not "
				 "supported", o->filename);
	if (o->has_aio && o->aio == BLOCKDEV_AIO_OPTIONS_NATIVE && !n->direct)
		return error_set(errp, "aio=native was specified, but it requires "
				 "cache.direct=on, which was not specified.");
	return 0;
}

struct open_file {
	struct node *node;
	const char *path;
	struct stat st;
	struct error **errp;
};

static int
try_open(const struct node *n, const char *path, bool writable)
{
	int flags = O_CLOEXEC | O_NONBLOCK | (writable ? O_RDWR : O_RDONLY) |
		    (n->direct ? O_DIRECT : 0);
	int fd = open(path, flags);

	if (fd < 0)
		return -errno;
	/* O_NONBLOCK was for the open alone: a FIFO must not hang it. */
	(void)fcntl(fd, F_SETFL, n->direct ? O_DIRECT : 0);
	return fd;
}

static int
open_fd(struct open_file *of)
{
	struct node *n = of->node;
	struct file *f = n->state;

	f->writable = !n->read_only && !n->auto_read_only;
	f->fd = try_open(n, of->path, f->writable);
	if (f->fd >= 0)
		return 0;
	if (f->fd == -EINVAL && n->direct)
		return error_set(of->errp, "Could not open '%s': filesystem does not "
				 "support O_DIRECT", of->path);
	return error_set_errno(of->errp, f->fd, "Could not open '%s'", of->path), -1;
}

static int
check_kind(struct open_file *of)
{
	const struct node *n = of->node;
	struct file *f = n->state;
	mode_t mode;

	if (fstat(f->fd, &of->st) < 0)
		return error_set_errno(of->errp, errno, "Could not stat file"), -1;
	mode = of->st.st_mode;
	f->is_device = !S_ISREG(mode);
	if (!strcmp(n->driver->name, "file")) {
		if (!S_ISREG(mode))
			return error_set(of->errp, "'file' driver requires '%s' to be a "
					 "regular file", of->path);
	} else if (!S_ISCHR(mode) && !S_ISBLK(mode)) {
		return error_set(of->errp, "'host_device' driver requires '%s' to be "
				 "either a character or block device", of->path);
	}
	return 0;
}

/* With auto-read-only, a file that nobody may write is a read-only node. */
static void
settle_read_only(struct open_file *of)
{
	struct node *n = of->node;

	if (n->auto_read_only && !n->read_only && access(of->path, W_OK) < 0)
		n->read_only = true;
}

static int
open_work(void *arg)
{
	struct open_file *of = arg;
	struct node *n = of->node;
	struct file *f = n->state;
	uint64_t size;
	int err;

	if (open_fd(of) < 0)
		return -1;
	if (check_kind(of) < 0)
		return -1;
	disk_opened(f->fd);
	err = file_probe_size(f->fd, &of->st, &size);
	if (err)
		return error_set_errno(of->errp, err, "Could not get the size of '%s'",
				       of->path), -1;
	atomic_store(&n->size, size);
	file_probe_limits(f->fd, &of->st, n->direct, &n->limits);
	settle_read_only(of);
	return 0;
}

static int
set_locking(struct file *f, const struct BlockdevOptionsFile *o, struct error **errp)
{
	int err;

	if (o->has_locking && o->locking == ON_OFF_AUTO_OFF)
		return 0;
	err = lock_probe(f->fd);
	if (err && o->has_locking && o->locking == ON_OFF_AUTO_ON)
		return error_set_errno(errp, err, "Could not lock '%s', and locking=on "
				       "demands it", o->filename), -1;
	f->locking = !err;
	return 0;
}

static int
file_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsFile *o = &n->options->u.file;
	struct file *f = n->state;
	struct open_file of = { .node = n, .path = o->filename, .errp = errp };

	(void)op;
	f->fd = f->next_fd = -1;
	f->engine = o->has_aio && o->aio == BLOCKDEV_AIO_OPTIONS_THREADS ? DISK_THREADS
									 : DISK_URING;
	if (n->direct)
		f->engine |= DISK_DIRECT;
	if (check_options(n, o, errp) < 0)
		return -1;
	n->filename = strdup(o->filename);
	if (!n->filename)
		return error_set(errp, "Cannot allocate memory");
	if (work_run(open_work, &of) < 0 || set_locking(f, o, errp) < 0) {
		if (f->fd >= 0)
			close(f->fd);
		return -1;
	}
	return 0;
}

static int
close_work(void *arg)
{
	struct file *f = arg;

	return close(f->fd) < 0 ? -errno : 0;
}

static int
file_close(struct node *n)
{
	struct file *f = n->state;

	return work_run(close_work, f);
}

/* ---- requests ---- */

static int
file_read(struct node *n, uint64_t off, const struct iov *dst)
{
	const struct file *f = n->state;

	return disk_read(f->fd, f->engine, off, dst);
}

struct measure {
	int fd;
	struct stat st;
};

static int
measure_work(void *arg)
{
	struct measure *m = arg;

	return fstat(m->fd, &m->st) < 0 ? -errno : 0;
}

/* What failed may have been done in part, and made the file longer: what is there by
 * now has to be zeroed, say, like all the rest. */
static __attribute__((noinline)) int
failed(struct node *n, uint64_t end, int err)
{
	struct file *f = n->state;
	struct measure m = { .fd = f->fd };

	if (!f->is_device && end > node_size(n) && !work_run(measure_work, &m))
		node_grew(n, round_up((uint64_t)m.st.st_size, 512));
	return err;
}

static int
file_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	const struct file *f = n->state;
	int err = flags & IO_FUA ? disk_write_fua(f->fd, f->engine, off, src)
				 : disk_write(f->fd, f->engine, off, src);

	return err ? failed(n, off + src->len, err) : 0;
}

static bool
is_unknown(int err)
{
	return err == -EOPNOTSUPP || err == -ENOSYS || err == -ENOTTY || err == -EINVAL;
}

/* fallocate(), remembering in *no that the file system does not know the mode. */
static int
allocate(const struct file *f, int mode, uint64_t off, uint64_t len, _Atomic bool *no)
{
	int err;

	if (atomic_load_explicit(no, memory_order_relaxed))
		return -EOPNOTSUPP;
	err = disk_allocate(f->fd, f->engine, mode, off, len);
	/* The kernel drops a device's cached pages first, and does not if a write that
	 * touches one of them is under way. */
	if (err == -EBUSY && f->is_device)
		return -EOPNOTSUPP;
	if (!err || !is_unknown(err))
		return err;
	/* EINVAL may be about this request alone. */
	if (err != -EINVAL)
		atomic_store_explicit(no, true, memory_order_relaxed);
	return -EOPNOTSUPP;
}

static int
punch(struct file *f, uint64_t off, uint64_t len)
{
	return allocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len,
			&f->no_punch);
}

/* A hole reads as zeroes, but does not make the file longer. */
static int
zero_by_hole(struct node *n, uint64_t off, uint64_t len, bool keep_space)
{
	struct file *f = n->state;
	int err = punch(f, off, len);

	if (err)
		return err;
	if (!keep_space && off + len <= node_size(n))
		return 0;
	return f->is_device ? 0 : disk_allocate(f->fd, f->engine, 0, off, len);
}

static int
file_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct file *f = n->state;
	int err = -EOPNOTSUPP;

	if (flags & IO_MAY_UNMAP)
		err = zero_by_hole(n, off, len, false);
	if (err == -EOPNOTSUPP)
		err = allocate(f, FALLOC_FL_ZERO_RANGE, off, len, &f->no_zero_range);
	if (err == -EOPNOTSUPP && !f->is_device)
		err = zero_by_hole(n, off, len, true);
	if (!err && flags & IO_FUA)
		err = disk_sync(f->fd, f->engine, true);
	return err ? failed(n, off + len, err) : 0;
}

struct device_discard {
	int fd;
	uint64_t range[2];
};

static int
device_discard_work(void *arg)
{
	struct device_discard *d = arg;

	return ioctl(d->fd, BLKDISCARD, d->range) < 0 ? -errno : 0;
}

static int
file_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct file *f = n->state;
	struct device_discard d = { f->fd, { off, len } };
	int err;

	if (!f->is_device)
		return punch(f, off, len);
	err = work_run(device_discard_work, &d);
	return is_unknown(err) ? -EOPNOTSUPP : err;
}

static int
file_flush(struct node *n)
{
	const struct file *f = n->state;

	return disk_sync(f->fd, f->engine, true);
}

/* ---- holes ---- */

static int
file_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
	    struct extent *x)
{
	struct file *f = n->state;
	uint64_t data, hole;
	int err;

	*x = (struct extent){
		.len = len,
		.flags = EXTENT_DATA | EXTENT_ALLOCATED | EXTENT_MAPPED,
		.host = off,
		.file = n,
	};
	if (!want_zero || f->is_device ||
	    atomic_load_explicit(&f->no_seek, memory_order_relaxed))
		return 0;
	err = disk_seek(f->fd, off, SEEK_DATA, &data);
	if (!err && data <= off)
		err = disk_seek(f->fd, off, SEEK_HOLE, &hole);
	if (err == -ENXIO) {
		/* No data from here to the end. */
		x->flags = EXTENT_ZERO | EXTENT_ALLOCATED | EXTENT_MAPPED;
	} else if (err) {
		atomic_store_explicit(&f->no_seek, true, memory_order_relaxed);
	} else if (data > off) {
		x->flags = EXTENT_ZERO | EXTENT_ALLOCATED | EXTENT_MAPPED;
		x->len = min_u64(len, data - off);
	} else if (hole > off) {
		/* A last block that the file's end cuts belongs to the data. */
		x->len = min_u64(len, round_up(hole, n->limits.align) - off);
		if (round_up(hole, 512) == node_size(n))
			x->len = len;
	}
	return 0;
}

/* ---- size ---- */

struct resize {
	struct file *f;
	uint64_t old, size;
	enum prealloc prealloc;
	struct error **errp;
};

static int
resize_work(void *arg)
{
	struct resize *r = arg;
	int err;

	if (ftruncate(r->f->fd, (off_t)r->size) < 0)
		return error_set_errno(r->errp, errno, "Failed to resize file"), -1;
	err = file_preallocate(r->f->fd, r->old, r->size, (int)r->prealloc);
	if (!err)
		return 0;
	(void)!ftruncate(r->f->fd, (off_t)r->old);
	return error_set_errno(r->errp, err, "Could not preallocate data for the new "
			       "file"), -1;
}

static int
device_truncate(struct node *n, uint64_t size, bool exact, struct error **errp)
{
	uint64_t now = node_size(n);

	if (size > now)
		return error_set(errp, "Cannot grow device files");
	if (exact && size != now)
		return error_set(errp, "Cannot resize device files");
	return 0;
}

static int
file_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	      struct error **errp)
{
	struct resize r = { n->state, node_size(n), size, prealloc, errp };

	if (r.f->is_device)
		return device_truncate(n, size, exact, errp);
	if (prealloc == PREALLOC_METADATA)
		return error_set(errp, "Unsupported preallocation mode: metadata");
	if (work_run(resize_work, &r) < 0)
		return -1;
	atomic_store(&n->size, round_up(size, 512));
	return 0;
}

static int
file_allocated_size(struct node *n, uint64_t *ret_bytes)
{
	struct measure m = { .fd = ((struct file *)n->state)->fd };
	int err = work_run(measure_work, &m);

	if (!err)
		*ret_bytes = (uint64_t)m.st.st_blocks * 512;
	return err;
}

static int
file_info(struct node *n, struct ImageInfo *info, struct error **errp)
{
	struct ImageInfoSpecific *spec = calloc(1, sizeof(*spec));

	(void)n;
	if (spec) {
		spec->type = IMAGE_INFO_SPECIFIC_KIND_FILE;
		spec->u.file.data = calloc(1, sizeof(*spec->u.file.data));
	}
	if (!spec || !spec->u.file.data) {
		free(spec);
		return error_set(errp, "Cannot allocate memory");
	}
	info->format_specific = spec;
	info->has_dirty_flag = true;
	return 0;
}

#define FILE_DRIVER                                                            \
	.state_size = sizeof(struct file), .open = file_open,                  \
	.close = file_close, .read = file_read, .write = file_write,           \
	.zero = file_zero, .discard = file_discard, .flush = file_flush,       \
	.status = file_status, .truncate = file_truncate,                      \
	.allocated_size = file_allocated_size,                                 \
	.perm_prepare = file_perm_prepare, .perm_commit = file_perm_commit,    \
	.perm_abort = file_perm_abort, .set_read_only = file_set_read_only,    \
	.info = file_info

const struct driver driver_file = {
	.name = "file",
	.caps = DRIVER_PROTOCOL | DRIVER_GROWS | DRIVER_FUA | DRIVER_ZERO_UNMAP,
	FILE_DRIVER,
	.create = file_create,
};

const struct driver driver_host_device = {
	.name = "host_device",
	.caps = DRIVER_PROTOCOL | DRIVER_FUA | DRIVER_ZERO_UNMAP,
	FILE_DRIVER,
};
