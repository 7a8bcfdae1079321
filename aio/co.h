/* SPDX-License-Identifier: Apache-2.0 */
/* aio/co.h - coroutines: straight-line code that yields where it must wait.
 *
 * A coroutine belongs to the loop that it was started on for all its life; no
 * two coroutines of a loop run at the same time, and one that runs keeps the
 * loop until it parks, yields or ends.
 *
 * Park and wake are a permit with one token.  co_wake() puts the token there;
 * co_park() takes it, and sleeps until there is one.  A wake before the park
 * is remembered, several wakes are one, and a park may return without cause:
 * whoever parks does so in a loop over a condition of his own.
 *
 * Cancelling is a request.  It wakes the coroutine, and every wait that its
 * header calls cancellable returns -ECANCELED from then on, at once.  Waits
 * for what cannot be called back (a disk that writes from our buffer, a mutex)
 * go on until they are done.
 *
 * Context    as each call says; "coroutine" means that a caller is in one.
 * Errors     -ENOMEM: no memory for a stack; nothing was started.
 */
#ifndef AIO_CO_H
#define AIO_CO_H

#include <stdbool.h>

struct co;
struct loop;

/* Usable stack of a coroutine.  No deep recursion, no large arrays. */
enum { CO_STACK_SIZE = 256 * 1024 };

/* Start fn(arg) as a coroutine on this loop and run it at once, until it first
 * parks.  On a loop, in a coroutine or not. */
int co_start(void (*fn)(void *arg), void *arg);

/* Start fn(arg) as a coroutine on l, soon.  Any thread. */
int co_spawn(struct loop *l, void (*fn)(void *arg), void *arg);

/* Run fn(arg) as a coroutine on l, which may be this loop, and park until it has
 * ended.  Not cancelled with the caller.  Coroutine. */
int co_call(struct loop *l, void (*fn)(void *arg), void *arg);

struct co *co_self(void);	/* NULL outside of coroutines */

void co_park(void);		/* coroutine */
void co_wake(struct co *co);	/* any thread; co may even have ended since */

/* Let everything else that can run now run first.  Coroutine. */
void co_yield(void);

/* What completes without parking keeps the loop from everybody else; so each
 * such step is charged, at about a microsecond a unit, and one step in some
 * hundreds yields.  Context anywhere; only coroutines yield. */
void co_charge(unsigned units);

/* Go on at the end of this turn of the loop, when nothing else can run: what
 * loop_defer() is for tasks.  Coroutine. */
void co_defer(void);

/* Ask co to give up.  Any thread; the caller holds a reference to co or knows
 * otherwise that it has not ended. */
void co_cancel(struct co *co);
bool co_cancelled(void);	/* was this coroutine asked to?  false outside */

/* Take back the request that was made to this coroutine: for a clean-up that
 * has to wait for something.  Coroutine. */
void co_uncancel(void);

/* A reference keeps co from being reused by another coroutine, so that a
 * late co_cancel() hits nobody else.  It does not keep it running. */
struct co *co_ref(struct co *co);	/* co has not ended, or is referenced */
void co_unref(struct co *co);		/* any thread; takes NULL */

#endif
