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
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/key.h"
#include "rescue/prompt.h"
#include "rescue/secret.h"
#include "rescue/wordlist.h"

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

/* Both variants of given. */
static void
assert_variants(const char *given, const char *first, enum key_form first_form, const char *second,
		enum key_form second_form)
{
	CLEANUP(key_freep) struct key *k = NULL;
	CLEANUP(key_freep) struct key *a = NULL;
	CLEANUP(key_freep) struct key *b = NULL;

	assert_int_equal(key_new(given, strlen(given), "it", &k, NULL), 0);
	assert_int_equal(k->form, KEY_EXACT);
	assert_int_equal(key_variant(k, 0, &a, NULL), 0);
	assert_bytes(a, first);
	assert_int_equal(a->form, first_form);
	assert_int_equal(key_variant(k, 1, &b, NULL), 0);
	assert_bytes(b, second);
	assert_int_equal(b->form, second_form);
}

static void
test_variants_have_every_other_end_of_the_line(void **state)
{
	assert_variants("key", "key\n", KEY_WITH_LF, "key\r\n", KEY_WITH_CRLF);
	assert_variants("key\n", "key", KEY_WITHOUT_LINE_END, "key\r\n", KEY_WITH_CRLF);
	assert_variants("key\r\n", "key", KEY_WITHOUT_LINE_END, "key\n", KEY_WITH_LF);
	assert_variants("\n", "", KEY_WITHOUT_LINE_END, "\r\n", KEY_WITH_CRLF);
	assert_variants("", "\n", KEY_WITH_LF, "\r\n", KEY_WITH_CRLF);
	assert_variants("a\r", "a\r\n", KEY_WITH_LF, "a\r\r\n", KEY_WITH_CRLF);
}

static void
assert_origin(const char *given, unsigned i, const char *want)
{
	CLEANUP(key_freep) struct key *k = NULL;
	CLEANUP(key_freep) struct key *v = NULL;

	assert_int_equal(key_new(given, strlen(given), "it", &k, NULL), 0);
	assert_int_equal(key_variant(k, i, &v, NULL), 0);
	assert_string_equal(v->origin, want);
}

static void
test_variants_say_what_they_are_and_keep_their_layer(void **state)
{
	CLEANUP(key_freep) struct key *k = NULL;
	CLEANUP(key_freep) struct key *v = NULL;

	assert_origin("key", 0, "it (with a newline added)");
	assert_origin("key", 1, "it (with CR LF added)");
	assert_origin("key\n", 0, "it (without the newline at its end)");
	assert_origin("key\r\n", 0, "it (without the CR LF at its end)");
	assert_origin("key\r\n", 1, "it (with a newline at its end instead)");
	assert_int_equal(key_new("a", 1, "it", &k, NULL), 0);
	assert_int_equal(k->layer, KEY_ANY_LAYER);
	k->layer = 3;
	assert_int_equal(key_variant(k, 0, &v, NULL), 0);
	assert_int_equal(v->layer, 3);
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
test_a_key_may_be_as_long_as_those_of_cryptsetup_and_no_longer(void **state)
{
	CLEANUP(key_freep) struct key *k = NULL;
	CLEANUP(error_freep) struct error *err = NULL;
	char *content = calloc(1, KEY_MAX + 1);
	struct key *longer = NULL;

	assert_non_null(content);
	content[KEY_MAX - 1] = 'z';
	assert_int_equal(key_of(content, KEY_MAX, &k, NULL), 0);
	assert_int_equal(k->len, KEY_MAX);
	assert_memory_equal(k->bytes, content, KEY_MAX);
	assert_int_equal(key_of(content, KEY_MAX + 1, &longer, &err), -1);
	assert_non_null(strstr(error_text(err), "longer than"));
	free(content);
}

static void
test_a_credential_is_a_file_in_systemds_folder(void **state)
{
	CLEANUP(key_freep) struct key *k = NULL;
	char folder[] = "/tmp/quoin-creds-XXXXXX", path[64];
	static const char *const bad[] = { "", ".", "..", "../disk", "a/b", "other" };
	FILE *f;

	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/disk", folder);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs("from systemd", f);
	fclose(f);
	unsetenv("CREDENTIALS_DIRECTORY");
	assert_int_equal(key_read_credential("disk", &k, NULL), -1);
	setenv("CREDENTIALS_DIRECTORY", folder, 1);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(key_read_credential(bad[i], &k, NULL), -1);
	assert_int_equal(key_read_credential("disk", &k, NULL), 0);
	assert_bytes(k, "from systemd");
	assert_string_equal(k->origin, "the credential disk");
	unsetenv("CREDENTIALS_DIRECTORY");
	unlink(path);
	rmdir(folder);
}

/* ---- lists ---- */

static void
assert_next(struct wordlist *w, const char *want, const char *origin)
{
	CLEANUP(key_freep) struct key *k = NULL;

	assert_int_equal(wordlist_next(w, &k, NULL), 0);
	if (!want) {
		assert_null(k);
		return;
	}
	assert_bytes(k, want);
	assert_memory_equal(k->origin, origin, strlen(origin));
}

static void
test_a_list_gives_its_lines_over_and_over(void **state)
{
	static const char content[] = "one\n\n two \r\n\r\nthree\r\nlast";
	char path[] = "/tmp/quoin-words-XXXXXX";
	int fd = mkstemp(path);
	struct wordlist *w = NULL;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, strlen(content)), (ssize_t)strlen(content));
	close(fd);
	assert_int_equal(wordlist_read(path, &w, NULL), 0);
	assert_int_equal(wordlist_count(w), 4);
	for (int i = 0; i < 2; i++) {
		assert_next(w, "one", "line 1 of /tmp/quoin-words-");
		assert_next(w, " two ", "line 3 of ");
		assert_next(w, "three", "line 5 of ");
		assert_next(w, "last", "line 6 of ");
		assert_next(w, NULL, NULL);
		wordlist_rewind(w);
	}
	wordlist_free(w);
	unlink(path);
}

