/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/timer.h"

/* ---- starting, parking, waking ---- */

struct script {
	char log[64];
	struct co *child;
	bool flag;
};

static void
say(struct script *s, const char *what)
{
	strncat(s->log, what, sizeof(s->log) - strlen(s->log) - 1);
}

static void
child_parks_once(void *arg)
{
	struct script *s = arg;

	say(s, "c1 ");
	s->child = co_self();
	while (!s->flag)
		co_park();
	say(s, "c2 ");
}

static void
parent_starts_and_wakes(void *arg)
{
	struct script *s = arg;

	say(s, "p1 ");
	assert_int_equal(co_start(child_parks_once, s), 0);
	say(s, "p2 ");
	s->flag = true;
	co_wake(s->child);
	say(s, "p3 ");
	co_yield();
	say(s, "p4");
}

static void
test_start_runs_at_once_until_first_park(void **state)
{
	struct script s = { 0 };

	run(parent_starts_and_wakes, &s);
	assert_string_equal(s.log, "p1 c1 p2 p3 c2 p4");
}

static void
wake_self_then_park(void *arg)
{
	bool *done = arg;

	co_wake(co_self());
	co_park();
	*done = true;
}

static void
test_wake_before_park_is_remembered(void **state)
{
	bool done = false;

	run(wake_self_then_park, &done);
	assert_true(done);
}

static void
nest(void *arg)
{
	int *depth = arg;

	if (++*depth < 50)
		assert_int_equal(co_start(nest, depth), 0);
	assert_non_null(co_self());
}

static void
test_starts_nest(void **state)
{
	int depth = 0;

	assert_null(co_self());
	run(nest, &depth);
	assert_int_equal(depth, 50);
	assert_null(co_self());
}

static void
deferred_child(void *arg)
{
	co_defer();
	say(arg, "deferred ");
}

static void
yielding_child(void *arg)
{
	co_yield();
	say(arg, "yielded ");
	co_yield();
	say(arg, "again ");
}

static void
defer_after_yields(void *arg)
{
	assert_int_equal(co_start(deferred_child, arg), 0);
	assert_int_equal(co_start(yielding_child, arg), 0);
	co_defer();
	say(arg, "end");
}

static void
test_defer_runs_after_all_that_can_run(void **state)
{
	struct script s = { 0 };

	run(defer_after_yields, &s);
	assert_string_equal(s.log, "yielded again deferred end");
}

/* ---- many ---- */

struct many {
	unsigned n, ended;
	struct co *main;
};

static void
uses_its_stack(void *arg)
{
	struct many *m = arg;
	volatile char frame[32 * 1024];

	memset((char *)frame, (int)m->n, sizeof(frame));
	for (unsigned i = 0; i < 3; i++)
		co_yield();
	assert_int_equal(frame[sizeof(frame) / 2], frame[0]);
	m->ended++;
	co_wake(m->main);
}

static void
start_many(void *arg)
{
	struct many *m = arg;

	m->main = co_self();
	for (unsigned i = 0; i < m->n; i++)
		assert_int_equal(co_start(uses_its_stack, m), 0);
	while (m->ended < m->n)
		co_park();
}

static void
test_a_thousand_at_once_then_again(void **state)
{
	for (int round = 0; round < 3; round++) {
		struct many m = { .n = 1000 };

		run(start_many, &m);
		assert_int_equal(m.ended, m.n);
	}
}

/* ---- across loops ---- */

struct ring_pos {
	unsigned hops;
	struct loop *seen[8];
};

static void
note_loop(void *arg)
{
	struct ring_pos *p = arg;

	p->seen[p->hops++ % 8] = loop_self();
}

static void
call_around(void *arg)
{
	struct ring_pos *p = arg;

	for (unsigned i = 0; i < 3000; i++) {
		struct loop *l = i % 4 ? loop_io(i % 4 - 1) : loop_main();

		assert_int_equal(co_call(l, note_loop, p), 0);
		assert_ptr_equal(p->seen[i % 8], l);
		assert_ptr_equal(loop_self(), loop_main());
	}
}

static void
test_call_runs_on_the_other_loop(void **state)
{
	struct ring_pos p = { 0 };

	run(call_around, &p);
	assert_int_equal(p.hops, 3000);
}

/* Each level has more frame than half a stack. */
static void
recurses(void *arg)
{
	volatile char frame[CO_STACK_SIZE / 2];
	int *depth = arg;

	frame[0] = frame[sizeof(frame) - 1] = 1;
	if (++*depth < 20)
		assert_int_equal(co_call(loop_self(), recurses, depth), 0);
	assert_int_equal(frame[0] + frame[sizeof(frame) - 1], 2);
}

static void
test_call_on_the_same_loop_has_its_own_stack(void **state)
{
	int depth = 0;

	run(recurses, &depth);
	assert_int_equal(depth, 20);
}

