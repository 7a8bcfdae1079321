/* SPDX-License-Identifier: Apache-2.0 */
/* aio/co_announce.h - tell sanitizers and valgrind about stacks and switches.
 *
 * Without them all of this is nothing.  Private to co.c.
 */
#ifndef AIO_CO_ANNOUNCE_H
#define AIO_CO_ANNOUNCE_H

#include "aio/loop_int.h"

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define ANNOUNCE_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define ANNOUNCE_TSAN 1
#include <sanitizer/tsan_interface.h>
#endif
#ifdef HAVE_VALGRIND_VALGRIND_H
#include <valgrind/valgrind.h>
#endif

#ifdef ANNOUNCE_TSAN
enum { ANNOUNCE_LIVES_MAX = 16384 };
#endif

static inline void
announce_thread(struct co *root)
{
	(void)root;
#ifdef ANNOUNCE_TSAN
	root->fiber = __tsan_get_current_fiber();
#endif
}

static inline void
announce_stack(struct co *co)
{
	(void)co;
#ifdef ANNOUNCE_TSAN
	co->fiber = __tsan_create_fiber(0);
#endif
#ifdef HAVE_VALGRIND_VALGRIND_H
	co->valgrind_id = VALGRIND_STACK_REGISTER(co->stack,
						  (char *)co->stack + CO_STACK_SIZE);
#endif
}

/* co has ended, and another one may run on its stack; here on its caller's.
 * ThreadSanitizer keeps a call stack of its own for each, of 65,536 entries and
 * with no check of its end: what ended coroutines never returned from, two
 * functions each, piles up there, and in the end overruns other memory. */
static inline void
announce_ended(struct co *co)
{
	(void)co;
#ifdef ANNOUNCE_TSAN
	if (++co->fiber_lives == ANNOUNCE_LIVES_MAX) {
		co->fiber_lives = 0;
		__tsan_destroy_fiber(co->fiber);
		co->fiber = __tsan_create_fiber(0);
	}
#endif
}

static inline void
announce_stack_gone(struct co *co)
{
	(void)co;
#ifdef ANNOUNCE_ASAN
	/* Poison that frames left behind would outlive the mapping. */
	__asan_unpoison_memory_region(co->stack, CO_STACK_SIZE);
#endif
#ifdef ANNOUNCE_TSAN
	__tsan_destroy_fiber(co->fiber);
	co->fiber = NULL;
#endif
#ifdef HAVE_VALGRIND_VALGRIND_H
	VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#endif
}

/* Just before from switches to to; a from that has ended never comes back. */
static inline void
announce_switch(struct co *from, struct co *to)
{
	(void)from;
	(void)to;
#ifdef ANNOUNCE_ASAN
	__sanitizer_start_switch_fiber(from->ended ? NULL : &from->fake_stack,
				       to->stack_bottom, to->stack_size);
#endif
#ifdef ANNOUNCE_TSAN
	__tsan_switch_to_fiber(to->fiber, 0);
#endif
}

/* Just after, on the stack of now; from is who ran before.  That also tells
 * where a thread's own stack is. */
static inline void
announce_switched(struct co *now, struct co *from)
{
	(void)now;
	(void)from;
#ifdef ANNOUNCE_ASAN
	__sanitizer_finish_switch_fiber(now->fake_stack, &from->stack_bottom,
					&from->stack_size);
	now->fake_stack = NULL;
#endif
}

#endif
