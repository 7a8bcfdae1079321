/* SPDX-License-Identifier: Apache-2.0 */
/* A sink that takes one byte after the other: standard output. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "rescue/sink.h"

enum { STREAM_GRAIN = 1024 * 1024, ZEROES = 64 * 1024 };

struct sink_stream {
	struct sink sink;
	int fd;
};

/* One write to its end, on a worker: a reader may be slow. */
struct output {
	int fd;
	const struct iovec *vec;
	int count;
};

static int
write_all(int fd, const void *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			buf = (const char *)buf + n;
			len -= (size_t)n;
		}
	}
	return 0;
}

static int
write_work(void *arg)
{
	const struct output *o = arg;
	int r = 0;

	for (int i = 0; i < o->count && r == 0; i++)
		r = write_all(o->fd, o->vec[i].iov_base, o->vec[i].iov_len);
	return r;
}

static int
stream_write(struct sink *s, uint64_t off, const struct iov *src)
{
	struct output o = { CONTAINER_OF(s, struct sink_stream, sink)->fd, src->vec, src->count };

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
	return fsync(o->fd) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;
}

static int
stream_flush(struct sink *s)
{
	struct output o = { .fd = CONTAINER_OF(s, struct sink_stream, sink)->fd };

	return work_run(sync_work, &o);
}

static int
stream_free(struct sink *s)
{
	free(CONTAINER_OF(s, struct sink_stream, sink));
	return 0;
}

static const struct sink_ops stream_ops = {
	.write = stream_write,
	.zero = stream_zero,
	.flush = stream_flush,
	.free = stream_free,
};

int
sink_stream_new(int fd, struct sink **ret, struct error **errp)
{
	struct sink_stream *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(errp, "Cannot allocate memory");
	s->fd = fd;
	s->sink = (struct sink){ .ops = &stream_ops, .grain = STREAM_GRAIN, .in_order = true };
	*ret = &s->sink;
	return 0;
}
