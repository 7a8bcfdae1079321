/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/timer.h"
#include "base/cleanup.h"

enum { MS = 1000 * 1000 };
enum { CHILDREN = 40, ROUNDS = 300 };

static struct loop *
loop_number(unsigned i)
{
	i %= TEST_IO_LOOPS + 1;
	return i ? loop_io(i - 1) : loop_main();
}

/* Start n children over all loops and wait for them. */
static void
crowd(unsigned n, void (*fn)(void *), void *arg)
{
	struct co_group group;

	co_group_init(&group);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(co_group_spawn(&group, loop_number(i), fn, arg), 0);
	co_group_wait(&group);
}

/* ---- mutex ---- */

struct counter {
	struct co_mutex lock;
	struct co_rwlock rw;
	struct co_sem sem;
	uint64_t plain;		/* under the lock that is tested */
	atomic_int inside, readers_seen, most;
};

static void
counts_under_mutex(void *arg)
{
	struct counter *c = arg;

	for (unsigned i = 0; i < ROUNDS; i++) {
		co_mutex_lock(&c->lock);
		assert_int_equal(atomic_fetch_add(&c->inside, 1), 0);
		c->plain++;
		if (i % 16 == 0)
			co_yield();
		atomic_fetch_sub(&c->inside, 1);
		co_mutex_unlock(&c->lock);
	}
}

static void
mutex_crowd(void *arg)
{
	crowd(CHILDREN, counts_under_mutex, arg);
}

static void
test_mutex_excludes_across_loops(void **state)
{
	struct counter c = { 0 };

	run(mutex_crowd, &c);
	assert_int_equal(c.plain, CHILDREN * ROUNDS);
	assert_false(co_mutex_is_locked(&c.lock));
	assert_true(co_mutex_trylock(&c.lock));
	assert_false(co_mutex_trylock(&c.lock));
	co_mutex_unlock(&c.lock);
}

/* ---- order ---- */

struct order {
	struct co_mutex lock;
	struct co_queue queue;
	struct co_sem sem;
	char log[32];
	unsigned next;
};

static char
my_letter(struct order *o)
{
	return (char)('a' + o->next++);
}

static void
locks_and_logs(void *arg)
{
	struct order *o = arg;
	char letter = my_letter(o);

	co_mutex_lock(&o->lock);
	o->log[strlen(o->log)] = letter;
	co_mutex_unlock(&o->lock);
}

static void
mutex_order(void *arg)
{
	struct order *o = arg;
	struct co_group group;

	co_group_init(&group);
	co_mutex_lock(&o->lock);
	for (int i = 0; i < 5; i++)
		assert_int_equal(co_group_start(&group, locks_and_logs, o), 0);
	co_mutex_unlock(&o->lock);
	/* Handed over: we cannot barge in. */
	assert_false(co_mutex_trylock(&o->lock));
	co_mutex_lock(&o->lock);
	o->log[strlen(o->log)] = '!';
	co_mutex_unlock(&o->lock);
	co_group_wait(&group);
}

static void
test_mutex_serves_in_order_of_arrival(void **state)
{
	struct order o = { 0 };

	run(mutex_order, &o);
	assert_string_equal(o.log, "abcde!");
}

/* ---- rwlock ---- */

static void
reads(void *arg)
{
	struct counter *c = arg;

	co_rwlock_rdlock(&c->rw);
	atomic_fetch_add(&c->inside, 1);
	co_yield();
	atomic_fetch_sub(&c->inside, 1);
	co_rwlock_unlock(&c->rw);
}

