/* SPDX-License-Identifier: Apache-2.0 */
/* How requests and changes of the graph keep out of each other's way.
 *
 * A request raises its loop's counter, then looks at the gate; a change closes
 * the gate, then looks at the counters.  All four are sequentially consistent,
 * so one of the two sees the other: either the request sees the closed gate and
 * steps back, or the change sees the request and waits for it.  A counter is
 * written by its loop only, so entering and leaving touch no shared cache line
 * but the gate, which nobody writes while nothing changes.
 *
 * Leaving lowers the counter, then looks at the gate to see whether somebody
 * waits for it; between the two the root may be freed.  That is why the memory
 * of a root is never given back: it goes to a pool of roots, gate and lock stay
 * valid there, and the worst that a late look does is a wake without cause. */
#include "block/root.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "aio/colock.h"
#include "aio/loop.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/change.h"
#include "block/driver.h"
#include "block/node.h"

enum {
	GATE_SHUTDOWN = 1,
	GATE_STOP     = 2,	/* a count of stops, from this bit up */
	CACHE_LINE    = 64,
};

struct root_slot {
	_Alignas(CACHE_LINE) _Atomic unsigned in_flight;
};

struct root {
	_Atomic unsigned gate;
	struct node *node;

	pthread_mutex_t lock;		/* of the rest of this paragraph */
	unsigned waiting;		/* requests in front of the gate */
	struct co_queue gate_opens;
	struct co_queue gets_idle;

	struct use use;
	const struct root_ops *ops;
	void *user;
	struct root *next_free;
	struct root_slot slots[LOOP_MAX];
};

static struct root *root_pool;

/* ---- requests ---- */

static struct root_slot *
own_slot(struct root *r)
{
	struct loop *l = loop_self();

	return &r->slots[l ? loop_index(l) : 0];
}

static void
wake_idle(struct root *r)
{
	pthread_mutex_lock(&r->lock);
	co_queue_wake_all(&r->gets_idle);
	pthread_mutex_unlock(&r->lock);
}

static void
leave(struct root *r, struct root_slot *s)
{
	unsigned n = atomic_load_explicit(&s->in_flight, memory_order_relaxed);

	atomic_store(&s->in_flight, n - 1);
	if (atomic_load(&r->gate))
		wake_idle(r);
}

static void
wait_for_gate(struct root *r)
{
	unsigned gate;

	pthread_mutex_lock(&r->lock);
	r->waiting++;
	while ((gate = atomic_load(&r->gate)) && !(gate & GATE_SHUTDOWN)) {
		struct co_waiter w;

		co_queue_join(&r->gate_opens, &w);
		pthread_mutex_unlock(&r->lock);
		co_queue_sleep(&r->gate_opens, &w);
		pthread_mutex_lock(&r->lock);
	}
	if (--r->waiting == 0)
		co_queue_wake_all(&r->gets_idle);
	pthread_mutex_unlock(&r->lock);
}

int
root_enter(struct root *r)
{
	struct root_slot *s = own_slot(r);

	for (;;) {
		unsigned gate, n;

		n = atomic_load_explicit(&s->in_flight, memory_order_relaxed);
		atomic_store(&s->in_flight, n + 1);
		gate = atomic_load(&r->gate);
		if (__builtin_expect(!gate, 1))
			return 0;
		leave(r, s);
		if (gate & GATE_SHUTDOWN)
			return -ESHUTDOWN;
		wait_for_gate(r);
	}
}

void
root_leave(struct root *r)
{
	leave(r, own_slot(r));
}

/* ---- changes ---- */

static bool
is_idle(struct root *r)
{
	for (unsigned i = 0; i < LOOP_MAX; i++)
		if (atomic_load(&r->slots[i].in_flight))
			return false;
	return true;
}

void
root_stop(struct root *r)
{
	unsigned gate = atomic_fetch_add(&r->gate, GATE_STOP);

	if (gate < GATE_STOP && r->ops && r->ops->stopped)
		r->ops->stopped(r->user);
}

void
root_resume(struct root *r)
{
	unsigned gate;

	pthread_mutex_lock(&r->lock);
	gate = atomic_fetch_sub(&r->gate, GATE_STOP) - GATE_STOP;
	if (gate < GATE_STOP)
		co_queue_wake_all(&r->gate_opens);
	co_queue_wake_all(&r->gets_idle);
	pthread_mutex_unlock(&r->lock);
	if (gate < GATE_STOP && r->ops && r->ops->resumed)
		r->ops->resumed(r->user);
}

