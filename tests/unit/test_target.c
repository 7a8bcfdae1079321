/* SPDX-License-Identifier: Apache-2.0 */
/* A target has its name when it is published and not before, and replaces only
 * what it may: with nameless files, and on a file system that has none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/folder.h"
#include "rescue/target.h"

/* ---- the linker puts this in the way of target.c's openat() ---- */

static bool no_nameless_files;

int __real_openat(int at, const char *path, int flags, ...);
int __wrap_openat(int at, const char *path, int flags, ...);
int __real_openat64(int at, const char *path, int flags, ...);
int __wrap_openat64(int at, const char *path, int flags, ...);

static bool
is_refused(int flags)
{
	if (!no_nameless_files || (flags & O_TMPFILE) != O_TMPFILE)
		return false;
	errno = EOPNOTSUPP;
	return true;
}

int
__wrap_openat(int at, const char *path, int flags, ...)
{
	return is_refused(flags) ? -1 : __real_openat(at, path, flags, 0600);
}

int
__wrap_openat64(int at, const char *path, int flags, ...)
{
	return is_refused(flags) ? -1 : __real_openat64(at, path, flags, 0600);
}

/* ---- */

static char dir[] = "/tmp/quoin-target-XXXXXX";

static char *
path_of(const char *name)
{
	static char path[2][128];
	static unsigned next;

	next ^= 1;
	snprintf(path[next], sizeof(path[next]), "%s/%s", dir, name);
	return path[next];
}

static unsigned
files_in_dir(void)
{
	DIR *d = opendir(dir);
	unsigned n = 0;

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

static void
put_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
}

static void
assert_content(const char *path, const char *want)
{
	char got[64] = "";
	FILE *f = fopen(path, "r");

	assert_non_null(f);
	assert_true(fread(got, 1, sizeof(got) - 1, f) > 0);
	fclose(f);
	assert_string_equal(got, want);
}

static struct target *
start(const char *path, bool force)
{
	struct target *t = NULL;
	CLEANUP(cleanup_close) int fd = -1;

	assert_int_equal(target_new(path, force, &t, NULL), 0);
	fd = open(target_open_path(t), O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "new", 3), 3);
	return t;
}