/* Two coroutines on two loops wake each other in turns. */
struct pair {
	struct co *a, *b;
	atomic_uint turn;
	atomic_bool b_ended;
	unsigned rounds;
};

static void
pair_b(void *arg)
{
	struct pair *p = arg;
	struct co *a = p->a;

	for (unsigned i = 0; i < p->rounds; i++) {
		while (atomic_load(&p->turn) != 2 * i + 1)
			co_park();
		atomic_fetch_add(&p->turn, 1);
		co_wake(a);
	}
	atomic_store(&p->b_ended, true);
	co_wake(a);
}

static void
pair_b_start(void *arg)
{
	struct pair *p = arg;

	p->b = co_self();
	pair_b(p);
}

static void
pair_a(void *arg)
{
	struct pair *p = arg;

	p->a = co_self();
	atomic_store(&p->turn, 1);
	assert_int_equal(co_spawn(loop_io(0), pair_b_start, p), 0);
	for (unsigned i = 1; i <= p->rounds; i++) {
		while (atomic_load(&p->turn) != 2 * i)
			co_park();
		atomic_fetch_add(&p->turn, 1);
		co_wake(p->b);
	}
	while (!atomic_load(&p->b_ended))
		co_park();
}

static void
test_ping_pong_between_loops(void **state)
{
	struct pair p = { .rounds = 5000 };

	run(pair_a, &p);
	assert_int_equal(p.turn, 2 * p.rounds + 1);
}

/* Plain threads wake coroutines as fast as they can. */
struct storm {
	struct co *target;
	atomic_uint given, taken;
	unsigned per_thread;
};

static void *
storm_thread(void *arg)
{
	struct storm *s = arg;

	for (unsigned i = 0; i < s->per_thread; i++) {
		atomic_fetch_add(&s->given, 1);
		co_wake(s->target);
	}
	return NULL;
}

static void
storm_target(void *arg)
{
	struct storm *s = arg;
	pthread_t t[3];

	s->target = co_self();
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&t[i], NULL, storm_thread, s), 0);
	while (atomic_load(&s->taken) < 3 * s->per_thread) {
		co_park();
		atomic_store(&s->taken, atomic_load(&s->given));
	}
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
}

static void
test_no_wake_from_threads_is_lost(void **state)
{
	struct storm s = { .per_thread = 20000 };

	run(storm_target, &s);
	assert_int_equal(s.taken, 3 * s.per_thread);
}

/* ---- cancelling ---- */

struct victim {
	struct co *co;
	int result;
	bool ended;
	struct co *main;
};

static void
sleeps_long(void *arg)
{
	struct victim *v = arg;

	v->co = co_ref(co_self());
	v->result = co_sleep(INT64_C(3600) * 1000000000);
	if (v->result == -ECANCELED)
		v->result = co_sleep(1) == -ECANCELED ? -ECANCELED : -EIO;
	v->ended = true;
	co_wake(v->main);
}

static void
cancel_sleeper(void *arg)
{
	struct victim *v = arg;

	v->main = co_self();
	assert_int_equal(co_start(sleeps_long, v), 0);
	assert_false(v->ended);
	co_cancel(v->co);
	while (!v->ended)
		co_park();
}

static void
test_cancel_ends_every_wait(void **state)
{
	struct victim v = { 0 };

	run(cancel_sleeper, &v);
	assert_int_equal(v.result, -ECANCELED);
	co_unref(v.co);
}

static void
sees_cancel(void *arg)
{
	bool *cancelled = arg;

	*cancelled = co_cancelled();
}

static void
late_cancel(void *arg)
{
	struct victim v = { .main = co_self() };
	bool cancelled = true;

	assert_int_equal(co_start(sleeps_long, &v), 0);
	co_cancel(v.co);
	while (!v.ended)
		co_park();
	co_yield();
	/* It has ended; the reference keeps the next one from being hit. */
	co_cancel(v.co);
	assert_int_equal(co_start(sees_cancel, &cancelled), 0);
	assert_false(cancelled);
	co_unref(v.co);
	assert_int_equal(co_start(sees_cancel, &cancelled), 0);
	assert_false(cancelled);
}

static void
test_late_cancel_hits_nobody_else(void **state)
{
	run(late_cancel, NULL);
}

static void
uncancels(void *arg)
{
	co_cancel(co_self());
	assert_true(co_cancelled());
	assert_int_equal(co_sleep(1), -ECANCELED);
	co_uncancel();
	assert_int_equal(co_sleep(1), 0);
}

static void
test_uncancel_lets_cleanup_wait(void **state)
{
	run(uncancels, NULL);
}

/* ---- no memory ---- */

#if !defined(TEST_ASAN) && !defined(TEST_TSAN)
static void
parks_for_good(void *arg)
{
	while (!*(bool *)arg)
		co_park();
}

/* In a child, whose address space ends soon: starting fails with -ENOMEM, and
 * what runs goes on. */
