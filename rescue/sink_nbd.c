/* SPDX-License-Identifier: Apache-2.0 */
/* A sink that is an NBD export, over libnbd.  Each request waits for its answer on a
 * worker; if the server lets several connections see the same data, several are
 * used, else there is one request at a time.
 *
 * libnbd's calls that wait cannot be ended, so its others are used, and what waits looks
 * up now and then. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/sink.h"

bool
sink_nbd_is_uri(const char *name)
{
	static const char *const schemes[] = { "nbd://", "nbds://", "nbd+unix://", "nbds+unix://",
					       "nbd+vsock://", "nbds+vsock://" };

	for (size_t i = 0; i < ARRAY_SIZE(schemes); i++)
		if (!strncmp(name, schemes[i], strlen(schemes[i])))
			return true;
	return false;
}

#ifdef HAVE_LIBNBD
#include <libnbd.h>

#include "aio/colock.h"
#include "aio/work.h"
#include "base/bytes.h"
#include "base/iov.h"

enum {
	CONNECTIONS = 4,
	NBD_GRAIN = 64 * 1024,
	ZEROES = 1024 * 1024,
	ZERO_MAX = 1 << 30,
	SECTOR = 512,
	GLANCE_MS = 200,
};

struct sink_nbd {
	struct sink sink;
	struct nbd_handle *conn[CONNECTIONS];
	unsigned count;
	int stop;			/* see rescue/sink.h */
	bool can_zero, can_flush;
	uint64_t write_max;		/* bytes of a request; 0: no limit was given */
	/* Which connections nobody uses now. */
	struct co_sem free;
	struct co_mutex lock;
	bool busy[CONNECTIONS];
};

static struct sink_nbd *
of(struct sink *s)
{
	return CONTAINER_OF(s, struct sink_nbd, sink);
}

/* ---- one call, on a worker ---- */

