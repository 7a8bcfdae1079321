/* SPDX-License-Identifier: Apache-2.0 */
/* aio/disk.c - file I/O for coroutines: who does the system call.
 *
 * In place, that is in the calling thread, a call costs no switch, but while it
 * blocks so does the whole loop.
 *
 * Buffered reads ask the page cache first, in place, with RWF_NOWAIT: what is
 * there costs one system call.  What is not there comes as EAGAIN, and only
 * then the ring or a worker is asked.
 *
 * Buffered writes have no such question on every file system: ext4 answers
 * RWF_NOWAIT with EOPNOTSUPP, and io_uring, which asks it the same, hands each
 * write to a kernel thread, at a quarter of the rate of a plain pwrite().  A
 * buffered write nearly always only copies into the page cache; but it blocks
 * when the kernel holds back writers, or has to read or allocate metadata.  So
 * it is paced by what was seen (place.c): writes are done in place while they
 * are quick on the whole, else on the ring or the workers for a while.  Looking
 * for holes, and reads on tmpfs, which has no RWF_NOWAIT at all, are paced in
 * the same way.
 *
 * Pacing limits how often a loop stands still, not for how long.  So plain
 * calls are done in place on local file systems only, of which disk_opened()
 * keeps the list: a server on the network that does not answer must not stop
 * more than those who want something from it.
 */
#include "aio/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/loop_int.h"
#include "aio/place.h"
#include "aio/ring.h"
#include "aio/timer.h"
#include "aio/work.h"
#include "base/bytes.h"
#include "base/iov.h"

enum { DIRECT_ALIGN_MIN = 512 };

enum { INLINE_MAX = 128 * 1024 };	/* bytes to copy in place */

/* What a transfer in place is charged for (co_charge()): 1, and 1 for each. */
enum { BYTES_PER_CHARGE = 8192 };

/* What remains of a transfer. */
struct cursor {
	const struct iov *iov;
	int index;		/* the piece we are in */
	size_t skip;		/* bytes of it that are done */
	size_t done;		/* bytes in all */
};

/* One system call's worth. */
struct transfer {
	int fd;
	bool write;
	int flags;		/* RWF_* */
	const struct iovec *vec;
	int count;
	uint64_t off;
	size_t len;
};

/* ---- moving along an iov ---- */

static void
cursor_advance(struct cursor *c, size_t n)
{
	c->done += n;
	c->skip += n;
	while (c->index < c->iov->count && c->skip >= c->iov->vec[c->index].iov_len)
		c->skip -= c->iov->vec[c->index++].iov_len;
}

/* Whole pieces from the iov itself.  Only after a transfer that ended within a
 * piece is its rest, in *rest, transferred alone. */
static void
cursor_next(const struct cursor *c, struct iovec *rest, struct transfer *t)
{
	const struct iovec *vec = &c->iov->vec[c->index];

	if (c->skip) {
		rest->iov_base = (char *)vec->iov_base + c->skip;
		rest->iov_len = vec->iov_len - c->skip;
		t->vec = rest;
		t->count = 1;
		t->len = rest->iov_len;
		return;
	}
	t->vec = vec;
	t->count = c->iov->count - c->index;
	t->len = c->iov->len - c->done;
	if (t->count > IOV_MAX) {
		t->count = IOV_MAX;
		t->len = 0;
		for (int i = 0; i < IOV_MAX; i++)
			t->len += vec[i].iov_len;
	}
}

/* All of it, as one call does it as a rule. */
static void
transfer_init(struct transfer *t, int fd, const struct iov *iov, uint64_t off)
{
	*t = (struct transfer){
		.fd = fd, .vec = iov->vec, .count = iov->count, .off = off, .len = iov->len,
	};
}

/* ---- one transfer ---- */

/* The C library makes of each call a place where its thread can be cancelled, which
 * takes two atomic operations.  Nobody cancels ours. */
static ssize_t
call_kernel(const struct transfer *t, int flags)
{
#ifdef __LP64__
	return syscall(t->write ? SYS_pwritev2 : SYS_preadv2, t->fd, t->vec, (long)t->count,
		       t->off, 0L, (long)flags);
#else
	return t->write ? pwritev2(t->fd, t->vec, t->count, (off_t)t->off, flags)
			: preadv2(t->fd, t->vec, t->count, (off_t)t->off, flags);
#endif
}

