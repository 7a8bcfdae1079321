/* SPDX-License-Identifier: Apache-2.0 */
#include "aio/ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "base/cleanup.h"

#ifdef HAVE_LIBURING

#include <liburing.h>

/* SUBMIT_MOST: a disk that works while the rest of a burst is prepared is done sooner
 * than one that gets it in one piece. */
enum { RING_ENTRIES = 128, SUBMIT_MOST = 8 };

struct ring {
	struct io_uring uring;
	unsigned queued;	/* submissions that the kernel has not seen */
	unsigned in_flight;	/* those and the ones without completion */
	bool defers;		/* DEFER_TASKRUN: completions need a call to show */
};

/* An operation in flight, on its coroutine's stack. */
struct op {
	struct co *co;
	int result;
	bool done;
};

/* From what the newest kernels know down to what 5.6 knew.  With DEFER_TASKRUN
 * completions never interrupt this thread; they wait until it asks, and a flag
 * in shared memory says that there are some.  (Such a ring's own fd wakes no
 * epoll; an eventfd does.) */
static const unsigned setup_flags[] = {
	IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	IORING_SETUP_COOP_TASKRUN,
	0,
};

static const int needed_ops[] = {
	IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ,
	IORING_OP_WRITE, IORING_OP_FSYNC,  IORING_OP_FALLOCATE,
};

static int
check_ops(struct ring *r, char *why, size_t why_size)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(&r->uring);
	int ret = 0;

	if (!probe) {
		snprintf(why, why_size, "the kernel's io_uring cannot be probed");
		return -EOPNOTSUPP;
	}
	for (size_t i = 0; i < ARRAY_SIZE(needed_ops) && ret == 0; i++) {
		if (io_uring_opcode_supported(probe, needed_ops[i]))
			continue;
		snprintf(why, why_size, "the kernel's io_uring lacks operation %d",
			 needed_ops[i]);
		ret = -EOPNOTSUPP;
	}
	io_uring_free_probe(probe);
	return ret;
}

/* A filter may allow the set-up and forbid the rest: try one that does nothing
 * before anybody depends on it. */
static int
try_nop(struct ring *r, char *why, size_t why_size)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);
	struct io_uring_cqe *cqe;
	int err;

	io_uring_prep_nop(sqe);
	err = io_uring_submit_and_wait(&r->uring, 1);
	if (err >= 0)
		err = io_uring_peek_cqe(&r->uring, &cqe);
	if (err < 0) {
		snprintf(why, why_size, "io_uring_enter: %s", strerror(-err));
		return err;
	}
	io_uring_cqe_seen(&r->uring, cqe);
	return 0;
}

int
ring_new(int wake_fd, struct ring **ret, char *why, size_t why_size)
{
	struct ring *r = calloc(1, sizeof(*r));
	int err = -EINVAL;

	if (!r) {
		snprintf(why, why_size, "out of memory");
		return -ENOMEM;
	}
	for (size_t i = 0; i < ARRAY_SIZE(setup_flags) && err == -EINVAL; i++) {
		err = io_uring_queue_init(RING_ENTRIES, &r->uring, setup_flags[i]);
		r->defers = setup_flags[i] & IORING_SETUP_DEFER_TASKRUN;
	}
	if (err < 0) {
		snprintf(why, why_size, "io_uring_setup: %s", strerror(-err));
		free(r);
		return err;
	}
	err = check_ops(r, why, why_size);
	if (err == 0)
		err = try_nop(r, why, why_size);
	if (err == 0) {
		err = io_uring_register_eventfd(&r->uring, wake_fd);
		if (err < 0)
			snprintf(why, why_size, "io_uring eventfd: %s", strerror(-err));
	}
	if (err < 0) {
		ring_free(r);
		return err;
	}
	ring_sleeps(r, false);
	/* Saves the kernel a look-up on each call; works without. */
	(void)io_uring_register_ring_fd(&r->uring);
	*ret = r;
	return 0;
}

void
ring_free(struct ring *r)
{
	if (!r)
		return;
	io_uring_queue_exit(&r->uring);
	free(r);
}

static void
reap(struct ring *r)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	io_uring_for_each_cqe(&r->uring, head, cqe) {
		struct op *op = io_uring_cqe_get_data(cqe);

		op->result = cqe->res;
		op->done = true;
		co_wake(op->co);
		n++;
	}
	io_uring_cq_advance(&r->uring, n);
	r->in_flight -= n;
}

static void
submit(struct ring *r)
{
	int n = r->defers ? io_uring_submit_and_get_events(&r->uring)
			  : io_uring_submit(&r->uring);

	/* EAGAIN and EBUSY: the kernel is out of memory, or wants completions
	 * taken first.  What is queued stays so, and goes with the next turn. */
	if (n > 0)
		r->queued -= (unsigned)n < r->queued ? (unsigned)n : r->queued;
}

