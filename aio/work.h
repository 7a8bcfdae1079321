/* SPDX-License-Identifier: Apache-2.0 */
/* aio/work.h - worker threads, for calls that block or burn CPU.
 *
 * One pool for all loops.  It starts a thread when a call finds none idle, up
 * to WORK_THREADS_MAX; one that was idle for some seconds ends.  A call that
 * hangs costs one thread and holds up no other.
 */
#ifndef AIO_WORK_H
#define AIO_WORK_H

enum { WORK_THREADS_MAX = 64 };

/* Run fn(arg) on a worker thread, park until it is done, return what it
 * returned.  Not cancellable: arg is in use until then.  Coroutine; outside of
 * coroutines fn runs in the calling thread.  It does so too if not even one
 * thread can be had, so this never fails by itself. */
int work_run(int (*fn)(void *arg), void *arg);

#endif
