/* SPDX-License-Identifier: Apache-2.0 */
/* A sink that takes one byte after the other: standard output.
 *
 * The reader of a pipe or a socket may take its time, which must not keep a signal from
 * ending the run; so these are written to without waiting, and waited for together with
 * the wish to end.  Whoever shares standard output with us must not notice: a socket can be
 * told so for each write, a pipe is opened anew. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "rescue/sink.h"

enum { STREAM_GRAIN = 1024 * 1024, ZEROES = 64 * 1024, PROC_PATH = 40 };

struct sink_stream {
	struct sink sink;
	int fd, stop;
	int pipe;		/* fd opened anew; -1: it is none, or could not be */
	bool is_socket;
};

/* One write to its end, on a worker: a reader may be slow. */
struct output {
	const struct sink_stream *s;
	const struct iovec *vec;
	int count;
};

static ssize_t
write_some(const struct sink_stream *s, const void *buf, size_t len)
{
	if (s->is_socket)
		return send(s->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	return write(s->pipe < 0 ? s->fd : s->pipe, buf, len);
}

/* Until more can be written. */
static int
wait_for_reader(const struct sink_stream *s)
{
	struct pollfd p[] = { { .fd = s->fd, .events = POLLOUT },
			      { .fd = s->stop, .events = POLLIN } };

	while (poll(p, ARRAY_SIZE(p), -1) < 0)
		if (errno != EINTR)
			return -errno;
	return p[1].revents ? -ECANCELED : 0;
}

static int
write_all(const struct sink_stream *s, const void *buf, size_t len)
{
	int r = 0;

	while (len && r == 0) {
		ssize_t n = write_some(s, buf, len);

		if (n > 0) {
			buf = (const char *)buf + n;
			len -= (size_t)n;
		} else if (n < 0 && errno == EAGAIN) {
			r = wait_for_reader(s);
		} else if (n < 0 && errno != EINTR) {
			r = -errno;
		}
	}
	return r;
}

static int
write_work(void *arg)
{
	const struct output *o = arg;
	int r = 0;

	for (int i = 0; i < o->count && r == 0; i++)
		r = write_all(o->s, o->vec[i].iov_base, o->vec[i].iov_len);
	return r;
}

static int
stream_write(struct sink *s, uint64_t off, const struct iov *src)
{
	struct output o = { CONTAINER_OF(s, struct sink_stream, sink), src->vec, src->count };

	(void)off;
	return work_run(write_work, &o);
}

static int
stream_zero(struct sink *s, uint64_t off, uint64_t len)
{
	static uint8_t zeroes[ZEROES];	/* never written */
	int r = 0;

	while (len && r == 0) {
		size_t n = min_u64(len, ZEROES);
		struct iov v = IOV_BUF(zeroes, n);

		r = stream_write(s, off, &v);
		off += n;
		len -= n;
	}
	return r;
}

static int
sync_work(void *arg)
{
	const struct output *o = arg;

	/* A pipe knows no fsync(). */
	return fsync(o->s->fd) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;
}

static int
stream_flush(struct sink *s)
{
	struct output o = { .s = CONTAINER_OF(s, struct sink_stream, sink) };

	return work_run(sync_work, &o);
}

static int
stream_free(struct sink *s)
{
	struct sink_stream *stream = CONTAINER_OF(s, struct sink_stream, sink);

	cleanup_close(&stream->pipe);
	free(stream);
	return 0;
}

static const struct sink_ops stream_ops = {
	.write = stream_write,
	.zero = stream_zero,
	.flush = stream_flush,
	.free = stream_free,
};

/* Somebody else's pipe may not be ours to open: then a signal waits for its reader. */
static void
look_at(struct sink_stream *s)
{
	char path[PROC_PATH];
	struct stat st;

	if (fstat(s->fd, &st) < 0)
		return;
	s->is_socket = S_ISSOCK(st.st_mode);
	if (!S_ISFIFO(st.st_mode))
		return;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
	s->pipe = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
}

int
sink_stream_new(int fd, int stop, struct sink **ret, struct error **errp)
{
	struct sink_stream *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(errp, "Cannot allocate memory");
	s->fd = fd;
	s->stop = stop;
	s->pipe = -1;
	look_at(s);
	s->sink = (struct sink){ .ops = &stream_ops, .grain = STREAM_GRAIN, .in_order = true };
	*ret = &s->sink;
	return 0;
}
