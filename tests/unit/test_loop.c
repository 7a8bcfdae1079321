/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "aio/co.h"
#include "aio/disk.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"

enum { MS = 1000 * 1000 };

/* ---- the set of loops ---- */

static void
test_loops_know_their_places(void **state)
{
	assert_ptr_equal(loop_self(), loop_main());
	assert_int_equal(loop_index(loop_main()), 0);
	assert_int_equal(loop_io_count(), TEST_IO_LOOPS);
	for (unsigned i = 0; i < TEST_IO_LOOPS; i++) {
		assert_int_equal(loop_index(loop_io(i)), i + 1);
	}
}

static void
note_loop(void *arg)
{
	*(struct loop **)arg = loop_self();
}

static void
add_and_remove(void *arg)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct loop *added[LOOP_MAX], *seen = NULL;
	unsigned n = 0;

	while (loop_add("extra", &added[n], &err) == 0) {
		assert_int_equal(co_call(added[n], note_loop, &seen), 0);
		assert_ptr_equal(seen, added[n]);
		n++;
	}
	assert_int_equal(n, LOOP_MAX - 1 - TEST_IO_LOOPS);
	assert_non_null(err);
	loop_remove(added[5]);
	assert_int_equal(loop_add("again", &added[5], NULL), 0);
	assert_int_equal(co_call(added[5], note_loop, &seen), 0);
	assert_ptr_equal(seen, added[5]);
	while (n > 0)
		loop_remove(added[--n]);
}

static void
test_loops_come_and_go_at_run_time(void **state)
{
	run(add_and_remove, NULL);
}

/* ---- posting ---- */

struct numbered {
	struct loop_task task;
	unsigned number;
};

struct posts {
	struct numbered tasks[10000];
	unsigned expected;
	bool in_order;
};

static struct posts posts;

static void
check_order(struct loop_task *t)
{
	struct numbered *n = CONTAINER_OF(t, struct numbered, task);

	posts.in_order = posts.in_order && n->number == posts.expected;
	if (++posts.expected == ARRAY_SIZE(posts.tasks))
		loop_quit();
}

static void *
posting_thread(void *arg)
{
	for (unsigned i = 0; i < ARRAY_SIZE(posts.tasks); i++) {
		posts.tasks[i] = (struct numbered){ .task.fn = check_order, .number = i };
		loop_post(loop_main(), &posts.tasks[i].task);
	}
	return NULL;
}

static void
test_posts_run_in_order(void **state)
{
	pthread_t t;

	posts.expected = 0;
	posts.in_order = true;
	assert_int_equal(pthread_create(&t, NULL, posting_thread, NULL), 0);
	loop_run();
	pthread_join(t, NULL);
	assert_true(posts.in_order);
	assert_int_equal(posts.expected, ARRAY_SIZE(posts.tasks));
}

/* A task runs around all loops; each hop must wake a loop that sleeps. */
struct traveller {
	struct loop_task task;
	unsigned hops;
};

static void
travel(struct loop_task *t)
{
	struct traveller *tr = CONTAINER_OF(t, struct traveller, task);
	unsigned next = ++tr->hops % (TEST_IO_LOOPS + 1);

	if (tr->hops >= 10000)
		loop_quit();
	else
		loop_post(next ? loop_io(next - 1) : loop_main(), t);
}

static void
test_each_post_wakes_a_sleeping_loop(void **state)
{
	struct traveller tr = { .task.fn = travel };

	loop_post(loop_main(), &tr.task);
	loop_run();
	assert_int_equal(tr.hops, 10000);
}

/* One task at a time, posted at any moment around that when the loop, having
 * run the one before, goes to sleep. */
struct knock {
	struct loop_task task;
	atomic_uint answered;
};

enum { KNOCKS = 20000 };

static void
answer(struct loop_task *t)
{
	struct knock *k = CONTAINER_OF(t, struct knock, task);

	if (atomic_fetch_add(&k->answered, 1) + 1 == KNOCKS)
		loop_quit();
}

static void *
knocking_thread(void *arg)
{
	struct knock *k = arg;
	struct rng rng = { 1 };

	for (unsigned i = 0; i < KNOCKS; i++) {
		loop_post(loop_main(), &k->task);
		for (unsigned spins = 1; atomic_load(&k->answered) == i; spins++)
			if (spins % 1000 == 0)
				sched_yield();
		for (volatile unsigned delay = rng_below(&rng, 1000); delay; delay--)
			;
	}
	return NULL;
}

