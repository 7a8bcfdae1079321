/* SPDX-License-Identifier: Apache-2.0 */
#include "aio/co.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "aio/co_announce.h"
#include "aio/loop_int.h"
#include "base/cleanup.h"

/* Stacks that a loop keeps for the next coroutines.  Most touch 8 KiB. */
enum { POOL_MAX = 128 };

/* What a coroutine may be charged between two parks: some 100 us. */
enum { CHARGE_MAX = 128 };

static void co_entry(void);

/* ---- stacks ---- */

static int
stack_map(struct co *co)
{
	size_t guard = (size_t)sysconf(_SC_PAGESIZE);
	char *p = mmap(NULL, guard + CO_STACK_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	if (mprotect(p, guard, PROT_NONE) < 0) {
		munmap(p, guard + CO_STACK_SIZE);
		return -ENOMEM;
	}
	co->stack = p + guard;
	co->stack_bottom = co->stack;
	co->stack_size = CO_STACK_SIZE;
	announce_stack(co);
	return 0;
}

static void
stack_unmap(struct co *co)
{
	size_t guard = (size_t)sysconf(_SC_PAGESIZE);

	if (!co->stack)
		return;
	announce_stack_gone(co);
	munmap((char *)co->stack - guard, guard + CO_STACK_SIZE);
	co->stack = NULL;
}

/* ---- the pool ---- */

static struct co *
pool_take(struct co_pool *p)
{
	struct co *co = p->free;

	if (co) {
		p->free = co->next_free;
		p->n_free--;
	} else if ((co = p->bare)) {
		p->bare = co->next_free;
	}
	return co;
}

static void
pool_give(struct co_pool *p, struct co *co)
{
	if (co->stack && p->n_free >= POOL_MAX)
		stack_unmap(co);
	if (co->stack) {
		co->next_free = p->free;
		p->free = co;
		p->n_free++;
	} else {
		co->next_free = p->bare;
		p->bare = co;
	}
}

static struct co *
co_new(struct loop *l)
{
	struct co *co = calloc(1, sizeof(*co));

	if (!co)
		return NULL;
	co->loop = l;
	pthread_mutex_lock(&l->spare_lock);
	co->next_all = l->all;
	l->all = co;
	pthread_mutex_unlock(&l->spare_lock);
	return co;
}

static void
co_give_back(struct co *co)
{
	struct loop *l = co->loop;

	if (co->spawned || l != loop_tls) {
		pthread_mutex_lock(&l->spare_lock);
		pool_give(&l->spare, co);
		pthread_mutex_unlock(&l->spare_lock);
	} else {
		pool_give(&l->pool, co);
	}
}

/* Those that are spawned come from a pool of their own, since any thread may
 * take one, and return to it, since else it would always be empty. */
struct co *
co_get(struct loop *l, bool spawned)
{
	struct co *co;

	if (spawned) {
		pthread_mutex_lock(&l->spare_lock);
		co = pool_take(&l->spare);
		pthread_mutex_unlock(&l->spare_lock);
	} else {
		co = pool_take(&l->pool);
	}
	if (!co)
		co = co_new(l);
	if (!co)
		return NULL;
	co->spawned = spawned;
	if (!co->stack && stack_map(co) < 0) {
		co_give_back(co);
		return NULL;
	}
	ctx_init(&co->ctx, co->stack, CO_STACK_SIZE, co_entry);
	co->ended = false;
	atomic_store_explicit(&co->cancelled, false, memory_order_relaxed);
	atomic_store_explicit(&co->refs, 1, memory_order_relaxed);
	return co;
}

void
co_loop_init(struct loop *l)
{
	l->current = &l->root;
	l->root.loop = l;
	announce_thread(&l->root);
}

void
co_loop_trim(struct loop *l)
{
	for (struct co *co = l->all; co; co = co->next_all)
		stack_unmap(co);
	/* Free ones are now bare; those dropped while parked join them. */
	memset(&l->pool, 0, sizeof(l->pool));
	memset(&l->spare, 0, sizeof(l->spare));
	for (struct co *co = l->all; co; co = co->next_all) {
		atomic_store(&co->state, CO_RUNNING);
		pool_give(&l->spare, co);
	}
}

void
co_loop_free(struct loop *l)
{
	struct co *co;

	while ((co = l->all)) {
		l->all = co->next_all;
		stack_unmap(co);
		free(co);
	}
}

/* ---- switching ---- */

static void
co_switch(struct loop *l, struct co *from, struct co *to)
{
	l->current = to;
	l->switched_from = from;
	announce_switch(from, to);
	ctx_switch(&from->ctx, &to->ctx);
	announce_switched(from, l->switched_from);
}

/* Run co until it parks, yields or ends. */
static void
co_resume(struct co *co)
{
	struct loop *l = co->loop;

	co->caller = l->current;
	co->charged = 0;
	co_switch(l, l->current, co);
	if (!co->ended)
		return;
	announce_ended(co);
	if (atomic_fetch_sub(&co->refs, 1) == 1)
		co_give_back(co);
}

static void
co_resume_task(struct loop_task *t)
{
	co_resume(CONTAINER_OF(t, struct co, task));
}

static void
co_entry(void)
{
	struct co *co = loop_tls->current;

	announce_switched(co, loop_tls->switched_from);
	/* Drop a token that a late wake left for the previous user. */
	atomic_exchange_explicit(&co->state, CO_RUNNING, memory_order_acq_rel);
	co->fn(co->arg);
	if (co->group)
		co_group_child_ended(co->group);
	co->ended = true;
	co_switch(co->loop, co, co->caller);
	abort();
}

static void
co_setup(struct co *co, struct co_group *g, void (*fn)(void *), void *arg)
{
	co->group = g;
	co->fn = fn;
	co->arg = arg;
	co->task.fn = co_resume_task;
}

int
co_start_in(struct co_group *g, void (*fn)(void *), void *arg)
{
	struct co *co = co_get(loop_tls, false);

	if (!co)
		return -ENOMEM;
	co_setup(co, g, fn, arg);
	co_resume(co);
	return 0;
}

int
co_spawn_in(struct co_group *g, struct loop *l, void (*fn)(void *), void *arg)
{
	struct co *co = co_get(l, true);

	if (!co)
		return -ENOMEM;
	co_setup(co, g, fn, arg);
	loop_post(l, &co->task);
	return 0;
}

int
co_start(void (*fn)(void *), void *arg)
{
	return co_start_in(NULL, fn, arg);
}

int
co_spawn(struct loop *l, void (*fn)(void *), void *arg)
{
	return co_spawn_in(NULL, l, fn, arg);
}

struct co *
co_self(void)
{
	struct loop *l = loop_tls;

	return l && l->current != &l->root ? l->current : NULL;
}

/* ---- park and wake ---- */

void
co_park(void)
{
	struct co *co = loop_tls->current;
	int expected = CO_RUNNING;

	assert(co != &loop_tls->root);
	if (atomic_compare_exchange_strong(&co->state, &expected, CO_PARKED))
		co_switch(co->loop, co, co->caller);
	/* Take the token, and see what was written before it was given. */
	atomic_exchange(&co->state, CO_RUNNING);
}

void
co_wake(struct co *co)
{
	struct loop *l;

	if (atomic_exchange(&co->state, CO_TOKEN) != CO_PARKED)
		return;
	l = co->loop;
	if (l == loop_tls)
		task_queue_push(&l->runnable, &co->task);
	else
		loop_post(l, &co->task);
}

/* Both leave the token set: a wake that came meanwhile is not lost, and one
 * that did not come shows as a park that returns without cause. */
void
co_yield(void)
{
	struct co *co = loop_tls->current;

	atomic_exchange(&co->state, CO_TOKEN);
	task_queue_push(&co->loop->runnable, &co->task);
	co_switch(co->loop, co, co->caller);
}

void
co_charge(unsigned units)
{
	struct co *co = co_self();

	if (co && (co->charged += units) > CHARGE_MAX)
		co_yield();
}

void
co_defer(void)
{
	struct co *co = loop_tls->current;

	atomic_exchange(&co->state, CO_TOKEN);
	loop_defer(&co->task);
	co_switch(co->loop, co, co->caller);
}

/* ---- cancelling ---- */

void
co_cancel(struct co *co)
{
	atomic_store(&co->cancelled, true);
	co_wake(co);
}

bool
co_cancelled(void)
{
	struct co *co = co_self();

	return co && atomic_load_explicit(&co->cancelled, memory_order_acquire);
}

void
co_uncancel(void)
{
	atomic_store(&loop_tls->current->cancelled, false);
}

struct co *
co_ref(struct co *co)
{
	atomic_fetch_add(&co->refs, 1);
	return co;
}

void
co_unref(struct co *co)
{
	if (co && atomic_fetch_sub(&co->refs, 1) == 1)
		co_give_back(co);
}

/* ---- on another loop ---- */

struct call {
	void (*fn)(void *);
	void *arg;
	struct co *caller;
	atomic_bool done;
};

static void
call_run(void *arg)
{
	struct call *call = arg;
	struct co *caller = call->caller;

	call->fn(call->arg);
	atomic_store(&call->done, true);
	co_wake(caller);
}

int
co_call(struct loop *l, void (*fn)(void *), void *arg)
{
	struct call call = { .fn = fn, .arg = arg, .caller = co_self() };
	int r;

	/* On this loop too it has a stack of its own: deep recursions count on it. */
	r = l == loop_tls ? co_start(call_run, &call) : co_spawn(l, call_run, &call);
	while (r == 0 && !atomic_load(&call.done))
		co_park();
	return r;
}