static void
reads_together(void *arg)
{
	struct counter *c = arg;
	struct co_group group;

	co_group_init(&group);
	for (int i = 0; i < 3; i++)
		assert_int_equal(co_group_start(&group, reads, c), 0);
	assert_int_equal(c->inside, 3);
	co_rwlock_wrlock(&c->rw);
	assert_int_equal(c->inside, 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(co_group_start(&group, reads, c), 0);
	co_yield();
	assert_int_equal(c->inside, 0);
	co_rwlock_unlock(&c->rw);
	co_yield();
	assert_int_equal(c->inside, 3);
	co_group_wait(&group);
}

static void
test_readers_share_writers_do_not(void **state)
{
	struct counter c = { 0 };

	run(reads_together, &c);
	assert_int_equal(atomic_load(&c.rw.word), 0);
}

static void
writes_once(void *arg)
{
	struct counter *c = arg;

	co_rwlock_wrlock(&c->rw);
	c->plain = (uint64_t)atomic_load(&c->most);
	co_rwlock_unlock(&c->rw);
}

static void
reads_once(void *arg)
{
	struct counter *c = arg;

	co_rwlock_rdlock(&c->rw);
	atomic_fetch_add(&c->most, 1);
	co_rwlock_unlock(&c->rw);
}

static void
writer_between_readers(void *arg)
{
	struct counter *c = arg;
	struct co_group group;

	co_group_init(&group);
	co_rwlock_rdlock(&c->rw);
	assert_int_equal(co_group_start(&group, reads_once, c), 0);
	assert_int_equal(c->most, 1);
	c->plain = 99;
	assert_int_equal(co_group_start(&group, writes_once, c), 0);
	assert_int_equal(co_group_start(&group, reads_once, c), 0);
	assert_int_equal(c->most, 1);
	co_rwlock_unlock(&c->rw);
	co_group_wait(&group);
	assert_int_equal(c->plain, 1);
	assert_int_equal(c->most, 2);
}

static void
test_a_waiting_writer_goes_before_later_readers(void **state)
{
	struct counter c = { 0 };

	run(writer_between_readers, &c);
}

static void
reads_and_writes(void *arg)
{
	struct counter *c = arg;
	struct rng rng = { (uintptr_t)co_self() };

	for (unsigned i = 0; i < ROUNDS; i++) {
		if (rng_below(&rng, 4)) {
			uint64_t seen;

			co_rwlock_rdlock(&c->rw);
			seen = c->plain;
			if (i % 8 == 0)
				co_yield();
			assert_int_equal(seen, c->plain);
			co_rwlock_unlock(&c->rw);
		} else {
			co_rwlock_wrlock(&c->rw);
			assert_int_equal(atomic_fetch_add(&c->inside, 1), 0);
			c->plain++;
			if (i % 8 == 0)
				co_yield();
			atomic_fetch_sub(&c->inside, 1);
			co_rwlock_unlock(&c->rw);
		}
	}
}

static void
rwlock_crowd(void *arg)
{
	crowd(CHILDREN, reads_and_writes, arg);
}

static void
test_rwlock_holds_across_loops(void **state)
{
	struct counter c = { 0 };

	run(rwlock_crowd, &c);
	assert_int_equal(atomic_load(&c.rw.word), 0);
	assert_true(c.plain > 0);
}

/* ---- queue: a bounded buffer between producers and consumers ---- */

enum { BUFFER = 4 };

struct buffer {
	struct co_mutex lock;
	struct co_queue not_full, not_empty;
	unsigned n, produced, consumed;
	uint64_t sum_in, sum_out;
	unsigned slot[BUFFER];
	bool closed;
};

static void
produces(void *arg)
{
	struct buffer *b = arg;

	for (unsigned i = 0; i < ROUNDS; i++) {
		co_mutex_lock(&b->lock);
		while (b->n == BUFFER)
			co_queue_wait(&b->not_full, &b->lock);
		b->sum_in += b->produced;
		b->slot[b->n++] = b->produced++;
		co_mutex_unlock(&b->lock);
		co_queue_wake_one(&b->not_empty);
	}
}

static void
consumes(void *arg)
{
	struct buffer *b = arg;

	for (unsigned i = 0; i < ROUNDS; i++) {
		co_mutex_lock(&b->lock);
		while (b->n == 0)
			co_queue_wait(&b->not_empty, &b->lock);
		b->sum_out += b->slot[--b->n];
		b->consumed++;
		co_mutex_unlock(&b->lock);
		co_queue_wake_one(&b->not_full);
	}
}

static void
produce_and_consume(void *arg)
{
	struct co_group group;

	co_group_init(&group);
	for (unsigned i = 0; i < 12; i++) {
		assert_int_equal(co_group_spawn(&group, loop_number(i), produces, arg), 0);
		assert_int_equal(co_group_spawn(&group, loop_number(i + 1), consumes, arg), 0);
	}
	co_group_wait(&group);
}

static void
test_queues_lose_no_wake(void **state)
{
	struct buffer b = { 0 };

	run(produce_and_consume, &b);
	assert_int_equal(b.consumed, 12 * ROUNDS);
	assert_int_equal(b.sum_in, b.sum_out);
	assert_int_equal(b.n, 0);
}

/* ---- a queue under somebody else's lock ---- */

struct foreign {
	pthread_mutex_t lock;
	struct co_queue queue;
	unsigned tickets, taken;
};

static void
takes_ticket(void *arg)
{
	struct foreign *f = arg;

	pthread_mutex_lock(&f->lock);
	while (f->tickets == 0) {
		struct co_waiter w;

		co_queue_join(&f->queue, &w);
		pthread_mutex_unlock(&f->lock);
		co_queue_sleep(&f->queue, &w);
		pthread_mutex_lock(&f->lock);
	}
	f->tickets--;
	f->taken++;
	pthread_mutex_unlock(&f->lock);
}

static void *
gives_tickets(void *arg)
{
	struct foreign *f = arg;

	for (int i = 0; i < 500; i++) {
		pthread_mutex_lock(&f->lock);
		f->tickets++;
		pthread_mutex_unlock(&f->lock);
		co_queue_wake_one(&f->queue);
	}
	return NULL;
}

static void
tickets(void *arg)
{
	struct foreign *f = arg;
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, gives_tickets, f), 0);
	crowd(500, takes_ticket, f);
	pthread_join(t, NULL);
}

