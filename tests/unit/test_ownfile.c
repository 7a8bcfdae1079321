/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/ownfile.h"

static char dir[] = "/tmp/q-ownfile-XXXXXX";

static void
make(const char *name)
{
	int fd = open(name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	close(fd);
}

static void
test_removed_from_another_folder(void **state)
{
	struct ownfile f = { 0 };

	(void)state;
	make("own");
	assert_int_equal(ownfile_note(&f, "own"), 0);
	assert_int_equal(chdir("/"), 0);
	ownfile_remove(&f);
	assert_int_equal(chdir(dir), 0);
	assert_int_equal(access("own", F_OK), -1);
	ownfile_remove(&f);	/* forgotten: no-op */
}

static void
test_another_file_of_the_name_stays(void **state)
{
	struct ownfile f = { 0 };

	(void)state;
	make("own");
	assert_int_equal(ownfile_note(&f, "own"), 0);
	/* The old one keeps its inode, so that the new one gets another. */
	assert_int_equal(rename("own", "old"), 0);
	make("own");
	ownfile_remove(&f);
	assert_int_equal(access("own", F_OK), 0);
	unlink("own");
	unlink("old");
}

static void
test_a_file_that_is_not_there(void **state)
{
	struct ownfile f = { 0 };

	(void)state;
	assert_true(ownfile_note(&f, "none") < 0);
	ownfile_remove(&f);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_removed_from_another_folder),
		cmocka_unit_test(test_another_file_of_the_name_stays),
		cmocka_unit_test(test_a_file_that_is_not_there),
	};
	int r;

	if (!mkdtemp(dir) || chdir(dir))
		return 1;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	(void)!chdir("/");
	rmdir(dir);
	return r;
}
