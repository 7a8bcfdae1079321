/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/disk.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/iov.h"

enum { PAGE = 4096 };

struct file {
	int fd;
	enum disk_engine engine;
};

static int
file_open_in(const char *dir, int flags)
{
	char path[64];
	int fd, again = -1;

	snprintf(path, sizeof(path), "%s/test_disk.XXXXXX", dir);
	fd = mkstemp(path);

	assert_true(fd >= 0);
	if (flags) {
		again = open(path, O_RDWR | O_CLOEXEC | flags);
		close(fd);
		fd = again;
	}
	unlink(path);
	disk_opened(fd);
	return fd;
}

static int
file_open(int flags)
{
	return file_open_in(".", flags);
}

/* Each test's body runs as a coroutine with each engine on a file of its own;
 * the whole program runs once with rings and once without. */
static void
with_engines(void (*body)(void *))
{
	struct file f = { .engine = DISK_URING };

	f.fd = file_open(0);
	run(body, &f);
	close(f.fd);
	f.engine = DISK_THREADS;
	f.fd = file_open(0);
	run(body, &f);
	close(f.fd);
	/* As a rule tmpfs, which has no RWF_NOWAIT. */
	f.engine = DISK_URING;
	f.fd = file_open_in("/dev/shm", 0);
	run(body, &f);
	close(f.fd);
	f.fd = file_open(O_DIRECT);
	if (f.fd < 0)
		return;		/* this file system has no direct I/O */
	f.engine = DISK_URING | DISK_DIRECT;
	run(body, &f);
	f.engine = DISK_THREADS | DISK_DIRECT;
	run(body, &f);
	close(f.fd);
}

static void
pattern(unsigned char *buf, size_t len, uint64_t off)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (unsigned char)((off + i) * 31 + ((off + i) >> 12));
}

static void
check_pattern(const unsigned char *buf, size_t len, uint64_t off)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != (unsigned char)((off + i) * 31 + ((off + i) >> 12)))
			fail_msg("byte %zu differs", i);
}

/* ---- round trips ---- */

static void
round_trip(void *arg)
{
	struct file *f = arg;
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, 64 * PAGE);
	struct iov v = IOV_BUF(buf, 64 * PAGE);

	pattern(buf, v.len, PAGE);
	assert_int_equal(disk_write(f->fd, f->engine, PAGE, &v), 0);
	memset(buf, 0xee, v.len);
	assert_int_equal(disk_read(f->fd, f->engine, PAGE, &v), 0);
	check_pattern(buf, v.len, PAGE);
	assert_int_equal(disk_sync(f->fd, f->engine, false), 0);
	assert_int_equal(disk_sync(f->fd, f->engine, true), 0);
	assert_int_equal(disk_write_fua(f->fd, f->engine, 0, &v), 0);
}

static void
test_what_is_written_is_read(void **state)
{
	with_engines(round_trip);
}

static void
uncached(void *arg)
{
	struct file *f = arg;
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, 64 * PAGE);
	struct iov v = IOV_BUF(buf, 64 * PAGE);

	pattern(buf, v.len, 0);
	assert_int_equal(disk_write(f->fd, f->engine, 0, &v), 0);
	assert_int_equal(disk_sync(f->fd, f->engine, false), 0);
	for (int i = 0; i < 20; i++) {
		struct iov page = IOV_BUF(buf, PAGE);
		uint64_t off = (uint64_t)(i * 7 % 64) * PAGE;

		posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
		memset(buf, 0, PAGE);
		assert_int_equal(disk_read(f->fd, f->engine, off, &page), 0);
		check_pattern(buf, PAGE, off);
	}
}

static void
test_reads_that_must_wait_for_the_disk(void **state)
{
	with_engines(uncached);
}

/* ---- the end of the file ---- */

static void
past_the_end(void *arg)
{
	struct file *f = arg;
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, 4 * PAGE);
	struct iov v = IOV_BUF(buf, 4 * PAGE);

	pattern(buf, PAGE, 0);
	assert_int_equal(disk_truncate(f->fd, f->engine, 0), 0);
	assert_int_equal(pwrite(f->fd, buf, PAGE, 0), PAGE);
	/* An odd end, as a raw file that is no multiple of a sector has. */
	assert_int_equal(disk_truncate(f->fd, f->engine, 1000), 0);
	memset(buf, 0xee, v.len);
	assert_int_equal(disk_read(f->fd, f->engine, 0, &v), 0);
	check_pattern(buf, 1000, 0);
	for (size_t i = 1000; i < v.len; i++)
		assert_int_equal(buf[i], 0);
	memset(buf, 0xee, v.len);
	assert_int_equal(disk_read(f->fd, f->engine, 8 * PAGE, &v), 0);
	assert_true(iov_is_zero(&v));
}

