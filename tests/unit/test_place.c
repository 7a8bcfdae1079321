/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include <fcntl.h>
#include <stdio.h>

#include "aio/disk.h"
#include "aio/place.h"
#include "aio/timer.h"

enum { MS = 1000 * 1000 };

static void
took(struct pace *p, int64_t ns)
{
	place_took(p, clock_ns() - ns, 0);
}

static bool
allows(struct pace *p)
{
	return pace_allows(p, clock_ns());
}

/* Until the long ones are forgotten; on a busy machine another may come in. */
static void
quick_calls(struct pace *p)
{
	do
		took(p, 1000);
	while (p->mean_ns > 10 * 1000);
}

static void
test_one_long_call_is_forgiven(void **state)
{
	struct pace p = { 0 };

	took(&p, 1000L * MS);
	assert_true(allows(&p));
	quick_calls(&p);
	took(&p, 1000L * MS);
	assert_true(allows(&p));
}

static void
test_slow_calls_are_sent_away(void **state)
{
	struct pace p = { 0 };
	int n = 0;

	while (allows(&p) && n < 100) {
		took(&p, 5 * MS);
		n++;
	}
	assert_true(n < 5);
}

static void
test_long_transfers_are_not_slow(void **state)
{
	struct pace p = { 0 };

	for (int i = 0; i < 100; i++)
		place_took(&p, clock_ns() - 10 * MS, 10 * MS);
	assert_true(allows(&p));
}

/* For how long the next slow call sends it away. */
static int64_t
away_after_slow_call(struct pace *p)
{
	p->away_until = 0;
	took(p, 5 * MS);
	return p->away_ns;
}

static void
test_slow_again_is_away_for_longer_up_to_a_limit(void **state)
{
	struct pace p = { 0 };
	int64_t before = 0, away;

	while (allows(&p))
		took(&p, 5 * MS);
	for (int i = 0; i < 6; i++) {
		away = away_after_slow_call(&p);
		assert_true(away >= 2 * before);
		before = away;
	}
	for (int i = 0; i < 20; i++)
		away = away_after_slow_call(&p);
	assert_int_equal(away, 1000L * MS);
}

static void
test_quick_calls_win_trust_back(void **state)
{
	struct pace p = { 0 };

	while (allows(&p))
		took(&p, 5 * MS);
	for (int i = 0; i < 4; i++)
		away_after_slow_call(&p);
	p.away_until = 0;
	quick_calls(&p);
	took(&p, 5 * MS);
	assert_true(allows(&p));
	took(&p, 5 * MS);
	assert_false(allows(&p));
	assert_true(p.away_ns <= 10 * MS);
}

static void
test_a_new_file_starts_afresh(void **state)
{
	int fd = open(".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	struct place *p = place_of(fd);

	if (fd < 0)
		skip();
	atomic_store(&p->no_nowait_read, true);
	while (allows(&p->write))
		took(&p->write, 5 * MS);
	disk_opened(fd);
	assert_false(place_get(&p->no_nowait_read));
	assert_true(allows(&p->write));
	close(fd);
}

static void
test_what_is_no_local_file_gets_no_plain_calls(void **state)
{
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	atomic_store(&place_of(fd)->local, true);
	disk_opened(fd);
	assert_false(place_get(&place_of(fd)->local));
	close(fd);
	assert_null(place_of(-1));
	assert_null(place_of(1 << 20));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_long_call_is_forgiven),
		cmocka_unit_test(test_slow_calls_are_sent_away),
		cmocka_unit_test(test_long_transfers_are_not_slow),
		cmocka_unit_test(test_slow_again_is_away_for_longer_up_to_a_limit),
		cmocka_unit_test(test_quick_calls_win_trust_back),
		cmocka_unit_test(test_a_new_file_starts_afresh),
		cmocka_unit_test(test_what_is_no_local_file_gets_no_plain_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