static void
start_until_full(void *arg)
{
	struct rlimit limit = { 512u << 20, 512u << 20 };
	bool stop = false;
	int r = 0, n;

	setrlimit(RLIMIT_AS, &limit);
	for (n = 0; n < 100000 && r == 0; n++)
		r = co_start(parks_for_good, &stop);
	*(int *)arg = r == -ENOMEM && n > 100 && co_sleep(1000) == 0;
}

static void
test_no_memory_for_a_stack_fails_the_start_only(void **state)
{
	int status, ok = 0;
	pid_t pid = fork();

	if (pid == 0) {
		if (loops_start(0, 0, NULL) < 0 || loop_run_co(start_until_full, &ok) < 0)
			_exit(2);
		_exit(ok ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}
#endif

/* ---- stress: loops, locks, sleeps, cancels, from a seed ---- */

struct stress {
	struct co_mutex lock;
	struct co_sem slots;
	struct co_queue changed;
	uint64_t counter;		/* under lock */
	atomic_uint started, ended, cancelled;
	struct co_group group;
	unsigned seed;
};

static void
stress_step(struct stress *s, struct rng *rng)
{
	switch (rng_below(rng, 6)) {
	case 0:
		co_yield();
		break;
	case 1:
		if (co_sleep(rng_below(rng, 50000)) < 0)
			atomic_fetch_add(&s->cancelled, 1);
		break;
	case 2:
		co_mutex_lock(&s->lock);
		s->counter++;
		if (rng_below(rng, 2))
			co_yield();
		co_mutex_unlock(&s->lock);
		break;
	case 3:
		if (co_sem_get_cancellable(&s->slots) == 0) {
			co_defer();
			co_sem_put(&s->slots);
		}
		break;
	case 4:
		co_mutex_lock(&s->lock);
		s->counter++;
		co_queue_timedwait(&s->changed, &s->lock, clock_ns() + 20000);
		s->counter++;
		co_mutex_unlock(&s->lock);
		break;
	default:
		co_queue_wake_all(&s->changed);
		break;
	}
}

static void
stress_child(void *arg)
{
	struct stress *s = arg;
	struct rng rng = { s->seed + atomic_fetch_add(&s->started, 1) };

	for (int i = 0; i < 30; i++)
		stress_step(s, &rng);
	atomic_fetch_add(&s->ended, 1);
}

static void
stress_cancelled_child(void *arg)
{
	co_cancel(co_self());
	stress_child(arg);
}

static void
stress_main(void *arg)
{
	struct stress *s = arg;
	struct rng rng = { s->seed };

	co_group_init(&s->group);
	for (int i = 0; i < 300; i++) {
		unsigned where = rng_below(&rng, 4);

		assert_int_equal(co_group_spawn(&s->group,
						where == 3 ? loop_main() : loop_io(where),
						rng_below(&rng, 4) ? stress_child
								   : stress_cancelled_child,
						s),
				 0);
	}
	co_group_wait(&s->group);
}

static void
do_nothing(void *arg)
{
	(*(unsigned *)arg)++;
}

static void
start_in_turn(void *arg)
{
	for (unsigned i = 0; i < 200000; i++)
		assert_int_equal(co_start(do_nothing, arg), 0);
}

/* ThreadSanitizer keeps a call stack for each of ours, of 65,536 entries. */
static void
test_one_stack_serves_any_number(void **state)
{
	unsigned ended = 0;

	run(start_in_turn, &ended);
	assert_int_equal(ended, 200000);
}

static void
test_stress_of_everything_across_loops(void **state)
{
	for (unsigned seed = 1; seed <= 5; seed++) {
		struct stress s = { .seed = seed };

		co_sem_init(&s.slots, 3);
		run(stress_main, &s);
		assert_int_equal(s.ended, 300);
		assert_false(co_mutex_is_locked(&s.lock));
		assert_true(co_queue_empty(&s.changed));
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(test_start_runs_at_once_until_first_park),
		CO_TEST(test_wake_before_park_is_remembered),
		CO_TEST(test_starts_nest),
		CO_TEST(test_defer_runs_after_all_that_can_run),
		CO_TEST(test_a_thousand_at_once_then_again),
		CO_TEST(test_one_stack_serves_any_number),
		CO_TEST(test_call_runs_on_the_other_loop),
		CO_TEST(test_call_on_the_same_loop_has_its_own_stack),
		CO_TEST(test_ping_pong_between_loops),
		CO_TEST(test_no_wake_from_threads_is_lost),
		CO_TEST(test_cancel_ends_every_wait),
		CO_TEST(test_late_cancel_hits_nobody_else),
		CO_TEST(test_uncancel_lets_cleanup_wait),
#if !defined(TEST_ASAN) && !defined(TEST_TSAN)
		cmocka_unit_test(test_no_memory_for_a_stack_fails_the_start_only),
#endif
		CO_TEST(test_stress_of_everything_across_loops),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
