/* SPDX-License-Identifier: Apache-2.0 */
#include "block/give_up.h"

#include "aio/co.h"
#include "base/cleanup.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/node.h"

/* More of them than these are left for the next call. */
enum { LEAVES_MAX = 64 };

enum { TICK_NS = 1000 * 1000 * 1000 };

struct leaves {
	struct node *node[LEAVES_MAX];
	size_t n;
};

static void
gather(struct node *n, struct leaves *l)
{
	struct edge *e;

	for (size_t i = 0; i < l->n; i++)
		if (l->node[i] == n)
			return;
	if (n->driver->give_up && n->opened && l->n < LEAVES_MAX)
		l->node[l->n++] = node_pin(n);
	LIST_FOREACH(e, &n->edges, in_parent)
		gather(e->child, l);
}

bool
node_has_peer(const struct node *n)
{
	const struct edge *e;

	if (n->driver->give_up)
		return true;
	LIST_FOREACH(e, &n->edges, in_parent)
		if (node_has_peer(e->child))
			return true;
	return false;
}

static void
give_up_leaves(const struct leaves *l, int64_t silent_ns)
{
	for (size_t i = 0; i < l->n; i++) {
		l->node[i]->driver->give_up(l->node[i], silent_ns);
		node_unpin(l->node[i]);
	}
}

void
node_give_up(struct node *const *nodes, size_t count, int64_t silent_ns)
{
	struct leaves l = { .n = 0 };

	for (size_t i = 0; i < count; i++)
		gather(nodes[i], &l);
	give_up_leaves(&l, silent_ns);
}

static void
give_up_all(int64_t silent_ns)
{
	struct leaves l = { .n = 0 };
	struct node *n;

	LIST_FOREACH(n, &graph_nodes, in_all)
		gather(n, &l);
	give_up_leaves(&l, silent_ns);
}

static void
look(void *patience)
{
	struct give_up_patience *p = patience;

	if (p->node)
		node_give_up(&p->node, 1, p->silent_ns);
	else
		give_up_all(p->silent_ns);
	p->looking = false;
	if (p->waiting)
		co_wake(p->owner);
	else
		timer_set(&p->timer, clock_ns() + TICK_NS);
}

static void
tick(struct timer *t)
{
	struct give_up_patience *p = CONTAINER_OF(t, struct give_up_patience, timer);

	p->looking = true;
	if (co_start(look, p) < 0) {
		p->looking = false;
		timer_set(t, clock_ns() + TICK_NS);
	}
}

void
give_up_begin(struct give_up_patience *p, struct node *n, int64_t silent_ns)
{
	*p = (struct give_up_patience){
		.node = n, .silent_ns = silent_ns, .owner = co_self(), .timer.fn = tick,
	};
	timer_set(&p->timer, clock_ns() + TICK_NS);
}

void
give_up_end(struct give_up_patience *p)
{
	p->waiting = true;
	timer_cancel(&p->timer);
	while (p->looking)
		co_park();
}
