/* SPDX-License-Identifier: Apache-2.0 */
#include "block/ranges.h"

#include <stddef.h>
#include <string.h>

#include "base/bytes.h"

void
ranges_init(struct ranges *rs)
{
	pthread_mutex_init(&rs->lock, NULL);
	list_init(&rs->claims);
}

/* The oldest claim before c that c has to wait for. */
static struct claim *
in_front(struct ranges *rs, const struct claim *c)
{
	struct claim *e;

	LIST_FOREACH(e, &rs->claims, link) {
		if (e == c)
			break;
		if ((e->exclusive || c->exclusive) &&
		    ranges_overlap(e->off, e->len, c->off, c->len))
			return e;
	}
	return NULL;
}

void
ranges_claim(struct ranges *rs, struct claim *c, uint64_t off, uint64_t len,
	     bool exclusive)
{
	struct claim *e;

	memset(c, 0, sizeof(*c));
	c->off = off;
	c->len = len;
	c->exclusive = exclusive;
	pthread_mutex_lock(&rs->lock);
	list_append(&rs->claims, &c->link);
	while ((e = in_front(rs, c))) {
		struct co_waiter w;

		co_queue_join(&e->ended, &w);
		pthread_mutex_unlock(&rs->lock);
		/* e may be gone when we wake, but then the wake has come. */
		co_queue_sleep(&e->ended, &w);
		pthread_mutex_lock(&rs->lock);
	}
	pthread_mutex_unlock(&rs->lock);
}

void
ranges_release(struct ranges *rs, struct claim *c)
{
	pthread_mutex_lock(&rs->lock);
	list_remove(&c->link);
	co_queue_wake_all(&c->ended);
	pthread_mutex_unlock(&rs->lock);
}