static void
test_beyond_the_end_reads_as_zeroes(void **state)
{
	with_engines(past_the_end);
}

/* ---- iovs of any shape ---- */

static void
many_pieces(void *arg)
{
	struct file *f = arg;
	int count = f->engine & DISK_DIRECT ? 1500 : 5000;
	size_t piece = f->engine & DISK_DIRECT ? 512 : 33;
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, (size_t)count * piece);
	CLEANUP(cleanup_free) struct iovec *vec = calloc((size_t)count, sizeof(*vec));
	struct iov v = { .vec = vec, .count = count, .len = (size_t)count * piece };

	for (int i = 0; i < count; i++)
		vec[i] = (struct iovec){ buf + (size_t)i * piece, piece };
	pattern(buf, v.len, 0);
	assert_int_equal(disk_write(f->fd, f->engine, 0, &v), 0);
	memset(buf, 0, v.len);
	assert_int_equal(disk_read(f->fd, f->engine, 0, &v), 0);
	check_pattern(buf, v.len, 0);
}

static void
test_more_pieces_than_the_kernel_takes(void **state)
{
	with_engines(many_pieces);
}

/* The first page is cached and the second is not, so that the read in place
 * comes out short, within the second piece. */
static void
half_cached(void *arg)
{
	struct file *f = arg;
	unsigned char buf[2 * PAGE];
	struct iovec vec[] = { { buf, 100 }, { buf + 100, 2 * PAGE - 200 },
			       { buf + 2 * PAGE - 100, 100 } };
	struct iov v = { .vec = vec, .count = 3, .len = sizeof(buf) };

	if (f->engine & DISK_DIRECT)
		return;
	pattern(buf, sizeof(buf), 0);
	assert_int_equal(disk_write(f->fd, f->engine, 0, &v), 0);
	assert_int_equal(disk_sync(f->fd, f->engine, false), 0);
	posix_fadvise(f->fd, 0, 0, POSIX_FADV_RANDOM);
	posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
	assert_int_equal(pread(f->fd, buf, 1, 0), 1);
	memset(buf, 0, sizeof(buf));
	assert_int_equal(disk_read(f->fd, f->engine, 0, &v), 0);
	check_pattern(buf, sizeof(buf), 0);
}

static void
test_short_transfers_are_continued(void **state)
{
	with_engines(half_cached);
}

/* ---- errors ---- */

static void
errors(void *arg)
{
	struct file *f = arg;
	CLEANUP(cleanup_close) int ro = open("/dev/null", O_RDONLY | O_CLOEXEC);
	CLEANUP(cleanup_close) int full = open("/dev/full", O_RDWR | O_CLOEXEC);
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, PAGE);
	struct iov v = IOV_BUF(buf, PAGE);

	memset(buf, 0, PAGE);
	assert_int_equal(disk_read(-1, f->engine, 0, &v), -EBADF);
	assert_int_equal(disk_write(ro, f->engine, 0, &v), -EBADF);
	assert_int_equal(disk_write(full, f->engine, 0, &v), -ENOSPC);
	assert_int_equal(disk_sync(-1, f->engine, false), -EBADF);
	assert_int_equal(disk_allocate(-1, f->engine, 0, 0, 1), -EBADF);
	assert_int_equal(disk_truncate(-1, f->engine, 0), -EBADF);
}

static void
test_errors_come_back(void **state)
{
	with_engines(errors);
}

/* ---- space ---- */

static void
allocate(void *arg)
{
	struct file *f = arg;
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, 4 * PAGE);
	struct iov v = IOV_BUF(buf, 4 * PAGE);
	struct stat st;

	memset(buf, 0x55, v.len);
	assert_int_equal(disk_write(f->fd, f->engine, 0, &v), 0);
	assert_int_equal(disk_allocate(f->fd, f->engine, FALLOC_FL_KEEP_SIZE, 0, 1 << 20), 0);
	assert_int_equal(fstat(f->fd, &st), 0);
	assert_int_equal(st.st_size, 4 * PAGE);
	assert_true(st.st_blocks * 512 >= 1 << 20);
	assert_int_equal(disk_allocate(f->fd, f->engine,
				       FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE,
				       2 * PAGE),
			 0);
	assert_int_equal(disk_read(f->fd, f->engine, 0, &v), 0);
	assert_int_equal(buf[PAGE - 1], 0x55);
	assert_int_equal(buf[PAGE], 0);
	assert_int_equal(buf[3 * PAGE - 1], 0);
	assert_int_equal(buf[3 * PAGE], 0x55);
	assert_int_equal(disk_truncate(f->fd, f->engine, 12345), 0);
	assert_int_equal(fstat(f->fd, &st), 0);
	assert_int_equal(st.st_size, 12345);
}

