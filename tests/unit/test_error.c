/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"

void *__real_malloc(size_t len);
void *__wrap_malloc(size_t len);

static bool heap_fails;

void *
__wrap_malloc(size_t len)
{
	return heap_fails ? NULL : __real_malloc(len);
}

static void
set_makes_text_and_class(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;

	assert_int_equal(error_set_class(&err, ERROR_DEVICE_NOT_FOUND, "no %s %d", "disk", 7), -1);
	assert_string_equal(error_text(err), "no disk 7");
	assert_int_equal(error_get_class(err), ERROR_DEVICE_NOT_FOUND);
	assert_string_equal(error_class_name(error_get_class(err)), "DeviceNotFound");
}

static void
errno_is_taken_with_either_sign(void **state)
{
	for (int sign = -1; sign <= 1; sign += 2) {
		CLEANUP(error_freep) struct error *err = NULL;

		assert_int_equal(error_set_errno(&err, sign * ENOENT, "open '%s'", "x"), -ENOENT);
		assert_string_equal(error_text(err), "open 'x': No such file or directory");
	}
}

static void
parts_go_in_front_and_behind(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;

	error_prepend(&err, "not set, so ");
	assert_null(err);
	error_set(&err, "middle");
	error_prepend(&err, "%s ", "front");
	error_append(&err, " %s", "back");
	assert_string_equal(error_text(err), "front middle back");
}

static void
a_hint_is_no_part_of_the_text(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;

	error_set_hint(&err, "for nothing");
	assert_null(err);
	error_set(&err, "what");
	assert_string_equal(error_hint(err), "");
	error_set_hint(&err, "why %d", 1);
	error_set_hint(&err, "why %d", 2);
	error_prepend(&err, "where: ");
	assert_string_equal(error_text(err), "where: what");
	assert_string_equal(error_hint(err), "\nwhy 2");
}

static void
nobody_wants_it(void **state)
{
	assert_int_equal(error_set(NULL, "unread"), -1);
	assert_int_equal(error_set_errno(NULL, EIO, "unread"), -EIO);
	error_prepend(NULL, "unread");
	error_set_hint(NULL, "unread");
	error_free(NULL);
}

static void
the_first_of_two_propagated_stays(void **state)
{
	CLEANUP(error_freep) struct error *to = NULL;
	struct error *one = NULL, *two = NULL;

	error_propagate(&to, NULL);
	assert_null(to);
	error_set(&one, "one");
	error_set(&two, "two");
	error_propagate(&to, one);
	error_propagate(&to, two);
	assert_string_equal(error_text(to), "one");
}

static void
no_memory_gives_an_error_all_the_same(void **state)
{
	struct error *err = NULL;

	heap_fails = true;
	error_set(&err, "some text");
	heap_fails = false;
	assert_non_null(err);
	assert_string_equal(error_text(err), "Cannot allocate memory");
	error_prepend(&err, "more: ");
	assert_string_equal(error_text(err), "Cannot allocate memory");
	error_freep(&err);
	assert_null(err);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(set_makes_text_and_class),
		cmocka_unit_test(errno_is_taken_with_either_sign),
		cmocka_unit_test(parts_go_in_front_and_behind),
		cmocka_unit_test(a_hint_is_no_part_of_the_text),
		cmocka_unit_test(nobody_wants_it),
		cmocka_unit_test(the_first_of_two_propagated_stays),
		cmocka_unit_test(no_memory_gives_an_error_all_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
