/* SPDX-License-Identifier: Apache-2.0 */
/* aio/disk.h - file I/O for coroutines.
 *
 * Transfers are whole: short ones are continued, EINTR is retried, iovs of any
 * count are split as the kernel wants them.  For a buffered file a read of
 * what the page cache holds completes in the calling thread without a switch;
 * anything that would block goes to the ring, or to a worker.
 *
 * Units      offsets and lengths are bytes.  With DISK_DIRECT the caller keeps
 *            to the alignment that the file wants, memory included.
 * Context    coroutine; every call may yield.  Outside of coroutines all calls
 *            work too, and block.  Not cancellable.
 * Ownership  buffers and the fd are borrowed until the call returns.
 * Errors     0 or a negative errno.  -EIO too for a write that makes no
 *            progress.  On failure any part may have been done.
 */
#ifndef AIO_DISK_H
#define AIO_DISK_H

#include <stdbool.h>
#include <stdint.h>

struct iov;

/* What to use where a call would block; DISK_DIRECT is or-ed in for an fd that
 * was opened with O_DIRECT. */
enum disk_engine {
	DISK_URING,		/* falls back to threads where there is no ring */
	DISK_THREADS,
	DISK_DIRECT = 1 << 4,
};

/* Learn what kind of file fd is.  Whoever opens an fd for these calls says so
 * once: what was known of an earlier file of the same number is forgotten, and
 * on local file systems more may be done in place.  Asks the file system, so
 * on a worker.  Any thread. */
void disk_opened(int fd);

/* Fill all of dst from off onwards; what lies beyond the end of the file reads
 * as zeroes. */
int disk_read(int fd, enum disk_engine e, uint64_t off, const struct iov *dst);
int disk_write(int fd, enum disk_engine e, uint64_t off, const struct iov *src);

/* Where data (SEEK_DATA) or a hole (SEEK_HOLE) next begins, at off or behind.
 * -ENXIO: nowhere, or off is behind the end of the file. */
int disk_seek(int fd, uint64_t off, int whence, uint64_t *ret_off);

/* fsync(), or fdatasync() if datasync. */
int disk_sync(int fd, enum disk_engine e, bool datasync);

/* fallocate() with its FALLOC_FL_* mode. */
int disk_allocate(int fd, enum disk_engine e, int mode, uint64_t off, uint64_t len);

int disk_truncate(int fd, enum disk_engine e, uint64_t size);

/* Writes of data that is durable when they return (RWF_DSYNC). */
int disk_write_fua(int fd, enum disk_engine e, uint64_t off, const struct iov *src);

#endif