/* ---- where keys are kept ---- */

/* Sanitizers make of mlock() a call that does nothing and succeeds. */
static void
need_mlock(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	print_message("SKIP: a sanitizer stands in for mlock()\n");
	skip();
#endif
}

/* The Locked: line of this process in /proc, in kB. */
static long
locked_kb(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[128];
	long kb = -1;

	assert_non_null(f);
	while (kb < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, "VmLck:", 6))
			kb = atol(line + 6);
	fclose(f);
	return kb;
}

static void
test_keys_are_in_locked_memory_while_they_live(void **state)
{
	struct key *k = NULL;
	long before = locked_kb();

	need_mlock();
	assert_int_equal(key_of("secret", 6, &k, NULL), 0);
	if (!secret_all_locked()) {
		key_free(k);
		print_message("SKIP: no memory may be locked here\n");
		skip();
	}
	assert_true(locked_kb() > before);
	key_free(k);
	assert_int_equal(locked_kb(), before);
}

/* Without the right to lock as much as one likes: 0 if a small key is locked all the
 * same, 1 if it is not and that is told. */
static void __attribute__((noreturn))
lock_little(rlim_t limit)
{
	struct rlimit r = { limit, limit };
	struct key *k = NULL;
	int p[2];

	if (setrlimit(RLIMIT_MEMLOCK, &r) < 0 || (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0) ||
	    pipe(p) < 0 || write(p[1], "secret", 6) != 6 || close(p[1]) < 0)
		_exit(9);
	if (key_read_fd(p[0], &k, NULL) < 0 || k->len != 6)
		_exit(8);
	_exit(secret_all_locked() ? 0 : 1);
}

static int
status_of_locking(rlim_t limit)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		lock_little(limit);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void
test_a_limit_on_locked_memory_is_told_and_no_error(void **state)
{
	need_mlock();
	assert_int_equal(status_of_locking(0), 1);
	assert_int_equal(status_of_locking(64 * 1024), 0);
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

/* Runs in the child.  Exit status 0: the answer was "answer"; 4: an empty line. */
static void __attribute__((noreturn))
ask(void)
{
	static const int signals[] = { SIGINT, SIGQUIT, SIGTERM, SIGHUP };
	static const struct rlimit no_core = { 0, 0 };
	struct key *k = NULL;

	/* Whoever runs the tests may ignore some: nohup, a shell in the background. */
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		signal(signals[i], SIG_DFL);
	setrlimit(RLIMIT_CORE, &no_core);
	if (prompt_key("Password: ", &k, NULL) < 0)
		_exit(2);
	_exit(k->len == 6 && !memcmp(k->bytes, "answer", 6) ? 0 : k->len ? 3 : 4);
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
assert_ends(const char *typed, int want)
{
	int master, status;
	pid_t pid = start_asking(&master);

	assert_int_equal(write(master, typed, strlen(typed)), (ssize_t)strlen(typed));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), want);
	close(master);
}

static void
test_an_empty_line_is_an_answer_and_the_end_of_input_is_none(void **state)
{
	assert_ends("\n", 4);
	assert_ends("\004", 2);	/* ctrl-D */
}

static void
test_an_interrupted_prompt_restores_echo_and_ends_by_the_signal(void **state)
{
	static const struct {
		const char *typed;
		int signo;
	} ways[] = { { "half\003", SIGINT }, { "\034", SIGQUIT }, { NULL, SIGTERM },
		     { NULL, SIGHUP } };

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		struct termios t;
		int master, status;
		pid_t pid = start_asking(&master);

		if (ways[i].typed)
			assert_true(write(master, ways[i].typed, strlen(ways[i].typed)) > 0);
		else
			assert_int_equal(kill(pid, ways[i].signo), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), ways[i].signo);
		assert_int_equal(tcgetattr(master, &t), 0);
		assert_true(t.c_lflag & ECHO);
		close(master);
	}
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
		cmocka_unit_test(test_variants_have_every_other_end_of_the_line),
		cmocka_unit_test(test_variants_say_what_they_are_and_keep_their_layer),
		cmocka_unit_test(test_empty_missing_and_endless_files_are_errors),
		cmocka_unit_test(test_a_key_may_be_as_long_as_those_of_cryptsetup_and_no_longer),
		cmocka_unit_test(test_a_credential_is_a_file_in_systemds_folder),
		cmocka_unit_test(test_a_list_gives_its_lines_over_and_over),
		cmocka_unit_test(test_keys_are_in_locked_memory_while_they_live),
		cmocka_unit_test(test_a_limit_on_locked_memory_is_told_and_no_error),
		cmocka_unit_test(test_a_descriptor_is_read_to_its_end),
		cmocka_unit_test(test_the_prompt_reads_a_line_without_echo),
		cmocka_unit_test(test_an_empty_line_is_an_answer_and_the_end_of_input_is_none),
		cmocka_unit_test(test_an_interrupted_prompt_restores_echo_and_ends_by_the_signal),
		cmocka_unit_test(test_without_a_terminal_the_prompt_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
