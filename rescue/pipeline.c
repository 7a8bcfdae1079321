/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/pipeline.h"

#include <errno.h>
#include <stdlib.h>

#include "aio/disk.h"
#include "aio/loop.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "rescue/progress.h"

enum { BUFFER_ALIGN = 4096, PER_LOOP_MAX = 4 };

/* ---- what to copy ---- */

/* Look at what begins at *at: its end and whether it has to be read. */
static int
look(struct pipeline *p, uint64_t at, uint64_t *ret_end, bool *ret_is_data)
{
	struct extent x;
	int r = io_status(p->source, at, io_size(p->source) - at, true, &x);

	if (r < 0)
		return r;
	if (!x.len)
		return -EIO;
	*ret_end = at + x.len;
	*ret_is_data = !(x.flags & EXTENT_ZERO);
	return 0;
}

int
pipeline_measure(struct pipeline *p, uint64_t *ret_bytes)
{
	uint64_t size = io_size(p->source), bytes = 0, end;
	bool is_data;

	for (uint64_t at = 0; at < size; at = end) {
		int r = look(p, at, &end, &is_data);

		if (r < 0) {
			p->error_at = at;
			return r;
		}
		if (is_data)
			bytes += end - at;
	}
	*ret_bytes = bytes;
	return 0;
}

/* The next piece of data, which lies within one chunk; *ret_len 0 at the end. */
static int
next_piece(struct pipeline *p, uint64_t *ret_off, uint64_t *ret_len)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->lock;
	uint64_t size = io_size(p->source);

	co_mutex_lock(held);
	*ret_off = p->at;
	*ret_len = 0;
	while (p->at < size) {
		if (p->at >= p->extent_end) {
			int r = look(p, p->at, &p->extent_end, &p->extent_is_data);

			*ret_off = p->at;
			if (r < 0)
				return r;
		}
		if (p->extent_is_data) {
			*ret_off = p->at;
			*ret_len = min_u64(p->extent_end - p->at,
					   PIPELINE_CHUNK - p->at % PIPELINE_CHUNK);
			p->at += *ret_len;
			return 0;
		}
		p->at = p->extent_end;
	}
	return 0;
}

/* ---- copying ---- */

static int
write_run(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len)
{
	struct iov v = IOV_BUF(buf, len);

	return p->target ? io_write(p->target, off, &v, 0)
			 : disk_write(p->raw_fd, DISK_URING, off, &v);
}

/* Bytes from at to the end of its grain, or of the piece. */
static size_t
grain_at(const struct pipeline *p, uint64_t off, size_t at, size_t len)
{
	return min_u64(p->grain - (off + at) % p->grain, len - at);
}

/* Write a piece, in runs of grains that are not all zero. */
static int
write_piece(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len)
{
	size_t run = 0, at = 0;

	while (at < len) {
		size_t n = grain_at(p, off, at, len);

		if (bytes_are_zero(buf + at, n)) {
			int r = at > run ? write_run(p, off + run, buf + run, at - run) : 0;

			if (r < 0)
				return r;
			run = at + n;
		}
		at += n;
	}
	return len > run ? write_run(p, off + run, buf + run, len - run) : 0;
}

/* The first failure counts, and ends all. */
static void
fail(struct pipeline *p, int result, uint64_t at, bool in_target)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&p->result, &none, result)) {
		p->error_at = at;
		p->error_in_target = in_target;
	}
}

static void
copy(struct pipeline *p, uint8_t *buf)
{
	while (!atomic_load(&p->result)) {
		uint64_t off, len;
		int r = next_piece(p, &off, &len);
		struct iov v = IOV_BUF(buf, len);

		if (r == 0 && !len)
			return;
		if (r == 0)
			r = io_read(p->source, off, &v);
		if (r < 0) {
			fail(p, r, off, false);
			return;
		}
		r = write_piece(p, off, buf, len);
		if (r < 0) {
			fail(p, r, off, true);
			return;
		}
		progress_add(p->progress, len);
	}
}

static void
worker(void *arg)
{
	struct pipeline *p = arg;
	CLEANUP(cleanup_free) uint8_t *buf = iov_alloc(BUFFER_ALIGN, PIPELINE_CHUNK);

	if (buf)
		copy(p, buf);
	else
		fail(p, -ENOMEM, 0, false);
}

int
pipeline_run(struct pipeline *p)
{
	unsigned loops = loop_io_count(), per_loop, started = 0;
	struct co_group group;
	int r = 0;

	per_loop = (unsigned)min_u64(PER_LOOP_MAX,
				     max_u64(1, PIPELINE_MEMORY / PIPELINE_CHUNK / loops));
	co_group_init(&group);
	for (unsigned i = 0; i < per_loop * loops; i++) {
		r = co_group_spawn(&group, loop_io(i % loops), worker, p);
		if (r < 0)
			break;
		started++;
	}
	if (!started)
		fail(p, r, 0, false);
	co_group_wait(&group);
	return atomic_load(&p->result);
}

void
pipeline_stop(struct pipeline *p)
{
	fail(p, -ECANCELED, 0, false);
}
