/* SPDX-License-Identifier: Apache-2.0 */
/* aio/ring.h - a loop's io_uring.  Private to aio.
 *
 * Each operation is a call that queues itself, parks the coroutine and returns
 * the completion's result.  What one turn of the loop queues goes to the
 * kernel in one system call, at the turn's end.
 *
 * Context    coroutine on the ring's loop, for operations; the loop itself for
 *            the rest.
 * Errors     a negative errno, as the completion had it, or the bytes moved.
 *            Nobody retries here.
 */
#ifndef AIO_RING_H
#define AIO_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct ring;

/* On failure why says in one line what the kernel did not give.  On the thread
 * that will use the ring: the kernel binds it to that.  wake_fd is an eventfd,
 * to be written when completions come while the loop sleeps. */
int ring_new(int wake_fd, struct ring **ret, char *why, size_t why_size);
void ring_free(struct ring *r);		/* takes NULL */

/* Hand over what is queued, and wake those whose operations are complete.
 * Cheap if nothing is in flight. */
void ring_flush(struct ring *r);

/* Is some operation complete whose coroutine does not know yet? */
bool ring_has_news(const struct ring *r);

/* Say that the loop is going to sleep, or that it does not any more.  False:
 * it should not, there is something to flush. */
bool ring_sleeps(struct ring *r, bool sleeps);

ssize_t ring_readv(struct ring *r, int fd, const struct iovec *vec, int count, uint64_t off);
ssize_t ring_writev(struct ring *r, int fd, const struct iovec *vec, int count, uint64_t off,
		    int rw_flags);
int ring_fsync(struct ring *r, int fd, bool datasync);
int ring_fallocate(struct ring *r, int fd, int mode, uint64_t off, uint64_t len);

#endif