/* Wait until done(r), looked at under the lock whenever something ended. */
static void
wait_until(struct root *r, bool (*done)(struct root *r))
{
	pthread_mutex_lock(&r->lock);
	while (!done(r)) {
		struct co_waiter w;

		co_queue_join(&r->gets_idle, &w);
		pthread_mutex_unlock(&r->lock);
		co_queue_sleep(&r->gets_idle, &w);
		pthread_mutex_lock(&r->lock);
	}
	pthread_mutex_unlock(&r->lock);
}

void
root_wait_idle(struct root *r)
{
	wait_until(r, is_idle);
}

void
root_shutdown(struct root *r)
{
	pthread_mutex_lock(&r->lock);
	atomic_fetch_or(&r->gate, GATE_SHUTDOWN);
	co_queue_wake_all(&r->gate_opens);
	pthread_mutex_unlock(&r->lock);
}

void
root_point(struct root *r, struct node *n)
{
	list_remove(&r->use.link);
	r->node = n;
	if (n)
		list_push(&n->users, &r->use.link);
}

/* ---- life ---- */

static struct root *
take_from_pool(void)
{
	struct root *r = root_pool;

	if (r) {
		root_pool = r->next_free;
		return r;
	}
	r = iov_alloc(CACHE_LINE, sizeof(*r));
	if (!r)
		return NULL;
	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->lock, NULL);
	return r;
}

static void
give_to_pool(struct root *r)
{
	atomic_store(&r->gate, 0);
	r->next_free = root_pool;
	root_pool = r;
}

int
root_new(struct node *n, const char *name, perm_set perm, perm_set shared,
	 const struct root_ops *ops, void *user, struct root **ret_root,
	 struct error **errp)
{
	struct root *r = take_from_pool();
	struct change c;
	int err;

	if (!r)
		return error_set(errp, "Cannot allocate memory");
	list_init(&r->use.link);
	r->use.name = name;
	r->use.perm = perm;
	r->use.shared = shared;
	r->use.is_root = true;
	r->ops = ops;
	r->user = user;
	r->node = NULL;
	/* The turn may be long in coming; n stays until then. */
	node_ref(n);
	err = change_begin_joining(&c, NULL, 0, &n, 1, errp);
	if (!err)
		err = change_link_root(&c, r, n, errp);
	if (!err)
		err = change_permit(&c, errp);
	err = change_end(&c, err);
	if (err < 0)
		give_to_pool(r);
	node_unref(n);
	if (err < 0)
		return -1;
	*ret_root = r;
	return 0;
}

/* No request in flight, none in front of the gate, no change that stopped us. */
static bool
is_abandoned(struct root *r)
{
	return !r->waiting && atomic_load(&r->gate) < GATE_STOP && is_idle(r);
}

void
root_free(struct root *r)
{
	struct change c;
	struct node *n;
	int err;

	if (!r)
		return;
	root_shutdown(r);
	root_wait_idle(r);
	err = change_begin(&c, NULL, 0, NULL);
	n = r->node;
	/* The node loses a user whatever happens; its file's locks are loosened
	 * where there is memory to work that out. */
	root_point(r, NULL);
	if (!err)
		err = change_touch(&c, n, NULL);
	if (!err)
		err = change_permit(&c, NULL);
	(void)change_end(&c, err);
	wait_until(r, is_abandoned);
	give_to_pool(r);
	node_unref(n);
}

int
root_set_perm(struct root *r, perm_set perm, perm_set shared, struct error **errp)
{
	struct change c;
	int err = change_begin(&c, NULL, 0, errp);

	if (!err)
		err = change_touch(&c, r->node, errp);
	if (!err)
		err = change_set_perm(&c, &r->use, perm, shared, errp);
	if (!err)
		err = change_permit(&c, errp);
	return change_end(&c, err);
}

/* ---- looking ---- */

struct node *
root_node(const struct root *r)
{
	return r->node;
}

struct root *
root_of_use(struct use *u)
{
	assert(u->is_root);
	return CONTAINER_OF(u, struct root, use);
}

char *
root_describe(const struct root *r)
{
	if (r->ops && r->ops->describe)
		return r->ops->describe(r->user);
	return strdup("an unnamed block device");
}

bool
root_is_job(const struct root *r)
{
	return r->ops && r->ops->is_job;
}

void
root_resized(struct root *r, uint64_t size)
{
	if (r->ops && r->ops->resized)
		r->ops->resized(r->user, size);
}