static bool
is_stopped(const struct sink_nbd *s)
{
	struct pollfd p = { .fd = s->stop, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

/* Let the connection move.  0, also if it did not for a while; or -errno, with libnbd's
 * text for all but -ECANCELED. */
static int
step(const struct sink_nbd *s, struct nbd_handle *nbd)
{
	if (is_stopped(s))
		return -ECANCELED;
	if (nbd_poll(nbd, GLANCE_MS) >= 0)
		return 0;
	return nbd_get_errno() ? -nbd_get_errno() : -EIO;
}

enum call { CALL_WRITE, CALL_ZERO, CALL_READ, CALL_FLUSH };

struct request {
	struct sink_nbd *s;
	struct nbd_handle *nbd;
	enum call call;
	uint64_t off, len;
	void *buf;
};

/* The number by which it can be asked for; -1 for none. */
static int64_t
send_request(const struct request *q)
{
	nbd_completion_callback none = NBD_NULL_COMPLETION;

	switch (q->call) {
	case CALL_WRITE:
		return nbd_aio_pwrite(q->nbd, q->buf, q->len, q->off, none, 0);
	case CALL_ZERO:
		return nbd_aio_zero(q->nbd, q->len, q->off, none, 0);
	case CALL_READ:
		return nbd_aio_pread(q->nbd, q->buf, q->len, q->off, none, 0);
	default:
		return nbd_aio_flush(q->nbd, none, 0);
	}
}

static int
request_work(void *arg)
{
	struct request *q = arg;
	int64_t cookie;
	int done, r = 0;

	/* A connection with a request that was given up takes no other. */
	if (is_stopped(q->s))
		return -ECANCELED;
	cookie = send_request(q);
	done = cookie < 0 ? -1 : 0;
	while (!done && r == 0) {
		done = nbd_aio_command_completed(q->nbd, (uint64_t)cookie);
		if (!done)
			r = step(q->s, q->nbd);
	}
	if (done > 0 || r < 0)
		return r;
	/* The text of the error is this thread's and goes with it. */
	return nbd_get_errno() ? -nbd_get_errno() : -EIO;
}

static int
request(struct sink_nbd *s, struct request *q)
{
	unsigned i = 0;
	int r;

	co_sem_get(&s->free);
	co_mutex_lock(&s->lock);
	while (s->busy[i])
		i++;
	s->busy[i] = true;
	co_mutex_unlock(&s->lock);
	q->s = s;
	q->nbd = s->conn[i];
	r = work_run(request_work, q);
	co_mutex_lock(&s->lock);
	s->busy[i] = false;
	co_mutex_unlock(&s->lock);
	co_sem_put(&s->free);
	return r;
}

static int
transfer(struct sink_nbd *s, enum call call, uint64_t off, const struct iov *v)
{
	int r = 0;

	for (int i = 0; i < v->count && r == 0; i++) {
		uint8_t *buf = v->vec[i].iov_base;
		uint64_t left = v->vec[i].iov_len;

		while (left && r == 0) {
			struct request q = { .call = call, .off = off, .buf = buf };

			q.len = s->write_max ? min_u64(left, s->write_max) : left;
			r = request(s, &q);
			off += q.len;
			buf += q.len;
			left -= q.len;
		}
	}
	return r;
}

/* ---- the sink ---- */

static int
nbd_sink_write(struct sink *s, uint64_t off, const struct iov *src)
{
	return transfer(of(s), CALL_WRITE, off, src);
}

static int
nbd_sink_read(struct sink *s, uint64_t off, const struct iov *dst)
{
	return transfer(of(s), CALL_READ, off, dst);
}

static int
nbd_sink_zero(struct sink *s, uint64_t off, uint64_t len)
{
	static uint8_t zeroes[ZEROES];	/* never written */
	int r = 0;

	while (len && r == 0) {
		uint64_t n = min_u64(len, of(s)->can_zero ? ZERO_MAX : ZEROES);
		struct request q = { .call = CALL_ZERO, .off = off, .len = n };
		struct iov v = IOV_BUF(zeroes, n);

		r = of(s)->can_zero ? request(of(s), &q) : transfer(of(s), CALL_WRITE, off, &v);
		off += n;
		len -= n;
	}
	return r;
}

static int
nbd_sink_flush(struct sink *s)
{
	struct request q = { .call = CALL_FLUSH };

	/* A server without it has no cache of its own, as the protocol has it. */
	return of(s)->can_flush ? request(of(s), &q) : 0;
}

/* As the protocol wants it, if the server goes along. */
static void
disconnect(const struct sink_nbd *s, struct nbd_handle *nbd)
{
	if (!nbd_aio_is_ready(nbd) || nbd_aio_disconnect(nbd, 0) < 0)
		return;
	while (!nbd_aio_is_closed(nbd) && !nbd_aio_is_dead(nbd))
		if (step(s, nbd) < 0)
			return;
}

static int
close_work(void *arg)
{
	struct sink_nbd *s = arg;

	for (unsigned i = 0; i < s->count; i++) {
		disconnect(s, s->conn[i]);
		nbd_close(s->conn[i]);
	}
	return 0;
}

static int
nbd_sink_free(struct sink *s)
{
	work_run(close_work, of(s));
	free(of(s));
	return 0;
}

static const struct sink_ops nbd_ops = {
	.write = nbd_sink_write,
	.zero = nbd_sink_zero,
	.read = nbd_sink_read,
	.flush = nbd_sink_flush,
	.free = nbd_sink_free,
};

/* ---- connecting ---- */

struct connecting {
	struct sink_nbd *s;
	const char *uri;
	uint64_t size;
	struct error **errp;
};

/* What libnbd says, without the name of its function. */
static const char *
libnbd_text(void)
{
	const char *text = nbd_get_error(), *behind;

	if (!text)
		return "no reason is known";
	behind = strncmp(text, "nbd_", 4) ? NULL : strstr(text, ": ");
	return behind ? behind + 2 : text;
}

static int
handshake(const struct sink_nbd *s, struct nbd_handle *nbd, const char *uri)
{
	int r = nbd_aio_connect_uri(nbd, uri) < 0 ? -EIO : 0;

	while (r == 0 && nbd_aio_is_connecting(nbd))
		r = step(s, nbd);
	return r;
}

static int
connect_one(struct connecting *c, struct error **errp)
{
	struct nbd_handle *nbd = nbd_create();
	int r;

	if (!nbd)
		return error_set(errp, "Cannot allocate memory");
	r = handshake(c->s, nbd, c->uri);
	if (r == 0 && nbd_aio_is_ready(nbd)) {
		c->s->conn[c->s->count++] = nbd;
		return 0;
	}
	error_set(errp, "Could not connect to '%s': %s", c->uri,
		  r == -ECANCELED ? "interrupted" : libnbd_text());
	nbd_close(nbd);
	return -1;
}

static int
check_export(struct connecting *c)
{
	struct nbd_handle *nbd = c->s->conn[0];
	int64_t size = nbd_get_size(nbd), least = nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM);

	if (nbd_is_read_only(nbd))
		return error_set(c->errp, "'%s' is read-only", c->uri);
	if (size < 0)
		return error_set(c->errp, "Could not learn the size of '%s': %s", c->uri,
				 nbd_get_error());
	if ((uint64_t)size < c->size)
		return error_set(c->errp, "'%s' is too small: it has %" PRIi64 " bytes, and the "
				 "disk has %" PRIu64, c->uri, size, c->size);
	if (least > SECTOR && c->size % (uint64_t)least)
		return error_set(c->errp, "'%s' takes only multiples of %" PRIi64 " bytes, which "
				 "the disk's size is not", c->uri, least);
	return 0;
}

static int
connect_work(void *arg)
{
	struct connecting *c = arg;
	struct nbd_handle *nbd;
	int64_t max;

	if (connect_one(c, c->errp) < 0 || check_export(c) < 0)
		return -1;
	nbd = c->s->conn[0];
	c->s->can_zero = nbd_can_zero(nbd) > 0;
	c->s->can_flush = nbd_can_flush(nbd) > 0;
	max = nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM);
	c->s->write_max = max > 0 ? (uint64_t)max : 0;
	/* More are welcome, and not needed: the server may have a limit. */
	while (nbd_can_multi_conn(nbd) > 0 && c->s->count < CONNECTIONS)
		if (connect_one(c, NULL) < 0)
			break;
	return 0;
}

int
sink_nbd_new(const char *uri, uint64_t size, int stop, struct sink **ret, struct error **errp)
{
	struct sink_nbd *s = calloc(1, sizeof(*s));
	struct connecting c = { s, uri, size, errp };

	if (!s)
		return error_set(errp, "Cannot allocate memory");
	s->sink = (struct sink){ .ops = &nbd_ops, .grain = NBD_GRAIN };
	s->stop = stop;
	if (work_run(connect_work, &c) < 0) {
		work_run(close_work, s);
		free(s);
		return -1;
	}
	co_sem_init(&s->free, s->count);
	*ret = &s->sink;
	return 0;
}

#else

int
sink_nbd_new(const char *uri, uint64_t size, int stop, struct sink **ret, struct error **errp)
{
	(void)size;
	(void)stop;
	(void)ret;
	return error_set(errp, "Could not connect to '%s': this program was built without libnbd",
			 uri);
}

#endif