static void
test_no_post_is_lost_on_a_loop_that_goes_to_sleep(void **state)
{
	struct knock k = { .task.fn = answer };
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, knocking_thread, &k), 0);
	loop_run();
	pthread_join(t, NULL);
	assert_int_equal(k.answered, KNOCKS);
}

static void
test_a_quit_before_the_run_counts(void **state)
{
	loop_quit();
	loop_run();
}

/* ---- deferring ---- */

struct deferral {
	struct loop_task task, never;
	unsigned runs, never_runs;
};

static void
deferred(struct loop_task *t)
{
	CONTAINER_OF(t, struct deferral, task)->runs++;
}

static void
deferred_never(struct loop_task *t)
{
	CONTAINER_OF(t, struct deferral, never)->never_runs++;
}

static void
defer_twice(void *arg)
{
	struct deferral *d = arg;

	loop_defer(&d->task);
	loop_defer(&d->task);
	loop_defer(&d->never);
	loop_undefer(&d->never);
	assert_int_equal(d->runs, 0);
	co_defer();
	assert_int_equal(d->runs, 1);
	loop_defer(&d->task);
	co_yield();
	co_defer();
	assert_int_equal(d->runs, 2);
}

static void
test_deferred_runs_once_at_the_end_of_the_turn(void **state)
{
	struct deferral d = { .task.fn = deferred, .never.fn = deferred_never };

	run(defer_twice, &d);
	assert_int_equal(d.never_runs, 0);
	loop_undefer(&d.task);
}

/* ---- signals ---- */

static int signals_seen;

static void
on_signal(int signo, void *arg)
{
	assert_null(co_self());
	assert_ptr_equal(loop_self(), loop_main());
	assert_ptr_equal(arg, &signals_seen);
	signals_seen++;
	loop_quit();
}

static void
test_signals_are_called_on_the_main_loop(void **state)
{
	assert_int_equal(loop_signal(SIGUSR1, on_signal, &signals_seen), 0);
	assert_int_equal(loop_signal(SIGUSR1, on_signal, &signals_seen), 0);
	for (int i = 1; i <= 3; i++) {
		kill(getpid(), SIGUSR1);
		loop_run();
		assert_int_equal(signals_seen, i);
	}
	assert_int_equal(loop_signal(SIGUSR1, NULL, NULL), 0);
}

/* ---- timers ---- */

enum { TIMERS = 500 };

struct clocked {
	struct timer timer;
	bool fired, cancelled;
};

static struct clocked clocked[TIMERS];
static int64_t last_deadline;
static unsigned fired;

static void
on_timer(struct timer *t)
{
	struct clocked *c = CONTAINER_OF(t, struct clocked, timer);

	assert_false(c->cancelled);
	assert_false(c->fired);
	assert_true(clock_ns() >= t->deadline);
	assert_true(t->deadline >= last_deadline);
	last_deadline = t->deadline;
	c->fired = true;
	fired++;
}

static void
timers_in_order(void *arg)
{
	struct rng rng = { *(unsigned *)arg };
	int64_t now = clock_ns();
	unsigned cancelled = 0;

	memset(clocked, 0, sizeof(clocked));
	fired = 0;
	last_deadline = 0;
	for (int i = 0; i < TIMERS; i++) {
		clocked[i].timer.fn = on_timer;
		timer_set(&clocked[i].timer, now + rng_below(&rng, 30 * MS));
	}
	for (int i = 0; i < TIMERS; i++) {
		unsigned what = rng_below(&rng, 4);

		if (what == 0) {
			timer_cancel(&clocked[i].timer);
			clocked[i].cancelled = true;
			cancelled++;
		} else if (what == 1) {
			timer_set(&clocked[i].timer, now + rng_below(&rng, 40 * MS));
		}
	}
	assert_int_equal(co_sleep(45 * MS), 0);
	assert_int_equal(fired, TIMERS - cancelled);
}

static void
test_timers_fire_in_order_and_never_after_a_cancel(void **state)
{
	for (unsigned seed = 1; seed <= 3; seed++)
		run(timers_in_order, &seed);
}

struct ticker {
	struct timer timer;
	unsigned ticks;
	struct co *co;
};

