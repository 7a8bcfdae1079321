/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/work.h"
#include "base/cleanup.h"

/* ---- one call ---- */

static int
returns_its_number(void *arg)
{
	assert_null(loop_self());
	return *(int *)arg;
}

static void
one_call(void *arg)
{
	int n = -EDOM;

	assert_int_equal(work_run(returns_its_number, &n), -EDOM);
	assert_ptr_equal(loop_self(), loop_main());
}

static void
test_runs_on_another_thread_and_returns_the_result(void **state)
{
	run(one_call, NULL);
}

static int
notes_thread(void *arg)
{
	*(pthread_t *)arg = pthread_self();
	return 0;
}

static void
test_outside_of_coroutines_runs_in_place(void **state)
{
	pthread_t t;

	assert_int_equal(work_run(notes_thread, &t), 0);
	assert_true(pthread_equal(t, pthread_self()));
}

/* ---- calls that hang ---- */

struct gate {
	pthread_mutex_t lock;
	pthread_cond_t opened;
	bool open;
	atomic_uint waiting;
	unsigned passed;
};

static int
waits_at_gate(void *arg)
{
	struct gate *g = arg;

	atomic_fetch_add(&g->waiting, 1);
	pthread_mutex_lock(&g->lock);
	while (!g->open)
		pthread_cond_wait(&g->opened, &g->lock);
	pthread_mutex_unlock(&g->lock);
	return 0;
}

static void
hangs(void *arg)
{
	struct gate *g = arg;

	work_run(waits_at_gate, g);
	g->passed++;
}

static void
some_hang(void *arg)
{
	struct gate *g = arg;
	struct co_group group;
	int n = 7;

	co_group_init(&group);
	for (int i = 0; i < WORK_THREADS_MAX - 1; i++)
		assert_int_equal(co_group_start(&group, hangs, g), 0);
	for (int i = 0; i < 100; i++)
		assert_int_equal(work_run(returns_its_number, &n), 7);
	assert_int_equal(g->passed, 0);
	while (atomic_load(&g->waiting) < WORK_THREADS_MAX - 1)
		co_yield();
	pthread_mutex_lock(&g->lock);
	g->open = true;
	pthread_cond_broadcast(&g->opened);
	pthread_mutex_unlock(&g->lock);
	co_group_wait(&group);
	assert_int_equal(g->passed, WORK_THREADS_MAX - 1);
}

static void
test_calls_that_hang_hold_up_no_others(void **state)
{
	struct gate g = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, 0, 0 };

	run(some_hang, &g);
}

/* ---- more calls than threads, from all loops ---- */

struct load {
	struct co_group group;
	atomic_uint now, most, done;
};

static int
is_counted(void *arg)
{
	struct load *l = arg;
	unsigned now = atomic_fetch_add(&l->now, 1) + 1;

	if (now > atomic_load(&l->most))
		atomic_store(&l->most, now);
	sched_yield();
	atomic_fetch_sub(&l->now, 1);
	return 0;
}

static void
calls_often(void *arg)
{
	struct load *l = arg;

	for (int i = 0; i < 20; i++) {
		assert_int_equal(work_run(is_counted, l), 0);
		atomic_fetch_add(&l->done, 1);
	}
}

static void
load(void *arg)
{
	struct load *l = arg;

	co_group_init(&l->group);
	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(co_group_spawn(&l->group,
						i % 4 ? loop_io(i % 4 - 1) : loop_main(),
						calls_often, l),
				 0);
	co_group_wait(&l->group);
}

static void
test_more_calls_than_threads_all_get_done(void **state)
{
	struct load l = { 0 };

	run(load, &l);
	assert_int_equal(l.done, 200 * 20);
	assert_true(l.most <= WORK_THREADS_MAX);
}

/* ---- no threads to be had: a filter that forbids clone() ---- */

static int
forbid_threads(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(code), .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0 ? -errno : 0;
}

static int
returns_seven(void *arg)
{
	return 7;
}

static void
one_call_anyhow(void *arg)
{
	*(int *)arg = work_run(returns_seven, NULL);
}

static void
test_without_threads_the_call_runs_in_place(void **state)
{
	int status, result = 0;
	pid_t pid;

	alarm(TEST_SECONDS);
	pid = fork();
	if (pid == 0) {
		if (loops_start(0, 0, NULL) < 0)
			_exit(1);
		if (forbid_threads() < 0)
			_exit(77);
		loop_run_co(one_call_anyhow, &result);
		_exit(result == 7 ? 0 : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();		/* this kernel has no seccomp filters */
	assert_int_equal(WEXITSTATUS(status), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		/* It forks, so it comes before there are threads: workers are detached, and
		 * ThreadSanitizer counts one that is on its last steps. */
		cmocka_unit_test(test_without_threads_the_call_runs_in_place),
		CO_TEST(test_runs_on_another_thread_and_returns_the_result),
		CO_TEST(test_outside_of_coroutines_runs_in_place),
		CO_TEST(test_calls_that_hang_hold_up_no_others),
		CO_TEST(test_more_calls_than_threads_all_get_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