static void
test_it_appears_when_published(void **state)
{
	CLEANUP(target_freep) struct target *t = start(path_of("plain"), false);
	struct stat st;

	assert_int_not_equal(access(path_of("plain"), F_OK), 0);
	assert_int_equal(files_in_dir(), no_nameless_files);
	assert_int_equal(target_sync(t, NULL), 0);
	assert_int_equal(target_publish(t, NULL), 0);
	assert_content(path_of("plain"), "new");
	assert_int_equal(stat(path_of("plain"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(files_in_dir(), 1);
	unlink(path_of("plain"));
}

static void
test_given_up_it_leaves_nothing(void **state)
{
	target_free(start(path_of("gone"), false));
	assert_int_equal(files_in_dir(), 0);
}

static void
test_an_existing_file_is_replaced_by_force_only(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(target_freep) struct target *t = NULL;

	put_file(path_of("old"), "old");
	assert_int_equal(target_new(path_of("old"), false, &t, &err), -1);
	assert_non_null(strstr(error_text(err), "exists already; --force"));
	t = start(path_of("old"), true);
	assert_content(path_of("old"), "old");
	assert_int_equal(target_publish(t, NULL), 0);
	assert_content(path_of("old"), "new");
	assert_int_equal(files_in_dir(), 1);
	unlink(path_of("old"));
}

static void
test_what_came_meanwhile_is_left_alone(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct target *t = start(path_of("race"), false);

	put_file(path_of("race"), "theirs");
	assert_int_equal(target_publish(t, &err), -1);
	assert_non_null(strstr(error_text(err), "left alone"));
	target_free(t);
	assert_content(path_of("race"), "theirs");
	assert_int_equal(files_in_dir(), 1);
	unlink(path_of("race"));
}

static void
test_only_regular_files_are_replaced(void **state)
{
	CLEANUP(error_freep) struct error *fifo = NULL;
	CLEANUP(error_freep) struct error *folder = NULL;

	assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
	assert_int_equal(target_check_place(path_of("fifo"), true, &fifo), -1);
	assert_non_null(strstr(error_text(fifo), "not a regular file"));
	unlink(path_of("fifo"));
	assert_int_equal(target_check_place(dir, true, &folder), -1);
	assert_non_null(strstr(error_text(folder), "that is a folder"));
	assert_int_equal(target_check_place(path_of(""), true, NULL), -1);
	assert_int_equal(target_check_place("", true, NULL), -1);
	assert_int_equal(target_check_place(path_of("none/x"), true, NULL), -1);
}

static void
test_room_is_asked_for(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(target_freep) struct target *t = start(path_of("room"), false);

	assert_int_equal(target_check_space(t, 4096, NULL), 0);
	assert_int_equal(target_check_space(t, 1ULL << 62, &err), -1);
	assert_non_null(strstr(error_text(err), "not enough room"));
}

static void
test_a_partial_one_outlives_the_run_and_is_taken_up(void **state)
{
	struct target *t = NULL;
	bool fresh;

	assert_int_equal(target_partial(-1, path_of("long"), false, &t, &fresh, NULL), 0);
	assert_true(fresh);
	assert_int_equal(write(target_fd(t), "new", 3), 3);
	target_free(t);
	assert_content(path_of(".long.rescue"), "new");
	assert_int_equal(target_partial(-1, path_of("long"), false, &t, &fresh, NULL), 0);
	assert_false(fresh);
	assert_int_equal(target_publish(t, NULL), 0);
	target_free(t);
	assert_content(path_of("long"), "new");
	assert_int_equal(files_in_dir(), 1);
	unlink(path_of("long"));
}

static void
test_a_file_with_the_same_content_will_do(void **state)
{
	struct target *t = NULL;

	put_file(path_of("map"), "old");
	for (unsigned len = 2; len <= 4; len++) {
		assert_int_equal(target_new_in(-1, path_of("map"), false, &t, NULL), 0);
		assert_int_equal(write(target_fd(t), "older", len), len);
		assert_int_equal(target_publish_or_find(t, NULL), len == 3 ? 0 : -1);
		target_free(t);
	}
	assert_content(path_of("map"), "old");
	assert_int_equal(files_in_dir(), 1);
	unlink(path_of("map"));
}

static void
test_places_are_the_same_by_any_path(void **state)
{
	char a[64];

	snprintf(a, sizeof(a), "%s/../%s/x", dir, dir + strlen("/tmp/"));
	assert_true(target_is_same_place(a, path_of("x")));
	assert_false(target_is_same_place(a, path_of("y")));
	assert_false(target_is_same_place("/x", path_of("x")));
	assert_false(target_is_same_place("/missing/x", "/missing/x"));
}

static void
test_a_folder_appears_when_published(void **state)
{
	struct folder *f = NULL;
	struct target *t = NULL;

	assert_int_equal(folder_new(path_of("folder"), false, &f, NULL), 0);
	assert_int_equal(target_new_in(folder_fd(f), path_of("folder/file"), false, &t, NULL), 0);
	assert_int_equal(write(target_fd(t), "new", 3), 3);
	assert_int_equal(target_publish(t, NULL), 0);
	target_free(t);
	assert_int_not_equal(access(path_of("folder"), F_OK), 0);
	assert_int_equal(folder_publish(f, NULL), 0);
	folder_free(f);
	assert_content(path_of("folder/file"), "new");
	assert_int_equal(files_in_dir(), 1);
	unlink(path_of("folder/file"));
	rmdir(path_of("folder"));
}

static void
test_a_folder_given_up_leaves_nothing(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct folder *f = NULL;
	struct target *t = NULL;

	assert_int_equal(folder_new(path_of("folder"), false, &f, NULL), 0);
	assert_int_equal(target_new_in(folder_fd(f), path_of("folder/file"), false, &t, NULL), 0);
	assert_int_equal(target_publish(t, NULL), 0);
	target_free(t);
	assert_int_equal(mkdir(path_of("folder"), 0700), 0);
	assert_int_equal(folder_check_place(path_of("folder"), NULL), -1);
	put_file(path_of("folder/theirs"), "x");
	assert_int_equal(folder_publish(f, &err), -1);
	assert_non_null(strstr(error_text(err), "left alone"));
	folder_free(f);
	assert_int_equal(files_in_dir(), 1);
	unlink(path_of("folder/theirs"));
	rmdir(path_of("folder"));
}

/* As somebody else who may do little here; false: that cannot be. */
static bool
become_nobody(void)
{
	return geteuid() == 0 && seteuid(65534) == 0;
}

static void
test_a_folder_that_takes_no_files(void **state)
{
	CLEANUP(error_freep) struct error *file = NULL;
	CLEANUP(error_freep) struct error *folder = NULL;

	assert_int_equal(chmod(dir, 0755), 0);
	if (!become_nobody()) {
		print_message("SKIP: only root can be somebody else\n");
		skip();
	}
	assert_int_equal(target_check_place(path_of("new"), true, &file), -1);
	assert_int_equal(folder_check_place(path_of("new"), &folder), -1);
	assert_int_equal(seteuid(0), 0);
	assert_non_null(strstr(error_text(file), "/new': Permission denied"));
	assert_non_null(strstr(error_text(folder), "/new': Permission denied"));
	assert_int_equal(target_check_place(path_of("new"), false, NULL), 0);
	assert_int_equal(folder_check_place(path_of("new"), NULL), 0);
}

/* As in /tmp: whose folder it is may replace all, others what is theirs. */
static void
test_what_others_have_in_a_shared_folder(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;
	int theirs, mine;

	put_file(path_of("theirs"), "old");
	put_file(path_of("mine"), "old");
	if (chown(path_of("mine"), 65534, 65534) < 0 || !become_nobody()) {
		unlink(path_of("theirs"));
		unlink(path_of("mine"));
		print_message("SKIP: only root can be somebody else\n");
		skip();
	}
	assert_int_equal(seteuid(0), 0);
	assert_int_equal(chmod(dir, 01777), 0);
	assert_true(become_nobody());
	theirs = target_check_place(path_of("theirs"), true, &err);
	mine = target_check_place(path_of("mine"), true, NULL);
	assert_int_equal(seteuid(0), 0);
	assert_int_equal(theirs, -1);
	assert_non_null(strstr(error_text(err), "somebody else's"));
	assert_int_equal(mine, 0);
	assert_int_equal(target_check_place(path_of("theirs"), true, NULL), 0);
	unlink(path_of("theirs"));
	unlink(path_of("mine"));
	assert_int_equal(chmod(dir, 0700), 0);
}

static int
set_up(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int
tear_down(void **state)
{
	return rmdir(dir);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_it_appears_when_published),
		cmocka_unit_test(test_given_up_it_leaves_nothing),
		cmocka_unit_test(test_an_existing_file_is_replaced_by_force_only),
		cmocka_unit_test(test_what_came_meanwhile_is_left_alone),
		cmocka_unit_test(test_only_regular_files_are_replaced),
		cmocka_unit_test(test_room_is_asked_for),
		cmocka_unit_test(test_a_partial_one_outlives_the_run_and_is_taken_up),
		cmocka_unit_test(test_a_file_with_the_same_content_will_do),
		cmocka_unit_test(test_places_are_the_same_by_any_path),
		cmocka_unit_test(test_a_folder_appears_when_published),
		cmocka_unit_test(test_a_folder_given_up_leaves_nothing),
		cmocka_unit_test(test_a_folder_that_takes_no_files),
		cmocka_unit_test(test_what_others_have_in_a_shared_folder),
	};

	int failed = cmocka_run_group_tests_name("nameless files", tests, set_up, tear_down);

	no_nameless_files = true;
	memcpy(dir + sizeof(dir) - 7, "XXXXXX", 6);
	return failed + cmocka_run_group_tests_name("hidden names", tests, set_up, tear_down);
}