static void
test_allocate_punch_truncate(void **state)
{
	with_engines(allocate);
}

static void
holes(void *arg)
{
	struct file *f = arg;
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, PAGE);
	struct iov v = IOV_BUF(buf, PAGE);
	uint64_t at = 0;

	memset(buf, 1, PAGE);
	assert_int_equal(disk_truncate(f->fd, f->engine, 0), 0);
	assert_int_equal(disk_truncate(f->fd, f->engine, 1 << 20), 0);
	assert_int_equal(disk_seek(f->fd, 0, SEEK_DATA, &at), -ENXIO);
	assert_int_equal(disk_write(f->fd, f->engine, 64 * PAGE, &v), 0);
	assert_int_equal(disk_seek(f->fd, 0, SEEK_DATA, &at), 0);
	assert_int_equal(at, 64 * PAGE);
	assert_int_equal(disk_seek(f->fd, at, SEEK_HOLE, &at), 0);
	assert_int_equal(at, 65 * PAGE);
	assert_int_equal(disk_seek(f->fd, 1 << 20, SEEK_HOLE, &at), -ENXIO);
	assert_int_equal(disk_seek(-1, 0, SEEK_DATA, &at), -EBADF);
}

static void
test_seek_finds_data_and_holes(void **state)
{
	with_engines(holes);
}

/* ---- many at once, on all loops ---- */

struct load {
	struct file *file;
	struct co_group group;
	atomic_uint next;
};

static void
load_child(void *arg)
{
	struct load *l = arg;
	uint64_t off = (uint64_t)atomic_fetch_add(&l->next, 1) * PAGE;
	CLEANUP(cleanup_free) unsigned char *buf = iov_alloc(PAGE, PAGE);
	struct iov v = IOV_BUF(buf, PAGE);
	int fd = l->file->fd;

	pattern(buf, PAGE, off);
	assert_int_equal(disk_write(fd, l->file->engine, off, &v), 0);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	memset(buf, 0, PAGE);
	assert_int_equal(disk_read(fd, l->file->engine, off, &v), 0);
	check_pattern(buf, PAGE, off);
}

static void
load(void *arg)
{
	struct load l = { .file = arg };

	co_group_init(&l.group);
	for (unsigned i = 0; i < 600; i++)
		assert_int_equal(co_group_spawn(&l.group,
						i % 4 ? loop_io(i % 4 - 1) : loop_main(),
						load_child, &l),
				 0);
	co_group_wait(&l.group);
}

static void
test_hundreds_in_flight_on_all_loops(void **state)
{
	with_engines(load);
}

struct hog {
	struct timer timer;
	bool over;
};

static void
hog_ends(struct timer *t)
{
	CONTAINER_OF(t, struct hog, timer)->over = true;
}

/* Reads in place never park by themselves. */
static void
reads_until_the_timer(void *arg)
{
	struct file *f = arg;
	char buf[PAGE] = { 0 };
	struct iov v = IOV_BUF(buf, PAGE);
	struct hog hog = { .timer.fn = hog_ends };

	assert_int_equal(disk_write(f->fd, f->engine, 0, &v), 0);
	timer_set(&hog.timer, clock_ns() + 1000 * 1000);
	while (!hog.over)
		assert_int_equal(disk_read(f->fd, f->engine, 0, &v), 0);
}

static void
test_cached_reads_do_not_starve_the_loop(void **state)
{
	struct file f = { .fd = file_open(0), .engine = DISK_URING };

	run(reads_until_the_timer, &f);
	close(f.fd);
}

static void
test_works_outside_of_coroutines(void **state)
{
	struct file f = { .fd = file_open(0), .engine = DISK_URING };

	round_trip(&f);
	assert_int_equal(disk_truncate(f.fd, f.engine, 0), 0);
	allocate(&f);
	close(f.fd);
}

#define BOTH(name) CO_TEST(name), CO_TEST_NO_URING(name)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(test_what_is_written_is_read),
		BOTH(test_reads_that_must_wait_for_the_disk),
		BOTH(test_beyond_the_end_reads_as_zeroes),
		BOTH(test_more_pieces_than_the_kernel_takes),
		BOTH(test_short_transfers_are_continued),
		BOTH(test_errors_come_back),
		BOTH(test_allocate_punch_truncate),
		BOTH(test_seek_finds_data_and_holes),
		BOTH(test_hundreds_in_flight_on_all_loops),
		BOTH(test_cached_reads_do_not_starve_the_loop),
		BOTH(test_works_outside_of_coroutines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