static void
tick(struct timer *t)
{
	struct ticker *tk = CONTAINER_OF(t, struct ticker, timer);

	if (++tk->ticks < 5)
		timer_set(t, clock_ns() + MS);
	else
		co_wake(tk->co);
}

static void
ticks(void *arg)
{
	struct ticker tk = { .timer.fn = tick, .co = co_self() };

	timer_set(&tk.timer, clock_ns());
	while (tk.ticks < 5)
		co_park();
}

static void
test_a_timer_may_set_itself_again(void **state)
{
	run(ticks, NULL);
}

static void
busy_and_timed(void *arg)
{
	struct ticker tk = { .timer.fn = tick, .co = co_self() };
	int64_t limit = clock_ns() + 5000L * MS;

	timer_set(&tk.timer, clock_ns() + MS);
	while (tk.ticks < 5 && clock_ns() < limit)
		co_yield();
	assert_int_equal(tk.ticks, 5);
}

static void
test_a_busy_loop_still_looks_at_events(void **state)
{
	run(busy_and_timed, NULL);
}

/* ---- io_uring forbidden ---- */

/* From here on io_uring_setup() fails in this process as it does in containers
 * and under systemd's filters. */
static int
forbid_uring(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(code), .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0 ? -errno : 0;
}

static void
write_and_read(void *arg)
{
	char path[] = "test_loop.XXXXXX", buf[4096] = "threads";
	struct iov v = IOV_BUF(buf, sizeof(buf));
	int fd = mkstemp(path);

	unlink(path);
	if (fd < 0 || disk_write(fd, DISK_URING, 0, &v) < 0 ||
	    disk_sync(fd, DISK_URING, true) < 0)
		return;
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	memset(buf, 0, sizeof(buf));
	if (disk_read(fd, DISK_URING, 0, &v) < 0)
		return;
	*(bool *)arg = strcmp(buf, "threads") == 0;
	close(fd);
}

static int
child_without_uring(void)
{
	bool ok = false;

	if (forbid_uring() < 0)
		return 77;
	if (loops_start(2, 0, NULL) < 0 || loop_has_uring() || !loop_uring_reason())
		return 1;
	if (!strstr(loop_uring_reason(), "Operation not permitted"))
		return 2;
	loop_run_co(write_and_read, &ok);
	loops_stop();
	return ok ? 0 : 3;
}

static void
test_a_filter_that_forbids_io_uring_leaves_threads(void **state)
{
	int status;
	pid_t pid;

	alarm(TEST_SECONDS);
	pid = fork();
	if (pid == 0)
		_exit(child_without_uring());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();		/* this kernel has no seccomp filters */
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void
test_io_uring_can_be_switched_off(void **state)
{
	bool ok = false;

	assert_false(loop_has_uring());
	assert_string_equal(loop_uring_reason(), "switched off");
	run(write_and_read, &ok);
	assert_true(ok);
}

static void
do_nothing(void *arg)
{
	(void)arg;
}

static void
call_many(void *arg)
{
	for (int i = 0; i < 40; i++)
		assert_int_equal(co_call(loop_io(0), do_nothing, arg), 0);
}

/* After calls in quick succession it looks for work for a while longer, and a
 * look takes the edge by which it is told to stop. */
static void
test_a_loop_that_looks_around_stops_when_told(void **state)
{
	for (int i = 0; i < 300; i++) {
		assert_int_equal(loops_setup(state), 0);
		run(call_many, NULL);
		assert_int_equal(loops_teardown(state), 0);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(test_loops_know_their_places),
		CO_TEST(test_loops_come_and_go_at_run_time),
		CO_TEST(test_posts_run_in_order),
		CO_TEST(test_each_post_wakes_a_sleeping_loop),
		CO_TEST(test_no_post_is_lost_on_a_loop_that_goes_to_sleep),
		CO_TEST(test_a_quit_before_the_run_counts),
		CO_TEST(test_deferred_runs_once_at_the_end_of_the_turn),
		CO_TEST(test_signals_are_called_on_the_main_loop),
		CO_TEST(test_timers_fire_in_order_and_never_after_a_cancel),
		CO_TEST(test_a_timer_may_set_itself_again),
		CO_TEST(test_a_busy_loop_still_looks_at_events),
		cmocka_unit_test(test_a_loop_that_looks_around_stops_when_told),
		cmocka_unit_test(test_a_filter_that_forbids_io_uring_leaves_threads),
		CO_TEST_NO_URING(test_io_uring_can_be_switched_off),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
