/* SPDX-License-Identifier: Apache-2.0 */
#include "job/ratelimit.h"

#include "aio/timer.h"
#include "base/bytes.h"

enum { SECOND = 1000000000, PORTIONS = 10 };

void
ratelimit_init(struct ratelimit *l)
{
	pthread_mutex_init(&l->lock, NULL);
	l->speed = 0;
	l->free_at = 0;
}

void
ratelimit_set(struct ratelimit *l, uint64_t speed)
{
	pthread_mutex_lock(&l->lock);
	l->speed = speed;
	/* What was taken at the old speed is forgiven. */
	l->free_at = 0;
	pthread_mutex_unlock(&l->lock);
}

/* How long len bytes take, at least 1, at most a century. */
static int64_t
duration(uint64_t speed, uint64_t len)
{
	double ns = (double)len * SECOND / (double)speed;

	return ns < 1 ? 1 : ns > 3e18 ? (int64_t)3e18 : (int64_t)ns;
}

int64_t
ratelimit_take(struct ratelimit *l, uint64_t len)
{
	int64_t wait = 0, now;

	pthread_mutex_lock(&l->lock);
	if (l->speed) {
		now = clock_ns();
		if (l->free_at > now)
			wait = l->free_at - now;
		else
			l->free_at = now + duration(l->speed, len);
	}
	pthread_mutex_unlock(&l->lock);
	return wait;
}

uint64_t
ratelimit_portion(struct ratelimit *l)
{
	uint64_t most = UINT64_MAX;

	pthread_mutex_lock(&l->lock);
	if (l->speed)
		most = max_u64(l->speed / PORTIONS, 1);
	pthread_mutex_unlock(&l->lock);
	return most;
}
