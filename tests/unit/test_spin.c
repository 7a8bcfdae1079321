/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include "aio/spin.h"

enum { SHORT = 20 * 1000, LONG = 10 * 1000 * 1000 };

/* A sleep that ends at *now. */
static void
sleep_for(struct spin *s, int64_t *now, int64_t ns)
{
	*now += ns;
	spin_slept(s, ns, *now);
}

static bool
begins(struct spin *s, int64_t *now)
{
	for (int i = 0; i < 8; i++)
		sleep_for(s, now, SHORT);
	return spin_wanted(s);
}

/* Looks that find nothing, each followed by a short sleep, until it gives up. */
static int
misses(struct spin *s, int64_t *now)
{
	int n = 0;

	for (; spin_wanted(s) && n < 100; n++) {
		*now += SPIN_NS;
		spin_looked(s, false, *now);
		if (spin_wanted(s))
			sleep_for(s, now, SHORT);
	}
	return n;
}

static void
test_it_begins_after_short_sleeps_in_a_row(void **state)
{
	struct spin s = { 0 };
	int64_t now = 1;

	assert_false(spin_wanted(&s));
	for (int i = 0; i < 20; i++)
		sleep_for(&s, &now, i % 7 ? SHORT : LONG);
	assert_false(spin_wanted(&s));
	assert_true(begins(&s, &now));
}

static void
test_a_long_sleep_ends_it_without_a_rest(void **state)
{
	struct spin s = { 0 };
	int64_t now = 1;

	assert_true(begins(&s, &now));
	sleep_for(&s, &now, LONG);
	assert_false(spin_wanted(&s));
	assert_true(begins(&s, &now));
}

static void
test_looking_in_vain_ends_it_for_a_while(void **state)
{
	struct spin s = { 0 };
	int64_t now = 1, end;

	assert_true(begins(&s, &now));
	assert_true(misses(&s, &now) <= 4);
	end = now + SPIN_REST_MIN_NS;
	while (now + SHORT < end) {
		sleep_for(&s, &now, SHORT);
		assert_false(spin_wanted(&s));
	}
	assert_true(begins(&s, &now));
}

static void
test_rests_grow_up_to_a_limit_and_shrink_when_it_pays(void **state)
{
	struct spin s = { 0 };
	int64_t now = 1, before = 0;

	for (int i = 0; i < 20; i++) {
		assert_true(begins(&s, &now));
		misses(&s, &now);
		assert_true(s.rest_ns > before || s.rest_ns == SPIN_REST_MAX_NS);
		before = s.rest_ns;
		now += s.rest_ns;
	}
	assert_int_equal(before, SPIN_REST_MAX_NS);
	assert_true(begins(&s, &now));
	for (int i = 0; i < 2000; i++)
		spin_looked(&s, true, ++now);
	assert_true(spin_wanted(&s));
	misses(&s, &now);
	assert_int_equal(s.rest_ns, SPIN_REST_MIN_NS);
}

static void
test_now_and_then_in_vain_does_not_end_it(void **state)
{
	struct spin s = { 0 };
	int64_t now = 1;

	assert_true(begins(&s, &now));
	for (int i = 1; i < 1000; i++)
		spin_looked(&s, i % 10 != 0, ++now);
	assert_true(spin_wanted(&s));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_it_begins_after_short_sleeps_in_a_row),
		cmocka_unit_test(test_a_long_sleep_ends_it_without_a_rest),
		cmocka_unit_test(test_looking_in_vain_ends_it_for_a_while),
		cmocka_unit_test(test_rests_grow_up_to_a_limit_and_shrink_when_it_pays),
		cmocka_unit_test(test_now_and_then_in_vain_does_not_end_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
