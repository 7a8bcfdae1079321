/* SPDX-License-Identifier: Apache-2.0 */
/* The copy engine, with a user that moves nothing but remembers every piece. */
#include "tests/unit/job_test.h"

#include <pthread.h>
#include <stdatomic.h>

#include "job/copy.h"

enum { GRANULE = 65536, BYTES = 40 * GRANULE + 1000 };

struct fake {
	struct job job;
	struct memdisk *disk;
	struct node *node;
	struct root *root;
	struct copy_options o;
	pthread_mutex_t lock;
	unsigned moved[BYTES / GRANULE + 1];	/* how often each granule was */
	unsigned moves, now;			/* now: in flight */
	_Atomic unsigned most;
	unsigned meet;		/* the first move waits until so many are in flight */
	unsigned fail_at, err_count;		/* the n-th move fails, so often */
	int fail_next;				/* next() fails so often */
	uint64_t largest;
	bool zeroes;
};

static int
next(void *user, uint64_t *cursor, uint64_t most, struct copy_piece *p)
{
	struct fake *f = user;

	if (f->fail_next) {
		f->fail_next--;
		return -EIO;
	}
	if (*cursor >= BYTES)
		return 0;
	p->off = *cursor;
	p->zero = f->zeroes;
	p->len = copy_cut(*cursor, BYTES - *cursor, f->zeroes ? COPY_ZERO_CHUNK : most);
	*cursor += p->len;
	return 1;
}

static int
move(void *user, const struct copy_piece *p, void *buf, enum IoOperationType *ret_op)
{
	struct fake *f = user;
	bool fails;

	pthread_mutex_lock(&f->lock);
	if (++f->now > f->most)
		f->most = f->now;
	f->largest = max_u64(f->largest, p->len);
	fails = ++f->moves >= f->fail_at && f->err_count;
	if (fails)
		f->err_count--;
	pthread_mutex_unlock(&f->lock);
	if (!p->zero)
		memset(buf, 1, p->len);
	do
		co_yield();
	while (f->most < f->meet);
	pthread_mutex_lock(&f->lock);
	f->now--;
	for (uint64_t i = 0; i < p->len && !fails; i += GRANULE)
		f->moved[(p->off + i) / GRANULE]++;
	pthread_mutex_unlock(&f->lock);
	*ret_op = IO_OPERATION_TYPE_WRITE;
	if (!fails)
		job_progress_add(&f->job, p->len);
	return fails ? -ENOSPC : 0;
}

static int
fake_run(struct job *j, struct error **errp)
{
	struct fake *f = (struct fake *)j;
	struct copy *c = copy_new(j, &f->o);
	int r = copy_run(c);

	(void)errp;
	copy_free(c);
	return r;
}

static void
fake_clean(struct job *j)
{
	struct fake *f = (struct fake *)j;

	root_free(f->root);
	node_unref(f->node);
	memdisk_free(f->disk);
}

static const struct job_kind fake_kind = {
	.type = JOB_TYPE_BACKUP, .size = sizeof(struct fake), .run = fake_run,
	.clean = fake_clean,
};

static struct fake *
make(int64_t speed)
{
	struct job_options o = { .id = "j", .speed = speed, .manual_dismiss = true };
	struct fake *f;
	struct job *j;

	watch_jobs();
	MUST(job_new(&fake_kind, &o, &j, &err));
	f = (struct fake *)j;
	f->disk = memdisk_new(512);
	f->node = must_mem(f->disk, "disk");
	f->root = must_root(f->node, 0, PERM_ALL);
	pthread_mutex_init(&f->lock, NULL);
	f->o = (struct copy_options){ .root = f->root, .user = f, .next = next,
				      .move = move, .granule = GRANULE,
				      .chunk = 2 * GRANULE };
	return f;
}

/* Wait for the end; the result. */
static int
finish(struct fake *f)
{
	wait_for_job("j", JOB_STATUS_CONCLUDED);
	return f->job.ret;
}

static void
dismiss(struct fake *f)
{
	MUST(job_user_dismiss(&f->job, &err));
	assert_null(job_next(NULL));
}

static void
all_moved_once(const struct fake *f)
{
	for (unsigned i = 0; i <= BYTES / GRANULE; i++)
		assert_int_equal(f->moved[i], 1);
	assert_int_equal(f->job.progress, BYTES);
}

#define COPY_CASE(name)                                                        \
	static void name##_co(void *arg);                                      \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}                                                                      \
	static void name##_co(void *arg __attribute__((unused)))

COPY_CASE(every_piece_is_moved_once)
{
	struct fake *f = make(0);

	MUST(job_start(&f->job, &err));
	assert_int_equal(finish(f), 0);
	all_moved_once(f);
	assert_int_equal(f->largest, 2 * GRANULE);
	dismiss(f);
}