static void
full_barrier(void)
{
#if defined(__SANITIZE_THREAD__)
	/* gcc's thread sanitizer knows no fences, and warns. */
	__asm__ volatile("" ::: "memory");
	__atomic_exchange_n(&(int){ 0 }, 1, __ATOMIC_SEQ_CST);
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Completions that the kernel holds back until it is called. */
static bool
has_hidden(const struct ring *r)
{
	return IO_URING_READ_ONCE(*r->uring.sq.kflags) &
	       (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

bool
ring_has_news(const struct ring *r)
{
	return r->in_flight && (has_hidden(r) || io_uring_cq_ready(&r->uring));
}

void
ring_flush(struct ring *r)
{
	if (!r->in_flight)
		return;
	if (r->queued)
		submit(r);
	else if (has_hidden(r))
		(void)io_uring_get_events(&r->uring);
	reap(r);
}

bool
ring_sleeps(struct ring *r, bool sleeps)
{
	if (!sleeps) {
		(void)io_uring_cq_eventfd_toggle(&r->uring, false);
		return true;
	}
	if (!r->in_flight)
		return true;
	if (r->queued)
		return false;
	(void)io_uring_cq_eventfd_toggle(&r->uring, true);
	/* Pairs with the kernel's, which writes a completion and then looks
	 * whether the eventfd is wanted. */
	full_barrier();
	return !ring_has_news(r);
}

static struct io_uring_sqe *
get_sqe(struct ring *r)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&r->uring))) {
		submit(r);
		reap(r);
		if (io_uring_sq_space_left(&r->uring) == 0)
			co_yield();
	}
	r->queued++;
	r->in_flight++;
	return sqe;
}

static int
finish(struct ring *r, struct io_uring_sqe *sqe)
{
	struct op op = { .co = co_self() };

	io_uring_sqe_set_data(sqe, &op);
	if (r->queued >= SUBMIT_MOST)
		submit(r);
	while (!op.done)
		co_park();
	return op.result;
}

ssize_t
ring_readv(struct ring *r, int fd, const struct iovec *vec, int count, uint64_t off)
{
	struct io_uring_sqe *sqe = get_sqe(r);

	if (count == 1 && vec->iov_len <= UINT32_MAX)
		io_uring_prep_read(sqe, fd, vec->iov_base, (unsigned)vec->iov_len, off);
	else
		io_uring_prep_readv(sqe, fd, vec, (unsigned)count, off);
	return finish(r, sqe);
}

ssize_t
ring_writev(struct ring *r, int fd, const struct iovec *vec, int count, uint64_t off,
	    int rw_flags)
{
	struct io_uring_sqe *sqe = get_sqe(r);

	if (count == 1 && vec->iov_len <= UINT32_MAX)
		io_uring_prep_write(sqe, fd, vec->iov_base, (unsigned)vec->iov_len, off);
	else
		io_uring_prep_writev(sqe, fd, vec, (unsigned)count, off);
	sqe->rw_flags = rw_flags;
	return finish(r, sqe);
}

int
ring_fsync(struct ring *r, int fd, bool datasync)
{
	struct io_uring_sqe *sqe = get_sqe(r);

	io_uring_prep_fsync(sqe, fd, datasync ? IORING_FSYNC_DATASYNC : 0);
	return finish(r, sqe);
}

int
ring_fallocate(struct ring *r, int fd, int mode, uint64_t off, uint64_t len)
{
	struct io_uring_sqe *sqe = get_sqe(r);

	/* liburing's own call takes a signed length, and old ones cut it. */
	io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, fd, (void *)(uintptr_t)len,
			 (unsigned)mode, off);
	return finish(r, sqe);
}

#else /* built without liburing */

int
ring_new(int wake_fd, struct ring **ret, char *why, size_t why_size)
{
	(void)wake_fd, (void)ret;
	snprintf(why, why_size, "built without io_uring");
	return -ENOSYS;
}

void
ring_free(struct ring *r)
{
	(void)r;
}

void
ring_flush(struct ring *r)
{
	(void)r;
}

bool
ring_has_news(const struct ring *r)
{
	(void)r;
	return false;
}

bool
ring_sleeps(struct ring *r, bool sleeps)
{
	(void)r, (void)sleeps;
	return true;
}

/* No operation can come here: there is no ring to call them with. */

ssize_t
ring_readv(struct ring *r, int fd, const struct iovec *vec, int count, uint64_t off)
{
	(void)r, (void)fd, (void)vec, (void)count, (void)off;
	return -ENOSYS;
}

ssize_t
ring_writev(struct ring *r, int fd, const struct iovec *vec, int count, uint64_t off,
	    int rw_flags)
{
	(void)r, (void)fd, (void)vec, (void)count, (void)off, (void)rw_flags;
	return -ENOSYS;
}

int
ring_fsync(struct ring *r, int fd, bool datasync)
{
	(void)r, (void)fd, (void)datasync;
	return -ENOSYS;
}

int
ring_fallocate(struct ring *r, int fd, int mode, uint64_t off, uint64_t len)
{
	(void)r, (void)fd, (void)mode, (void)off, (void)len;
	return -ENOSYS;
}

#endif