static void
test_queue_under_a_thread_mutex(void **state)
{
	struct foreign f = { .lock = PTHREAD_MUTEX_INITIALIZER };

	run(tickets, &f);
	assert_int_equal(f.taken, 500);
	assert_int_equal(f.tickets, 0);
}

/* ---- time limits and cancels ---- */

static void
time_limit(void *arg)
{
	struct co_queue q = { 0 };
	struct co_mutex m = { 0 };
	int64_t start = clock_ns();

	co_mutex_lock(&m);
	assert_int_equal(co_queue_timedwait(&q, &m, start + 10 * MS), -ETIMEDOUT);
	assert_true(clock_ns() - start >= 10 * MS);
	assert_true(co_mutex_is_locked(&m));
	assert_true(co_queue_empty(&q));
	assert_false(co_queue_wake_one(&q));
	co_mutex_unlock(&m);
}

static void
test_timed_wait_ends_and_leaves_the_queue(void **state)
{
	run(time_limit, NULL);
}

struct granted_late {
	struct co_queue queue;
	struct co *waiter;
	int result;
};

static void
waits_cancellable(void *arg)
{
	struct granted_late *g = arg;

	g->waiter = co_ref(co_self());
	g->result = co_queue_wait_cancellable(&g->queue, NULL);
}

static void
grant_then_cancel(void *arg)
{
	struct granted_late g = { .result = 1 };
	struct co_group group;

	co_group_init(&group);
	assert_int_equal(co_group_start(&group, waits_cancellable, &g), 0);
	co_queue_wake_one(&g.queue);
	co_cancel(g.waiter);
	co_group_wait(&group);
	assert_int_equal(g.result, 0);
	co_unref(g.waiter);

	assert_int_equal(co_group_start(&group, waits_cancellable, &g), 0);
	co_cancel(g.waiter);
	co_group_wait(&group);
	assert_int_equal(g.result, -ECANCELED);
	co_unref(g.waiter);
}

static void
test_a_wake_before_a_cancel_is_not_lost(void **state)
{
	run(grant_then_cancel, NULL);
}

/* Each child takes the mutex or is cancelled on the way; who fails to get it
 * must not be handed it, or everything stops. */
struct cancel_storm {
	struct co_mutex lock;
	struct co_sem sem;
	pthread_mutex_t guard;
	struct co *children[CHILDREN];
	unsigned n;
	atomic_uint got, cancelled;
	atomic_bool stop;
};

static void
locks_until_cancelled(void *arg)
{
	struct cancel_storm *s = arg;

	pthread_mutex_lock(&s->guard);
	s->children[s->n++] = co_ref(co_self());
	pthread_mutex_unlock(&s->guard);
	for (;;) {
		if (co_mutex_lock_cancellable(&s->lock) < 0)
			break;
		co_yield();
		co_mutex_unlock(&s->lock);
		if (co_sem_get_cancellable(&s->sem) < 0)
			break;
		atomic_fetch_add(&s->got, 1);
		co_yield();
		co_sem_put(&s->sem);
	}
	atomic_fetch_add(&s->cancelled, 1);
}

