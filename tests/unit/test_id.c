/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/id.h"

static void
test_letters_first(void **state)
{
	(void)state;
	assert_true(id_is_well_formed("a"));
	assert_true(id_is_well_formed("Disk-0.a_b"));
	assert_false(id_is_well_formed(""));
	assert_false(id_is_well_formed("0a"));
	assert_false(id_is_well_formed("_a"));
	assert_false(id_is_well_formed("#block1"));
}

static void
test_nothing_else(void **state)
{
	(void)state;
	assert_false(id_is_well_formed("a b"));
	assert_false(id_is_well_formed("a/b"));
	assert_false(id_is_well_formed("a\xc3\xa4"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_letters_first),
		cmocka_unit_test(test_nothing_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