COPY_CASE(several_are_in_flight_and_no_more_than_asked_for)
{
	struct fake *f = make(0);

	f->o.workers = 4;
	f->meet = 4;
	MUST(job_start(&f->job, &err));
	assert_int_equal(finish(f), 0);
	assert_int_equal(f->most, 4);
	all_moved_once(f);
	dismiss(f);
}

COPY_CASE(zeroes_go_in_large_pieces)
{
	struct fake *f = make(0);

	f->zeroes = true;
	MUST(job_start(&f->job, &err));
	assert_int_equal(finish(f), 0);
	assert_int_equal(f->moves, 1);
	all_moved_once(f);
	dismiss(f);
}

COPY_CASE(a_failure_at_any_move_is_reported)
{
	for (unsigned n = 1;; n++) {
		struct fake *f = make(0);
		int r;

		f->fail_at = n;
		f->err_count = 1;
		MUST(job_start(&f->job, &err));
		r = finish(f);
		if (!f->err_count)
			assert_int_equal(r, -ENOSPC);
		else
			all_moved_once(f);
		dismiss(f);
		if (!r) {
			assert_true(n > 20);
			break;
		}
	}
}

COPY_CASE(failed_moves_are_repeated_and_nothing_else)
{
	for (unsigned n = 1; n < 22; n++) {
		struct fake *f = make(0);

		f->fail_at = n;
		f->err_count = 3;
		f->o.on_target_error = BLOCKDEV_ON_ERROR_IGNORE;
		MUST(job_start(&f->job, &err));
		assert_int_equal(finish(f), 0);
		assert_in_range(seen.errors, 1, 3);
		all_moved_once(f);
		dismiss(f);
	}
}

COPY_CASE(a_failing_look_is_a_read_error)
{
	struct fake *f = make(0);

	f->fail_next = 1;
	f->o.on_source_error = BLOCKDEV_ON_ERROR_IGNORE;
	MUST(job_start(&f->job, &err));
	assert_int_equal(finish(f), 0);
	assert_int_equal(seen.errors, 1);
	all_moved_once(f);
	dismiss(f);
}

COPY_CASE(the_speed_makes_pieces_small_and_waits_between_them)
{
	/* Ten portions a second, at least a granule each. */
	struct fake *f = make(20 * GRANULE);
	int64_t start = clock_ns();

	MUST(job_start(&f->job, &err));
	assert_int_equal(finish(f), 0);
	assert_int_equal(f->largest, 2 * GRANULE);
	/* 40 granules at 20 a second, but the last portion need not be waited for. */
	assert_in_range(clock_ns() - start, (int64_t)1700 * 1000000,
			(int64_t)60 * 1000000000);
	all_moved_once(f);
	dismiss(f);
}

COPY_CASE(a_pause_ends_all_moves_and_loses_none)
{
	struct fake *f = make(GRANULE);

	MUST(job_start(&f->job, &err));
	for (int i = 0; i < 5; i++) {
		MUST(job_user_pause(&f->job, &err));
		wait_for_job("j", JOB_STATUS_PAUSED);
		pthread_mutex_lock(&f->lock);
		assert_int_equal(f->now, 0);
		pthread_mutex_unlock(&f->lock);
		if (i == 4)
			MUST(job_user_set_speed(&f->job, 0, &err));
		MUST(job_user_resume(&f->job, &err));
	}
	assert_int_equal(finish(f), 0);
	all_moved_once(f);
	dismiss(f);
}

COPY_CASE(a_cancel_ends_a_copy_that_waits_for_its_turn)
{
	struct fake *f = make(1);

	MUST(job_start(&f->job, &err));
	MUST(job_user_cancel(&f->job, true, &err));
	assert_int_equal(finish(f), -ECANCELED);
	dismiss(f);
}

static void
pieces_end_at_multiples(void **state)
{
	(void)state;
	assert_int_equal(copy_cut(0, 100, 64), 64);
	assert_int_equal(copy_cut(60, 100, 64), 4);
	assert_int_equal(copy_cut(64, 10, 64), 10);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(every_piece_is_moved_once),
		CO_TEST(several_are_in_flight_and_no_more_than_asked_for),
		CO_TEST(zeroes_go_in_large_pieces),
		CO_TEST(a_failure_at_any_move_is_reported),
		CO_TEST(failed_moves_are_repeated_and_nothing_else),
		CO_TEST(a_failing_look_is_a_read_error),
		CO_TEST(the_speed_makes_pieces_small_and_waits_between_them),
		CO_TEST(a_pause_ends_all_moves_and_loses_none),
		CO_TEST(a_cancel_ends_a_copy_that_waits_for_its_turn),
		cmocka_unit_test(pieces_end_at_multiples),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
