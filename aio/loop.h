/* SPDX-License-Identifier: Apache-2.0 */
/* aio/loop.h - loops: threads that run coroutines, tasks and events.
 *
 * A loop is one thread with a libevent base, an io_uring (where the kernel
 * gives one), a queue of runnable coroutines and tasks, and timers.  Loop 0 is
 * the thread that called loops_start(); the others are for I/O.
 *
 * One turn of a loop: run what other threads posted; run what is runnable; run
 * what was deferred to the end of the turn, and whatever that made runnable;
 * hand all gathered io_uring submissions to the kernel in one call and take
 * the completions that are there already; then, with nothing left to run,
 * sleep until a file descriptor, a timer, a completion or a post.
 *
 * Units      times are nanoseconds.
 * Context    as each call says; "on a loop" means its thread, be it in a
 *            coroutine or not.
 * Ownership  tasks and watches are borrowed until they ran or were removed.
 * Errors     0 or a negative errno, with a text where there is an errp.
 */
#ifndef AIO_LOOP_H
#define AIO_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct error;
struct loop;

/* Loops that can exist at one time; loop_index() is below. */
enum { LOOP_MAX = 65 };

enum loops_flag {
	LOOPS_NO_URING = 1 << 0,	/* as if the kernel had no io_uring */
};

/* Make loop 0 of the calling thread, and n_io I/O loops with their threads.  No
 * fork() from here on, unless to exec(). */
int loops_start(unsigned n_io, unsigned flags, struct error **errp);

/* Stop and join all I/O loops, and free everything; on loop 0, outside of
 * coroutines.  The caller has ended whatever ran on them: a coroutine that is
 * still parked is dropped without running again. */
void loops_stop(void);

struct loop *loop_self(void);		/* NULL on a thread that is no loop */
struct loop *loop_main(void);
struct loop *loop_io(unsigned i);	/* i < loop_io_count() */
unsigned loop_io_count(void);		/* those of loops_start(); not loop_add() */
unsigned loop_index(const struct loop *l);	/* 0 is the main loop */

/* One more I/O loop at run time, on loop 0 (it may block for a moment).  The
 * name is copied, and cut to what a thread's name may be.  loop_remove(): all
 * that lived on it has ended; blocks until its thread has. */
int loop_add(const char *name, struct loop **ret, struct error **errp);
void loop_remove(struct loop *l);

/* Run loop 0 until loop_quit(), which any thread, signal watch or coroutine
 * may call; a quit that came earlier counts. */
void loop_run(void);
void loop_quit(void);

/* Run loop 0 until fn, started as a coroutine, has ended.  On loop 0 outside
 * of coroutines.  -ENOMEM: there was no stack for it, it did not run. */
int loop_run_co(void (*fn)(void *arg), void *arg);

/* Do all loops have a ring?  If not, why, in one line for the log. */
bool loop_has_uring(void);
const char *loop_uring_reason(void);	/* NULL if they have */

/* Work for a loop, embedded in its user; runs outside of coroutines and must
 * not block.  A task that is queued must not be queued again by loop_post(). */
struct loop_task {
	void (*fn)(struct loop_task *);
	struct loop_task *next;		/* private */
	struct list link;		/* private; zero bytes at first */
};

/* Run t on l, in the order of posting.  Any thread; never blocks, and wakes
 * the loop only if it sleeps. */
void loop_post(struct loop *l, struct loop_task *t);

/* Run t once at the end of this turn, before submissions are handed over: the
 * place to gather replies.  On a loop; no-op if it is deferred already. */
void loop_defer(struct loop_task *t);
void loop_undefer(struct loop_task *t);	/* no-op if it is not deferred */

/* Call fn on loop 0, outside of coroutines, whenever signo came.  On loop 0; a
 * second watch on the same signal replaces the first, and fn NULL removes it
 * and restores the default action. */
int loop_signal(int signo, void (*fn)(int signo, void *arg), void *arg);

#endif
