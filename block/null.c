/* SPDX-License-Identifier: Apache-2.0 */
/* The driver null-co: takes everything, keeps nothing. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "aio/timer.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "schema/types.h"

enum { DEFAULT_SIZE = 1 << 30 };

struct null {
	int64_t latency_ns;
	bool read_zeroes;
};

static int
null_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsNull *o = &n->options->u.null_co;
	struct null *s = n->state;
	int64_t size = o->has_size ? o->size : DEFAULT_SIZE;

	(void)op;
	if (size < 0)
		return error_set(errp, "Value '%" PRId64 "' is out of range for parameter "
				 "'size'", size);
	if (o->has_latency_ns && o->latency_ns > INT64_MAX)
		return error_set(errp, "latency-ns is invalid");
	s->latency_ns = o->has_latency_ns ? (int64_t)o->latency_ns : 0;
	s->read_zeroes = o->has_read_zeroes && o->read_zeroes;
	n->filename = strdup("null-co://");
	if (!n->filename)
		return error_set(errp, "Cannot allocate memory");
	atomic_store(&n->size, round_up((uint64_t)size, 512));
	return 0;
}

static void
pass_time(const struct node *n)
{
	const struct null *s = n->state;

	if (s->latency_ns)
		(void)co_sleep(s->latency_ns);
}

static int
null_read(struct node *n, uint64_t off, const struct iov *dst)
{
	(void)off;
	pass_time(n);
	/* Without read-zeroes the content is unspecified, but never stale memory. */
	iov_fill(dst, 0, 0, dst->len);
	return 0;
}

static int
null_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	(void)off;
	(void)src;
	(void)flags;
	pass_time(n);
	return 0;
}

static int
null_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	(void)off;
	(void)len;
	(void)flags;
	pass_time(n);
	return 0;
}

static int
null_flush(struct node *n)
{
	pass_time(n);
	return 0;
}

static int
null_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
	    struct extent *x)
{
	const struct null *s = n->state;

	(void)want_zero;
	*x = (struct extent){
		.len = len,
		.flags = EXTENT_ALLOCATED | EXTENT_MAPPED |
			 (s->read_zeroes ? EXTENT_ZERO : EXTENT_DATA),
		.host = off,
		.file = n,
	};
	return 0;
}

static int
null_allocated_size(struct node *n, uint64_t *ret_bytes)
{
	(void)n;
	*ret_bytes = 0;
	return 0;
}

const struct driver driver_null_co = {
	.name = "null-co",
	.caps = DRIVER_PROTOCOL | DRIVER_FUA | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST,
	.state_size = sizeof(struct null),
	.open = null_open,
	.read = null_read,
	.write = null_write,
	.zero = null_zero,
	.flush = null_flush,
	.status = null_status,
	.allocated_size = null_allocated_size,
};
