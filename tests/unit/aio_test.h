/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/aio_test.h - what the tests of aio/ share.
 *
 * Every test program ends by SIGALRM if it hangs.
 */
#ifndef TESTS_UNIT_AIO_TEST_H
#define TESTS_UNIT_AIO_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "aio/loop.h"

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define TEST_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define TEST_TSAN 1
#include <sanitizer/tsan_interface.h>
#endif

enum { TEST_SECONDS = 120, TEST_IO_LOOPS = 3 };

#ifdef TEST_TSAN
static void *main_fiber;
#endif

static inline int
loops_setup_flags(unsigned flags)
{
#ifdef TEST_TSAN
	main_fiber = __tsan_get_current_fiber();
#endif
	alarm(TEST_SECONDS);
	return loops_start(TEST_IO_LOOPS, flags, NULL);
}

static inline int
loops_setup(void **state)
{
	(void)state;
	return loops_setup_flags(0);
}

static inline int
loops_setup_no_uring(void **state)
{
	(void)state;
	return loops_setup_flags(LOOPS_NO_URING);
}

static inline int
loops_teardown(void **state)
{
	(void)state;
#ifdef TEST_TSAN
	/* A check that failed in a coroutine jumped out of it. */
	if (main_fiber && __tsan_get_current_fiber() != main_fiber)
		__tsan_switch_to_fiber(main_fiber, 0);
#endif
	loops_stop();
	return 0;
}

/* Run fn(arg) as a coroutine on the main loop, to its end. */
static inline void
run(void (*fn)(void *), void *arg)
{
	assert_int_equal(loop_run_co(fn, arg), 0);
}

/* A test that is a coroutine with a fixture of its own: what follows is its body, with
 * var, a pointer to the fixture's type, between the statements begin and end. */
#define FIXTURE_CASE(name, type, var, begin, end)                              \
	static void name##_in(type *var);                                      \
	static void name##_co(void *arg)                                       \
	{                                                                      \
		type fixture = { 0 }, *var = &fixture;                         \
		(void)arg;                                                     \
		begin;                                                         \
		name##_in(var);                                                \
		end;                                                           \
	}                                                                      \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}                                                                      \
	static void name##_in(type *var)

/* A small generator with a seed, so that a failure can be repeated. */
struct rng {
	uint64_t state;
};

static inline uint64_t
rng_next(struct rng *r)
{
	r->state = r->state * 6364136223846793005u + 1442695040888963407u;
	return r->state >> 33;
}

static inline unsigned
rng_below(struct rng *r, unsigned n)
{
	return (unsigned)(rng_next(r) % n);
}

#define CO_TEST(name) cmocka_unit_test_setup_teardown(name, loops_setup, loops_teardown)
#define CO_TEST_NO_URING(name) \
	{ #name "_no_uring", name, loops_setup_no_uring, loops_teardown, NULL }

#endif
