/* SPDX-License-Identifier: Apache-2.0 */
/* Keys from files, descriptors and a terminal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/key.h"

static void
assert_bytes(const struct key *k, const char *want)
{
	assert_int_equal(k->len, strlen(want));
	assert_memory_equal(k->bytes, want, k->len);
}

/* The key in a file of this content. */
static int
key_of(const void *content, size_t len, struct key **ret, struct error **errp)
{
	char path[] = "/tmp/quoin-key-XXXXXX";
	int fd = mkstemp(path), r;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, len), (ssize_t)len);
	close(fd);
	r = key_read_file(path, ret, errp);
	unlink(path);
	return r;
}

static void
test_a_file_gives_its_exact_bytes(void **state)
{
	CLEANUP(key_freep) struct key *k = NULL;

	assert_int_equal(key_of("a\0b\n", 4, &k, NULL), 0);
	assert_int_equal(k->len, 4);
	assert_memory_equal(k->bytes, "a\0b\n", 4);
	assert_non_null(strstr(k->origin, "the key file /tmp/quoin-key-"));
}

static void
test_the_variant_drops_or_adds_a_newline(void **state)
{
	CLEANUP(key_freep) struct key *with = NULL;
	CLEANUP(key_freep) struct key *without = NULL;
	CLEANUP(key_freep) struct key *back = NULL;

	key_of("secret\n", 7, &with, NULL);
	assert_int_equal(key_variant(with, &without, NULL), 0);
	assert_bytes(without, "secret");
	assert_non_null(strstr(without->origin, "without the newline"));
	assert_int_equal(key_variant(without, &back, NULL), 0);
	assert_bytes(back, "secret\n");
	assert_non_null(strstr(back->origin, "with a newline added"));
}

static void
test_empty_missing_and_endless_files_are_errors(void **state)
{
	CLEANUP(error_freep) struct error *empty = NULL;
	CLEANUP(error_freep) struct error *missing = NULL;
	CLEANUP(error_freep) struct error *endless = NULL;
	struct key *k = NULL;

	assert_int_equal(key_of("", 0, &k, &empty), -1);
	assert_non_null(strstr(error_text(empty), "is empty"));
	assert_int_equal(key_read_file("/nonexistent/key", &k, &missing), -1);
	assert_non_null(strstr(error_text(missing), "No such file"));
	assert_int_equal(key_read_file("/dev/zero", &k, &endless), -1);
	assert_non_null(strstr(error_text(endless), "longer than"));
	assert_null(k);
}

static void
test_a_descriptor_is_read_to_its_end(void **state)
{
	CLEANUP(key_freep) struct key *k = NULL;
	CLEANUP(error_freep) struct error *err = NULL;
	int p[2];

	assert_int_equal(pipe(p), 0);
	assert_int_equal(write(p[1], "from a pipe", 11), 11);
	close(p[1]);
	assert_int_equal(key_read_fd(p[0], &k, NULL), 0);
	assert_bytes(k, "from a pipe");
	close(p[0]);
	assert_int_equal(key_read_fd(p[0], &k, &err), -1);
	assert_non_null(strstr(error_text(err), "Bad file descriptor"));
}

/* ---- the prompt: a child on a terminal of its own ---- */

/* Runs in the child.  Exit status 0: the answer was "answer". */
static void __attribute__((noreturn))
ask(void)
{
	struct key *k = NULL;

	if (key_prompt("Password: ", &k, NULL) < 0)
		_exit(2);
	_exit(k->len == 6 && !memcmp(k->bytes, "answer", 6) ? 0 : 3);
}

static pid_t
start_asking(int *ret_master)
{
	char buf[64];
	size_t len = 0;
	pid_t pid = forkpty(ret_master, NULL, NULL, NULL);

	assert_true(pid >= 0);
	if (!pid)
		ask();
	/* The question comes before echo is off for sure only in what follows;
	 * wait for both. */
	while (!memmem(buf, len, "Password: ", 10)) {
		ssize_t n = read(*ret_master, buf + len, sizeof(buf) - len);

		assert_true(n > 0);
		len += n;
	}
	for (;;) {
		struct termios t;

		assert_int_equal(tcgetattr(*ret_master, &t), 0);
		if (!(t.c_lflag & ECHO))
			break;
	}
	return pid;
}

static void
test_the_prompt_reads_a_line_without_echo(void **state)
{
	char out[64];
	ssize_t n, len = 0;
	int master, status;
	pid_t pid = start_asking(&master);

	assert_int_equal(write(master, "answer\n", 7), 7);
	while ((n = read(master, out + len, sizeof(out) - len)) > 0)
		len += n;
	assert_null(memmem(out, len, "answer", 6));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	close(master);
}

static void
test_an_interrupted_prompt_restores_echo_and_ends_by_the_signal(void **state)
{
	struct termios t;
	int master, status;
	pid_t pid = start_asking(&master);

	assert_int_equal(write(master, "half\003", 5), 5);	/* ctrl-C */
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGINT);
	assert_int_equal(tcgetattr(master, &t), 0);
	assert_true(t.c_lflag & ECHO);
	close(master);
}

static void
test_without_a_terminal_the_prompt_fails(void **state)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		setsid();
		ask();
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), 2);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_file_gives_its_exact_bytes),
		cmocka_unit_test(test_the_variant_drops_or_adds_a_newline),
		cmocka_unit_test(test_empty_missing_and_endless_files_are_errors),
		cmocka_unit_test(test_a_descriptor_is_read_to_its_end),
		cmocka_unit_test(test_the_prompt_reads_a_line_without_echo),
		cmocka_unit_test(test_an_interrupted_prompt_restores_echo_and_ends_by_the_signal),
		cmocka_unit_test(test_without_a_terminal_the_prompt_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
