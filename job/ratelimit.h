/* SPDX-License-Identifier: Apache-2.0 */
/* job/ratelimit.h - no more than so many bytes a second, by several hands.
 *
 * Units      bytes, nanoseconds.
 * Context    any thread.
 */
#ifndef JOB_RATELIMIT_H
#define JOB_RATELIMIT_H

#include <pthread.h>
#include <stdint.h>

struct ratelimit {
	pthread_mutex_t lock;
	uint64_t speed;		/* a second; 0: no limit */
	int64_t free_at;	/* on clock_ns() */
};

void ratelimit_init(struct ratelimit *l);
void ratelimit_set(struct ratelimit *l, uint64_t speed);
/* May len bytes pass now?  0: yes, and they are counted.  Else come again after
 * so many nanoseconds, or when the speed was changed. */
int64_t ratelimit_take(struct ratelimit *l, uint64_t len);
/* How much to ask for at a time, so that work goes on evenly; UINT64_MAX without
 * a limit. */
uint64_t ratelimit_portion(struct ratelimit *l);

#endif