/* In the calling thread. */
static ssize_t
transfer_call(const struct transfer *t, int flags)
{
	ssize_t n;

	do {
		n = call_kernel(t, flags);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static ssize_t
transfer_in_place(const struct transfer *t, int flags)
{
	ssize_t n = transfer_call(t, flags);

	if (n >= 0)
		co_charge(1 + (unsigned)(n / BYTES_PER_CHARGE));
	return n;
}

static int
transfer_work(void *arg)
{
	const struct transfer *t = arg;

	/* The kernel moves at most INT_MAX - 4095 bytes in one call. */
	return (int)transfer_call(t, t->flags);
}

static struct ring *
ring_of(enum disk_engine e)
{
	struct loop *l = loop_tls;

	return l && !(e & DISK_THREADS) && co_self() ? l->ring : NULL;
}

/* Whatever time it takes. */
static ssize_t
transfer_wait(const struct transfer *t, enum disk_engine e)
{
	struct ring *ring = ring_of(e);
	ssize_t n;

	if (!ring)
		return work_run(transfer_work, (void *)t);
	do {
		n = t->write ? ring_writev(ring, t->fd, t->vec, t->count, t->off, t->flags)
			     : ring_readv(ring, t->fd, t->vec, t->count, t->off);
	} while (n == -EINTR || n == -EAGAIN);
	return n;
}

/* ---- in place ---- */

/* In place: a plain call, with an eye on the clock. */
static ssize_t
transfer_paced(const struct transfer *t, struct pace *p)
{
	int64_t start = clock_ns();
	ssize_t n;

	if (t->len > INLINE_MAX || !pace_allows(p, start))
		return -EAGAIN;
	n = transfer_in_place(t, 0);
	place_took(p, start, t->len);
	return n;
}

/* In place, or -EAGAIN. */
static ssize_t
transfer_now(const struct transfer *t)
{
	struct place *p = place_of(t->fd);
	atomic_bool *no_nowait = !p ? NULL : t->write ? &p->no_nowait_write : &p->no_nowait_read;
	ssize_t n;

	if (!p || !place_get(no_nowait)) {
		n = transfer_in_place(t, RWF_NOWAIT);
		if (n != -EOPNOTSUPP)
			return n;
		if (p)
			atomic_store(no_nowait, true);
	}
	if (!p || !place_get(&p->local))
		return -EAGAIN;
	return transfer_paced(t, t->write ? &p->write : &p->read);
}

/* ---- whole transfers ---- */

/* An end of the file that RWF_NOWAIT tells of is not believed: kernels 5.9 and
 * 5.10 said so of pages that were not there. */
static ssize_t
read_some(const struct transfer *t, enum disk_engine e, bool *try_now)
{
	ssize_t n;

	if (*try_now) {
		n = transfer_now(t);
		if (n != -EAGAIN && n != 0)
			return n;
		*try_now = false;
	}
	return transfer_wait(t, e);
}

int
disk_read(int fd, enum disk_engine e, uint64_t off, const struct iov *dst)
{
	struct cursor c = { .iov = dst };
	bool try_now = !(e & DISK_DIRECT);
	struct transfer t;
	struct iovec rest;
	ssize_t n;

	transfer_init(&t, fd, dst, off);
	while (c.done < dst->len) {
		if (c.done || dst->count > IOV_MAX)
			cursor_next(&c, &rest, &t);
		t.off = off + c.done;
		n = read_some(&t, e, &try_now);
		if (__builtin_expect(n == (ssize_t)dst->len, 1))
			return 0;
		if (n < 0)
			return (int)n;
		cursor_advance(&c, (size_t)n);
		/* Only the end of the file cuts a direct read at an odd place,
		 * and from an odd place no more can be read. */
		if (n == 0 || (e & DISK_DIRECT && !is_aligned(off + c.done, DIRECT_ALIGN_MIN)))
			break;
	}
	if (c.done < dst->len)
		iov_fill(dst, c.done, 0, dst->len - c.done);
	return 0;
}

static int
write_all(int fd, enum disk_engine e, uint64_t off, const struct iov *src, int flags)
{
	struct cursor c = { .iov = src };
	bool try_now = !(e & DISK_DIRECT) && !flags;
	struct transfer t;
	struct iovec rest;
	ssize_t n;

	transfer_init(&t, fd, src, off);
	t.write = true;
	t.flags = flags;
	while (c.done < src->len) {
		if (c.done || src->count > IOV_MAX)
			cursor_next(&c, &rest, &t);
		t.off = off + c.done;
		n = try_now ? transfer_now(&t) : -EAGAIN;
		if (n == -EAGAIN)
			n = transfer_wait(&t, e);
		if (__builtin_expect(n == (ssize_t)src->len, 1))
			return 0;
		if (n < 0)
			return (int)n;
		if (n == 0)
			return -EIO;
		cursor_advance(&c, (size_t)n);
	}
	return 0;
}

int
disk_write(int fd, enum disk_engine e, uint64_t off, const struct iov *src)
{
	return write_all(fd, e, off, src, 0);
}

int
disk_write_fua(int fd, enum disk_engine e, uint64_t off, const struct iov *src)
{
	return write_all(fd, e, off, src, RWF_DSYNC);
}

/* ---- holes ---- */

struct seek {
	int fd;
	int whence;
	uint64_t off;
};

static int
seek_work(void *arg)
{
	struct seek *s = arg;
	off_t at = lseek(s->fd, (off_t)s->off, s->whence);

	if (at < 0)
		return -errno;
	s->off = (uint64_t)at;
	return 0;
}

/* The map of a file is in memory as a rule, and asked for at each read of a
 * client that wants to hear of holes; a trip to a worker would double the cost
 * of reading 64 KiB. */
int
disk_seek(int fd, uint64_t off, int whence, uint64_t *ret_off)
{
	struct seek s = { .fd = fd, .whence = whence, .off = off };
	struct place *p = place_of(fd);
	int64_t start = clock_ns();
	int r;

	if (p && place_get(&p->local) && pace_allows(&p->seek, start)) {
		r = seek_work(&s);
		place_took(&p->seek, start, 0);
		co_charge(1);
	} else {
		r = work_run(seek_work, &s);
	}
	if (r == 0)
		*ret_off = s.off;
	return r;
}

/* ---- the rest ---- */

struct control {
	int fd;
	int mode;
	bool datasync;
	uint64_t off, len;
};

static int
sync_work(void *arg)
{
	const struct control *c = arg;
	int r;

	do {
		r = c->datasync ? fdatasync(c->fd) : fsync(c->fd);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

int
disk_sync(int fd, enum disk_engine e, bool datasync)
{
	struct control c = { .fd = fd, .datasync = datasync };
	struct ring *ring = ring_of(e);
	int r;

	if (!ring)
		return work_run(sync_work, &c);
	do {
		r = ring_fsync(ring, fd, datasync);
	} while (r == -EINTR || r == -EAGAIN);
	return r;
}

static int
allocate_work(void *arg)
{
	const struct control *c = arg;
	int r;

	do {
		r = fallocate(c->fd, c->mode, (off_t)c->off, (off_t)c->len);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

int
disk_allocate(int fd, enum disk_engine e, int mode, uint64_t off, uint64_t len)
{
	struct control c = { .fd = fd, .mode = mode, .off = off, .len = len };
	struct ring *ring = ring_of(e);
	int r;

	if (!ring)
		return work_run(allocate_work, &c);
	do {
		r = ring_fallocate(ring, fd, mode, off, len);
	} while (r == -EINTR || r == -EAGAIN);
	return r;
}

static int
truncate_work(void *arg)
{
	const struct control *c = arg;
	int r;

	do {
		r = ftruncate(c->fd, (off_t)c->len);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

int
disk_truncate(int fd, enum disk_engine e, uint64_t size)
{
	struct control c = { .fd = fd, .len = size };

	return work_run(truncate_work, &c);
}
