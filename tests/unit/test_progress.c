/* SPDX-License-Identifier: Apache-2.0 */
/* Progress as lines in a log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "rescue/progress.h"

static void
assert_formatted(uint64_t bytes, const char *want)
{
	char got[PROGRESS_BYTES];

	progress_format_bytes(bytes, got);
	assert_string_equal(got, want);
}

static void
test_bytes_have_the_unit_that_fits(void **state)
{
	assert_formatted(0, "0 B");
	assert_formatted(1023, "1023 B");
	assert_formatted(1024, "1 KiB");
	assert_formatted(1536, "1.5 KiB");
	assert_formatted(1024 * 1024 - 1, "1023.9 KiB");
	assert_formatted(UINT64_C(3) << 30, "3 GiB");
	assert_formatted(UINT64_MAX, "15.9 EiB");
}

static unsigned
lines_in(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

static void
test_a_line_comes_with_every_tenth(void **state)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	struct progress p = { 0 };

	assert_non_null(f);
	p.to = f;
	p.total = 1000;
	p.next_percent = 10;
	for (unsigned i = 0; i < 1000; i++) {
		progress_add(&p, 1);
		progress_show(&p);
	}
	progress_end(&p);
	fclose(f);
	assert_int_equal(lines_in(text), 10);
	assert_int_equal(strncmp(text, "10% (100 B of 1000 B", 20), 0);
	assert_non_null(strstr(text, "\n100% (1000 B of 1000 B"));
	free(text);
}

static void
test_nothing_to_do_is_all_done(void **state)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	struct progress p = { .to = f, .next_percent = 10 };

	assert_non_null(f);
	progress_end(&p);
	fclose(f);
	assert_int_equal(strncmp(text, "100% ", 5), 0);
	free(text);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bytes_have_the_unit_that_fits),
		cmocka_unit_test(test_a_line_comes_with_every_tenth),
		cmocka_unit_test(test_nothing_to_do_is_all_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