static void *
cancels_one_by_one(void *arg)
{
	struct cancel_storm *s = arg;
	unsigned done = 0;

	while (done < CHILDREN) {
		unsigned seen = atomic_load(&s->got);

		/* Let some go round between two cancels. */
		while (atomic_load(&s->got) < seen + 3 && done < CHILDREN - 4)
			sched_yield();
		pthread_mutex_lock(&s->guard);
		if (done < s->n)
			co_cancel(s->children[done++]);
		pthread_mutex_unlock(&s->guard);
	}
	return NULL;
}

static void
cancel_storm(void *arg)
{
	struct cancel_storm *s = arg;
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, cancels_one_by_one, s), 0);
	crowd(CHILDREN, locks_until_cancelled, s);
	pthread_join(t, NULL);
	for (unsigned i = 0; i < s->n; i++)
		co_unref(s->children[i]);
}

static void
test_a_storm_of_cancels_leaves_the_locks_whole(void **state)
{
	for (int i = 0; i < 5; i++) {
		struct cancel_storm s = { .guard = PTHREAD_MUTEX_INITIALIZER };

		co_sem_init(&s.sem, 2);
		run(cancel_storm, &s);
		assert_int_equal(s.cancelled, CHILDREN);
		assert_int_equal(atomic_load(&s.lock.word), 0);
		assert_true(co_sem_tryget(&s.sem) && co_sem_tryget(&s.sem));
		assert_false(co_sem_tryget(&s.sem));
	}
}

/* ---- semaphore ---- */

static void
enters_limited(void *arg)
{
	struct counter *c = arg;

	for (unsigned i = 0; i < 50; i++) {
		int inside;

		co_sem_get(&c->sem);
		inside = atomic_fetch_add(&c->inside, 1) + 1;
		if (inside > atomic_load(&c->most))
			atomic_store(&c->most, inside);
		co_yield();
		atomic_fetch_sub(&c->inside, 1);
		co_sem_put(&c->sem);
	}
}

static void
sem_crowd(void *arg)
{
	crowd(CHILDREN, enters_limited, arg);
}

static void
test_semaphore_limits_what_is_in_flight(void **state)
{
	struct counter c = { 0 };

	co_sem_init(&c.sem, 3);
	run(sem_crowd, &c);
	assert_true(c.most <= 3);
	for (int i = 0; i < 3; i++)
		assert_true(co_sem_tryget(&c.sem));
	assert_false(co_sem_tryget(&c.sem));
}

/* ---- group ---- */

struct tree {
	struct co_group group;
	atomic_uint nodes;
};

struct tree_node {
	struct tree *tree;
	unsigned depth;
};

static void
grows(void *arg)
{
	struct tree_node *n = arg;

	atomic_fetch_add(&n->tree->nodes, 1);
	for (unsigned i = 0; n->depth && i < 3; i++) {
		struct tree_node *child = malloc(sizeof(*child));

		assert_non_null(child);
		*child = (struct tree_node){ n->tree, n->depth - 1 };
		assert_int_equal(co_group_spawn(&n->tree->group, loop_number(i + n->depth), grows,
						child),
				 0);
	}
	free(n);
}

static void
tree(void *arg)
{
	struct tree *t = arg;
	struct tree_node *root = malloc(sizeof(*root));

	assert_non_null(root);
	*root = (struct tree_node){ t, 5 };
	co_group_init(&t->group);
	co_group_wait(&t->group);
	assert_int_equal(co_group_start(&t->group, grows, root), 0);
	co_group_wait(&t->group);
}

static void
test_group_waits_for_children_of_children(void **state)
{
	struct tree t = { 0 };

	run(tree, &t);
	assert_int_equal(t.nodes, 1 + 3 + 9 + 27 + 81 + 243);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(test_mutex_excludes_across_loops),
		CO_TEST(test_mutex_serves_in_order_of_arrival),
		CO_TEST(test_readers_share_writers_do_not),
		CO_TEST(test_a_waiting_writer_goes_before_later_readers),
		CO_TEST(test_rwlock_holds_across_loops),
		CO_TEST(test_queues_lose_no_wake),
		CO_TEST(test_queue_under_a_thread_mutex),
		CO_TEST(test_timed_wait_ends_and_leaves_the_queue),
		CO_TEST(test_a_wake_before_a_cancel_is_not_lost),
		CO_TEST(test_a_storm_of_cancels_leaves_the_locks_whole),
		CO_TEST(test_semaphore_limits_what_is_in_flight),
		CO_TEST(test_group_waits_for_children_of_children),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
